"""JSON schemas at random, keywords in any combination: many cannot be said, and some say nothing that exists."""

from __future__ import annotations

import random
from typing import Any

_NAMES = ("a", "b", "ab", "", "é", 'q"')
_VALUES = (1, "a", None, True, 1.5, "ab", [1], {"a": 1}, False, 0, "é")
_BOUNDS = (0, 0.1, -0.1, 1.5, -2.25, 100, 1e-3, -1e6, 12345.678, 1e17, -3e20, 2**53)
_PATTERNS = ("^a+$", "[a-z]", "^(ab|c)[0-9]{2}", "[^a-z]$", r"^\d{3}-\w\s?$", "^.{3}$", "^$", "a|^b$")


def random_schema(pick: random.Random, depth: int = 3) -> Any:
    """A schema with at most `depth` schemas in each other."""
    kind = pick.random()
    if depth == 0 or kind < 0.35:
        return _scalar(pick)
    if kind < 0.55:
        return _object(pick, depth)
    if kind < 0.7:
        return _array(pick, depth)
    if kind < 0.8:
        return {"type": pick.sample(["string", "integer", "null", "array", "object", "number"], 2)}
    combined = {
        pick.choice(["anyOf", "allOf", "oneOf"]): [random_schema(pick, depth - 1) for _ in range(pick.randint(1, 3))]
    }
    beside = random_schema(pick, depth - 1) if pick.random() < 0.3 else {}
    return {**beside, **combined} if isinstance(beside, dict) else combined


def _scalar(pick: random.Random) -> Any:
    kind = pick.choice(["integer", "number", "string", "enum", "boolean", "null", "any", "const"])
    if kind in ("integer", "number"):
        bounds = _BOUNDS if kind == "number" else (*range(-1500, 1500, 7),)
        words = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
        return {"type": kind, **{word: pick.choice(bounds) for word in words if pick.random() < 0.3}}
    if kind == "string":
        if pick.random() < 0.2:
            return {"pattern": pick.choice(_PATTERNS)}
        lengths = {"minLength": pick.randint(0, 5), "maxLength": pick.randint(0, 9)}
        return {"type": kind, **{word: n for word, n in lengths.items() if pick.random() < 0.5}}
    if kind == "enum":
        return {"enum": pick.sample(_VALUES, pick.randint(1, 5))}
    return {"any": pick.choice([True, {}]), "const": {"const": pick.choice([1, "x", None, [1, {}]])}}.get(
        kind, {"type": kind}
    )


def _object(pick: random.Random, depth: int) -> dict[str, Any]:
    names = pick.sample(_NAMES, pick.randint(0, 4))
    schema: dict[str, Any] = {"properties": {name: random_schema(pick, depth - 1) for name in names}}
    if pick.random() < 0.8:
        schema["type"] = "object"
    if pick.random() < 0.6:
        schema["required"] = pick.sample(_NAMES, pick.randint(0, 2))
    if pick.random() < 0.5:
        schema["additionalProperties"] = pick.choice([False, True, random_schema(pick, depth - 1)])
    return schema


def _array(pick: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array"}
    if pick.random() < 0.7:
        schema["items"] = random_schema(pick, depth - 1)
    if pick.random() < 0.3:
        schema["prefixItems"] = [random_schema(pick, depth - 1) for _ in range(pick.randint(1, 3))]
    for word, most in (("minItems", 3), ("maxItems", 5)):
        if pick.random() < 0.5:
            schema[word] = pick.randint(0, most)
    return schema
