"""Counts, nesting and lengths of a body are limited, and each limit is named in a clear 400."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mimo_gguf.server.bodies import DEPTH_MOST
from tests.server.hostile import JSON
from tests.server.serving import SUM, Serving

CHAT = "/v1/chat/completions"
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"messages": SUM * 10_001}, "messages", "at most 10000 items"),
        ({"messages": [{"role": "user", "content": ["x"] * 10_001}]}, "messages[0].content", "at most 10000 items"),
        ({"stop": ["x"] * 65}, "stop", "at most 64 items"),
        ({"stop": ["x" * 1025]}, "stop[0]", "at most 1024 characters"),
        ({"bad_words": ["x"] * 65}, "bad_words", "at most 64 items"),
        ({"logit_bias": dict.fromkeys(map(str, range(4097)), 1)}, "logit_bias", "at most 4096 items"),
        ({"stop_token_ids": [1] * 4097}, "stop_token_ids", "at most 4096 items"),
        ({"tools": [TOOL] * 129}, "tools", "at most 128 items"),
        ({"n": 129}, "n", "less than or equal to 128"),
        ({"grammar": "x" * ((1 << 20) + 1)}, "grammar", "at most 1048576 characters"),
        ({"chat_template_kwargs": dict.fromkeys(map(str, range(65)), 1)}, "chat_template_kwargs", "at most 64 items"),
    ],
)
def test_counts(server: Serving, fields: dict[str, Any], param: str, words: str) -> None:
    refused = server.post(CHAT, {"messages": SUM, "max_tokens": 1, **fields})
    error = refused.json()["error"]
    assert refused.status_code == 400 and error["param"] == param and words in error["message"], error


@pytest.mark.parametrize("inside", ["[]", '{"a": {}}'])
def test_nesting(server: Serving, inside: str) -> None:
    begin, end = (inside[0], inside[-1]) if inside == "[]" else ('{"a":', "}")

    def ask(levels: int) -> Any:
        raw = json.dumps({"messages": SUM, "max_tokens": 1})[:-1] + f', "metadata": {begin * levels}1{end * levels}}}'
        return server.client.post(server.url + CHAT, content=raw.encode(), headers=JSON)

    assert ask(DEPTH_MOST - 1).status_code == 200
    for levels in (DEPTH_MOST, DEPTH_MOST * 2, 100_000):
        error = ask(levels).json()["error"]
        assert error["code"] == "nested_too_deep" and f"{DEPTH_MOST} levels" in error["message"]


def nested(n: int) -> dict[str, Any]:
    """A schema of lists inside each other."""
    return {"type": "array", "items": nested(n - 1)} if n else {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"description": "x" * (2 << 20)}, "characters"),
        ({"type": "string", "maxLength": 200_000}, "200000 is more than"),
        ({"type": "array", "items": nested(61)}, "levels"),
    ],
)
def test_schemas(server: Serving, schema: dict[str, Any], words: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    refused = server.post(CHAT, {"messages": SUM, "max_tokens": 1, "response_format": form})
    assert refused.status_code == 400 and words in refused.json()["error"]["message"], refused.text
