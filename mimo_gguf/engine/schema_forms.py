"""Simplifies a JSON schema for writing a grammar: references are resolved; allOf, anyOf and oneOf are multiplied out.

The result is a list of alternatives, each a `Form` with keywords about one value. A keyword that a form cannot express
is refused with its JSON pointer. Only keywords that describe (title, default, ...) are ignored.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.near_matches import near_matches

TYPES: Final = ("object", "array", "string", "number", "integer", "boolean", "null")
_DESCRIBING: Final = frozenset({
    "title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$schema", "$id",
    "id", "$comment", "$anchor", "$defs", "definitions", "discriminator", "$vocabulary",
    "contentMediaType", "contentEncoding", "contentSchema",
})  # fmt: skip
_COMBINING: Final = frozenset({"$ref", "allOf", "anyOf", "oneOf"})
KEYWORDS_OF: Final[dict[str, frozenset[str]]] = {
    "object": frozenset({
        "properties", "required", "additionalProperties", "unevaluatedProperties", "minProperties", "maxProperties",
    }),
    "array": frozenset({"items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems"}),
    "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}),
}  # fmt: skip
_ASSERTING: Final = frozenset({"type", "enum", "const"}).union(*KEYWORDS_OF.values())
_FORMS_MOST: Final = 300
_LEAST: Final = frozenset({"minLength", "minItems", "minProperties", "minimum", "exclusiveMinimum"})
_MOST: Final = frozenset({"maxLength", "maxItems", "maxProperties", "maximum", "exclusiveMaximum"})


@dataclass(frozen=True, slots=True)
class Place:
    """A schema inside the document, and its JSON pointer."""

    schema: Any
    pointer: str


Child = tuple[Place, ...]  # schemas, all of which one value must satisfy


@dataclass(frozen=True, slots=True)
class Form:
    """Keywords about one value.

    Attributes:
        words: keyword -> its value. `properties` has a Child for each name, `additionalProperties` and `items` are a
            Child, `prefixItems` is a list of them. `const` becomes an `enum` of one value.
        pointers: keyword -> its JSON pointer.
    """

    words: Mapping[str, Any] = field(default_factory=dict)
    pointers: Mapping[str, str] = field(default_factory=dict)

    def types(self) -> list[str]:
        """The types that a value may have: those given, else those that the keywords are about, else all."""
        if "type" in self.words:
            return list(self.words["type"])
        about = [kind for kind, words in KEYWORDS_OF.items() if words & self.words.keys()]
        return about or [kind for kind in TYPES if kind != "integer"]


def refuse(pointer: str, reason: str) -> UsageError:
    """The error that refuses a part of a schema; the caller raises it."""
    message = f"no grammar for this JSON schema: {pointer or '#'}: {reason}"
    return UsageError(message, hint="leave it out, or use keywords that a grammar can express")


class Document:
    """A whole schema, in which references are looked up."""

    def __init__(self, schema: Any) -> None:
        self.root = Place(schema, "#")

    def forms(self, child: Child) -> list[Form]:
        """The forms of values that satisfy all schemas of `child`; none if no value can.

        Raises:
            UsageError: a keyword is unknown or malformed, or a grammar cannot express it.
        """
        found = [Form()]
        for place in child:
            found = self._both(found, self._forms(place, ()), place.pointer)
        return found

    def _forms(self, place: Place, seen: tuple[str, ...]) -> list[Form]:
        schema, pointer = place.schema, place.pointer
        if isinstance(schema, bool):
            return [Form()] if schema else []
        if not isinstance(schema, dict):
            raise refuse(pointer, "a schema must be an object, true or false")
        if pointer in seen:
            raise refuse(pointer, "it refers to itself and says nothing else")
        seen = (*seen, pointer)
        if len(seen) > 100:
            raise refuse(pointer, "nested too deep")
        found = [_own_form(schema, pointer)]
        if "$ref" in schema:
            found = self._both(found, self._forms(self.find(schema["$ref"], f"{pointer}/$ref"), seen), pointer)
        for word in ("allOf", "anyOf", "oneOf"):
            if word in schema:
                branches = [self._forms(branch, seen) for branch in _branches(schema[word], f"{pointer}/{word}")]
                if word == "oneOf":
                    self._check_apart(branches, f"{pointer}/oneOf")
                choices = branches if word == "allOf" else [[form for branch in branches for form in branch]]
                for choice in choices:
                    found = self._both(found, choice, pointer)
        return found

    def find(self, reference: Any, pointer: str) -> Place:
        """Looks up a reference, which must lead to a place inside the document."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise refuse(pointer, f"{reference!r:.60} is not in this schema")
        schema, at = self.root.schema, "#"
        if reference[1:] and not reference.startswith("#/"):
            raise refuse(pointer, f"{reference!r:.60} is not a JSON pointer like #/$defs/name")
        for part in reference[2:].split("/") if reference[1:] else ():
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(schema, list) and key.isdecimal() and int(key) < len(schema):
                schema = schema[int(key)]
            elif isinstance(schema, dict) and key in schema:
                schema = schema[key]
            else:
                raise refuse(pointer, f"{reference!r:.60} names nothing in this schema")
            at += "/" + part
        return Place(schema, at)

    def _both(self, first: Sequence[Form], second: Sequence[Form], pointer: str) -> list[Form]:
        if len(first) * len(second) > _FORMS_MOST:
            raise refuse(pointer, f"more than {_FORMS_MOST} alternatives")
        return [both for a, b in itertools.product(first, second) if (both := merged(a, b)) is not None]

    def _check_apart(self, branches: Sequence[Sequence[Form]], pointer: str) -> None:
        """Refuses branches of oneOf if one value may satisfy two of them, because exactly one is allowed."""
        for (i, first), (j, second) in itertools.combinations(enumerate(branches), 2):
            if not all(self._is_apart(a, b) for a in first for b in second):
                raise refuse(f"{pointer}/{j}", f"a value may satisfy {i} and {j} of oneOf; use anyOf")

    def _is_apart(self, first: Form, second: Form) -> bool:
        """Whether no value satisfies both: their types, constants, or a property that both require differ."""
        if merged(first, second) is None:
            return True
        if {*first.types(), *second.types()} != {"object"}:
            return False
        properties = [form.words.get("properties", {}) for form in (first, second)]
        return any(
            name in second.words.get("required", ())
            and all(name in known for known in properties)
            and all(
                merged(a, b) is None for a in self.forms(properties[0][name]) for b in self.forms(properties[1][name])
            )
            for name in first.words.get("required", ())
        )


def _branches(value: Any, pointer: str) -> list[Place]:
    if not isinstance(value, list) or not value:
        raise refuse(pointer, "it must be a list of schemas")
    return [Place(branch, f"{pointer}/{i}") for i, branch in enumerate(value)]


# ---- one schema's own keywords


def _own_form(schema: Mapping[str, Any], pointer: str) -> Form:
    words: dict[str, Any] = {}
    pointers: dict[str, str] = {}
    for word, value in schema.items():
        at = f"{pointer}/{_in_pointer(word)}"
        if word in _DESCRIBING or word in _COMBINING or word.startswith("x-"):
            continue
        if word not in _ASSERTING:
            near = near_matches(word, _ASSERTING | _COMBINING)
            raise refuse(at, f"this keyword cannot be used{f'; did you mean {near[0]}?' if near else ''}")
        words[word], pointers[word] = _read(word, value, at), at
    if "const" in words:
        constant, at = words.pop("const"), pointers.pop("const")
        allowed = words.get("enum", [constant])
        words["enum"] = [value for value in allowed if _same(value, constant)]
        pointers["enum"] = at
    return Form(*_modernized(words, pointers))


def _read(word: str, value: Any, at: str) -> Any:
    """Reads a keyword's value as a Form holds it. Refuses a value of the wrong type."""
    if word == "type":
        kinds = [value] if isinstance(value, str) else value
        _check(isinstance(kinds, list) and kinds and all(kind in TYPES for kind in kinds), at, _TYPES_ARE)
        return [kind for kind in kinds if kind != "integer" or "number" not in kinds]
    if word == "properties":
        _check(isinstance(value, dict), at, "it must be an object of schemas")
        return {name: (Place(inner, f"{at}/{_in_pointer(name)}"),) for name, inner in value.items()}
    if word == "prefixItems" or (word == "items" and isinstance(value, list)):
        _check(isinstance(value, list), at, "it must be a list of schemas")
        return [(Place(inner, f"{at}/{i}"),) for i, inner in enumerate(value)]
    if word in ("items", "additionalItems", "additionalProperties", "unevaluatedProperties"):
        return (Place(value, at),)
    if word in _LEAST | _MOST:
        _check_bound(word, value, at)
    elif word in _KINDS:
        is_right, says = _KINDS[word]
        _check(is_right(value), at, says)
    return value


_TYPES_ARE: Final = f"the types are {', '.join(TYPES)}"
_KINDS: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "enum": (lambda value: isinstance(value, list) and bool(value), "it must be a list of values"),
    "required": (lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
                 "it must be a list of names"),
    "pattern": (lambda value: isinstance(value, str), "it must be a text"),
    "format": (lambda value: isinstance(value, str), "it must be a text"),
    "uniqueItems": (lambda value: isinstance(value, bool), "it must be true or false"),
}  # fmt: skip


def _check_bound(word: str, value: Any, at: str) -> None:
    """Refuses a bound that is not a number, or not a count. In draft 4 exclusive bounds may be true or false."""
    if word.startswith("exclusive") and isinstance(value, bool):
        return
    counts = not word.lower().endswith("imum")
    is_number = isinstance(value, int if counts else int | float) and not isinstance(value, bool)
    _check(is_number, at, "it must be a number")
    _check(not counts or value >= 0, at, "it must be 0 or more")


def _check(right: Any, at: str, says: str) -> None:
    if not right:
        raise refuse(at, says)


def _modernized(words: dict[str, Any], pointers: dict[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Rewrites what older drafts had: lists as `items`, `additionalItems`, and exclusive bounds that are true."""
    if isinstance(words.get("items"), list):
        words["prefixItems"], pointers["prefixItems"] = words.pop("items"), pointers.pop("items")
        if "additionalItems" in words:
            words["items"], pointers["items"] = words["additionalItems"], pointers["additionalItems"]
    words.pop("additionalItems", None)
    for open_bound, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(words.get(open_bound), bool) and words.pop(open_bound) and bound in words:
            words[open_bound], pointers[open_bound] = words.pop(bound), pointers[bound]
    if "unevaluatedProperties" in words:  # true allows what a grammar never adds by itself
        (place,) = words.pop("unevaluatedProperties")
        if place.schema is False:
            words.setdefault("additionalProperties", (place,))
            pointers.setdefault("additionalProperties", place.pointer)
    return words, pointers


def _in_pointer(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _same(first: Any, second: Any) -> bool:
    """Whether two values are equal in JSON: 1 and 1.0 are, 1 and true are not."""
    return _key(first) == _key(second)


def _key(value: Any) -> str:
    """A text that is the same for values that are equal in JSON."""

    def plain(inner: Any) -> Any:
        if isinstance(inner, dict):
            return {name: plain(each) for name, each in inner.items()}
        if isinstance(inner, list):
            return [plain(each) for each in inner]
        return int(inner) if isinstance(inner, float) and inner.is_integer() else inner

    return json.dumps(plain(value), sort_keys=True)


def is_of_type(value: Any, kind: str) -> bool:
    """Whether a JSON value has this type of a JSON schema."""
    if isinstance(value, bool) or value is None:
        return kind == ("null" if value is None else "boolean")
    if isinstance(value, int | float):
        return kind == "number" or (kind == "integer" and float(value).is_integer())
    return kind == ("string" if isinstance(value, str) else "array" if isinstance(value, list) else "object")


# ---- two forms at once


def merged(first: Form, second: Form) -> Form | None:
    """The form of values that satisfy both; None if clearly no value does."""
    words = {**first.words, **second.words}
    pointers = {**first.pointers, **second.pointers}
    for word in first.words.keys() & second.words.keys():
        value = _merged_word(word, first.words[word], second.words[word], pointers[word])
        if value is None:
            return None
        words[word] = value
    if "properties" in words or "required" in words:
        _limit_properties(words, first, second)
    for one, other in ((first, second), (second, first)):
        if "prefixItems" in one.words and "items" in other.words:
            words["prefixItems"] = [(*place, *other.words["items"]) for place in words["prefixItems"]]
    form = Form(words, pointers)
    if "enum" in words:
        words["enum"] = [v for v in words["enum"] if "type" not in words or any(is_of_type(v, t) for t in form.types())]
        if not words["enum"]:
            return None
    properties, required = words.get("properties", {}), words.get("required", ())
    if any(all(place.schema is False for place in properties.get(name, (Place(True, ""),))) for name in required):
        return None
    return form


def _merged_word(word: str, first: Any, second: Any, pointer: str) -> Any:
    """Combines both values of a keyword; None if nothing satisfies both."""
    if word == "type":
        both = [kind for kind in first if kind in second or (kind == "integer" and "number" in second)]
        both += [kind for kind in second if kind == "integer" and "number" in first and kind not in both]
        return both or None
    if word == "enum":
        return [value for value in first if any(_same(value, other) for other in second)] or None
    if word == "required":
        return list(dict.fromkeys([*first, *second]))
    if word == "properties":
        return {name: (*first.get(name, ()), *second.get(name, ())) for name in {**first, **second}}
    if word in ("items", "additionalProperties"):
        return (*first, *second)
    if word == "prefixItems" or (word in ("pattern", "format", "multipleOf") and first != second):
        raise refuse(pointer, f"{word} twice for one value")
    if word in _LEAST:
        return max(first, second)
    if word in _MOST:
        return min(first, second)
    return first or second if word == "uniqueItems" else first


def _limit_properties(words: dict[str, Any], first: Form, second: Form) -> None:
    """Adds to each property that only one form names what the other says about additional properties."""
    properties = dict(words.get("properties", {}))
    for one, other in ((first, second), (second, first)):
        additional = other.words.get("additionalProperties")
        if additional is None:
            continue
        named = other.words.get("properties", {})
        for name in one.words.get("properties", {}).keys() - named.keys():
            forbidden = any(place.schema is False for place in additional)
            properties[name] = additional if forbidden else (*properties[name], *additional)
    words["properties"] = properties
