"""Plans what a quantization run will write, from headers alone; `--dry-run` shows it.

A plan is frozen and complete: it has every tensor's type with its reason, and every byte's place. Running it decides
nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from gguf import GGML_QUANT_VERSION, GGUFValueType
from numpy.typing import NDArray

from mimo_gguf.core.certificate_room import CERTIFICATE_KEY, empty_room
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.geometry import Geometry, read_geometry
from mimo_gguf.core.ggml_types import FLOAT_TYPES
from mimo_gguf.core.gguf_header import GgufLayout, lay_out
from mimo_gguf.core.model_source import Metadata, MetaValue, ModelSource, SourceTensor, TensorInfo, string, uint32
from mimo_gguf.core.units import listed
from mimo_gguf.core.version import __version__
from mimo_gguf.quantization.chunks import CHUNK_WEIGHTS
from mimo_gguf.quantization.importance import ImportanceMatrix, check_columns, count_idle
from mimo_gguf.quantization.kernel_loading import LLAMA_CPP
from mimo_gguf.quantization.profiles import Profile
from mimo_gguf.quantization.type_choice import (
    EMBEDDING,
    OUTPUT,
    ImportanceGiven,
    TypeChoice,
    TypeOptions,
    check_options,
    choose_types,
)

# Metadata that says where a file comes from. Digests have a fixed width, so that they can be filled in at the end.
SOURCE_DIGEST: Final = "mimo_gguf.source.digest"
TABLE_DIGEST: Final = "mimo_gguf.tensors.table"
TENSORS_DIGEST: Final = "mimo_gguf.tensors.digest"
SEARCH: Final = "mimo_gguf.search"
DIGEST_CHUNK: Final = "mimo_gguf.tensors.digest_chunk"
_UNKNOWN_DIGEST: Final = "0" * 32


@dataclass(frozen=True, slots=True)
class OutputRequest:
    """One file to make: its profile and where it goes."""

    profile: Profile
    path: Path


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """The choices that the user has about a run.

    Attributes:
        types: rules about types, besides the profile's.
        importance: an importance matrix, already read.
        n_threads: how many kernels run at once; None means one per core.
        split_max_bytes: size of the largest file; larger outputs become llama.cpp's split files.
        force: whether existing outputs are replaced.
        allow_requantize: whether a quantized source may be quantized again.
        search: "llama.cpp" for llama.cpp's own blocks, or "wide" for a search with smaller errors.
        chunk_weights: weights in a chunk; recorded in the file, because its digests depend on it.
    """

    types: TypeOptions = field(default_factory=TypeOptions)
    importance: ImportanceMatrix | None = None
    n_threads: int | None = None
    split_max_bytes: int | None = None
    force: bool = False
    allow_requantize: bool = False
    search: str = LLAMA_CPP
    chunk_weights: int = CHUNK_WEIGHTS


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor of one output: what it comes from, what it becomes, and why."""

    source: SourceTensor
    info: TensorInfo
    why: str
    importance: NDArray[np.float32] | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class PartPlan:
    """One file of an output: tensors [first, last) of the output's list, and where each byte lies."""

    path: Path
    metadata: Metadata = field(repr=False)
    first: int
    last: int
    layout: GgufLayout = field(repr=False)


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """One output: a file, or the parts of a split one.

    Attributes:
        notes: lines for the user, about fallbacks and missing importance entries.
        chunk_weights: weights in the chunks that its digests are made of.
    """

    profile: Profile
    path: Path
    tensors: tuple[TensorPlan, ...]
    parts: tuple[PartPlan, ...]
    notes: tuple[str, ...]
    chunk_weights: int

    @property
    def n_bytes(self) -> int:
        """The size of all its files in bytes."""
        return sum(part.layout.n_bytes for part in self.parts)

    @property
    def n_parameters(self) -> int:
        """The number of weights in all its tensors."""
        return sum(tensor.info.n_elements for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """The average size of a weight in bits, without headers."""
        return 8 * sum(tensor.info.n_bytes for tensor in self.tensors) / max(1, self.n_parameters)


@dataclass(frozen=True, slots=True)
class QuantizePlan:
    """Everything a run will do: one read of `source` makes all `outputs`."""

    source: ModelSource
    outputs: tuple[OutputPlan, ...]
    options: QuantizeOptions

    def as_json(self) -> dict[str, Any]:
        """The plan as a JSON document."""
        return {
            "source": {
                "label": self.source.label,
                "name": self.source.name,
                "n_bytes": sum(tensor.info.n_bytes for tensor in self.source.tensors),
                "n_tensors": len(self.source.tensors),
            },
            "outputs": [_output_json(output) for output in self.outputs],
        }


def plan_quantization(
    source: ModelSource, requests: Sequence[OutputRequest], options: QuantizeOptions = QuantizeOptions()
) -> QuantizePlan:
    """Plans what a run over `source` will write. It reads no weights and touches no files.

    Raises:
        UsageError: two outputs with one path, an output that is the source, options that match nothing in it, types
            that need an importance matrix, or a quantized source without `allow_requantize`.
        GgufError: a source of another architecture, or importance values that would spoil a matrix.
    """
    _check_paths(source, requests)
    infos = [tensor.info for tensor in source.tensors]
    geometry = read_geometry(source.metadata, infos, where=source.label)
    check_options(options.types, geometry, infos, source.label)
    if options.importance is not None and not any(info.name in options.importance.columns for info in infos):
        raise UsageError(
            f"{options.importance.path}: has no entry for any tensor of {source.label}", hint="it is of another model"
        )
    outputs = tuple(_plan_output(source, geometry, request, options) for request in requests)
    return QuantizePlan(source, outputs, options)


def _check_paths(source: ModelSource, requests: Sequence[OutputRequest]) -> None:
    if not requests:
        raise UsageError("no output asked for", hint="name a file type with --type")
    paths = [request.path.absolute() for request in requests]
    for path in paths:
        if paths.count(path) > 1:
            raise UsageError(f"{path}: two outputs of this run have the same path", hint="name each type once")
        if any(_is_same_file(path, stamp.path) for stamp in source.files):
            raise UsageError(f"{path}: is the source itself", hint="choose another name with -o")


def _is_same_file(path: Path, other: Path) -> bool:
    """Whether both paths lead to one file, however they are spelled and through whatever links."""
    try:
        return path.samefile(other)
    except (OSError, ValueError):
        return False


def _plan_output(
    source: ModelSource, geometry: Geometry, request: OutputRequest, options: QuantizeOptions
) -> OutputPlan:
    importance = options.importance
    choices = choose_types(
        request.profile,
        geometry,
        [tensor.info for tensor in source.tensors],
        options.types,
        ImportanceGiven(importance is not None, importance.columns.keys() if importance else frozenset()),
    )
    _check_lacking(request.profile, choices, importance)
    if not options.allow_requantize:
        _check_requantizing(source, choices)
    tensors = tuple(
        TensorPlan(tensor, choice.info, choice.why, _importance_for(tensor.info, choice, importance))
        for tensor, choice in zip(source.tensors, choices, strict=True)
    )
    metadata = _metadata(source, request.profile, tensors, options)
    parts = _plan_parts(request.path, metadata, [tensor.info for tensor in tensors], options.split_max_bytes)
    return OutputPlan(
        request.profile,
        request.path,
        tensors,
        parts,
        (*source.notes, *_notes(choices, tensors, importance)),
        options.chunk_weights,
    )


def _importance_for(
    source: TensorInfo, choice: TypeChoice, importance: ImportanceMatrix | None
) -> NDArray[np.float32] | None:
    if importance is None or choice.info.ggml_type is source.ggml_type or choice.info.ggml_type in FLOAT_TYPES:
        return None
    return check_columns(importance, source.name, source.n_columns)


def _check_lacking(profile: Profile, choices: Sequence[TypeChoice], importance: ImportanceMatrix | None) -> None:
    lacking = [choice.info for choice in choices if choice.lacks_importance]
    if not lacking:
        return
    names = listed([info.name for info in lacking])
    if importance is None:
        raise UsageError(
            f"{profile.name} needs an importance matrix (for {names})", hint="give one with --imatrix, or use Q2_K"
        )
    raise UsageError(
        f"{importance.path}: no importance entries for {names}, which {profile.name} cannot do without",
        hint="make the matrix again with more text, or give these another type with --tensor-type",
    )


def _check_requantizing(source: ModelSource, choices: Sequence[TypeChoice]) -> None:
    for tensor, choice in zip(source.tensors, choices, strict=True):
        if tensor.info.ggml_type not in FLOAT_TYPES and tensor.info.ggml_type is not choice.info.ggml_type:
            raise UsageError(
                f"{source.label}: {tensor.info.name} is {tensor.info.ggml_type.name} already; quantizing it again to "
                f"{choice.info.ggml_type.name} adds a second loss",
                hint="quantize the checkpoint or its BF16 file, or add --allow-requantize",
            )


def _metadata(
    source: ModelSource,
    profile: Profile,
    tensors: Sequence[TensorPlan],
    options: QuantizeOptions,
) -> dict[str, MetaValue]:
    """The source's metadata, then ours, in one fixed order, so that equal weights make equal files."""
    ours = {"general.file_type": uint32(int(profile.file_type))}
    if any(tensor.info.ggml_type not in FLOAT_TYPES for tensor in tensors):
        ours["general.quantization_version"] = uint32(GGML_QUANT_VERSION)
    if options.importance is not None:
        ours |= options.importance.metadata()
    if options.search != LLAMA_CPP:
        ours[SEARCH] = string(options.search)
    ours |= {
        "mimo_gguf.version": string(__version__),
        "mimo_gguf.profile": string(profile.name),
        "mimo_gguf.source.name": string(source.name.encode(errors="replace").decode()),  # a name may not be UTF-8
        SOURCE_DIGEST: string(_UNKNOWN_DIGEST),
        TABLE_DIGEST: string(_UNKNOWN_DIGEST),
        TENSORS_DIGEST: string(_UNKNOWN_DIGEST),
        DIGEST_CHUNK: uint32(options.chunk_weights),
        CERTIFICATE_KEY: empty_room(),  # a source's certificate is about the source
    }
    # ours have the default alignment, and a search of their own
    dropped = ours.keys() | {"general.quantization_version", "general.alignment", SEARCH}
    return {key: value for key, value in source.metadata.items() if key not in dropped} | ours


def _notes(
    choices: Sequence[TypeChoice], tensors: Sequence[TensorPlan], importance: ImportanceMatrix | None
) -> tuple[str, ...]:
    replaced: dict[str, list[str]] = {}
    sizes = {tensor.info.name: tensor.info.n_columns for tensor in tensors}
    for choice in choices:
        if choice.fallback_from is not None:
            line = f"{choice.info.ggml_type.name} instead of {choice.fallback_from.name}: {choice.why}"
            replaced.setdefault(line, []).append(choice.info.name)
    notes = [f"{line} ({listed(names)})" for line, names in replaced.items()]
    idle = {t.info.name: count_idle(t.importance) for t in tensors if t.importance is not None}
    if names := [f"{name} ({count} of {sizes[name]})" for name, count in idle.items() if count]:
        notes.append(f"some columns have no importance, so their weights are not preserved: {listed(names)}")
    without = [tensor.info.name for tensor in tensors if importance is not None and _is_without_importance(tensor)]
    if OUTPUT in sizes and EMBEDDING in without:
        without.remove(EMBEDDING)  # it is looked up, not multiplied with anything, so no matrix has entries for it
    if without:
        notes.append(f"no importance entries for {', '.join(without)}")
    return tuple(notes)


def _is_without_importance(tensor: TensorPlan) -> bool:
    is_changed = tensor.info.ggml_type is not tensor.source.info.ggml_type
    return tensor.importance is None and tensor.info.ggml_type not in FLOAT_TYPES and is_changed


# ---- parts of a split file


def _plan_parts(
    path: Path, metadata: Metadata, infos: Sequence[TensorInfo], max_bytes: int | None
) -> tuple[PartPlan, ...]:
    whole = lay_out(metadata, infos)
    if max_bytes is None or whole.n_bytes <= max_bytes:
        return (PartPlan(path, metadata, 0, len(infos), whole),)
    bounds = _group(infos, max_bytes, len(whole.header))
    count = len(bounds)
    parts = []
    for number, (first, last) in enumerate(bounds):
        keys = dict(metadata if number == 0 else {}) | {
            "split.no": MetaValue(GGUFValueType.UINT16, number),
            "split.count": MetaValue(GGUFValueType.UINT16, count),
            "split.tensors.count": MetaValue(GGUFValueType.INT32, len(infos)),
        }
        part_path = path.with_name(f"{path.stem}-{number + 1:05d}-of-{count:05d}.gguf")
        parts.append(PartPlan(part_path, keys, first, last, lay_out(keys, infos[first:last])))
    return tuple(parts)


def _group(infos: Sequence[TensorInfo], max_bytes: int, first_header_bytes: int) -> list[tuple[int, int]]:
    """Groups tensors into files of at most `max_bytes`. A larger tensor gets a file of its own."""
    bounds = []
    first, size = 0, first_header_bytes
    for i, info in enumerate(infos):
        if i > first and size + info.n_bytes > max_bytes:
            bounds.append((first, i))
            first, size = i, 4096
        size += info.n_bytes + 256  # the tensor's data, padding, and its entry in the table
    return [*bounds, (first, len(infos))]


def _output_json(output: OutputPlan) -> dict[str, Any]:
    return {
        "path": str(output.path),
        "profile": output.profile.name,
        "n_bytes": output.n_bytes,
        "bits_per_weight": round(output.bits_per_weight, 4),
        "parts": [{"path": str(part.path), "n_bytes": part.layout.n_bytes} for part in output.parts],
        "tensors": [
            {
                "name": tensor.info.name,
                "shape": list(tensor.info.shape),
                "from": tensor.source.info.ggml_type.name,
                "to": tensor.info.ggml_type.name,
                "n_bytes": tensor.info.n_bytes,
                "why": tensor.why,
            }
            for tensor in output.tensors
        ],
        "notes": list(output.notes),
    }
