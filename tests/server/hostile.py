"""Hostile requests made from a seed. Each is wrong in one way, so that a status of 4xx is the only right one."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from mimo_gguf.server.openapi import openapi_document

JSON: Final = {"content-type": "application/json"}
_USER: Final = {"role": "user", "content": "What is 17 + 25?"}
_TOOL: Final = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
# A body of each path that is right. No answer has more than one token.
BODIES: Final[dict[str, dict[str, Any]]] = {
    "/v1/chat/completions": {
        "messages": [_USER], "max_tokens": 1, "temperature": 0.5, "stop": ["x"], "tools": [_TOOL], "seed": 1,
        "logit_bias": {"5": 1}, "stream_options": {"include_usage": True}, "response_format": {"type": "text"},
    },
    "/v1/completions": {"prompt": "x", "max_tokens": 1, "logprobs": 1, "temperature": 0.5},
    "/v1/responses": {
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}], "max_output_tokens": 1,
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}], "top_p": 0.5,
    },
    "/v1/messages": {
        "messages": [_USER], "max_tokens": 1, "system": [{"type": "text", "text": "x"}], "temperature": 0.5,
        "tools": [{"name": "f", "input_schema": {"type": "object"}}], "thinking": {"type": "enabled"},
    },
    "/v1/messages/count_tokens": {"messages": [_USER], "system": "x"},
    "/tokenize": {"content": "x"},
    "/detokenize": {"tokens": [1, 2]},
    "/apply-template": {"messages": [_USER], "tools": [_TOOL]},
}  # fmt: skip
_SAMPLES: Final[dict[str, list[Any]]] = {
    "string": ["x", "", "\0", "1"],
    "integer": [1, -1, 10**30, -(2**63)],
    "number": [1.5, -0.0, 1e308],
    "boolean": [True, False],
    "array": [[], [[]], [None], [{}]],
    "object": [{}, {"a": {}}, {"__class__": "x"}],
    "null": [None],
}


@dataclass(frozen=True, slots=True)
class Hostile:
    """A request that must be refused. `what` says what is wrong with it."""

    what: str
    path: str
    raw: bytes
    headers: dict[str, str]


def hostile_requests(seed: int, n: int) -> Iterator[Hostile]:
    """`n` hostile requests: first every field of every body with every wrong kind of value, then what is drawn."""
    rng = random.Random(seed)
    wrong = list(_wrong_kinds())
    rng.shuffle(wrong)
    yield from wrong[: n // 2]
    for number in range(n - min(len(wrong), n // 2)):
        path = rng.choice(list(BODIES))
        make = _FAMILIES[number % len(_FAMILIES)]
        raw, headers = make(rng, path)
        yield Hostile(make.__name__.strip("_"), path, raw, JSON if headers is None else headers)


def _wrong_kinds() -> Iterator[Hostile]:
    """Every field with a value of every kind that its schema does not have."""
    document = openapi_document("x")
    schemas = document["components"]["schemas"]
    for path, body in BODIES.items():
        reference = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        properties = schemas[reference.rpartition("/")[2]]["properties"]
        for name, schema in properties.items():
            kinds = _kinds(schema, schemas)
            for kind in sorted(set(_SAMPLES) - kinds) if kinds else ():
                for value in _SAMPLES[kind]:
                    raw = json.dumps({**body, name: value}).encode()
                    yield Hostile(f"{name} is {str(value)[:20]}", path, raw, JSON)


def _kinds(schema: dict[str, Any], schemas: dict[str, Any]) -> set[str]:
    """The kinds of values that a schema may allow; none if it allows all."""
    if "$ref" in schema:
        return _kinds(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    if "anyOf" in schema:
        inner = [_kinds(each, schemas) for each in schema["anyOf"]]
        return set().union(*inner) if all(inner) else set()
    if "enum" in schema or "const" in schema:
        return {"string", "boolean", "null"}  # which of them is not asked here
    found = {schema["type"]} if "type" in schema else set()
    return found | ({"integer"} if "number" in found else set())


# ---- families: each gives the bytes of a body, and headers if they are not those of JSON

Made = tuple[bytes, dict[str, str] | None]


def _valid(path: str) -> bytes:
    return json.dumps(BODIES[path]).encode()


def _with(path: str, **fields: Any) -> Made:
    return json.dumps({**BODIES[path], **fields}).encode(), None


def _truncated(rng: random.Random, path: str) -> Made:
    raw = _valid(path)
    return raw[: rng.randrange(len(raw))], None


def _raw_byte(rng: random.Random, path: str) -> Made:
    raw, at = _valid(path), rng.randrange(len(_valid(path)))
    return raw[:at] + rng.choice([b"\x00", b"\xff", b"\xc0\xaf", b"\x07", b"\xed\xa0\x80"]) + raw[at:], None


def _lone_surrogate(rng: random.Random, path: str) -> Made:
    half = rng.choice(["\\ud800", "\\udfff", "\\ud800x", "\\udc00\\ud800", "\\u12", "\\x41"])
    return _valid(path)[:-1] + b', "model": "' + half.encode() + b'"}', None


def _no_number(rng: random.Random, path: str) -> Made:
    word = rng.choice(["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "01", "1.", "+1", "0x10", "1e", "--1"])
    return _valid(path)[:-1] + f', "temperature": {word}}}'.encode(), None


def _deep(rng: random.Random, path: str) -> Made:
    depth, (begin, end) = rng.choice([101, 150, 199, 250, 5000, 100_000]), rng.choice([("[", "]"), ('{"a":', "}")])
    whole = begin * depth + "1" + end * depth
    if rng.random() < 0.3:
        return whole.encode(), None
    return _valid(path)[:-1] + f', "{rng.choice(["metadata", "tools", "x"])}": {whole}}}'.encode(), None


def _huge_number(rng: random.Random, path: str) -> Made:
    number = rng.choice(["1" + "0" * 400, "-1" + "0" * 30, "1" * 5000, "1e308", "-1e400", "1e-400x"])
    fields = {"/detokenize": "tokens", "/tokenize": "with_pieces"}
    return _valid(path)[:-1] + f', "{fields.get(path, "max_tokens")}": {number}}}'.encode(), None


def _wrong_type(rng: random.Random, path: str) -> Made:
    kind = rng.choice(["", "text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded",
                       "application/jsonx", "application/json-seq", "x" * 5000])  # fmt: skip
    return _valid(path), {"content-type": kind} if kind else {}


def _compressed(rng: random.Random, path: str) -> Made:
    bomb = gzip.compress(b" " * rng.choice([10, 1 << 20, 8 << 20]) + _valid(path), 1)
    return bomb, JSON | {"content-encoding": rng.choice(["gzip", "deflate", "br", "gzip, gzip", "zstd"])}


def _enormous_count(rng: random.Random, path: str) -> Made:
    messages, texts = [_USER] * 10_001, ["x"] * 2000
    many: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": rng.choice([
            {"messages": messages}, {"stop": texts}, {"tools": [_TOOL] * 129}, {"bad_words": texts}, {"n": 100_000},
            {"logit_bias": {str(n): 1 for n in range(5000)}}, {"stop": "x" * 5000}, {"stop_token_ids": [1] * 5000},
            {"messages": [{"role": "user", "content": ["x"] * 10_001}]}, {"max_tokens": 1 << 40},
        ]),
        "/v1/completions": rng.choice([{"prompt": ["x"] * 1025}, {"prompt": [[1]] * 1025}, {"logprobs": 21}]),
        "/v1/responses": rng.choice([{"input": messages}, {"include": texts}, {"top_logprobs": 21}]),
        "/v1/messages": rng.choice([{"messages": messages}, {"stop_sequences": texts}]),
        "/v1/messages/count_tokens": {"messages": messages},
        "/tokenize": {"content": None, "messages": messages},
        "/detokenize": {"tokens": [1] * ((1 << 20) + 1)},
        "/apply-template": {"messages": messages},
    }  # fmt: skip
    return _with(path, **many[path])


def _twice(rng: random.Random, path: str) -> Made:
    """A name that comes twice, of which the last value is wrong."""
    name, value = rng.choice(list(BODIES[path])), rng.choice(["-17", '{"a": 1}', '[{"a": [[]]}]'])
    return _valid(path)[:-1] + f', "{name}": {value}}}'.encode(), None


def _unknown_field(rng: random.Random, path: str) -> Made:
    names = ["tempreature", "", "__proto__", "x" * 10_000, "\0", "名前", "a.b", "a[0]", "%s%n", "{}", "\n\r\n"]
    return _with(path, **{rng.choice(names): rng.choice([1, "x", None, []])})


def _no_object(rng: random.Random, path: str) -> Made:
    return rng.choice([b"", b" ", b"null", b"1", b'"x"', b"[]", b"[{}]", b"\xef\xbb\xbf{}", b"{}{}", b"'x'"]), None


def _bad_part(rng: random.Random, path: str) -> Made:
    """A message, tool, schema or grammar that is wrong deep inside."""
    part: Any = rng.choice(
        [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, 5, None, [], {"type": 7}]
    )
    schema = rng.choice([{"type": "nothing"}, {"$ref": "file:///etc/passwd"}, {"$ref": "#/a/b"}, {"pattern": "(" * 50},
                         {"allOf": [{"type": "string"}, {"type": "number"}]}, {"minimum": "x"}])  # fmt: skip
    message = {"messages": [{"role": "user", "content": [part]}]}
    chat: dict[str, Any] = rng.choice([
        message, {"messages": [{"role": "user"}, {"role": "king"}]}, {"messages": [5]}, {"grammar": "root ::= ("},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}, {"grammar": "\0"},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}], "tool_choice": "required"},
        {"chat_template_kwargs": {"messages": []}}, {"tool_choice": {"type": "function", "function": {"name": "g"}}},
    ])  # fmt: skip
    wrong: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": chat,
        "/v1/completions": rng.choice([{"prompt": [1, -1]}, {"prompt": [[1], ["x"]]}, {"prompt": [1 << 31]}]),
        "/v1/responses": rng.choice([
            {"input": [{"role": "user", "content": [part]}]}, {"input": [{"type": "web_search_call"}]},
            {"previous_response_id": "resp_x"}, {"text": {"format": {"type": "json_schema", "schema": schema}}},
        ]),
        "/v1/messages": message,
        "/v1/messages/count_tokens": message,
        "/tokenize": {"content": None, "messages": [{"role": "user", "content": 5}]},
        "/detokenize": {"tokens": [1 << 30]},
        "/apply-template": {"messages": [{"role": "user", "content": [part]}]},
    }  # fmt: skip
    return _with(path, **wrong[path])


_FAMILIES: Final[list[Callable[[random.Random, str], Made]]] = [
    _truncated, _raw_byte, _lone_surrogate, _no_number, _deep, _huge_number, _wrong_type, _compressed, _enormous_count,
    _twice, _unknown_field, _no_object, _bad_part,
]  # fmt: skip
