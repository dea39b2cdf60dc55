"""Models that the Hub has as GGUF files: they are used as they are. Which file is chosen by the plan."""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from mimo_gguf.conversion.hub_repository import HubFile, HubRepository, download, write_beginning
from mimo_gguf.core.errors import GgufError, UsageError
from mimo_gguf.core.gguf_file import SPLIT_NAME, read_gguf, read_part
from mimo_gguf.core.log import LOGGER
from mimo_gguf.core.model_sizes import ModelSizes, model_sizes
from mimo_gguf.core.near_matches import name_hint
from mimo_gguf.core.progress import Job, Progress
from mimo_gguf.fit.refusal import check_fit
from mimo_gguf.fit.solver import candidate_of
from mimo_gguf.quantization.profiles import list_profiles
from mimo_gguf.store.choosing import Chooser, made_into
from mimo_gguf.store.names import ModelName, file_type_of
from mimo_gguf.store.plan import MakingPlan

_NO_MODEL: Final = re.compile(r"mmproj|imatrix", re.IGNORECASE)  # what lies beside models: image encoders, statistics
_FLOATS: Final = frozenset({"F32", "F16", "BF16"})  # larger and not noticeably better than Q8_0
_FIRST_READ_BYTES: Final = 1 << 20  # most headers: the vocabulary of 151,680 tokens takes 6 MB
_MOST_READ_BYTES: Final = 1 << 26


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model among the files of a repository: one file, or all parts of a split one."""

    file_type: str
    files: tuple[HubFile, ...]

    @property
    def n_bytes(self) -> int:
        return sum(file.n_bytes for file in self.files)


def models_in(repository: HubRepository) -> list[HubModel]:
    """The models in a repository, smallest first. A split one whose parts are not all there is left out."""
    groups: dict[str, list[HubFile]] = defaultdict(list)
    for file in repository.ending_in(".gguf"):
        if not _NO_MODEL.search(file.base_name):
            split = SPLIT_NAME.fullmatch(file.name)
            groups[f"{split['stem']} {split['count']}" if split else file.name].append(file)
    found = []
    for files in groups.values():
        split = SPLIT_NAME.fullmatch(files[0].name)
        if split is None or len(files) == int(split["count"]):
            ordered = tuple(sorted(files, key=lambda file: file.name))
            found.append(HubModel(file_type_of(ordered[0].base_name), ordered))
    return sorted(found, key=lambda model: model.n_bytes)


def plan_download(
    repository: HubRepository, name: ModelName, place: Path, chooser: Chooser, *, force: bool
) -> MakingPlan:
    """Plans which of a repository's GGUF files is used: of the type that was asked for, or the best that fits.

    Raises:
        UsageError: it has no such type, or no model at all.
        GgufError: the file is not a MiMo model.
        DoesNotFit: it needs more memory than is free, and `force` is False.
    """
    models = models_in(repository)
    if not models:
        raise UsageError(f"{name.source}: its GGUF files are no models", hint="name another repository")
    if name.file_type is not None:
        models = _of_type(models, name)
    with tempfile.TemporaryDirectory() as folder:
        chosen, sizes = _choose(repository, models, chooser, Path(folder))
    label = chosen.files[0].base_name
    fit = chooser.among([candidate_of(replace(sizes, label=label), chosen.file_type)]).plan
    if not force:
        check_fit(fit)
    return MakingPlan(
        name=replace(name, file_type=chosen.file_type or None),
        is_chosen=name.file_type is None and len(models) > 1,
        path=place / label,
        written_bytes=chosen.n_bytes,
        download_bytes=chosen.n_bytes,
        computing_s=0.0,
        fit=fit,
        repository=repository,
        files=chosen.files,
    )


def _of_type(models: Sequence[HubModel], name: ModelName) -> list[HubModel]:
    found = [model for model in models if model.file_type == name.file_type]
    if not found:
        types = dict.fromkeys(model.file_type for model in models if model.file_type)
        raise UsageError(f"{name.source}: has no file of type {name.file_type}", hint=name_hint(str(name), types))
    return found


def _choose(
    repository: HubRepository, models: Sequence[HubModel], chooser: Chooser, folder: Path
) -> tuple[HubModel, ModelSizes]:
    """The best model that fits, or the smallest, and its sizes. The smallest file's header stands for the others'.

    Files of one repository are types of one model. So only two headers are read: of the smallest, and the chosen.
    """
    smallest = read_sizes(repository, models[0], folder)
    known = {profile.name for profile in list_profiles()} - _FLOATS
    usual = [model for model in models if model.file_type in known]
    if len(models) == 1 or not usual:
        return models[0], smallest
    candidates = [replace(made_into(smallest, [model.file_type])[0], name=model.files[0].name) for model in usual]
    solution = chooser.among(candidates)
    wanted = solution.file_type if solution.plan.fits else usual[0].files[0].name
    (chosen,) = (model for model in usual if model.files[0].name == wanted)
    return chosen, smallest if chosen is models[0] else read_sizes(repository, chosen, folder)


def read_sizes(repository: HubRepository, model: HubModel, folder: Path) -> ModelSizes:
    """The sizes of a model on the Hub, of whose files only the headers are read.

    Args:
        folder: where they are kept meanwhile: files with a header, and a hole in place of the weights.

    Raises:
        GgufError: not GGUF, or not a MiMo model.
        HubError: as `fetch`.
    """
    for file in model.files:
        n_bytes = _FIRST_READ_BYTES
        while not _write_header(repository, file, folder / file.base_name, n_bytes):
            n_bytes *= 8
    return model_sizes(read_gguf(folder / model.files[0].base_name))


def _write_header(repository: HubRepository, file: HubFile, path: Path, n_bytes: int) -> bool:
    """Writes the beginning of a file; gives whether its whole header is within."""
    write_beginning(repository, file, path, n_bytes)
    is_all = n_bytes >= min(file.n_bytes, _MOST_READ_BYTES)
    try:
        return read_part(path).data_offset <= n_bytes or is_all
    except GgufError as error:
        if is_all:
            raise GgufError(f"{file.name} on the Hub: {error.message.rpartition(': ')[2]}", hint=error.hint) from None
        return False


def download_files(plan: MakingPlan, progress: Progress) -> Path:
    """Downloads the files of a plan, checked against the Hub's digests. It resumes.

    Raises:
        HubError: as `download`.
        OutputError: they cannot be written.
    """
    assert plan.repository is not None
    paths = [plan.path.with_name(file.base_name) for file in plan.files]
    done = [file.n_bytes if path.is_file() else 0 for file, path in zip(plan.files, paths, strict=True)]
    earlier = list(done)
    progress.start([Job(path.name, file.n_bytes) for file, path in zip(plan.files, paths, strict=True)])
    try:
        for number, (file, path) in enumerate(zip(plan.files, paths, strict=True)):
            if done[number]:
                continue

            def note(n_bytes: int, number: int = number) -> None:
                if not done[number]:  # the first call tells what an earlier run had left
                    earlier[number] = n_bytes
                done[number] = n_bytes
                progress.update(tuple(done), tuple(earlier))

            LOGGER.info("%s: downloading %s", plan.name, path)
            download(plan.repository, file, path, note)
    finally:
        progress.finish()
    return paths[0]
