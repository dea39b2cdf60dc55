"""A MiMo model whose weights are read as float32, matrix by matrix, from a checkpoint or a GGUF of any type."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.core.data_file import FileBuffer
from mimo_gguf.core.errors import GgufError
from mimo_gguf.core.geometry import STEP35, Geometry, read_geometry
from mimo_gguf.core.model_rules import model_fault
from mimo_gguf.core.model_source import ModelSource, SourceTensor, TensorInfo
from mimo_gguf.reference.decode import Floats, decode_rows
from mimo_gguf.reference.products import Products, best_products

EMBEDDING: Final = "token_embd.weight"
HEAD: Final = "output.weight"
FINAL_NORM: Final = "output_norm.weight"

_STRIP_BYTES: Final = 1 << 23  # of stored weights that are decoded at a time
CHUNK_WEIGHTS: Final = 1 << 25  # of a matrix that is read in parts: 128 MiB of float32


@dataclass(frozen=True, slots=True)
class Rotation:
    """How a block rotates its queries and keys: the leading dimensions of each head, and the base of the angles."""

    n_dims: int
    freq_base: float


class ReferenceModel:
    """A model's geometry and its weights, which are read anew at every call. Close it after use.

    Its methods are for one thread at a time.

    Attributes:
        products: how rows are multiplied with its matrices.
    """

    def __init__(self, source: ModelSource, products: Products | None = None) -> None:
        infos = [tensor.info for tensor in source.tensors]
        fault = model_fault(source.metadata, infos, where=source.label) or _rope_fault(source)
        if fault is not None:
            raise GgufError(f"{source.label}: {fault}", hint="convert the checkpoint again: mimo-gguf convert SRC")
        self.source: Final = source
        self.products: Final = products or best_products()
        self.geometry: Final[Geometry] = read_geometry(source.metadata, infos, where=source.label)
        self._tensors = {tensor.info.name: tensor for tensor in source.tensors}
        self._buffer = FileBuffer(_STRIP_BYTES + max(info.row_bytes for info in infos))
        self._close = ExitStack()

    def __enter__(self) -> ReferenceModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files that `open_reference` opened."""
        self._close.close()

    @property
    def n_trunk_blocks(self) -> int:
        return self.geometry.n_trunk

    @property
    def n_mtp_blocks(self) -> int:
        return self.geometry.n_mtp

    def has(self, name: str) -> bool:
        """Whether the model has a tensor of this GGUF name."""
        return name in self._tensors

    def info(self, name: str) -> TensorInfo:
        """What the tensor of a GGUF name is."""
        return self._tensors[name].info

    def weights(self, name: str) -> Floats:
        """The matrix of a GGUF name, float32 [rows, columns].

        Raises:
            CheckpointError, GgufError: its data ends early.
        """
        return self.rows(name, 0, self._tensors[name].info.n_rows)

    def vector(self, name: str) -> Floats:
        """The vector (norm gains, biases) of a GGUF name, float32 [n].

        Raises:
            CheckpointError, GgufError: its data ends early.
        """
        return self.weights(name).reshape(-1)

    def rows(self, name: str, first: int, last: int) -> Floats:
        """Rows [first, last) of a matrix, float32 [last - first, columns].

        Raises:
            CheckpointError, GgufError: its data ends early.
        """
        tensor = self._tensors[name]
        info = tensor.info
        out = np.empty((last - first, info.n_columns), np.float32)
        n_strip = max(1, _STRIP_BYTES // info.row_bytes)
        for start in range(first, last, n_strip):
            end = min(start + n_strip, last)
            raw = self._read(tensor, start, end)
            decode_rows(raw, info.ggml_type, out[start - first : end - first])
        return out

    def chunks(self, name: str, n_weights: int = CHUNK_WEIGHTS) -> Iterator[tuple[int, Floats]]:
        """A matrix in parts of at most `n_weights`, or of one row: the number of the first row of each, and its rows.

        Raises:
            CheckpointError, GgufError: its data ends early.
        """
        info = self._tensors[name].info
        n_chunk = max(1, n_weights // info.n_columns)
        for first in range(0, info.n_rows, n_chunk):
            yield first, self.rows(name, first, min(first + n_chunk, info.n_rows))

    def head_name(self, mtp_block: int | None = None) -> str:
        """The matrix that gives logits: for the trunk, or for a block of MTP (its GGUF number) if that has its own."""
        own = f"blk.{mtp_block}.nextn.shared_head_head.weight"
        if mtp_block is not None and self.has(own):
            return own
        return HEAD if self.has(HEAD) else EMBEDDING

    def rotation(self, block: int) -> Rotation:
        """The rotation of a block. The step35 layout states two, and which block has which.

        Source: https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/models/step35.cpp
        """
        full = self._value("rope.dimension_count", self.geometry.key_length)
        if self.geometry.architecture != STEP35:
            return Rotation(int(full), self.geometry.rope_freq_base)
        if self._value("attention.sliding_window_pattern", ())[block]:
            freq_base = self._value("rope.freq_base_swa", self.geometry.rope_freq_base)
            return Rotation(int(self._value("rope.dimension_count_swa", full)), float(freq_base))
        return Rotation(int(full) // 2, self.geometry.rope_freq_base)

    def _value(self, key: str, default: Any) -> Any:
        entry = self.source.metadata.get(f"{self.geometry.architecture}.{key}")
        return default if entry is None else entry.value

    def _read(self, tensor: SourceTensor, first: int, last: int) -> NDArray[np.uint8]:
        row_bytes = tensor.info.row_bytes
        raw = self._buffer.at(tensor.offset + first * row_bytes, (last - first) * row_bytes)
        raw = raw.reshape(last - first, row_bytes)
        tensor.read_rows(first, last, raw)
        return raw


def open_reference(source: str | Path | ModelSource, *, products: Products | None = None) -> ReferenceModel:
    """The model in a checkpoint folder, a GGUF file of any type, or a Hub id, which is downloaded.

    Args:
        source: a name, or an open source, which stays open when the model is closed.
        products: how rows are multiplied with its matrices; None means by torch's GPU if there is one, else by numpy.

    Raises:
        GgufError: a broken file, or one that is not a MiMo model.
        CheckpointError, HubError: no such checkpoint, or one that cannot be converted.
    """
    if isinstance(source, ModelSource):
        return ReferenceModel(source, products)
    from mimo_gguf.conversion.open_model import open_model

    with ExitStack() as stack:
        model = ReferenceModel(stack.enter_context(open_model(str(source))), products)
        model._close = stack.pop_all()
        return model


def _rope_fault(source: ModelSource) -> str | None:
    """What the reference does not compute although llama.cpp does: stretched positions; None if there is nothing."""
    for key, value in source.metadata.items():
        if ".rope.scal" in key and value.value not in (1.0, "none", False):
            return f"metadata key {key} stretches positions, which the reference does not compute"
    return None
