"""The plan of what a checkpoint becomes by its recipe: all tensors, and the layout's metadata. It needs no weights."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gguf import GGUFValueType

from mimo_gguf.conversion.dimensions import Dimensions
from mimo_gguf.conversion.recipe import Recipe, TensorGroup, TensorRule
from mimo_gguf.core.errors import CheckpointError, RecipeError
from mimo_gguf.core.model_source import Metadata, MetaValue, array, float32, uint32
from mimo_gguf.core.units import counted, listed

_LISTED: Final = 8  # names in an error; a wall of hundreds hides the first


@dataclass(frozen=True, slots=True)
class MappedTensor:
    """One output tensor: its checkpoint tensor, the row-major shape of both, and the transform between them."""

    hf: str
    gguf: str
    shape: tuple[int, ...]
    transform: str | None


@dataclass(frozen=True, slots=True)
class DroppedTensor:
    """One checkpoint tensor that is left out, and why."""

    hf: str
    reason: str


@dataclass(frozen=True, slots=True)
class TensorMapping:
    """What becomes of a whole checkpoint: every tensor is either mapped or dropped with a reason."""

    mapped: tuple[MappedTensor, ...]
    dropped: tuple[DroppedTensor, ...]


def plan_mapping(recipe: Recipe, names: Sequence[str], dims: Dimensions, layout: str, *, tied: bool) -> TensorMapping:
    """Plans what becomes of the checkpoint tensors `names`.

    Args:
        dims: its counts hold `mtp_layers`, the number of MTP layers to write.
        tied: config.json says that the output matrix is the embedding.

    Raises:
        CheckpointError: tensors that are neither mapped nor dropped, or missing ones; the message lists the first.
    """
    outcomes = list(_Mapper(recipe, frozenset(names), dims, layout, tied).outcomes())
    mapped = tuple(outcome for outcome in outcomes if isinstance(outcome, MappedTensor))
    # A tensor may be dropped for two reasons; the first is kept.
    reasons = {outcome.hf: outcome for outcome in reversed(outcomes) if isinstance(outcome, DroppedTensor)}
    mapping = TensorMapping(mapped, tuple(reasons[name] for name in sorted(reasons)))
    _check_complete(recipe, mapping, frozenset(names), dims.where)
    return mapping


@dataclass(frozen=True, slots=True)
class _Mapper:
    recipe: Recipe
    present: frozenset[str]
    dims: Dimensions
    layout: str
    tied: bool

    def outcomes(self) -> Iterator[MappedTensor | DroppedTensor]:
        """The outcomes of all rules, in the order of groups and rules in the recipe, which is that of an output."""
        for group in self.recipe.groups.values():
            if group.layouts is not None and self.layout not in group.layouts:
                yield from (DroppedTensor(name, group.else_dropped) for name in self.present if group.holds(name))
                continue
            rules = [rule for rule in self.recipe.tensors if group.name in rule.groups]
            for n in range(self._count(group)):
                for rule in rules:
                    yield from self._apply(rule, group, n)
        for drop in self.recipe.dropped:
            matching = (name for name in self.present if fnmatch.fnmatchcase(name, drop.hf))
            yield from (DroppedTensor(name, drop.reason) for name in matching)

    def _count(self, group: TensorGroup) -> int:
        count = self.dims.whole(group.count) if group.count else 1
        if count > max(len(self.present), 1):  # a billion missing names would fill the memory
            raise CheckpointError(
                f"{self.dims.where}: {group.count} is {count}, with only {len(self.present)} tensors in the checkpoint",
                hint="download config.json again",
            )
        return count

    def _apply(self, rule: TensorRule, group: TensorGroup, n: int) -> Iterator[MappedTensor | DroppedTensor]:
        dims = self.dims.with_count(n=n)
        hf, gguf = _numbered(group.hf, dims) + rule.hf, _numbered(group.gguf, dims) + rule.gguf
        shape = tuple(self.dims.whole(extent) for extent in rule.shape)
        # A stored matrix is used even if config.json ties it, as transformers 5 does if the two differ.
        if rule.tied_to is None or not self.tied or hf in self.present:
            yield MappedTensor(hf, gguf, shape, rule.transform)
            return
        if self.layout in rule.tied_layouts:
            yield MappedTensor(rule.tied_to, gguf, shape, None)


def _numbered(prefix: str, dims: Dimensions) -> str:
    """The prefix with its number filled in: `blk.{n + num_hidden_layers}.` becomes `blk.36.`."""
    return re.sub(r"\{([^}]*)\}", lambda match: str(dims.whole(match[1])), prefix)


def _check_complete(recipe: Recipe, mapping: TensorMapping, present: frozenset[str], where: str) -> None:
    used = {tensor.hf for tensor in mapping.mapped}
    missing = sorted(used - present)
    unknown = sorted(present - used - {tensor.hf for tensor in mapping.dropped})
    if missing and not unknown:
        raise _missing(recipe, missing, present, where)
    wrong = [f"{counted(len(missing), 'tensor')} missing: {listed(missing, _LISTED)}"] if missing else []
    if unknown:
        wrong.append(f"the recipe has no place for {counted(len(unknown), 'tensor')}: {listed(unknown, _LISTED)}")
        raise CheckpointError(
            f"{where}: {'; '.join(wrong)}",
            hint="add a row to a recipe in convert/ for each, mapped or dropped with a reason",
        )


def _missing(recipe: Recipe, missing: Sequence[str], present: frozenset[str], where: str) -> CheckpointError:
    """The error for missing tensors; its hint is special if all are of one group, or if it is the output matrix."""
    group = next(
        (group for group in recipe.groups.values() if group.declared_by and all(map(group.holds, missing))), None
    )
    if group is not None and not group.numbers(present):
        return CheckpointError(
            f"{where}: config.json declares MTP layers ({group.declared_by}) that the checkpoint does not have: "
            "many trainers drop them",
            hint="--no-mtp converts the trunk alone; --mtp-layers DIR adds those of the model that it was tuned from",
        )
    what = f"{where}: {counted(len(missing), 'tensor')} missing: {listed(missing, _LISTED)}"
    if group is not None:
        return CheckpointError(what, hint="download the checkpoint again, or leave the MTP layers out: --no-mtp")
    if all(rule.tied_to for rule in recipe.tensors if rule.hf in missing) and len(missing) == 1:
        hint = "save the model with it; if it is the embedding itself, set tie_word_embeddings to true in config.json"
        return CheckpointError(f"{what}, and config.json does not tie it to the embedding", hint=hint)
    return CheckpointError(what, hint="download the checkpoint again, all of it")


def plan_metadata(recipe: Recipe, layout: str, dims: Dimensions) -> Metadata:
    """Plans the `<layout>.*` keys of the metadata.

    Raises:
        CheckpointError: config.json lacks a number, or the number makes no sense.
        RecipeError: the recipe names an unknown kind of value.
    """
    return {f"{layout}.{key}": _meta_value(recipe, key, entry, dims) for key, entry in recipe.metadata[layout].items()}


def _meta_value(recipe: Recipe, key: str, entry: Mapping[str, str], dims: Dimensions) -> MetaValue:
    ((kind, expression),) = entry.items()
    if kind == "uint32":
        return uint32(dims.whole(expression))
    if kind == "float32":
        return float32(float(dims.number(expression)))
    if kind == "bool_per_block" and expression == "is_mtp":
        trunk = dims.whole("num_hidden_layers")
        return array(GGUFValueType.BOOL, [False] * trunk + [True] * dims.whole("mtp_layers"))
    raise RecipeError(f"{recipe.path}: metadata {key}: unknown kind {kind} = {expression!r}", hint="uint32 or float32")
