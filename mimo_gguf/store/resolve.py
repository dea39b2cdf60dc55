"""Finds the GGUF that a name means. The first time it is made of the checkpoint, or downloaded; later it is there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mimo_gguf.conversion.hub import HubUnreachable
from mimo_gguf.core.errors import OutputError, UsageError
from mimo_gguf.core.file_lock import held
from mimo_gguf.core.log import LOGGER
from mimo_gguf.core.output_file import make_folder
from mimo_gguf.core.progress import Progress, Silence
from mimo_gguf.fit.solver import Wishes
from mimo_gguf.hardware.devices import Device
from mimo_gguf.store.folder import MAKING, complete_files, kept_models, mark_used, models_folder, place_of
from mimo_gguf.store.names import ModelName, file_type_of, no_such_model, parse_model_name

if TYPE_CHECKING:
    from mimo_gguf.store.choosing import Chooser
    from mimo_gguf.store.plan import MakingPlan


def resolve_model(
    model: str | Path,
    wishes: Wishes | None = None,
    *,
    devices: Sequence[Device] | None = None,
    quantization: str | None = None,
    revision: str | None = None,
    folder: str | Path | None = None,
    force: bool = False,
    on_plan: Callable[[MakingPlan], None] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Finds the GGUF that `model` means, or makes it now. An interrupted call can be repeated: it goes on.

    Two processes that need the same file do not both make it: one waits for the other.

    Args:
        model: a GGUF file, which is returned as it is, a checkpoint folder, or `org/name` or `org/name@revision` on
            the Hub. To the latter two `:TYPE` may be added. The name of a model in the models folder will do, too.
        wishes: what is decided about the run, for the choice of the type; None means nothing.
        devices: the GPUs, then the host; None means those of this machine.
        quantization: the file type; None means the best that fits.
        revision: a branch, tag or commit on the Hub.
        folder: the models folder; None means `models_folder()`.
        force: whether a model that does not fit into the memory is made.
        on_plan: called with the plan before anything is downloaded or written; what it raises ends the call.
        progress: receives how far the run is.

    Raises:
        UsageError: neither a file nor a folder nor a Hub id, or a type that does not exist.
        DoesNotFit: the model needs more memory than is free. Nothing was downloaded.
        CheckpointError, HubError, OutputError, WeightsError: as the conversion.
    """
    name = parse_model_name(str(model))
    if name is not None and name.kind == "file":
        with contextlib.suppress(UsageError):  # a configuration that cannot be read does not concern a file
            if Path(model).absolute().is_relative_to(models_folder(folder).absolute()):
                mark_used(Path(model))
        return Path(model)
    root = models_folder(folder)
    if name is None:
        kept = _kept(str(model), root)
        mark_used(kept)
        return kept
    from mimo_gguf.store.choosing import Chooser  # imports the quantization, for which a file need not wait

    name = _with_options(name, quantization, revision)
    chooser, place, progress = Chooser(wishes or Wishes(), devices), place_of(name, root), progress or Silence()
    path = _there(name, place, chooser)
    if path is None:
        path = _made_now(name, place, chooser, force=force, on_plan=on_plan, progress=progress)
    else:
        LOGGER.info("%s: using %s, which was made from it earlier", name, path)
    mark_used(path)
    return path


def _kept(text: str, root: Path) -> Path:
    """The model in the models folder whose file has this name, without its ending."""
    there = [model for model in kept_models(root) if model.is_complete]
    for model in there:
        if model.answers_to(text):
            return model.path
    raise no_such_model(text, tuple(model.name for model in there))


def _with_options(name: ModelName, quantization: str | None, revision: str | None) -> ModelName:
    if revision is not None and name.kind == "hub" and "@" not in name.source:
        name = replace(name, source=f"{name.source}@{revision}")
    from mimo_gguf.quantization.profiles import load_profile

    file_type = quantization or name.file_type
    if file_type is None:
        return name
    try:
        return replace(name, file_type=load_profile(file_type).name)
    except UsageError:
        if name.kind == "folder":
            raise
        return replace(name, file_type=file_type.upper())  # others' files on the Hub have types of their own


def _there(name: ModelName, place: Path, chooser: Chooser) -> Path | None:
    """The file that was made earlier and is still what would be made; None if there is none, or none that fits.

    The Hub is not asked. A type that was asked for is taken whether it fits or not.
    """
    found = _made(name, place)
    return next(iter(found), None) if name.file_type else chooser.among_files(found)


def _made(name: ModelName, place: Path) -> list[Path]:
    """The complete files of a name, best first: the types that we make, then others by size."""
    from mimo_gguf.store.choosing import TYPES
    from mimo_gguf.store.making import is_current

    def worth(path: Path) -> tuple[int, int]:
        file_type = file_type_of(path)
        return TYPES.index(file_type) if file_type in TYPES else -1, path.stat().st_size

    found = [path for path in complete_files(place) if name.file_type in (None, file_type_of(path))]
    if name.kind == "folder":
        found = [path for path in found if is_current(name, path)]
    return sorted(found, key=worth, reverse=True)


def _made_now(
    name: ModelName,
    place: Path,
    chooser: Chooser,
    *,
    force: bool,
    on_plan: Callable[[MakingPlan], None] | None,
    progress: Progress,
) -> Path:
    """Makes the file, unless another process does so meanwhile.

    If the Hub cannot be asked, the smallest of the files that are here is taken, although it does not seem to fit.
    """
    from mimo_gguf.store.making import make, plan_missing
    from mimo_gguf.store.plan import check_room

    if name.kind == "hub":
        progress.note(f"looking at {name.source} on the Hub")
    try:
        plan = plan_missing(name, place, chooser, force=force)
    except HubUnreachable:
        if found := _made(name, place):
            return found[-1]
        raise
    check_room(plan)
    if on_plan is not None:
        on_plan(plan)

    def note_waiting() -> None:
        LOGGER.info("another process is making %s; waiting for it", plan.name)
        progress.note(f"another process is making {plan.name}; waiting for it")

    make_folder(place)
    try:
        with held(place / MAKING, note_waiting):
            return next(iter(_made(plan.name, place)), None) or make(plan, progress)
    except OSError as error:
        hint = "choose another place with --models-dir"
        raise OutputError(f"{place}: {error.strerror or error}", hint=hint) from None
