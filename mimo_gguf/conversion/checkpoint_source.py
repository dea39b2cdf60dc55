"""A checkpoint seen through its recipe: the ModelSource that a conversion writes.

The source is lossless: matrices keep the checkpoint's float type, and vectors (norm gains, biases) are widened to F32,
which llama.cpp requires. Quantization decides which type each tensor gets in the output.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from mimo_gguf.conversion import foreign
from mimo_gguf.conversion.checkpoint import Checkpoint, read_checkpoint, read_weights
from mimo_gguf.conversion.config import resolve_config
from mimo_gguf.conversion.dimensions import Dimensions
from mimo_gguf.conversion.mapping import DroppedTensor, MappedTensor, TensorMapping, plan_mapping, plan_metadata
from mimo_gguf.conversion.model_card import read_general
from mimo_gguf.conversion.recipe import Recipe, load_recipe
from mimo_gguf.conversion.remote.repository import RemoteFile, check_digests
from mimo_gguf.conversion.remote.stream import DEFAULT_FETCHING, Fetching, FileStream, StreamedFile
from mimo_gguf.conversion.safetensors_file import StoredWeights
from mimo_gguf.conversion.tokenizer import read_tokenizer
from mimo_gguf.conversion.transforms import TRANSFORMS
from mimo_gguf.core.arrival import FilePlace
from mimo_gguf.core.data_file import DataFile
from mimo_gguf.core.digests import FINGERPRINT
from mimo_gguf.core.errors import CheckpointError, UsageError
from mimo_gguf.core.geometry import QWEN2, STEP35
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.model_rules import model_fault
from mimo_gguf.core.model_source import (
    Bytes,
    FileStamp,
    Metadata,
    ModelSource,
    ReadRows,
    SourceTensor,
    TensorInfo,
)
from mimo_gguf.core.paths import path_kind
from mimo_gguf.core.vocabulary_rules import vocabulary_fault


@dataclass(frozen=True, slots=True)
class ConversionOptions:
    """What the user may choose about a conversion.

    Attributes:
        layout: `step35` or `qwen2`; None means step35 if there are MTP layers to keep, else qwen2.
        mtp: whether to keep the MTP layers.
        mtp_layers: folder of a MiMo-7B-MTPs checkpoint whose further MTP layers are added.
    """

    layout: str | None = None
    mtp: bool = True
    mtp_layers: Path | None = None


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """A conversion, planned from headers alone: the recipe, the layout, and what each tensor becomes."""

    checkpoint: Checkpoint
    recipe: Recipe
    layout: str
    n_mtp: int
    mapping: TensorMapping
    metadata: Metadata
    weights: Mapping[str, StoredWeights]
    notes: tuple[str, ...]

    @property
    def dropped(self) -> tuple[DroppedTensor, ...]:
        return self.mapping.dropped

    @property
    def matrix_types(self) -> tuple[tuple[GgmlType, int], ...]:
        """The float types of the checkpoint's matrices and how many have each, the commonest first.

        If there is one type, an output of that type is lossless. If there are several, only one of the widest is.
        """
        matrices = (tensor.hf for tensor in self.mapping.mapped if len(tensor.shape) > 1)
        return tuple(Counter(self.weights[name].ggml_type for name in matrices).most_common())

    def as_json(self) -> dict[str, Any]:
        """The conversion as a JSON document: what every tensor of the checkpoint becomes."""
        return {
            "model": self.checkpoint.model_id,
            "revision": self.checkpoint.revision,
            "layout": self.layout,
            "n_mtp": self.n_mtp,
            "recipe": self.recipe.path.name,
            "mapped": [
                {"from": self.weights[tensor.hf].name, "to": tensor.gguf, "transform": tensor.transform}
                for tensor in self.mapping.mapped
            ],
            "dropped": [{"from": self.weights[tensor.hf].name, "reason": tensor.reason} for tensor in self.dropped],
        }

    @property
    def float_type(self) -> GgmlType:
        """The float type that most matrices have. Vectors are kept in F32 and lose nothing."""
        return self.matrix_types[0][0]


def plan_conversion(checkpoint: Checkpoint, options: ConversionOptions = ConversionOptions()) -> ConversionPlan:
    """Plans what `checkpoint` becomes.

    Raises:
        CheckpointError: it is another model, has no tokenizer, or tensors are missing, unknown, or of a wrong shape or
            dtype.
        UsageError: options that contradict each other or the checkpoint.
    """
    where = str(checkpoint.folder)
    recipe = load_recipe(_architecture(checkpoint))
    config, notes = resolve_config(recipe, checkpoint.config, where)
    weights = _unwrapped(recipe, _all_weights(checkpoint, options.mtp_layers), where)
    foreign.check_names(weights.keys(), where)
    found = _count_mtp_layers(recipe, checkpoint, weights)
    layout, n_mtp = choose_layout(options, found, where)
    dims = Dimensions(config, recipe.defaults, {"mtp_layers": n_mtp}, where)
    tied = config.get("tie_word_embeddings") is True
    mapping = plan_mapping(recipe, tuple(weights), dims, layout, tied=tied)
    for tensor in mapping.mapped:
        _check_tensor(weights[tensor.hf], tensor)
    n_parameters = sum(math.prod(tensor.shape) for tensor in mapping.mapped)
    n_rows, has_processor = dims.whole("vocab_size"), recipe.wrapper is not None
    tokenizer = read_tokenizer(checkpoint.folder, config, n_rows, recipe.pre_tokenizers, has_processor=has_processor)
    metadata = {
        **read_general(checkpoint, n_parameters, layout),
        **plan_metadata(recipe, layout, dims),
        **tokenizer.keys,
    }
    _check_runnable(metadata, [_output_info(tensor, weights[tensor.hf]) for tensor in mapping.mapped], where, found)
    notes += tokenizer.notes + _notes_on_wrapper(recipe, mapping)
    if tied and any(rule.tied_to is not None and rule.hf in weights for rule in recipe.tensors):
        notes += ("config.json ties the output matrix to the embedding, but it is stored, so the stored one is used",)
    return ConversionPlan(checkpoint, recipe, layout, n_mtp, mapping, metadata, weights, notes)


def _notes_on_wrapper(recipe: Recipe, mapping: TensorMapping) -> tuple[str, ...]:
    """What the model cannot do without the larger model around it: the reasons why that one's tensors are left out."""
    left_out = {tensor.reason for tensor in mapping.dropped}
    rules = () if recipe.wrapper is None else recipe.wrapper.dropped
    return tuple(dict.fromkeys(f"left out: {rule.reason}" for rule in rules if rule.reason in left_out))


def _check_runnable(metadata: Metadata, infos: Sequence[TensorInfo], where: str, n_found: int) -> None:
    """Raises CheckpointError if llama.cpp could not run the output, by the rules for loading a GGUF.

    Args:
        n_found: number of MTP layers of the checkpoint.
    """
    n_rows = next(info.shape[0] for info in infos if info.name == "token_embd.weight")
    fault = model_fault(metadata, infos, where=where) or vocabulary_fault(metadata, n_rows)
    if fault is None:
        return
    is_qwen2 = metadata["general.architecture"].value == QWEN2
    in_step35 = is_qwen2 and n_found > 0
    raise CheckpointError(
        f"{where}: llama.cpp cannot run it: {fault}",
        hint="try --layout step35, which keeps the MTP layers"
        if in_step35
        else "check config.json; nothing is written",
    )


def _output_info(tensor: MappedTensor, weights: StoredWeights) -> TensorInfo:
    """The tensor as it is in the output: a matrix keeps its float type, a vector is in F32."""
    is_vector = len(tensor.shape) == 1
    return TensorInfo(tensor.gguf, tensor.shape, GgmlType.F32 if is_vector else weights.ggml_type)


def choose_layout(options: ConversionOptions, n_found: int, where: str) -> tuple[str, int]:
    """Chooses the layout and the number of MTP layers to write, from the options and the checkpoint.

    Raises:
        UsageError: the options contradict each other or the checkpoint.
    """
    if options.layout not in (None, STEP35, QWEN2):
        raise UsageError(f"no layout {options.layout!r}", hint=f"--layout {STEP35} or --layout {QWEN2}")
    if options.mtp_layers is not None and (not options.mtp or options.layout == QWEN2):
        raise UsageError(
            "--mtp-layers adds MTP layers, which --no-mtp and --layout qwen2 leave out", hint="drop one of the two"
        )
    n_mtp = n_found if options.mtp and options.layout != QWEN2 else 0
    if options.layout == STEP35 and n_mtp == 0:
        why = "--no-mtp leaves none" if n_found else f"{where} has none"
        raise UsageError(f"the step35 layout is for MTP layers, and {why}", hint="--layout qwen2")
    return options.layout or (STEP35 if n_mtp else QWEN2), n_mtp


def as_model_source(
    plan: ConversionPlan,
    label: str,
    arriving: Mapping[Path, RemoteFile] = MappingProxyType({}),
    fetching: Fetching = DEFAULT_FETCHING,
) -> ModelSource:
    """The planned conversion as a ModelSource. It opens the shards, and reads weights when rows are asked for.

    Args:
        label: what the user called the model, for messages.
        arriving: shards that are hollow here, and the files that they stand for: those are fetched while they are read.
        fetching: how they are fetched.

    Raises:
        CheckpointError: a shard cannot be opened.
        HubError: a file that is to be fetched could not be checked.
    """
    paths = sorted({plan.weights[tensor.hf].path for tensor in plan.mapping.mapped})
    remote = {path: arriving[path] for path in paths if path in arriving}
    check_digests(remote.values())
    stream = FileStream(list(remote.values()), fetching)
    files: dict[Path, DataFile] = {}

    def close() -> None:
        stream.stop()
        for file in files.values():
            file.close()

    try:
        for path in paths:
            if path not in remote:
                files[path] = DataFile(path, CheckpointError)
    except OSError as error:
        close()
        raise CheckpointError(f"{error.filename}: {error.strerror}", hint="check the file's permissions") from None
    readers: dict[Path, _Readable] = {**files}
    readers |= {path: StreamedFile(stream, number) for number, path in enumerate(remote)}
    stamps = tuple(file.stamp for file in files.values())
    return ModelSource(
        label=label,
        name=plan.checkpoint.name,
        metadata=plan.metadata,
        tensors=tuple(_source_tensor(tensor, plan.weights[tensor.hf], readers) for tensor in plan.mapping.mapped),
        files=stamps,
        fingerprint=_fingerprint(plan, stamps, tuple(remote.values())),
        notes=plan.notes,
        close=close,
        arrival=stream if remote else None,
    )


def open_checkpoint(folder: str | Path, options: ConversionOptions = ConversionOptions()) -> ModelSource:
    """The checkpoint in `folder` as a ModelSource.

    Raises:
        CheckpointError, UsageError: as `read_checkpoint` and `plan_conversion`.
    """
    return as_model_source(plan_conversion(read_checkpoint(Path(folder)), options), str(folder))


# ---- planning


def _architecture(checkpoint: Checkpoint) -> str:
    architectures = checkpoint.config.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise CheckpointError(
            f"{checkpoint.folder}: config.json names no architecture", hint="download config.json again"
        )
    return architectures[0]


def _all_weights(checkpoint: Checkpoint, mtp_layers: Path | None) -> dict[str, StoredWeights]:
    """The tensors of the checkpoint and of the further MTP layers; of equal names the checkpoint's is used."""
    if mtp_layers is None:
        return dict(checkpoint.weights)
    if (kind := path_kind(mtp_layers)) != "folder":
        what = "no such folder" if kind == "nothing" else "is a file, not a folder"
        raise CheckpointError(f"{mtp_layers}: {what}", hint="give --mtp-layers a MiMo-7B-MTPs folder")
    further = {name: weights for name, weights in read_weights(mtp_layers).items() if "mtp_layers." in name}
    if not further.keys() - checkpoint.weights.keys():
        raise CheckpointError(f"{mtp_layers}: no MTP layers that {checkpoint.folder} lacks", hint="drop --mtp-layers")
    return {**further, **checkpoint.weights}


def _unwrapped(recipe: Recipe, weights: dict[str, StoredWeights], where: str) -> dict[str, StoredWeights]:
    """The tensors by the names that the recipe has for them, if the model is inside a larger one."""
    if recipe.wrapper is None:
        return weights
    renamed = {recipe.wrapper.inner_name(name): stored for name, stored in weights.items()}
    if len(renamed) < len(weights):
        kept = {stored.name for stored in renamed.values()}
        twice = next(name for name in weights if name not in kept)
        raise CheckpointError(f"{where}: a tensor is stored under two names: {twice}", hint="remove one of the two")
    return renamed


def _count_mtp_layers(recipe: Recipe, checkpoint: Checkpoint, weights: Mapping[str, StoredWeights]) -> int:
    """Counts the MTP layers: one more than the highest number among them, or what config.json declares if that is more.

    So a gap shows up as missing tensors.
    """
    group = next((group for group in recipe.groups.values() if group.declared_by), None)
    if group is None:
        return 0
    declared = checkpoint.config.get(str(group.declared_by))
    if declared is not None and (type(declared) is not int or declared < 0):
        raise CheckpointError(
            f"{checkpoint.folder}: config.json: {group.declared_by} is {reprlib.repr(declared)}, not a count",
            hint="download config.json again",
        )
    return max([declared or 0, *(number + 1 for number in group.numbers(weights))])


def _check_tensor(weights: StoredWeights, tensor: MappedTensor) -> None:
    _ = weights.ggml_type  # raises if the dtype is not one of ours
    if weights.shape != tensor.shape:
        raise CheckpointError(
            f"{weights.path}: tensor {weights.name} has shape {list(weights.shape)}, config.json says "
            f"{list(tensor.shape)}",
            hint="config.json and weights are of two models",
        )


def _fingerprint(plan: ConversionPlan, stamps: tuple[FileStamp, ...], remote: tuple[RemoteFile, ...]) -> str:
    planned = repr((plan.layout, plan.n_mtp, plan.mapping.mapped, sorted(plan.metadata.items())))
    files = (f"{stamp.path.name} {stamp.size_bytes} {stamp.mtime_ns}\n".encode() for stamp in stamps)
    fetched = (b"%s %d %s\n%s" % (os.fsencode(f.name), f.n_bytes, f.digest, f.head) for f in remote)
    return FINGERPRINT.hex(plan.recipe.digest.encode(), planned.encode(), *files, *fetched)


# ---- reading


class _Readable(Protocol):
    """A shard, here or on its way."""

    def read_into(self, offset: int, out: Bytes) -> None: ...


def _source_tensor(tensor: MappedTensor, weights: StoredWeights, files: Mapping[Path, _Readable]) -> SourceTensor:
    stored, file = TensorInfo(tensor.gguf, tensor.shape, weights.ggml_type), files[weights.path]
    read: ReadRows = partial(_read_rows, file, weights.offset, stored.row_bytes, tensor.transform)
    info = _output_info(tensor, weights)
    if info.ggml_type is not stored.ggml_type:
        read = partial(_read_widened, read, stored)
    place = FilePlace(file.number, weights.offset, stored.row_bytes) if isinstance(file, StreamedFile) else None
    return SourceTensor(info, f"{weights.name} in {weights.path.name}", read, weights.offset, place)


def _read_rows(
    file: _Readable, offset: int, row_bytes: int, transform: str | None, first: int, last: int, out: Bytes
) -> None:
    file.read_into(offset + first * row_bytes, out)
    if transform is not None:
        TRANSFORMS[transform](out)


def _read_widened(read: ReadRows, stored: TensorInfo, first: int, last: int, out: Bytes) -> None:
    raw = np.empty((last - first, stored.row_bytes), np.uint8)
    read(first, last, raw)
    wide = out.reshape(last - first, -1).view(np.float32)
    if stored.ggml_type is GgmlType.F16:
        wide[:] = raw.view(np.float16)
    else:
        wide.view(np.uint32)[:] = raw.view(np.uint16).astype(np.uint32) << 16
