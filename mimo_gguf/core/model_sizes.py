"""What a model says about its memory: geometry and tensors, from a GGUF's header alone."""

from __future__ import annotations

from dataclasses import dataclass

from mimo_gguf.core.geometry import STEP35, Geometry, read_geometry
from mimo_gguf.core.gguf_file import GgufFile
from mimo_gguf.core.model_source import TensorInfo
from mimo_gguf.core.runnable import check_measurable


@dataclass(frozen=True, slots=True, eq=False)  # an identity, so that what follows from it can be cached by it
class ModelSizes:
    """What the model says about its memory: geometry, and every tensor's name, type and shape."""

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
    """Sizes of an opened GGUF.

    Raises:
        GgufError: not a MiMo file, or one that says what no model can be.
    """
    check_measurable(model)
    infos = model.infos()
    return ModelSizes(str(model.path), read_geometry(model.metadata, infos, where=str(model.path)), infos)
