"""Wrong and hostile requests: the right status, OpenAI's form of an error, and a server that goes on."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from mimo_gguf.runtime.llm import LLM
from tests.server.serving import SUM, Serving, serving

CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
DEEP = "[" * 100_000
JSON = {"content-type": "application/json"}


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": SUM, "max_tokens": 2, **fields}


def schema(given: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": given}}


def error_of(response: Any) -> dict[str, Any]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and "\n" not in error["message"] and len(error["message"]) < 1000
    assert "Traceback" not in response.text and response.headers["x-request-id"]
    return dict(error)


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        (CHAT, {"model": "gpt-9", **chat()}, 404, "model_not_found", "model"),
        (CHAT, chat(tempreature=1), 400, "unknown_field", "tempreature"),
        (CHAT, {"max_tokens": 2}, 400, "missing_field", "messages"),
        (CHAT, chat(messages=[]), 400, "invalid_value", "messages"),
        (CHAT, chat(messages="hello"), 400, "invalid_value", "messages"),
        (CHAT, chat(messages=[{"role": "king", "content": "x"}]), 400, "invalid_value", "messages[0].role"),
        (CHAT, chat(messages=[{"content": "x"}]), 400, "missing_field", "messages[0].role"),
        (CHAT, chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), 400, "invalid_value", None),
        (CHAT, chat(messages=[{"role": "user", "content": "x " * 2000}]), 400, "context_length_exceeded", None),
        (CHAT, chat(temperature=1000), 400, "invalid_value", "temperature"),
        (CHAT, chat(temperature="hot"), 400, "invalid_value", "temperature"),
        (CHAT, chat(top_p=-1), 400, "invalid_value", "top_p"),
        (CHAT, chat(max_tokens=-1), 400, "invalid_value", "max_tokens"),
        (CHAT, chat(max_tokens=1.5), 400, "invalid_value", "max_tokens"),
        (CHAT, chat(n=0), 400, "invalid_value", "n"),
        (CHAT, chat(n=10**30), 400, "invalid_value", "n"),
        (CHAT, chat(n=100), 400, "invalid_value", None),
        (CHAT, chat(top_logprobs=2), 400, "invalid_value", "top_logprobs"),
        (CHAT, chat(logprobs=True, top_logprobs=21), 400, "invalid_value", "top_logprobs"),
        (CHAT, chat(stop=["x"] * 65), 400, "invalid_value", "stop"),
        (CHAT, chat(logit_bias={"x": 1}), 400, "invalid_value", None),
        (CHAT, chat(logit_bias={"99999999": 1}), 400, "invalid_value", None),
        (CHAT, chat(seed="x"), 400, "invalid_value", "seed"),
        (CHAT, chat(response_format={"type": "xml"}), 400, "invalid_value", "response_format.type"),
        (CHAT, chat(response_format={"type": "json_schema"}), 400, "invalid_value", "response_format"),
        (CHAT, chat(response_format=schema({"type": "nothing"})), 400, "invalid_value", None),
        (CHAT, chat(response_format=schema({"$ref": "http://example.org/x"})), 400, "invalid_value", None),
        (CHAT, chat(grammar="root ::= nothing"), 400, "invalid_value", None),
        (CHAT, chat(grammar="this is none"), 400, "invalid_value", None),
        (CHAT, chat(tools=[{"type": "function", "function": {"name": "a b"}}]), 400, "invalid_value", None),
        (CHAT, chat(tools=[{"type": "function"}]), 400, "missing_field", "tools[0].function"),
        (CHAT, chat(tool_choice="required"), 400, "invalid_value", "tool_choice"),
        (CHAT, chat(chat_template_kwargs={"messages": []}), 400, "invalid_value", None),
        (CHAT, chat(chat_template_kwargs={"system": "x", "template": 1}), 400, "invalid_value", None),
        (CHAT, chat(thinking_token_budget=-5), 400, "invalid_value", "thinking_token_budget"),
        (CHAT, chat(n_draft=99), 400, "invalid_value", "n_draft"),
        (CHAT, chat(mtp="yes"), 400, "invalid_value", "mtp"),
        (COMPLETE, {}, 400, "missing_field", "prompt"),
        (COMPLETE, {"prompt": ""}, 400, "invalid_value", None),
        (COMPLETE, {"prompt": []}, 400, "invalid_value", None),
        (COMPLETE, {"prompt": [[1], ["x"]]}, 400, "invalid_value", None),
        (COMPLETE, {"prompt": [99999]}, 400, "invalid_value", None),
        (COMPLETE, {"prompt": [1, -1]}, 400, "invalid_value", None),
        (COMPLETE, {"prompt": ["x"] * 500}, 400, "invalid_value", None),
        (COMPLETE, {"prompt": "x", "suffix": "y"}, 400, "invalid_value", "suffix"),
        (COMPLETE, {"prompt": "x", "best_of": 3}, 400, "invalid_value", "best_of"),
        (COMPLETE, {"prompt": list(range(5)) * 500}, 400, "context_length_exceeded", None),
    ],
)  # fmt: skip
def test_wrong_fields(server: Serving, path: str, body: Any, status: int, code: str, param: str | None) -> None:
    for streamed in (False, True):
        response = server.post(path, body | {"stream": streamed})
        assert response.status_code == status, response.text
        error = error_of(response)
        assert (error["type"], error["code"]) == ("invalid_request_error", code)
        assert param is None or error["param"] == param


@pytest.mark.parametrize(
    ("raw", "headers", "status"),
    [
        (b"", JSON, 400),
        (b"{", JSON, 400),
        (b"null", JSON, 400),
        (b"[1, 2]", JSON, 400),
        (b"\xff\xfe", JSON, 400),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', JSON, 400),
        (b'{"messages": NaN}', JSON, 400),
        (b'{"temperature": Infinity, "messages": [{"role": "user", "content": "x"}]}', JSON, 400),
        (DEEP.encode(), JSON, 400),
        (b'{"messages": ' + DEEP.encode(), JSON, 400),
        (b'{"tools": ' + b'{"a": ' * 1000 + b"1" + b"}" * 1000 + b"}", JSON, 400),
        (json.dumps(chat()).encode(), {"content-type": "text/plain"}, 415),
        (json.dumps(chat()).encode(), {}, 415),
        (b" " * 70_000, JSON, 413),
    ],
)
def test_hostile_bodies(llm: LLM, raw: bytes, headers: dict[str, str], status: int) -> None:
    with serving(llm, body_bytes=1 << 16 if status == 413 else 1 << 20) as server:
        response = server.client.post(server.url + CHAT, content=raw, headers=headers)
        assert response.status_code == status
        error_of(response)


def test_paths_and_methods(server: Serving) -> None:
    assert error_of(server.get("/nothing"))["code"] == "not_found" and server.get("/nothing").status_code == 404
    assert server.get(CHAT).status_code == 405 and error_of(server.get(CHAT))
    assert server.get("/v1/models/gpt-9").status_code == 404
    assert server.get("/../../etc/passwd").status_code == 404


def test_what_can_be_read(server: Serving) -> None:
    assert server.get("/health").json() == {"status": "ok"}
    listed = server.get("/v1/models").json()
    assert [each["id"] for each in listed["data"]] == ["mimo-tiny", "other-name"] and listed["object"] == "list"
    assert listed["data"][0]["max_model_len"] == 1024
    assert server.get("/v1/models/other-name").json()["id"] == "other-name"
    assert server.post(CHAT, chat(model="other-name")).json()["model"] == "other-name"
    assert server.post(CHAT, chat()).json()["model"] == "mimo-tiny"


def test_connections_that_are_no_requests(llm: LLM) -> None:
    """A body that never comes, a length that lies, and words that are not HTTP: no thread and no slot is lost."""
    with serving(llm, body_s=0.2) as server:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        for sent, wanted in (
            (f"{head}Content-Length: 100\r\n\r\n{{", b"408"),
            (f"{head}Content-Length: -5\r\n\r\n", b"400"),
            ("HELLO\r\n\r\n", b"400"),
        ):
            with socket.create_connection(("127.0.0.1", server.settings.port), timeout=10) as connection:
                connection.sendall(sent.encode())
                assert wanted in connection.recv(1000).split(b"\r\n")[0]
        with socket.create_connection(("127.0.0.1", server.settings.port)) as connection:
            connection.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        assert server.post(CHAT, chat()).status_code == 200
