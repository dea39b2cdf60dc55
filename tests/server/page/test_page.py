"""The page's paths: files with strict headers, who may have them, and the stream of rendered answers."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from mimo_gguf.runtime.llm import LLM
from mimo_gguf.server.page import files
from mimo_gguf.server.page.growing import render
from mimo_gguf.server.settings import key_digests
from tests.server.page.scripted import Said, ScriptedEngine
from tests.server.serving import SUM, Serving, serving

STATIC = Path(files.__file__).with_name("static")


def answers(server: Serving) -> dict[str, Said]:
    engine = server.engine
    assert isinstance(engine, ScriptedEngine)
    return engine.script.answers


def ask(server: Serving, **body: Any) -> list[dict[str, Any]]:
    """The events of an answer."""
    response = server.post("/page/chat", {"messages": SUM, **body})
    assert response.status_code == 200, response.text
    return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]


def shown(events: list[dict[str, Any]], name: str) -> list[str]:
    """The blocks that the page shows at the end."""
    blocks: list[str] = []
    for event in events:
        if f"{name}_html" in event:
            start, *new = event[f"{name}_html"]
            blocks[start:] = new
    return blocks


def test_files_and_their_headers(server: Serving) -> None:
    page = server.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    names = set(re.findall(r'(?:src|href)="(page/[^"]+)"', page.text))
    scripts = {f"page/{file.name}" for file in STATIC.glob("*.js")}
    assert names <= {f"page/{file.name}" for file in STATIC.iterdir()}
    for name in names | scripts:
        response = server.get(f"/{name}")
        assert response.status_code == 200 and response.headers["x-content-type-options"] == "nosniff"
        for imported in re.findall(r'from "\./([\w.]+)"', response.text):
            assert f"page/{imported}" in scripts
        again = server.get(f"/{name}", headers={"if-none-match": response.headers["etag"]})
        assert again.status_code == 304 and not again.content
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy and "http" not in policy
    assert server.get("/page/no-such.js").status_code == 404
    assert server.get("/page/..%2ffiles.py").status_code == 404
    assert server.client.head(server.url + "/").status_code == 200


def test_the_page_needs_nothing_from_elsewhere() -> None:
    for file in STATIC.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, file.name
        assert "innerHTML" not in text or file.name == "dom.js", "one place shows HTML, which the server made"
        assert not re.search(r"\bon[a-z]+=|style=|<style|eval\(|new Function", text if file.suffix == ".html" else "")
        assert text.count("\n") <= 480


def test_the_page_is_open_and_what_it_asks_for_needs_the_key(llm: LLM) -> None:
    with serving(llm, api_keys=key_digests(["secret"], None)) as server:
        assert server.get("/").status_code == server.get("/page/main.js").status_code == 200
        assert server.post("/page/render", {"texts": []}).status_code == 401
        assert server.post("/page/chat", {"messages": SUM}).status_code == 401
        key = {"authorization": "Bearer secret"}
        assert server.post("/page/render", {"texts": ["**a**"]}, headers=key).json()["blocks"] == [render("**a**")]
    with serving(llm) as server:
        assert server.get("/", headers={"host": "evil.example"}).status_code == 403


def test_what_has_come_is_shown_while_nothing_more_comes(scripted: Serving) -> None:
    gate = threading.Event()
    answers(scripted)["17"] = Said("first words, last words", gate=gate)
    body = {"messages": SUM}
    with scripted.client.stream("POST", scripted.url + "/page/chat", json=body) as response:
        text = ""
        for line in response.iter_lines():
            text += json.loads(line[6:]).get("text", "") if line.startswith("data: ") else ""
            if len(text) >= 12 and not gate.is_set():
                assert text == "first words,"
                gate.set()
    assert gate.is_set() and text == "first words, last words"


def test_a_models_answer_as_the_page_shows_it(server: Serving) -> None:
    events = ask(server, temperature=0, max_tokens=60)
    kinds = [event["type"] for event in events]
    assert kinds[0] == "begin" and kinds[-1] == "end" and set(kinds[1:-1]) == {"reading", "more"}
    begin, end = events[0], events[-1]
    plain = server.post("/v1/chat/completions", {"messages": SUM, "temperature": 0, "max_tokens": 60}).json()
    message = plain["choices"][0]["message"]
    text = "".join(event.get("text", "") for event in events)
    assert text == message["content"] and shown(events, "text") == render(text)
    thinking = "".join(event.get("thinking", "") for event in events)
    assert thinking == message.get("reasoning_content", "")
    assert begin["model"] == "mimo-tiny" and begin["window"] == 1024
    assert begin["prompt"] == end["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]
    last = [event for event in events if event["type"] == "more"][-1]
    assert last["tokens"] == end["usage"]["completion_tokens"]
    assert last["thought"] == end["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert end["finish"] == plain["choices"][0]["finish_reason"] and end["timings"]["predicted_per_second"] > 0


def test_thinking_and_text_are_rendered_as_they_come(scripted: Serving) -> None:
    text = "The answer is \\(\\boxed{42}\\).\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\nprint(42)\n```\n"
    answers(scripted)["17"] = Said(text, "Let me see.\n\nIt is *easy*.", pace_s=0.02, reads=(256, 512))
    events = ask(scripted)
    assert shown(events, "text") == render(text)
    assert shown(events, "thinking") == render("Let me see.\n\nIt is *easy*.")
    reading = [event for event in events if event["type"] == "reading"]
    assert [(event["read"], event["of"]) for event in reading] == [(256, 512), (512, 512)]
    more = [event for event in events if event["type"] == "more"]
    assert len(more) > 3 and any(event.get("acceptance") is not None for event in more)
    assert [event["thought"] for event in more] == sorted(event["thought"] for event in more)
    assert more[-1]["thought"] == 7


@pytest.mark.parametrize(
    ("begun", "thinking", "text"),
    [
        ("The sum", "", "The sum is 42."),
        ("<think>\nI add", "I add them.", "The sum is 42."),
        ("<think>\nI add them.\n</think>\n\nThe sum", "I add them.", "The sum is 42."),
    ],
)
def test_a_broken_off_answer_goes_on(scripted: Serving, begun: str, thinking: str, text: str) -> None:
    answers(scripted)["17"] = Said(text, thinking)
    how = {"continue_final_message": True, "add_generation_prompt": False}
    events = ask(scripted, messages=[*SUM, {"role": "assistant", "content": begun}], **how)
    assert shown(events, "text") == render(text) and shown(events, "thinking") == (render(thinking) if thinking else [])
    assert begun + "".join(event.get("text", "") for event in events if begun == "The sum") in (begun, text)
    engine = scripted.engine
    assert isinstance(engine, ScriptedEngine)
    assert engine.script.prompts[-1].endswith(begun)
    assert (engine.script.asked[-1].opened is not None) == (begun == "<think>\nI add")


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"messages": []}, 400, "messages"),
        ({"messages": SUM, "n": 2}, 400, "one answer"),
        ({"messages": SUM, "model": "other"}, 404, "no model"),
        ({"messages": SUM, "continue_final_message": True, "add_generation_prompt": False}, 400, "text of the model"),
        ({"messages": [{"role": "user", "content": "word " * 3000}]}, 400, "context"),
        ({"messages": SUM, "no_such_field": 1}, 400, "unknown field"),
    ],
)
def test_what_cannot_be_answered(server: Serving, body: dict[str, Any], status: int, word: str) -> None:
    response = server.post("/page/chat", body)
    assert response.status_code == status
    error = response.json()["error"]
    assert word in f"{error['message']} {error['code']}"


def test_who_waits_is_told_for_how_many(scripted: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(scripted)[0]["waiting"] == 0
    monkeypatch.setattr(ScriptedEngine, "n_running", 4)
    monkeypatch.setattr(ScriptedEngine, "n_waiting", 2)
    assert ask(scripted)[0]["waiting"] == 3


def test_too_much_is_not_rendered(server: Serving) -> None:
    response = server.post("/page/render", {"texts": ["a" * 3_000_000, "b" * 2_000_000]})
    assert response.status_code == 413 and response.json()["error"]["param"] == "texts"


def test_what_fails_on_the_way_is_an_event(scripted: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(scripted)["17"] = Said("a word or two", pace_s=0.03)
    monkeypatch.setattr(Said, "pieces", lambda self: [*real(self), None])
    events = ask(scripted)
    assert events[-1]["type"] == "failed" and events[-1]["error"]["code"] == "internal_error"
    assert any(event["type"] == "more" for event in events)


real = Said.pieces
