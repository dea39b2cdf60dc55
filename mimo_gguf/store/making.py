"""Plans what a missing model takes, from headers alone, and makes it of its checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from mimo_gguf.conversion.hub import HubUnreachable, is_cached, parse_hub_id
from mimo_gguf.conversion.hub_repository import list_repository, missing_bytes
from mimo_gguf.conversion.open_model import STREAM, open_model
from mimo_gguf.core.errors import MimoGgufError
from mimo_gguf.core.log import LOGGER
from mimo_gguf.core.machine import available_cores
from mimo_gguf.core.model_source import ModelSource
from mimo_gguf.core.output_file import make_folder
from mimo_gguf.core.progress import Progress
from mimo_gguf.core.units import format_size
from mimo_gguf.fit.refusal import check_fit
from mimo_gguf.quantization.estimate import estimate_time
from mimo_gguf.quantization.kernels import have_to_compile
from mimo_gguf.quantization.output_state import is_complete
from mimo_gguf.quantization.plan import OutputRequest, QuantizeOptions, QuantizePlan, plan_quantization
from mimo_gguf.quantization.profiles import load_profile
from mimo_gguf.quantization.run import run_quantization
from mimo_gguf.store.choosing import TYPES, Chooser, made_into, source_sizes
from mimo_gguf.store.downloading import download_files, plan_download
from mimo_gguf.store.names import ModelName, file_type_of
from mimo_gguf.store.plan import MakingPlan

# Before the kernels are compiled nothing can be timed. Measured on two cores: 40 s for 7.83 B parameters to Q4_K_M.
_USUAL_S_PER_PARAMETER: Final = 10e-9
_COMPILING_S: Final = 30.0


def plan_missing(name: ModelName, place: Path, chooser: Chooser, *, force: bool = False) -> MakingPlan:
    """Plans the file of a model that is not here yet, from headers alone.

    Args:
        place: the folder of the file.
        force: whether a model is planned that does not fit into the memory.

    Raises:
        DoesNotFit: the type that was asked for, or every type, needs more memory than is free, and `force` is False.
        CheckpointError, HubError, UsageError: as `open_model`.
    """
    hub_id = parse_hub_id(name.source) if name.kind == "hub" else None
    if hub_id is None:
        return _plan_making(name, place, chooser, name.source, force=force)
    if hub_id.site != "huggingface":
        return _plan_making(name, place, chooser, name.source, to_come=_everything, force=force)
    try:
        repository = list_repository(hub_id)
    except HubUnreachable:
        if not is_cached(hub_id):
            raise
        return _plan_making(name, place, chooser, name.source, force=force)
    if not repository.ending_in(".safetensors") and repository.ending_in(".gguf"):
        return plan_download(repository, name, place, chooser, force=force)

    def to_come(source_bytes: int) -> int:
        return min(source_bytes, missing_bytes(repository, repository.ending_in(".safetensors")))

    return _plan_making(name, place, chooser, str(repository.pinned), to_come=to_come, force=force)


def _everything(source_bytes: int) -> int:
    return source_bytes


def _plan_making(
    name: ModelName,
    place: Path,
    chooser: Chooser,
    source: str,
    *,
    to_come: Callable[[int], int] | None = None,
    force: bool,
) -> MakingPlan:
    """Plans the file of a checkpoint.

    Args:
        source: what `open_model` opens.
        to_come: gives the bytes that have to be downloaded, of those that the source has; None: all are here.
    """
    types = TYPES if name.file_type is None else (load_profile(name.file_type).name,)
    with open_model(source, headers_only=to_come is not None) as headers:
        solution = chooser.among(made_into(source_sizes(headers), types))
        if not force:
            check_fit(solution.plan)
        file_type = solution.file_type if solution.plan.fits else types[0]
        work = _quantize_plan(headers, place, file_type)
        source_bytes = sum(stamp.size_bytes for stamp in headers.files)  # read as wholes, for their digests
        computing_s = _computing_s(work, weights_here=to_come is None)
    missing = 0 if to_come is None else to_come(source_bytes)
    (output,) = work.outputs
    return MakingPlan(
        name=replace(name, file_type=file_type),
        is_chosen=name.file_type is None,
        path=output.path,
        written_bytes=output.n_bytes,
        download_bytes=missing,
        computing_s=computing_s,
        fit=solution.plan,
        source=source,
        notes=headers.notes,
    )


def make(plan: MakingPlan, progress: Progress) -> Path:
    """Makes the file. The models folder is ours: a file that was made of another state of the source is replaced.

    Raises:
        CheckpointError, HubError, OutputError, WeightsError: as the conversion.
    """
    if plan.repository is not None:
        return download_files(plan, progress)
    with open_model(plan.source, reading=STREAM) as weights:
        work = _quantize_plan(weights, plan.path.parent, plan.file_type)
        (output,) = work.outputs
        LOGGER.info("%s: making %s, %s", plan.name, output.path, format_size(output.n_bytes))
        make_folder(output.path.parent)
        report = run_quantization(replace(work, options=replace(work.options, force=True)), progress)
        LOGGER.info("%s: made in %.1f s", output.path, report.seconds)
    return output.path


def is_current(name: ModelName, path: Path) -> bool:
    """Whether a complete file at its place is what would be made of the checkpoint folder as it is now."""
    try:
        with open_model(name.source) as source:
            (output,) = _quantize_plan(source, path.parent, file_type_of(path)).outputs
            return output.path == path and is_complete(output, source)
    except MimoGgufError:  # making it will say what is wrong
        return False


def _quantize_plan(source: ModelSource, place: Path, file_type: str) -> QuantizePlan:
    path = place / f"{source.name}-{file_type}.gguf"
    return plan_quantization(source, [OutputRequest(load_profile(file_type), path)], QuantizeOptions())


def _computing_s(work: QuantizePlan, *, weights_here: bool) -> float:
    """The seconds of quantizing: timed on this machine, or guessed before the kernels are compiled."""
    if have_to_compile():
        return _COMPILING_S + _USUAL_S_PER_PARAMETER * work.outputs[0].n_parameters * 2 / available_cores()
    return estimate_time(work, weights_here=weights_here).total_s
