"""The other layout of an existing GGUF, without the checkpoint: other metadata, and the same tensors, byte for byte.

    step35 -> qwen2     the MTP layers are left out, and engines that do not know step35 load the rest
    qwen2 -> step35     impossible: the MTP layers are not in the file, and llama.cpp refuses step35 without them

What the recipe would write for the layout that a file has must be what the file says. Otherwise it is of another model,
such as Step-3.5 itself, whose blocks are not those of qwen2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import gguf

from mimo_gguf.conversion.dimensions import Dimensions
from mimo_gguf.conversion.mapping import plan_metadata
from mimo_gguf.conversion.recipe import Recipe, load_recipe
from mimo_gguf.core.digests import FINGERPRINT
from mimo_gguf.core.errors import GgufError, UsageError
from mimo_gguf.core.geometry import LAYOUTS, QWEN2, STEP35, Geometry, read_geometry, tensor_group
from mimo_gguf.core.model_rules import model_fault
from mimo_gguf.core.model_source import Metadata, MetaValue, ModelSource, SourceTensor, string

_ARCHITECTURE: Final = "general.architecture"
_SIZE_LABEL: Final = "general.size_label"
_FAMILY: Final = "MiMoForCausalLM"  # config.json's name for the models whose files have these layouts
_HARMLESS: Final = frozenset({"vocab_size"})  # of a layout's keys: what other programs add, which qwen2 does not need
_AGAIN: Final = "convert the checkpoint instead: mimo-gguf convert SRC --layout"


@dataclass(frozen=True, slots=True)
class Relabelling:
    """A file in another layout.

    Attributes:
        source: the model as it will be written.
        before: the layout that the file has.
        dropped: names of the tensors that the new layout has no place for.
    """

    source: ModelSource
    before: str
    dropped: tuple[str, ...]


def plan_relabelling(source: ModelSource, layout: str) -> Relabelling:
    """Plans another layout for a GGUF. It reads no weights.

    Raises:
        UsageError: no such layout, or the file has it already, or it needs tensors that the file lacks.
        GgufError: not a file of MiMo's layouts, or one that says what the recipe would not.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"no layout {layout!r}", hint=" or ".join(f"--layout {name}" for name in LAYOUTS))
    infos = [tensor.info for tensor in source.tensors]
    geometry = read_geometry(source.metadata, infos, where=source.label)
    _check_possible(source.label, geometry, layout)
    recipe = load_recipe(_FAMILY)
    _check_by_recipe(source, recipe, geometry)
    kept = tuple(t for t in source.tensors if tensor_group(t.info.name, geometry.n_trunk) != "mtp")
    metadata = _metadata(source, plan_metadata(recipe, layout, _dimensions(geometry, 0, source.label)), kept, layout)
    fault = model_fault(metadata, [tensor.info for tensor in kept], where=source.label)
    if fault is not None:
        raise GgufError(f"{source.label}: llama.cpp could not run it as {layout}: {fault}", hint=f"{_AGAIN} {layout}")
    names = {tensor.info.name for tensor in kept}
    return Relabelling(
        source=replace(
            source,
            metadata=metadata,
            tensors=kept,
            fingerprint=FINGERPRINT.hex(source.fingerprint.encode(), layout.encode(), recipe.digest.encode()),
        ),
        before=geometry.architecture,
        dropped=tuple(info.name for info in infos if info.name not in names),
    )


def _check_possible(where: str, geometry: Geometry, layout: str) -> None:
    """Raises UsageError if the file has the layout already, or lacks what the layout needs."""
    if geometry.architecture == layout:
        raise UsageError(f"{where}: its layout is {layout} already", hint="use the file as it is")
    if layout == STEP35:
        raise UsageError(
            f"{where}: has no MTP layer; the step35 layout is for MTP layers, and llama.cpp refuses it without one",
            hint=f"{_AGAIN} {STEP35}",
        )


def _check_by_recipe(source: ModelSource, recipe: Recipe, geometry: Geometry) -> None:
    """Raises GgufError if the file's layout has keys or values that the recipe would not write."""
    layout = geometry.architecture
    expected = plan_metadata(recipe, layout, _dimensions(geometry, geometry.n_mtp, source.label))
    stated = {key: entry for key, entry in source.metadata.items() if key.startswith(f"{layout}.")}
    for key in sorted(expected.keys() | stated.keys() - {f"{layout}.{name}" for name in _HARMLESS}):
        if _plain(stated.get(key)) != _plain(expected.get(key)):
            found = _short(_plain(stated.get(key)))
            raise GgufError(
                f"{source.label}: {key} is {found}, where MiMo has {_short(_plain(expected.get(key)))}: this is "
                f"another model, or it was changed, and what it would be as {QWEN2} is not known",
                hint=f"{_AGAIN} {QWEN2}",
            )


def _dimensions(geometry: Geometry, n_mtp: int, where: str) -> Dimensions:
    """A file's geometry in the words of config.json, in which the recipe speaks."""
    config: dict[str, Any] = {
        "num_hidden_layers": geometry.n_trunk,
        "hidden_size": geometry.embedding_length,
        "intermediate_size": geometry.feed_forward_length,
        "num_attention_heads": geometry.head_count,
        "num_key_value_heads": geometry.head_count_kv,
        "head_dim": geometry.key_length,
        "max_position_embeddings": geometry.context_length,
        "rms_norm_eps": geometry.rms_epsilon,
        "rope_theta": geometry.rope_freq_base,
        "vocab_size": geometry.vocab_size,
    }
    return Dimensions(config, {}, {"mtp_layers": n_mtp}, where)


def _metadata(
    source: ModelSource, of_layout: Metadata, kept: Sequence[SourceTensor], layout: str
) -> dict[str, MetaValue]:
    """The source's metadata with the new layout's keys where the old layout's are."""
    before = f"{source.metadata[_ARCHITECTURE].value}."
    metadata: dict[str, MetaValue] = {}
    for key, entry in source.metadata.items():
        if key.startswith(before):
            metadata |= of_layout
        else:
            metadata[key] = entry
    n_before, n_kept = (sum(t.info.n_elements for t in tensors) for tensors in (source.tensors, kept))
    label = metadata.get(_SIZE_LABEL)
    if label is not None and label.value == gguf.size_label(n_before, 0, 0, 0):  # else it is part of the name
        metadata[_SIZE_LABEL] = string(gguf.size_label(n_kept, 0, 0, 0))
    return metadata | {_ARCHITECTURE: string(layout)}


def _plain(entry: MetaValue | None) -> Any:
    return None if entry is None else list(entry.value) if isinstance(entry.value, list) else entry.value


def _short(value: Any) -> str:
    text = "missing" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
