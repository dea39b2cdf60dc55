"""Finds a GGUF that can be run for a checkpoint folder or a Hub id; the first time, makes it.

This module stands above conversion, quantization and fit, because it joins the three.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.log import LOGGER
from mimo_gguf.core.paths import path_kind, program_cache
from mimo_gguf.core.units import format_size

if TYPE_CHECKING:
    from mimo_gguf.core.model_sizes import ModelSizes
    from mimo_gguf.core.model_source import ModelSource
    from mimo_gguf.fit.solver import Candidate, Solution

# The types that a checkpoint is made into, worst first: those that `mimo-gguf fit --auto` chooses among. F16 doubles
# the bytes read per token and is not noticeably better.
TYPES: Final = ("Q4_K_M", "Q6_K", "Q8_0")
MODELS_VARIABLE: Final = "MIMO_GGUF_MODELS"


def models_folder() -> Path:
    """The folder of the files that are made of checkpoints: `MIMO_GGUF_MODELS`, or one in the user's cache."""
    if given := os.environ.get(MODELS_VARIABLE):
        return Path(given).expanduser()
    return program_cache() / "models"


def find_model_file(
    source: str,
    quantization: str | None = None,
    revision: str | None = None,
    folder: str | Path | None = None,
    n_parallel: int = 1,
    load: Mapping[str, Any] | None = None,
) -> Path:
    """Finds the GGUF of a checkpoint, or makes it now; the log says what is done.

    An interrupted call can be repeated: download and quantization go on where they stopped.

    Args:
        source: a checkpoint folder, or `org/name` or `org/name@revision` on the Hub.
        quantization: the file type; None means the best that fits, or the smallest if none does.
        revision: a branch, tag or commit on the Hub.
        folder: the folder of the GGUF; None means `models_folder()`.
        n_parallel: number of conversations at a time, for the plan.
        load: the arguments that `Model.load` will get, for the plan.

    Raises:
        UsageError: neither a folder nor a Hub id, or a type that does not exist.
        CheckpointError, HubError, OutputError, WeightsError: as the conversion.
    """
    from mimo_gguf.conversion.hub import parse_hub_id
    from mimo_gguf.quantization.profiles import load_profile

    name = None if quantization is None else load_profile(quantization).name
    is_folder = path_kind(source) == "folder"
    if not is_folder:
        source = source if revision is None or "@" in source else f"{source}@{revision}"
        if parse_hub_id(source) is None:
            raise UsageError(f"{source}: no such file or folder", hint="give a GGUF, a checkpoint folder or a Hub id")
    place = (models_folder() if folder is None else Path(folder).expanduser()) / _folder_of(source, is_folder)
    choose = _Chooser(n_parallel, load or {})
    if not is_folder and (made := choose.among_made(_made(place, name))):
        LOGGER.info("%s: using %s, which was made from it earlier", source, made)
        return made
    return _make(source, place, name, choose)


def _folder_of(source: str, is_folder: bool) -> Path:
    """A relative folder for each checkpoint: named after a Hub id, or after the path of a folder."""
    if not is_folder:
        return Path("hub") / source.replace("/", "--")
    path = Path(source).resolve()
    return Path("local", path.drive.replace(":", ""), *path.parts[1:])


def _made(place: Path, name: str | None) -> list[Path]:
    """Finds the complete files in `place`, of this type or of any, best first."""
    wanted = reversed(TYPES) if name is None else (name,)
    found = [path for each in wanted for path in sorted(place.glob(f"*-{each}.gguf"))]
    return [path for path in found if not path.with_name(f".{path.name}.journal").exists()]


def _make(source: str, place: Path, name: str | None, choose: _Chooser) -> Path:
    """Makes the file, unless it is complete already. The folder is ours: a file of another checkpoint is replaced."""
    from mimo_gguf.conversion.open_model import open_model
    from mimo_gguf.core.output_file import make_folder
    from mimo_gguf.quantization.output_state import is_complete
    from mimo_gguf.quantization.plan import OutputRequest, QuantizeOptions, plan_quantization
    from mimo_gguf.quantization.profiles import load_profile
    from mimo_gguf.quantization.run import run_quantization

    if name is None:
        with open_model(source, headers_only=True) as headers:
            name = choose.type_for(headers)
    with open_model(source) as weights:
        path = place / f"{weights.name}-{name}.gguf"
        plan = plan_quantization(weights, [OutputRequest(load_profile(name), path)], QuantizeOptions())
        (output,) = plan.outputs
        if is_complete(output, weights):
            LOGGER.info("%s: using %s, which was made from it earlier", source, path)
            return path
        LOGGER.info("%s: making %s, %s", source, path, format_size(output.n_bytes))
        make_folder(place)
        report = run_quantization(replace(plan, options=replace(plan.options, force=True)))
        LOGGER.info("%s: made in %.1f s", path, report.seconds)
    return path


class _Chooser:
    """Chooses among files that exist or could be made, by planning the run."""

    def __init__(self, n_parallel: int, load: Mapping[str, Any]) -> None:
        self._n_parallel = n_parallel
        self._load = load

    def type_for(self, source: ModelSource) -> str:
        """Chooses the best file type that fits, or the smallest if none does."""
        solution = self._solve(made_into(_sizes(source), TYPES))
        LOGGER.info("%s: %s is the best type that fits", source.label, solution.file_type)
        return solution.file_type if solution.plan.fits else TYPES[0]

    def among_made(self, paths: Sequence[Path]) -> Path | None:
        """Chooses the first of these files that fits; None if none does."""
        from mimo_gguf.core.errors import MimoGgufError
        from mimo_gguf.core.gguf_file import read_gguf
        from mimo_gguf.core.model_sizes import model_sizes
        from mimo_gguf.fit.solver import candidate_of

        for path in paths:
            try:
                if self._solve([candidate_of(model_sizes(read_gguf(path)), path.name)]).plan.fits:
                    return path
            except MimoGgufError as error:
                LOGGER.warning("%s: %s", path, error.message)
        return None

    def _solve(self, candidates: Sequence[Candidate]) -> Solution:
        from mimo_gguf.core.kv_cache import parse_kv_type
        from mimo_gguf.fit.solver import Wishes, solve
        from mimo_gguf.hardware.devices import list_devices

        load = self._load
        kv_type = load.get("kv_type")
        wishes = Wishes(
            n_ctx=load.get("n_ctx"),
            kv_type=None if kv_type is None else parse_kv_type(kv_type),
            mtp=load.get("mtp"),
            n_ubatch=load.get("n_ubatch"),
            n_gpu_layers=load.get("n_gpu_layers"),
            n_seq_max=self._n_parallel,
            exact=bool(load.get("exact")),
        )
        return solve(candidates, load.get("devices") or list_devices(), wishes)


def made_into(model: ModelSizes, types: Sequence[str]) -> list[Candidate]:
    """What `model` becomes as each of the types, smallest first.

    Raises:
        UsageError: a type that does not exist.
    """
    from mimo_gguf.fit.solver import candidate_of
    from mimo_gguf.quantization.profiles import load_profile
    from mimo_gguf.quantization.type_choice import choose_types

    candidates = []
    for profile in map(load_profile, types):
        chosen = tuple(choice.info for choice in choose_types(profile, model.geometry, model.tensors))
        sizes = replace(model, label=f"{model.label}-{profile.name}.gguf", tensors=chosen)
        candidates.append(candidate_of(sizes, profile.name))
    return sorted(candidates, key=lambda candidate: candidate.model.file_bytes)


def _sizes(source: ModelSource) -> ModelSizes:
    from mimo_gguf.core.geometry import read_geometry
    from mimo_gguf.core.model_sizes import ModelSizes

    infos = tuple(tensor.info for tensor in source.tensors)
    return ModelSizes(source.name, read_geometry(source.metadata, infos, where=source.label), infos)
