"""Answers under a JSON schema: hundreds are drawn at random, parsed by json and judged by the jsonschema package.

The logits are random, so that every way through a grammar is taken: a trained model would take the usual ones.
"""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import numpy as np
import pytest

from mimo_gguf.core.errors import UsageError
from mimo_gguf.engine.json_schema import JSON_OBJECT, grammar_of_schema
from mimo_gguf.engine.sampling import Sampler, SamplingOptions
from mimo_gguf.llama.api import LlamaModel
from mimo_gguf.llama.vocabulary import Vocabulary
from tests.engine.random_schemas import random_schema

_TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
            "required": ["v", "next"],
        }
    },
}
_PETS = {
    "oneOf": [
        {"type": "object", "properties": {"kind": {"const": "cat"}, "lives": {"enum": [7, 9]}}, "required": ["kind"]},
        {"type": "object", "properties": {"kind": {"const": "dog"}, "loud": {"type": "boolean"}}, "required": ["kind"]},
        {"type": "null"},
    ]
}
SCHEMAS: dict[str, Any] = {
    "object": json.loads(JSON_OBJECT),
    "true": True,
    "any": {},
    "text": {"type": "string"},
    "short": {"type": "string", "minLength": 2, "maxLength": 4},
    "long": {"type": "string", "minLength": 1100, "maxLength": 1200},
    "plain": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "number"}}, "required": ["a"]},
    "required": {"required": ["x", "a~b"], "properties": {"x": {"type": "boolean"}}},
    "closed": {"properties": {"a": {}, "b": {"type": "null"}}, "additionalProperties": False},
    "empty": {"type": "object", "additionalProperties": False},
    "extra": {
        "properties": {"a": {"type": "integer"}, "ab": {"type": "null"}, "": {"type": "boolean"}, 'q"': {"const": 1}},
        "additionalProperties": {"type": "string", "maxLength": 2},
    },
    "map": {"additionalProperties": {"type": "boolean"}, "minProperties": 1},
    "list": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 5},
    "nothing": {"type": "array", "maxItems": 0},
    "tuple": {"prefixItems": [{"type": "string"}, {"type": "number"}], "items": False, "minItems": 2},
    "draft 7 tuple": {"$schema": "http://json-schema.org/draft-07/schema#", "type": "array",
                      "items": [{"type": "boolean"}], "additionalItems": {"type": "null"}, "minItems": 3},
    "tuple of all": {"allOf": [{"items": {"enum": [1, "x", None]}, "minItems": 3},
                               {"type": "array", "prefixItems": [{"type": "integer"}, {"type": ["null", "string"]}]}]},
    "enum": {"enum": ["a", "ab", "abc", 1, 2.5, None, True, {"x": ["é\"\\\n"]}, "\u007f"]},
    "enum of a type": {"type": ["string", "null"], "enum": ["a", None, 1]},
    "const": {"const": {"a": [1, "x"]}},
    "types": {"type": ["integer", "null", "string"], "minimum": 5},
    "bounds": {"type": "integer", "minimum": -12, "maximum": 137},
    "open bounds": {"type": "integer", "exclusiveMinimum": 9, "exclusiveMaximum": 101},
    "at least": {"type": "integer", "minimum": 1234},
    "at most": {"type": "integer", "maximum": -5},
    "share": {"type": "number", "minimum": 0, "maximum": 1},
    "open share": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.25},
    "decimals": {"type": "number", "minimum": -1.25, "maximum": 10.5},
    "positive": {"type": "number", "exclusiveMinimum": 0},
    "multiple": {"type": "number", "multipleOf": 1},
    "int32": {"type": "integer", "format": "int32"},
    "tree": _TREE,
    "itself": {"type": "array", "items": {"$ref": "#"}, "maxItems": 3},
    "pets": _PETS,
    "all": {
        "type": "object",
        "allOf": [
            {"properties": {"a": {"type": "integer", "minimum": 3}, "b": {}}, "required": ["a"]},
            {"properties": {"a": {"maximum": 7}}, "additionalProperties": {"type": "boolean"}},
        ],
    },
    "any of": {"type": "object", "properties": {"k": {"type": "string", "maxLength": 1}}, "required": ["k"],
               "anyOf": [{"properties": {"k": {"enum": ["a", "b"]}}}, {"required": ["z"]}]} ,
    "pattern": {"type": "string", "pattern": r"^[A-Z]{2,3}-\d+(\.[^\"x]|\\|\t|é)?$"},
    "loose pattern": {"type": "string", "pattern": r"[a-z]|^c.d$"},
    "word": {"type": "string", "pattern": r"^\w+\s?[^\d\s]\S\W$"},
    **{f"format {name}": {"type": "string", "format": name}
       for name in ("date", "time", "date-time", "uuid", "ipv4", "ipv6", "hostname", "email", "uri")},
    "described": {"title": "T", "description": "D", "type": "boolean", "default": True, "examples": [1], "x-own": 1},
    "either": {"properties": {"bad": {"$ref": "#/$defs/never"}, "good": {"type": "null"}},
               "$defs": {"never": {"properties": {"n": {"$ref": "#/$defs/never"}}, "required": ["n"]}}},
}  # fmt: skip


class Noise:
    """Stands for a context whose model has no opinion: logits at random, in favour of what ends a value."""

    def __init__(self, model: LlamaModel, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._ends = list(Vocabulary(model).end_tokens)
        vocabulary = Vocabulary(model)
        self._closing = [token for token in range(model.n_vocab) if vocabulary.piece(token) in (b'"', b"}", b"]")]
        self._n = model.n_vocab
        self._row = 0

    def logits(self, _: int) -> Any:
        self._row += 1
        row = self._random.normal(0, 3, self._n).astype(np.float32)
        row[self._closing] += min(self._row / 10, 12)
        row[self._ends] += 5
        return row


def answers(model: LlamaModel, grammar: str, n: int, most: int = 3000) -> list[str]:
    """`n` answers under a grammar."""
    vocabulary, said = Vocabulary(model), []
    for seed in range(n):
        noise: Any = Noise(model, seed)
        tokens: list[int] = []
        with Sampler(model, SamplingOptions(temperature=1.0, top_p=1.0, seed=seed, grammar=grammar)) as sampler:
            while len(tokens) < most:
                token = sampler.sample(noise, 0)
                if token in vocabulary.end_tokens:
                    break
                tokens.append(token)
        assert len(tokens) < most
        said.append(b"".join(vocabulary.piece(token) for token in tokens).decode("utf-8"))
    return said


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_is_said_is_json_and_satisfies_the_schema(tiny: LlamaModel, name: str) -> None:
    schema = SCHEMAS[name]
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    validator = kind(schema, format_checker=kind.FORMAT_CHECKER)
    said = answers(tiny, grammar_of_schema(json.dumps(schema)), 12)
    for text in said:
        validator.validate(json.loads(text))
        assert not any(letter < " " and letter != "\n" for letter in text)
    assert len(set(said)) > 1 or name in ("empty", "const", "nothing")


@pytest.mark.parametrize(
    ("schema", "pointer", "says"),
    [
        ({"properties": {"a": {"minLenght": 1}}}, "#/properties/a/minLenght", "did you mean minLength?"),
        ({"not": {"type": "null"}}, "#/not", "cannot be used"),
        ({"if": {}, "then": {}}, "#/if", "cannot be used"),
        ({"patternProperties": {"x": {}}}, "#/patternProperties", "cannot be used"),
        ({"type": "text"}, "#/type", "object, array, string"),
        ({"type": "array", "uniqueItems": True}, "#/uniqueItems", "compare"),
        ({"type": "number", "multipleOf": 0.1}, "#/multipleOf", "multiples of 1"),
        ({"items": {"pattern": "(?=a)b"}}, "#/items/pattern", "'(?=a...'"),
        ({"pattern": r"(a)\1"}, "#/pattern", r"'\1'"),
        ({"pattern": "a{1,5000}"}, "#/pattern", "1000 repetitions"),
        ({"pattern": "(("}, "#/pattern", "instead of ')'"),
        ({"pattern": "[a-"}, "#/pattern", "does not end"),
        ({"pattern": "a", "maxLength": 3}, "#/maxLength", "beside pattern"),
        ({"format": "datetime", "type": "string"}, "#/format", "did you mean date-time"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "#/oneOf/1", "use anyOf"),
        ({"$ref": "#/$defs/none"}, "#/$ref", "names nothing"),
        ({"$ref": "http://example.org/x"}, "#/$ref", "is not in this schema"),
        ({"$ref": "#"}, "#", "refers to itself"),
        ({"$defs": {"a/b": {"type": 1}}, "$ref": "#/$defs/a~1b"}, "#/$defs/a~1b/type", "the types are"),
        ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "#", "none that ends"),
        ({"type": "string", "allOf": [{"type": "null"}]}, "#", "no value satisfies it"),
        (False, "#", "no value"),
        ([], "#", "a schema must be an object"),
        ({"type": "string", "minLength": -1}, "#/minLength", "0 or more"),
        ({"type": "array", "minItems": 10**9}, "#/minItems", "more than 100000"),
        ({"type": "array", "maxItems": 10**7}, "#/maxItems", "more than 100000"),
        ({"type": "string", "maxLength": 10**30}, "#/maxLength", "more than 100000"),
        ({"properties": {"a": {}}, "maxProperties": 0}, "#/maxProperties", "count"),
        ({"minProperties": 2}, "#/minProperties", "count"),
        ({"type": "integer", "minLength": 2}, "#/minLength", "not about values of type integer"),
        ({"enum": []}, "#/enum", "list of values"),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(schema: Any, pointer: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        grammar_of_schema(json.dumps(schema))
    assert f": {pointer}: " in caught.value.message and says in caught.value.message, caught.value.message
    assert caught.value.hint and "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no schema", "not JSON"),
        ("[" * 100_000, "nested too deep"),
        ('{"items":' * 5000 + "{}" + "}" * 5000, "nested|levels"),
        ('{"allOf":[' * 300 + "{}" + "]}" * 300, "nested"),
        ('{"minimum": NaN}', "not a JSON number"),
        ('{"minimum": ' + "9" * 5000 + "}", "not JSON|digits"),
        ('{"x-a": "' + "a" * (1 << 22) + '"}', "characters"),
        (json.dumps({"allOf": [{"anyOf": [{"minimum": i}, {"maximum": i}]} for i in range(30)]}), "alternatives"),
        (json.dumps({"enum": [f"{i:05d}" * 10 for i in range(30_000)]}), "too large"),
    ],
)
def test_a_schema_that_is_too_much_is_refused_at_once(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        grammar_of_schema(text)


def test_a_long_list_of_values_is_taken(tiny: LlamaModel) -> None:
    """As a tree of common beginnings: side by side llama.cpp would compare all of them with each other."""
    values = [f"{i:05d}" for i in range(5000)]
    assert all(json.loads(text) in values for text in answers(tiny, grammar_of_schema({"enum": values}), 3))


def test_schemas_at_random(tiny: LlamaModel) -> None:
    """Whatever is taken holds: 120 schemas of any keywords together, of which a third cannot be said."""
    pick, n_taken = random.Random(11), 0
    for _ in range(120):
        schema = random_schema(pick)
        try:
            grammar = grammar_of_schema(json.dumps(schema))
        except UsageError:
            continue
        n_taken += 1
        validator = jsonschema.Draft202012Validator(schema)
        for text in answers(tiny, grammar, 2, most=6000):
            assert validator.is_valid(json.loads(text)), (schema, text)
    assert n_taken > 60
