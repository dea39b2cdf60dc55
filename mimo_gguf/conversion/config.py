"""The check of config.json against the recipe: every key is used, must have a known value, or is harmless.

transformers reads these keys, so another one may change the arithmetic. A value that is known to change it is refused;
an unknown key is reported to the user. The table of keys is `[config]` in the recipe.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from typing import Any, Final

from mimo_gguf.conversion.recipe import Recipe, Wrapper
from mimo_gguf.core.errors import CheckpointError

_NEWER: Final = "this is another model, or a variant newer than this program"
# The keys under which transformers states rope settings: version 5 the first, version 4 the second.
_ROPE_TABLES: Final = ("rope_parameters", "rope_scaling")


def resolve_config(recipe: Recipe, config: Mapping[str, Any], where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """config.json with the text model's settings and rope_theta at the top level, and notes for the user.

    Raises:
        CheckpointError: config.json asks for arithmetic that the recipe does not know, or contradicts itself.
    """
    if recipe.wrapper is not None:
        config = _unwrapped(recipe.wrapper, config, where)
    for key, allowed in recipe.equals.items():
        _check_value(recipe, key, config.get(key), allowed, where)
    theta = _rope_theta(config, where, recipe.wrapper)
    known = {*recipe.used, *recipe.equals, *recipe.harmless, *_ROPE_TABLES}
    unknown = sorted(key for key, value in config.items() if key not in known and value is not None)
    notes = tuple(
        f"config.json has {key} = {_short(config[key])}, which is unknown here and ignored" for key in unknown
    )
    return {**config, "rope_theta": theta}, notes


def _unwrapped(wrapper: Wrapper, config: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """config.json with the inner model's settings at the top level, where older ones have them anyway.

    transformers reads the inner settings if there are any. The outer `tie_word_embeddings` counts, too: see
    Qwen2_5_VLConfig in transformers/models/qwen2_5_vl/configuration_qwen2_5_vl.py (version 5).
    """
    inner = config.get(wrapper.text_config)
    if inner is None:
        return config
    if not isinstance(inner, Mapping):
        raise CheckpointError(
            f"{where}: config.json has {wrapper.text_config} = {_short(inner)}, not a table", hint=_NEWER
        )
    outer = {key: value for key, value in config.items() if key != wrapper.text_config}
    tied = outer.get("tie_word_embeddings") or inner.get("tie_word_embeddings")
    # The outer class is the checkpoint's. Rope settings are taken from one place, not from both.
    rope = {key: None for key in (*_ROPE_TABLES, "rope_theta") if any(name in inner for name in _ROPE_TABLES)}
    return {**outer, **rope, **inner, "tie_word_embeddings": tied, "architectures": config.get("architectures")}


def _check_value(recipe: Recipe, key: str, value: Any, allowed: tuple[Any, ...], where: str) -> None:
    items = value if isinstance(value, list) and value else [value]  # of a list each item must be allowed
    for item in items:
        if ("null" if item is None else item) not in allowed:
            known = ", ".join("null" if entry == "null" else json.dumps(entry) for entry in allowed)
            raise CheckpointError(
                f"{where}: config.json has {key} = {_short(value)}; only {known} is known for {recipe.family}",
                hint=_NEWER,
            )


def _rope_theta(config: Mapping[str, Any], where: str, wrapper: Wrapper | None) -> Any:
    """The base of the rotary frequencies. It may be stated in three places, which must agree.

    Source: RotaryEmbeddingConfigMixin in transformers/modeling_rope_utils.py (version 5).
    """
    stated = {"rope_theta": config.get("rope_theta")}
    for table in _ROPE_TABLES:
        for name, parameters in _flat_tables(table, config.get(table), where):
            _check_plain(name, parameters, where, {} if wrapper is None else wrapper.rope)
            stated[f"{name}.rope_theta"] = parameters.get("rope_theta")
    found = {name: value for name, value in stated.items() if value is not None}
    for name, value in found.items():
        if value != next(iter(found.values())):
            first = next(iter(found))
            raise CheckpointError(
                f"{where}: config.json contradicts itself: {first} = {_short(found[first])}, {name} = {_short(value)}",
                hint="correct the wrong one in config.json",
            )
    return next(iter(found.values()), None)


def _flat_tables(name: str, stated: Any, where: str) -> list[tuple[str, Mapping[str, Any]]]:
    """The tables of rope settings in one entry, by name: transformers may nest one for each type of layer."""
    if not stated:
        return []
    if not isinstance(stated, Mapping):
        raise CheckpointError(f"{where}: config.json has {name} = {_short(stated)}, not a table", hint=_NEWER)
    if all(isinstance(value, Mapping) or value is None for value in stated.values()):
        return [(f"{name}.{kind}", inner) for kind, inner in stated.items() if inner]
    return [(name, stated)]


def _check_plain(name: str, parameters: Mapping[str, Any], where: str, further: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises CheckpointError if the settings stretch, scale or leave out part of the rotation.

    Args:
        further: settings that change nothing in this checkpoint, with their values, or none for any.
    """
    neutral: dict[str, tuple[Any, ...]] = {
        "rope_type": ("default",),
        "type": ("default",),
        "partial_rotary_factor": (1,),
        "factor": (1,),
        **further,
    }
    for key, value in parameters.items():
        if key == "rope_theta" or value is None or (key in further and not further[key]):
            continue
        if value not in neutral.get(key, ()):
            raise CheckpointError(
                f"{where}: config.json has {name}.{key} = {_short(value)}; only plain rotary positions are known here",
                hint="convert the model without this extension of its context, or use another converter",
            )


def _short(value: Any) -> str:
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 80 else reprlib.repr(value)
