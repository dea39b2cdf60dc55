"""A model's geometry as GGUF metadata states it, and the parts of a tensor's name."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mimo_gguf.core.errors import GgufError
from mimo_gguf.core.model_source import Metadata, TensorInfo

STEP35: Final = "step35"  # the layout that carries MTP: MiMo's blocks in the terms of Step-3.5's graph
QWEN2: Final = "qwen2"  # the trunk alone, as every engine loads it
LAYOUTS: Final = (STEP35, QWEN2)
MOST_BLOCKS: Final = 512  # LLAMA_MAX_LAYERS

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of a model, in GGUF's words. `block_count` includes the `n_mtp` MTP blocks, which are the last."""

    architecture: str
    block_count: int
    n_mtp: int
    context_length: int
    embedding_length: int
    feed_forward_length: int
    head_count: int
    head_count_kv: int
    key_length: int
    value_length: int
    rope_freq_base: float
    rms_epsilon: float
    vocab_size: int

    @property
    def n_trunk(self) -> int:
        """Blocks of the trunk."""
        return self.block_count - self.n_mtp

    @property
    def n_gqa(self) -> int:
        """Query heads per KV head."""
        return self.head_count // self.head_count_kv


def read_geometry(metadata: Metadata, tensors: Sequence[TensorInfo], *, where: str) -> Geometry:
    """The geometry of a `step35` or `qwen2` file. Every number is finite and in its range.

    Raises:
        GgufError: a key is missing or not a sensible number, a tensor is of a block that is not counted, or the
            architecture is another one; `where` names the file in the message.
    """
    architecture = str(metadata["general.architecture"].value) if "general.architecture" in metadata else "unknown"
    if architecture not in LAYOUTS:
        raise GgufError(
            f"{where}: architecture {architecture[:40]!r}, not a MiMo file ({' or '.join(LAYOUTS)})",
            hint="convert the checkpoint with: mimo-gguf convert SRC",
        )
    numbers = _Numbers(metadata, architecture, where)
    head_count = numbers.count("attention.head_count")
    embedding_length = numbers.count("embedding_length")
    head_dim = max(embedding_length // head_count, 1)
    block_count = numbers.count("block_count", most=MOST_BLOCKS)
    for info in tensors:
        if (block_number(info.name) or 0) >= block_count:
            raise GgufError(f"{where}: tensor {info.name}, with a block_count of {block_count}", hint=_HINT)
    shapes = {info.name: info.shape for info in tensors}
    return Geometry(
        architecture=architecture,
        block_count=block_count,
        n_mtp=numbers.count("nextn_predict_layers", default=0, least=0, most=block_count - 1),
        context_length=numbers.count("context_length"),
        embedding_length=embedding_length,
        feed_forward_length=numbers.count("feed_forward_length"),
        head_count=head_count,
        head_count_kv=numbers.count("attention.head_count_kv", default=head_count),
        key_length=numbers.count("attention.key_length", default=head_dim),
        value_length=numbers.count("attention.value_length", default=head_dim),
        rope_freq_base=numbers.real("rope.freq_base", default=10000.0),
        rms_epsilon=numbers.real("attention.layer_norm_rms_epsilon"),
        vocab_size=shapes["token_embd.weight"][0] if "token_embd.weight" in shapes else 0,
    )


_HINT: Final = "convert the checkpoint again: mimo-gguf convert SRC"


@dataclass(frozen=True, slots=True)
class _Numbers:
    """The numbers under a layout's keys, which are untrusted."""

    metadata: Metadata
    architecture: str
    where: str

    def count(self, key: str, *, default: int | None = None, least: int = 1, most: int = (1 << 31) - 1) -> int:
        value = self._number(key, default)
        if not least <= value <= most or value != int(value):
            raise self._error(key, f"{value}, not a whole number from {least} to {most}")
        return int(value)

    def real(self, key: str, default: float | None = None) -> float:
        value = float(self._number(key, default))
        if not math.isfinite(value):
            raise self._error(key, f"{value}, not a finite number")
        return value

    def _number(self, key: str, default: float | None) -> float:
        entry = self.metadata.get(f"{self.architecture}.{key}")
        value = default if entry is None else entry.value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._error(key, "missing or not a number")
        return value

    def _error(self, key: str, what: str) -> GgufError:
        return GgufError(f"{self.where}: metadata key {self.architecture}.{key} is {what}", hint=_HINT)


def block_number(tensor_name: str) -> int | None:
    """The number in a name like `blk.7.attn_q.weight`; None for a tensor outside the blocks."""
    match = _BLOCK.fullmatch(tensor_name)
    return int(match[1]) if match else None


def tensor_group(tensor_name: str, n_trunk: int) -> str:
    """`embedding`, `trunk`, `mtp` or `output`: the part of the model a tensor belongs to."""
    block = block_number(tensor_name)
    if block is not None:
        return "trunk" if block < n_trunk else "mtp"
    return "embedding" if tensor_name.startswith("token_embd") else "output"
