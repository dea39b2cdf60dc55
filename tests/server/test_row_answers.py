"""Rows are answered as requests over HTTP are, and an answer does not depend on the other rows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mimo_gguf.batch.rows import Result, Row
from mimo_gguf.core.errors import BackendError
from mimo_gguf.engine.session import SessionOptions
from mimo_gguf.runtime.llm import LLM
from mimo_gguf.server.answers import Answers
from mimo_gguf.server.engine import Engine, Limits
from mimo_gguf.server.row_answers import RowAnswerer, Rules, raw_body
from tests.batch.answerers import Echo, answered, read_lines, write_rows
from tests.devices import on_gpu
from tests.server.serving import SUM, WHO, Serving

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
RULES = Rules(("ours", "other-name"))


def row(body: Any, url: Any = CHAT, custom_id: str = "a", method: Any = "POST") -> Row:
    return Row(1, custom_id, method, url, body)


def results(llm: LLM, rows: list[Row]) -> list[Result]:
    async def gather() -> list[Result]:
        answerer = RowAnswerer.of_engine(Engine(llm, Limits(n_waiting=1000)), RULES)
        return await asyncio.gather(*(answerer.answer(each) for each in rows))

    return asyncio.run(gather())


def same(one: Any, other: Any) -> bool:
    """Whether two documents are the same. A GPU scores a token a little otherwise in another pass."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    near = isinstance(one, float) and isinstance(other, float) and on_gpu() and abs(one - other) < 0.05
    return near or bool(one == other)


BODIES: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": SUM, "temperature": 0, "max_tokens": 20}),
    (CHAT, {"messages": WHO, "seed": 7, "max_tokens": 20, "n": 2, "model": "other-name"}),
    (CHAT, {"messages": SUM, "temperature": 0, "max_tokens": 5, "logprobs": True, "top_logprobs": 2}),
    (TEXT, {"prompt": ["17 + 25", "1 + 1"], "temperature": 0, "max_tokens": 4, "echo": True, "logprobs": 1}),
]


@pytest.mark.parametrize(("url", "body"), BODIES, ids=["greedy", "seeded", "scored", "echo"])
def test_a_row_has_the_document_that_a_client_would_get(server: Serving, llm: LLM, url: str, body: Any) -> None:
    over_http = server.post(url, body).json()
    (result,) = results(llm, [row(body, url)])
    assert result.ok and result.body["model"] == body.get("model", "ours")
    for part in ("object", "choices"):
        assert same(result.body[part], over_http[part]), (result.body[part], over_http[part])
    assert result.count("usage", "completion_tokens") == over_http["usage"]["completion_tokens"]
    assert result.body.keys() == over_http.keys()


@pytest.mark.parametrize(
    ("given", "status", "words"),
    [
        (row({"messages": SUM}, "/v1/embeddings"), 404, "batches are for /v1/chat/completions"),
        (row({"messages": SUM}, None), 404, "url is None"),
        (row({"messages": SUM}, method="GET"), 400, "method is 'GET'"),
        (row({"messages": SUM, "stream": True}), 400, "stream"),
        (row({"messages": SUM, "model": "gpt-4o"}), 404, "no model 'gpt-4o' here; there is ours, other-name"),
        (row({"messages": SUM, "speed": 9}), 400, "unknown field: speed"),
        (row({"messages": []}), 400, "messages"),
        (row({}), 400, "missing field: messages"),
        (row(None), 400, "body"),
        (row([1]), 400, "body"),
        (row({"messages": [{"role": "user", "content": "\ud800"}]}), 400, "JSON"),
        (row({"messages": SUM, "temperature": float("nan")}), 400, "not JSON"),
    ],
)
def test_what_nobody_can_answer_is_known_without_a_model(given: Row, status: int, words: str) -> None:
    refused = RULES.refuse(given)
    assert refused is not None and refused.status == status
    assert words in refused.body["error"]["message"], refused.body


def test_a_row_that_fails_leaves_the_others_alone(llm: LLM) -> None:
    good = row({"messages": SUM, "temperature": 0, "max_tokens": 20})
    long = row({"messages": [{"role": "user", "content": "1 + " * 2000}]})
    odd = row({"messages": SUM, "grammar": "nonsense"})
    found = results(llm, [good, long, odd, good])
    assert [result.status for result in found] == [200, 400, 400, 200]
    assert found[1].body["error"]["code"] == "context_length_exceeded"
    assert found[0].body["choices"] == found[3].body["choices"]
    assert RULES.refuse(good) is RULES.refuse(long) is None


@pytest.fixture(scope="module")
def exact(llm: LLM) -> Iterator[LLM]:
    options = SessionOptions(n_threads=1, exact=True)
    with LLM(llm.model.file.path, max_model_len=256, max_num_seqs=3, options=options) as loaded:
        yield loaded


def test_a_row_without_a_seed_gets_its_own(exact: LLM) -> None:
    body = {"messages": WHO, "max_tokens": 12, "temperature": 5.0, "top_p": 1.0, "ignore_eos": True}
    assert json.loads(raw_body(row(body, custom_id="a")))["seed"] == row({}, custom_id="a").seed
    assert json.loads(raw_body(row(body | {"seed": 5})))["seed"] == 5
    texts = {result.body["choices"][0]["message"]["content"] for result in results(exact, [row(body)] * 3)}
    others = results(exact, [row(body, custom_id=str(number)) for number in range(4)])
    assert len(texts) == 1
    assert len({result.body["choices"][0]["message"]["content"] for result in others}) > 1


def test_exactly_no_answer_depends_on_the_other_rows(exact: LLM) -> None:
    rows = [
        row({"messages": [{"role": "user", "content": f"What is {n} + {n}?"}], "max_tokens": 16, "temperature": 1.3},
            custom_id=str(n))
        for n in range(6)
    ]  # fmt: skip

    def texts(given: list[Row]) -> dict[str, Any]:
        found = results(exact, given)
        return {each.custom_id: result.body["choices"] for each, result in zip(given, found, strict=True)}

    together = texts(rows)
    assert texts(rows[::-1]) == together
    assert texts(rows[2:3]) == {"2": together["2"]}


def test_a_backend_that_only_fails_ends_the_batch(llm: LLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise BackendError("the GPU fell off the bus")

    monkeypatch.setattr(Answers, "begin", fail)
    answerer = RowAnswerer.of_engine(Engine(llm), RULES)

    async def answer(n: int) -> list[Result]:
        return [await answerer.answer(row({"messages": SUM})) for _ in range(n)]

    most = 2 * answerer.n_in_flight
    assert [result.status for result in asyncio.run(answer(most))] == [500] * most
    with pytest.raises(BackendError, match="fell off"):
        asyncio.run(answer(1))


def test_a_closed_model_ends_the_batch(llm: LLM, tmp_path: Path) -> None:
    with LLM(llm.model.file.path, max_model_len=64, max_num_seqs=1) as other:
        pass
    with pytest.raises(BackendError, match="was closed"):
        results(other, [row({"messages": SUM})])


def test_seeds_of_the_loop_and_of_the_server_are_the_same(tmp_path: Path) -> None:
    rows = [{"custom_id": "a", "method": "POST", "url": TEXT, "body": {"prompt": "x"}}]
    from mimo_gguf.batch.open_job import Source

    answered(Source(write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"), Echo())
    (line,) = read_lines(tmp_path / "out.jsonl")
    raw = raw_body(Row(1, "a", "POST", TEXT, rows[0]["body"]))
    assert line["response"]["body"]["seed"] == json.loads(raw)["seed"]
