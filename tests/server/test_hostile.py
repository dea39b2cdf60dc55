"""500 hostile bodies: each is refused in OpenAI's or Anthropic's form, and the server goes on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.server.hostile import BODIES, JSON, hostile_requests
from tests.server.serving import SUM, Serving

MOST = 1000  # characters of a message


def check_refusal(response: Any, path: str) -> None:
    """A failure in the right form that tells nothing about the server's inside."""
    assert 400 <= response.status_code < 500 and response.headers["content-type"] == "application/json"
    document = response.json()
    error = document["error"]
    if path.startswith("/v1/messages"):
        assert document["type"] == "error" and set(error) == {"type", "message"}
    else:
        assert set(error) == {"message", "type", "param", "code"} and error["code"]
    assert error["message"] and len(error["message"]) < MOST and "\n" not in error["message"]
    assert "Traceback" not in response.text and "/mimo_gguf/" not in response.text


def test_500_hostile_bodies(server: Serving) -> None:
    kinds = set()
    for request in hostile_requests(seed=1, n=500):
        kinds.add(request.what)
        response = server.client.post(server.url + request.path, content=request.raw, headers=request.headers)
        try:
            check_refusal(response, request.path)
        except (AssertionError, KeyError, ValueError) as error:
            raise AssertionError(
                f"{request.path}: {request.what}: {response.status_code} {response.text[:300]}: {request.raw[:300]!r}"
            ) from error
    assert len(kinds) > 100
    said = server.post("/v1/chat/completions", {"messages": SUM, "max_tokens": 1})
    assert said.status_code == 200 and server.engine.n_running == server.engine.n_waiting == 0


def test_the_bodies_that_are_spoilt_are_right(server: Serving) -> None:
    for path, body in BODIES.items():
        answer = server.post(path, body)
        assert answer.status_code == 200, (path, answer.text)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": "a\0b"}]},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "user", "content": "\u202e\ufeff\U0010ffff"}]},
        {"messages": [{"role": "user", "content": "x", "unknown": {"a": 1}}]},
        {"messages": [{"role": "assistant", "content": "x"}]},
        {"metadata": {"a": [1, {"b": None}]}, "user": "x"},
        {"stop": [""]},
        {"temperature": -0.0},
    ],
)
def test_what_is_odd_and_right(server: Serving, fields: dict[str, Any]) -> None:
    answer = server.post("/v1/chat/completions", {"messages": SUM, "max_tokens": 1, **fields})
    assert answer.status_code == 200, answer.text


def test_of_a_name_that_comes_twice_the_last_counts(server: Serving) -> None:
    raw = b'{"tokens": [1], "tokens": [2]}'
    twice = server.client.post(f"{server.url}/detokenize", content=raw, headers=JSON)
    assert twice.json() == server.post("/detokenize", {"tokens": [2]}).json()


def test_a_long_text_without_spaces_is_read(server: Serving) -> None:
    """A regular expression that calls itself for every letter would end the process."""
    for text in ("a" * 200_000, " " * 100_000, "1" * 50_000, "\u0301" * 20_000):
        answer = server.post("/tokenize", {"content": text})
        assert answer.status_code == 200 and answer.json()["count"] > 1000
        back = server.post("/detokenize", {"tokens": json.loads(answer.text)["tokens"]}).json()["content"]
        assert back == text
