"""The sizes that decide a model's memory: geometry and tensors, from a GGUF's header alone."""

from __future__ import annotations

from dataclasses import dataclass

from mimo_gguf.core.geometry import STEP35, Geometry, read_geometry
from mimo_gguf.core.gguf_file import GgufFile
from mimo_gguf.core.model_source import TensorInfo
from mimo_gguf.core.runnable import check_measurable


@dataclass(frozen=True, slots=True, eq=False)  # compared by identity, which makes it a fast key of caches
class ModelSizes:
    """The sizes that decide a model's memory: geometry, and every tensor's name, type and shape."""

    label: str
    geometry: Geometry
    tensors: tuple[TensorInfo, ...]

    @property
    def has_mtp(self) -> bool:
        """Whether llama.cpp can run an MTP context on it."""
        return self.geometry.architecture == STEP35 and self.geometry.n_mtp > 0

    @property
    def file_bytes(self) -> int:
        return sum(info.n_bytes for info in self.tensors)


def model_sizes(model: GgufFile) -> ModelSizes:
    """The sizes of the model in an opened GGUF.

    Raises:
        GgufError: not a MiMo file, or one with numbers that no model can have.
    """
    check_measurable(model)
    infos = model.infos()
    return ModelSizes(str(model.path), read_geometry(model.metadata, infos, where=str(model.path)), infos)
