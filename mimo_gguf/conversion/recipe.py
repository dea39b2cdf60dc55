"""Recipes, read from `convert/*.toml`: what every tensor of a checkpoint becomes, and the metadata of each layout."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mimo_gguf.conversion.transforms import TRANSFORMS
from mimo_gguf.core import shelves
from mimo_gguf.core.digests import RECIPE
from mimo_gguf.core.errors import CheckpointError, RecipeError


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """A group of tensors, such as the blocks of the trunk.

    Attributes:
        hf, gguf: prefix of their names in a checkpoint and in GGUF; `{n}` in it counts the members of the group.
        count: expression for the number of members; None for one.
        declared_by: config.json's name for that number, if the tensors themselves are counted.
        layouts: the layouts that have it; None for all. In others its tensors are dropped: `else_dropped` says why.
    """

    name: str
    hf: str
    gguf: str
    count: str | None
    declared_by: str | None
    layouts: tuple[str, ...] | None
    else_dropped: str

    def numbers(self, names: Iterable[str]) -> set[int]:
        """The values of `{n}` in those of the checkpoint tensors `names` that belong to the group."""
        return {int(match["n"]) for match in map(self._pattern().match, names) if match}

    def holds(self, name: str) -> bool:
        """Whether a checkpoint tensor of this name belongs to the group."""
        return self._pattern().match(name) is not None

    def _pattern(self) -> re.Pattern[str]:
        return re.compile(re.escape(self.hf).replace(re.escape("{n}"), r"(?P<n>[0-9]{1,9})"))


@dataclass(frozen=True, slots=True)
class TensorRule:
    """One row of the recipe: a checkpoint tensor, its GGUF name, its shape, and the transform between them.

    Attributes:
        tied_to: the checkpoint tensor that it equals if it is not stored and config.json ties them.
        tied_layouts: the layouts that need it written out then.
    """

    groups: tuple[str, ...]
    hf: str
    gguf: str
    shape: tuple[str, ...]
    transform: str | None
    tied_to: str | None
    tied_layouts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DropRule:
    """Checkpoint tensors (a glob on their names) that are left out, and why."""

    hf: str
    reason: str


@dataclass(frozen=True, slots=True)
class Wrapper:
    """A larger model that holds one of this family, such as a model that sees images, and what is different then.

    Attributes:
        text_config: config.json's key for the settings of the inner model; without it they lie at the top.
        prefixes: beginnings of tensor names, and those that this recipe has for the same tensors.
        rope: settings of the rotation, besides the plain ones, that change nothing for text: their values, or none
            for any.
        harmless: keys of config.json that are not about the inner model.
        dropped: the tensors that are not of the inner model.
    """

    architecture: str
    text_config: str
    prefixes: Mapping[str, str]
    rope: Mapping[str, tuple[Any, ...]]
    harmless: frozenset[str]
    dropped: tuple[DropRule, ...]

    def inner_name(self, stored: str) -> str:
        """The recipe's name for the tensor that a checkpoint stores as `stored`."""
        found = next((prefix for prefix in self.prefixes if stored.startswith(prefix)), "")
        return self.prefixes.get(found, "") + stored.removeprefix(found)


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """llama.cpp's name for a way of splitting text before merging, and how a checkpoint's tokenizer is recognised."""

    name: str
    tokenizer_classes: tuple[str, ...]
    normalizer: str
    regex: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """One model family's conversion, as its TOML file states it.

    Attributes:
        used: keys of config.json that the conversion reads.
        equals: keys of config.json with the values that they may have, "null" for absent.
        harmless: keys of config.json that change nothing about the weights' arithmetic.
        wrappers: the larger models whose inner model it converts.
        wrapper: the one that is to be converted; None for a model by itself.
    """

    path: Path
    digest: str
    family: str
    architectures: tuple[str, ...]
    used: frozenset[str]
    equals: Mapping[str, tuple[Any, ...]]
    harmless: frozenset[str]
    defaults: Mapping[str, str]
    groups: Mapping[str, TensorGroup]
    tensors: tuple[TensorRule, ...]
    dropped: tuple[DropRule, ...]
    pre_tokenizers: tuple[PreTokenizer, ...]
    metadata: Mapping[str, Mapping[str, Mapping[str, str]]]
    wrappers: tuple[Wrapper, ...] = ()
    wrapper: Wrapper | None = None

    @property
    def all_architectures(self) -> tuple[str, ...]:
        """Every architecture that it converts: its own, and the wrappers'."""
        return (*self.architectures, *(wrapper.architecture for wrapper in self.wrappers))

    def inside(self, wrapper: Wrapper) -> Recipe:
        """The recipe for the model inside `wrapper`."""
        return replace(
            self, wrapper=wrapper, harmless=self.harmless | wrapper.harmless, dropped=self.dropped + wrapper.dropped
        )


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
        for wrapper in recipe.wrappers:
            if architecture == wrapper.architecture:
                return recipe.inside(wrapper)
    known = ", ".join(name for recipe in recipes for name in recipe.all_architectures)
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
        digest=RECIPE.hex(path.read_bytes()),
        family=table["model"]["family"],
        architectures=tuple(table["model"]["architectures"]),
        used=frozenset(table["config"]["used"]),
        equals={key: tuple(values) for key, values in table["config"]["equals"].items()},
        harmless=frozenset(table["config"]["harmless"]),
        defaults=dict(table["config"]["defaults"]),
        groups={
            name: TensorGroup(
                name=name,
                hf=group["hf"],
                gguf=group["gguf"],
                count=group.get("count"),
                declared_by=group.get("declared_by"),
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
        dropped=_drop_rules(table),
        pre_tokenizers=tuple(
            PreTokenizer(entry["name"], tuple(entry["tokenizer_classes"]), entry["normalizer"], entry["regex"])
            for entry in table["pre_tokenizers"]
        ),
        metadata=table["metadata"],
        wrappers=tuple(
            Wrapper(
                architecture=architecture,
                text_config=wrapper["text_config"],
                prefixes=dict(wrapper["prefixes"]),
                rope={key: tuple(values) for key, values in wrapper["rope"].items()},
                harmless=frozenset(wrapper["harmless"]),
                dropped=_drop_rules(wrapper),
            )
            for architecture, wrapper in table.get("wrappers", {}).items()
        ),
    )


def _drop_rules(table: Mapping[str, Any]) -> tuple[DropRule, ...]:
    return tuple(DropRule(drop["hf"], drop["reason"]) for drop in table.get("dropped", ()))
