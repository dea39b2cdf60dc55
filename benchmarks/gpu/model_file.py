"""A GGUF of MiMo-7B's full geometry with random weights, written straight as its quantized types in seconds.

One stretch of random blocks is made for each ggml type and repeated, so a file is written as fast as the disk takes it.
The values have a mean of zero and a deviation of about 0.02, so logits stay finite. Nothing in the text means anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from gguf import GGML_QUANT_SIZES
from numpy.typing import NDArray

from mimo_gguf.core.geometry import STEP35
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.gguf_header import lay_out
from tests import full_size

_N_BLOCKS: Final = 1 << 14  # of one stretch
_DEVIATION: Final = 0.02


def write_random_model(path: Path, file_type: str = "Q4_K_M", n_trunk: int = full_size.N_TRUNK) -> Path:
    """Writes the file, if it is not there in full already.

    Args:
        file_type: one of `tests.full_size.FILE_TYPES`.
        n_trunk: blocks of the trunk; fewer make a small file for a rehearsal.
    """
    infos = full_size.tensors(STEP35, file_type, n_trunk=n_trunk)
    placed = lay_out(full_size.metadata(STEP35, n_trunk=n_trunk), infos)
    if path.is_file() and path.stat().st_size == placed.n_bytes:
        return path
    random = np.random.default_rng(1)
    stretches = {kind: _stretch(kind, random).data for kind in {info.ggml_type: 0 for info in infos}}
    with path.open("wb") as file:
        file.write(placed.header)
        for info, offset in zip(infos, placed.offsets, strict=True):
            file.seek(offset)
            stretch, left = stretches[info.ggml_type], info.n_bytes
            while left:
                left -= file.write(stretch[: min(left, len(stretch))])
        file.truncate(placed.n_bytes)
    return path


def _stretch(kind: GgmlType, random: np.random.Generator) -> NDArray[np.uint8]:
    """Blocks of one type as bytes, one after the other."""
    n_weights, n_bytes = GGML_QUANT_SIZES[kind]
    if kind in (GgmlType.F32, GgmlType.F16):
        kept = np.float32 if kind is GgmlType.F32 else np.float16
        mean = 1.0 if kind is GgmlType.F32 else 0.0  # norms and biases are the only F32 tensors
        return random.normal(mean, _DEVIATION, 1 << 20).astype(kept).view(np.uint8)
    blocks = random.integers(0, 256, (_N_BLOCKS, n_bytes), dtype=np.uint8)
    if kind is GgmlType.Q4_K:  # d, dmin, 12 bytes of scales and minima (6 bits each), 128 of nibbles
        step = _DEVIATION / (33 * 4.6)  # nibbles 0 to 15 have a deviation of 4.6 around 7.5
        blocks[:, 0:2], blocks[:, 2:4] = _half(step), _half(7.5 * step)
        blocks[:, 4:12], blocks[:, 12:16] = 33, 0x11  # 33 as scale and as minimum of all eight groups
    elif kind is GgmlType.Q6_K:  # 192 bytes of quants, 16 scales, d
        blocks[:, 192:208], blocks[:, 208:210] = 16, _half(_DEVIATION / (16 * 18.5))
    elif kind is GgmlType.Q8_0:  # d, 32 quants
        blocks[:, 0:2] = _half(_DEVIATION / 74)
    else:
        raise ValueError(f"no random blocks of {kind.name} with {n_weights} weights")
    return blocks.reshape(-1)


def _half(value: float) -> NDArray[np.uint8]:
    """The two bytes of a scale."""
    return np.array([value], np.float16).view(np.uint8)
