"""A model's geometry as GGUF metadata states it, and names taken apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from mimo_gguf.core.errors import GgufError
from mimo_gguf.core.model_source import Metadata, TensorInfo

STEP35: Final = "step35"  # the layout that carries MTP: MiMo's blocks in the terms of Step-3.5's graph
QWEN2: Final = "qwen2"  # the trunk alone, as every engine loads it
LAYOUTS: Final = (STEP35, QWEN2)

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of a model, in GGUF's words. `block_count` includes the MTP blocks, `n_mtp` of them at the end."""

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
    """The geometry of a `step35` or `qwen2` file.

    Raises:
        GgufError: a key is missing or the architecture is another one; `where` names the file in the message.
    """
    architecture = str(metadata["general.architecture"].value) if "general.architecture" in metadata else "unknown"
    if architecture not in LAYOUTS:
        raise GgufError(
            f"{where}: architecture {architecture!r}, not a MiMo file ({' or '.join(LAYOUTS)})",
            hint="convert the checkpoint with: mimo-gguf convert SRC",
        )

    def number(key: str, kind: Callable[[float], float] = int, default: float | None = None) -> float:
        entry = metadata.get(f"{architecture}.{key}")
        if entry is None and default is not None:
            return default
        if entry is None or not isinstance(entry.value, int | float):
            raise GgufError(
                f"{where}: metadata key {architecture}.{key} is missing or no number", hint="convert it again"
            )
        return kind(entry.value)

    head_count = int(number("attention.head_count"))
    embedding_length = int(number("embedding_length"))
    head_dim = embedding_length // max(head_count, 1)
    shapes = {info.name: info.shape for info in tensors}
    return Geometry(
        architecture=architecture,
        block_count=int(number("block_count")),
        n_mtp=int(number("nextn_predict_layers", default=0)),
        context_length=int(number("context_length")),
        embedding_length=embedding_length,
        feed_forward_length=int(number("feed_forward_length")),
        head_count=head_count,
        head_count_kv=int(number("attention.head_count_kv", default=head_count)),
        key_length=int(number("attention.key_length", default=head_dim)),
        value_length=int(number("attention.value_length", default=head_dim)),
        rope_freq_base=number("rope.freq_base", float, default=10000.0),
        rms_epsilon=number("attention.layer_norm_rms_epsilon", float),
        vocab_size=shapes["token_embd.weight"][0] if "token_embd.weight" in shapes else 0,
    )


def block_number(tensor_name: str) -> int | None:
    """`blk.7.attn_q.weight` -> 7; None for a tensor outside the blocks."""
    match = _BLOCK.fullmatch(tensor_name)
    return int(match[1]) if match else None


def tensor_group(tensor_name: str, n_trunk: int) -> str:
    """`embedding`, `trunk`, `mtp` or `output`: the part of the model a tensor belongs to."""
    block = block_number(tensor_name)
    if block is not None:
        return "trunk" if block < n_trunk else "mtp"
    return "embedding" if tensor_name.startswith("token_embd") else "output"
