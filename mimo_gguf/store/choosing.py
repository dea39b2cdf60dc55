"""Chooses the file type that the memory takes, by planning the run of files that exist or could be made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from mimo_gguf.conversion.open_model import is_gguf, open_model
from mimo_gguf.core.errors import MimoGgufError
from mimo_gguf.core.geometry import read_geometry
from mimo_gguf.core.ggml_types import ftype_name
from mimo_gguf.core.gguf_file import read_gguf
from mimo_gguf.core.log import LOGGER
from mimo_gguf.core.model_sizes import ModelSizes, model_sizes
from mimo_gguf.core.model_source import Metadata, ModelSource
from mimo_gguf.core.published_model import PUBLISHED_ID, published_model
from mimo_gguf.fit.solver import Candidate, Solution, Wishes, candidate_of, most_context, solve
from mimo_gguf.hardware.devices import Device, list_devices
from mimo_gguf.quantization.profiles import load_profile
from mimo_gguf.quantization.type_choice import choose_types

# The types that a checkpoint is made into, worst first: those that `mimo-gguf fit --auto` chooses among. F16 doubles
# the bytes read per token and is not noticeably better.
TYPES: Final = ("Q4_K_M", "Q6_K", "Q8_0")


@dataclass(frozen=True, slots=True)
class Chooser:
    """Chooses for one run.

    Attributes:
        wishes: what the user has decided about the run.
        devices: the GPUs, then the host; None means those of this machine.
    """

    wishes: Wishes
    devices: Sequence[Device] | None = None

    def among(self, candidates: Sequence[Candidate]) -> Solution:
        """The best of the candidates, worst type first. If none fits, the plan with the fewest missing bytes."""
        wishes = self.wishes
        if wishes.n_ctx == 0:
            wishes = replace(wishes, n_ctx=most_context(candidates[0].model, wishes))
        return solve(candidates, self.devices or list_devices(), wishes)

    def among_files(self, paths: Iterable[Path]) -> Path | None:
        """The first of these files that fits; None if none does. A file that cannot be read is named in the log."""
        for path in paths:
            try:
                if self.among([candidate_of(model_sizes(read_gguf(path)), path.name)]).plan.fits:
                    return path
            except MimoGgufError as error:
                LOGGER.warning("%s: %s", path, error.message)
        return None


def made_into(model: ModelSizes, types: Sequence[str]) -> list[Candidate]:
    """What `model` becomes as each of the types, smallest first.

    Raises:
        UsageError: a type that does not exist.
    """
    candidates = []
    for profile in map(load_profile, types):
        chosen = tuple(choice.info for choice in choose_types(profile, model.geometry, model.tensors))
        sizes = replace(model, label=f"{model.label}-{profile.name}.gguf", tensors=chosen)
        candidates.append(candidate_of(sizes, profile.name))
    return sorted(candidates, key=lambda candidate: candidate.model.file_bytes)


def candidates_of(src: str | None, types: Sequence[str], usual: Sequence[str]) -> tuple[list[Candidate], Metadata]:
    """The files `src` is or could be made into, smallest first, and the metadata they share.

    Args:
        src: a GGUF, a checkpoint or a Hub id; None is MiMo-7B as published, which has no metadata.
        types: the file types to make; if there are none, a GGUF stays as it is, and anything else becomes the `usual`.

    Raises:
        GgufError, CheckpointError, HubError, UsageError: as the source and the types demand.
    """
    if src is None:
        return made_into(replace(published_model(), label=PUBLISHED_ID.partition("/")[2]), types or usual), {}
    if is_gguf(src) and not types:
        file = read_gguf(src)
        number = file.value("general.file_type")
        name = ftype_name(number) if isinstance(number, int) else ""
        return [candidate_of(model_sizes(file), name)], file.metadata
    with open_model(src, headers_only=True) as source:
        return made_into(source_sizes(source), types or usual), source.metadata


def source_sizes(source: ModelSource) -> ModelSizes:
    """The sizes of a source, from its headers alone."""
    infos = tuple(tensor.info for tensor in source.tensors)
    return ModelSizes(source.name, read_geometry(source.metadata, infos, where=source.label), infos)
