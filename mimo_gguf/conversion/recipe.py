"""Recipes: what every tensor of a checkpoint becomes, read from `convert/*.toml`."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from gguf import GGUFValueType

from mimo_gguf.conversion.transforms import TRANSFORMS
from mimo_gguf.core import shelves
from mimo_gguf.core.errors import CheckpointError, RecipeError
from mimo_gguf.core.model_source import Metadata, MetaValue, array, float32, uint32

Dims = Mapping[str, float]  # config.json's numbers by name, plus counts that the checkpoint decides


@dataclass(frozen=True, slots=True)
class Group:
    """Where a group of tensors stands in both namings; `{n}` counts within the group."""

    hf: str
    gguf: str
    count: str | None
    layouts: tuple[str, ...] | None
    else_dropped: str

    def names(self, hf: str, gguf: str, n: int, dims: Dims) -> tuple[str, str]:
        return _fill(self.hf, n, dims) + hf, _fill(self.gguf, n, dims) + gguf


@dataclass(frozen=True, slots=True)
class TensorRule:
    """One row of the recipe: a checkpoint tensor, its GGUF name, its shape, the transform between."""

    groups: tuple[str, ...]
    hf: str
    gguf: str
    shape: tuple[str, ...]
    transform: str | None
    tied_to: str | None
    tied_layouts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Drop:
    """A checkpoint tensor (glob) that is left out, and why."""

    hf: str
    reason: str


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """llama.cpp's name for a way of splitting text before merging, and how a checkpoint's tokenizer is recognised."""

    name: str
    tokenizer_classes: tuple[str, ...]
    regex: str


@dataclass(frozen=True)
class Recipe:
    """One model family's conversion, as its TOML file states it."""

    path: Path
    digest: str
    family: str
    architectures: tuple[str, ...]
    supported: Mapping[str, tuple[Any, ...]]
    defaults: Mapping[str, str]
    groups: Mapping[str, Group]
    tensors: tuple[TensorRule, ...]
    dropped: tuple[Drop, ...]
    pre_tokenizers: tuple[PreTokenizer, ...]
    metadata: Mapping[str, Mapping[str, Mapping[str, str]]]

    @cached_property
    def layouts(self) -> tuple[str, ...]:
        return tuple(self.metadata)


@dataclass(frozen=True, slots=True)
class Assignment:
    """One output tensor: its checkpoint tensor, the shape both must have, and the transform in between."""

    hf: str
    gguf: str
    shape: tuple[int, ...]
    transform: str | None


@dataclass(frozen=True, slots=True)
class TensorMapping:
    """What becomes of a whole checkpoint: every tensor is either assigned or dropped with a reason."""

    assigned: tuple[Assignment, ...]
    dropped: tuple[Drop, ...]


# ---- reading


def load_recipe(architecture: str) -> Recipe:
    """The recipe on the shelf for a config.json's architecture.

    Raises:
        CheckpointError: no recipe is for this architecture.
        RecipeError: a recipe has a mistake in it.
    """
    recipes = [read_recipe(path) for path in shelves.entries(shelves.CONVERT)]
    for recipe in recipes:
        if architecture in recipe.architectures:
            return recipe
    known = ", ".join(name for recipe in recipes for name in recipe.architectures)
    raise CheckpointError(
        f"config.json says the architecture is {architecture!r}; there are recipes for {known}",
        hint="for other models use llama.cpp's convert_hf_to_gguf.py",
    )


def read_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file.

    Raises:
        RecipeError: a key is missing, unknown or of the wrong kind; the message says which.
    """
    table = shelves.read_toml(path)
    try:
        recipe = _recipe(path, table)
    except (KeyError, TypeError, AttributeError) as error:
        raise RecipeError(
            f"{path}: missing or malformed entry: {error}", hint="compare with convert/mimo.toml"
        ) from None
    for rule in recipe.tensors:
        unknown = [name for name in rule.groups if name not in recipe.groups]
        if unknown or (rule.transform is not None and rule.transform not in TRANSFORMS):
            raise RecipeError(
                f"{path}: tensor {rule.hf}: unknown group or transform {', '.join(unknown) or rule.transform}",
                hint=f"groups: {', '.join(recipe.groups)}; transforms: {', '.join(TRANSFORMS)}",
            )
    return recipe


def _recipe(path: Path, table: Mapping[str, Any]) -> Recipe:
    return Recipe(
        path=path,
        digest=hashlib.sha256(path.read_bytes()).hexdigest(),
        family=table["model"]["family"],
        architectures=tuple(table["model"]["architectures"]),
        supported={key: tuple(values) for key, values in table["config"]["supported"].items()},
        defaults=dict(table["config"]["defaults"]),
        groups={
            name: Group(
                hf=group["hf"],
                gguf=group["gguf"],
                count=group.get("count"),
                layouts=tuple(group["layouts"]) if "layouts" in group else None,
                else_dropped=group.get("else_dropped", ""),
            )
            for name, group in table["groups"].items()
        },
        tensors=tuple(
            TensorRule(
                groups=tuple(rule["groups"]),
                hf=rule["hf"],
                gguf=rule["gguf"],
                shape=tuple(rule["shape"]),
                transform=rule.get("transform"),
                tied_to=rule.get("tied_to"),
                tied_layouts=tuple(rule.get("tied_layouts", ())),
            )
            for rule in table["tensors"]
        ),
        dropped=tuple(Drop(drop["hf"], drop["reason"]) for drop in table.get("dropped", ())),
        pre_tokenizers=tuple(
            PreTokenizer(entry["name"], tuple(entry["tokenizer_classes"]), entry["regex"])
            for entry in table["pre_tokenizers"]
        ),
        metadata=table["metadata"],
    )


# ---- numbers


def check_config(recipe: Recipe, config: Mapping[str, Any], where: str) -> None:
    """Raises CheckpointError where config.json asks for arithmetic the recipe does not know."""
    for key, allowed in recipe.supported.items():
        value = config.get(key)
        if ("null" if value is None else value) not in allowed:
            raise CheckpointError(
                f"{where}: config.json has {key} = {value!r}; only {', '.join(map(repr, allowed))} is known for "
                f"{recipe.family}",
                hint="this is another model, or a variant newer than this program",
            )


def read_dims(recipe: Recipe, config: Mapping[str, Any], where: str, **counts: int) -> dict[str, float]:
    """config.json's numbers, with the recipe's defaults for those left out and with `counts`.

    Raises:
        CheckpointError: a number a shape or metadata value needs is missing or not positive.
    """
    dims: dict[str, float] = {
        key: value for key, value in config.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }
    dims.update(counts)
    for key, expression in recipe.defaults.items():
        if key not in dims:
            dims[key] = evaluate(expression, dims, where)
    return dims


_TERM: Final = re.compile(r"\s*([*/])\s*")


def evaluate(expression: str, dims: Dims, where: str) -> float:
    """Value of a product such as `2 * head_dim` or `hidden_size / num_attention_heads`.

    Raises:
        CheckpointError: a name is not in `dims`, is not positive, or a quotient is not whole.
    """
    first, *rest = _TERM.split(expression.strip())
    value = _term(first, dims, where)
    for operator, term in zip(rest[::2], rest[1::2], strict=True):
        other = _term(term, dims, where)
        if operator == "/" and value % other:
            raise CheckpointError(f"{where}: config.json's {expression} is not whole", hint="config.json is damaged")
        value = value * other if operator == "*" else value // other
    return value


def _term(term: str, dims: Dims, where: str) -> float:
    if term.isdigit():
        return int(term)
    value = dims.get(term)
    if value is None or (value <= 0 and term != "mtp_layers") or value > 1e12:
        state = "is missing from config.json" if value is None else f"is {value} in config.json"
        raise CheckpointError(f"{where}: {term} {state}", hint="download config.json again")
    return value


def _fill(template: str, n: int, dims: Dims) -> str:
    def number(match: re.Match[str]) -> str:
        return str(sum(n if part.strip() == "n" else int(dims[part.strip()]) for part in match[1].split("+")))

    return re.sub(r"\{([^}]*)\}", number, template)


# ---- planning


def plan_mapping(
    recipe: Recipe, names: Sequence[str], dims: Dims, layout: str, *, tied: bool, where: str
) -> TensorMapping:
    """What becomes of the checkpoint tensors `names`: pure, needs no weights.

    `dims` must hold `mtp_layers`, the number of MTP layers to write (0 drops them).

    Raises:
        CheckpointError: tensors that are neither mapped nor dropped, or missing ones; the message lists them all.
    """
    present = set(names)
    assigned: list[Assignment] = []
    dropped: list[Drop] = []
    for group_name, group in recipe.groups.items():
        rules = [rule for rule in recipe.tensors if group_name in rule.groups]
        count = _group_count(group_name, group, dims, where)
        if group.layouts is not None and layout not in group.layouts:
            dropped.extend(Drop(name, group.else_dropped) for name in sorted(_in_group(group, present)))
            continue
        for n in range(count):
            for rule in rules:
                assigned.extend(_assign(rule, group, n, dims, layout, present, dropped, tied=tied, where=where))
        if group_name == "mtp" and count == 0:
            dropped.extend(Drop(name, "--no-mtp") for name in sorted(_in_group(group, present)))
    dropped.extend(
        Drop(name, drop.reason)
        for name in sorted(present)
        for drop in recipe.dropped
        if fnmatch.fnmatchcase(name, drop.hf)
    )
    _check_complete(present, assigned, dropped, where)
    return TensorMapping(tuple(assigned), tuple(dropped))


def _group_count(name: str, group: Group, dims: Dims, where: str) -> int:
    if name == "mtp":
        return int(dims["mtp_layers"])
    return int(evaluate(group.count, dims, where)) if group.count else 1


def _in_group(group: Group, names: set[str]) -> set[str]:
    pattern = re.compile(re.escape(group.hf).replace(re.escape("{n}"), r"\d+"))
    return {name for name in names if pattern.match(name)}


def _assign(
    rule: TensorRule,
    group: Group,
    n: int,
    dims: Dims,
    layout: str,
    present: set[str],
    dropped: list[Drop],
    *,
    tied: bool,
    where: str,
) -> list[Assignment]:
    hf, gguf = group.names(rule.hf, rule.gguf, n, dims)
    shape = tuple(int(evaluate(extent, dims, where)) for extent in rule.shape)
    if rule.tied_to is not None and (tied or hf not in present):
        if hf in present:
            dropped.append(Drop(hf, f"config.json ties it to {rule.tied_to}"))
        return [Assignment(rule.tied_to, gguf, shape, None)] if layout in rule.tied_layouts else []
    return [Assignment(hf, gguf, shape, rule.transform)]


def _check_complete(present: set[str], assigned: Sequence[Assignment], dropped: Sequence[Drop], where: str) -> None:
    used = {assignment.hf for assignment in assigned}
    missing = sorted(used - present)
    unknown = sorted(present - used - {drop.hf for drop in dropped})
    wrong = []
    if missing:
        wrong.append(f"{_n_tensors(missing)} missing: {', '.join(missing)}")
    if unknown:
        wrong.append(f"the recipe has no place for {_n_tensors(unknown)}: {', '.join(unknown)}")
    if wrong:
        raise CheckpointError(
            f"{where}: {'; '.join(wrong)}",
            hint="add a row to a recipe in convert/ for each, mapped or dropped with a reason"
            if unknown
            else "download the checkpoint again, all of it",
        )


def _n_tensors(names: Sequence[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) != 1 else ''}"


# ---- metadata


def plan_metadata(recipe: Recipe, layout: str, dims: Dims, where: str) -> Metadata:
    """The `<layout>.*` keys."""
    blocks = int(dims["num_hidden_layers"]) + (int(dims["mtp_layers"]) if layout != "qwen2" else 0)
    dims = {**dims, "blocks": blocks}
    return {
        f"{layout}.{key}": _meta_value(recipe, key, entry, dims, where)
        for key, entry in recipe.metadata[layout].items()
    }


def _meta_value(recipe: Recipe, key: str, entry: Mapping[str, str], dims: Dims, where: str) -> MetaValue:
    ((kind, expression),) = entry.items()
    if kind == "uint32":
        return uint32(int(evaluate(expression, dims, where)))
    if kind == "float32":
        return float32(float(evaluate(expression, dims, where)))
    if kind == "bool_per_block" and expression == "is_mtp":
        trunk = int(dims["num_hidden_layers"])
        return array(GGUFValueType.BOOL, [block >= trunk for block in range(int(dims["blocks"]))])
    raise RecipeError(f"{recipe.path}: metadata {key}: unknown kind {kind} = {expression!r}", hint="uint32 or float32")
