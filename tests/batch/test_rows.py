"""Rows as OpenAI writes them: what is one, what is not, and what a line of output says."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimo_gguf.batch.rows import Fault, Result, Row, Run, read_done, read_row, result_line, unanswered_line
from tests.batch.answerers import request

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def row_of(document: dict[str, Any], number: int = 1) -> Row:
    row = read_row(json.dumps(document).encode(), number)
    assert isinstance(row, Row)
    return row


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (b"", "invalid_json_line", "not JSON"),
        (b'{"custom_id": "a"', "invalid_json_line", "not JSON"),
        (b"\xff{}", "invalid_json_line", "not JSON"),
        (b"[" * 100_000, "invalid_json_line", "too deeply"),
        (b'{"n": ' + b"9" * 10_000 + b"}", "invalid_json_line", "not JSON"),
        (b'["custom_id"]', "invalid_json_line", "not a JSON object"),
        (b'{"body": {}}', "missing_required_parameter", "custom_id"),
        (b'{"custom_id": 7}', "missing_required_parameter", "custom_id"),
        (b'{"custom_id": ""}', "missing_required_parameter", "custom_id"),
    ],
)
def test_what_is_not_a_row(line: bytes, code: str, words: str) -> None:
    fault = read_row(line, 7)
    assert isinstance(fault, Fault)
    assert (fault.number, fault.code) == (7, code) and words in fault.message
    assert fault.as_json()["line"] == 7


def test_a_row_is_known_by_what_it_asks_not_by_how_it_is_written() -> None:
    row = row_of(request("a", "x", n=1))
    other = read_row(
        b' {"body": {"n": 1, "prompt": "x"}, "url": "/v1/completions", "custom_id": "a", "method":"POST"}', 9
    )
    assert isinstance(other, Row)
    assert (row.digest, row.name, row.seed) == (other.digest, other.name, other.seed)
    assert row.digest != row_of(request("a", "y", n=1)).digest
    assert row.seed != row_of(request("b", "x", n=1)).seed
    assert 0 <= row.seed < 1 << 31


def test_rows_with_a_common_beginning_sort_together() -> None:
    def chat(*texts: str) -> Row:
        roles = ("system", "user")
        return row_of(request("a", messages=[{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)]))

    rows = [chat("be brief", "2"), chat("be long", "1"), chat("be brief", "1")]
    assert sorted(rows, key=lambda row: row.beginning) == [rows[2], rows[0], rows[1]]
    assert row_of({"custom_id": "a"}).beginning == "[null,null]"


@settings(max_examples=30, deadline=None)
@given(custom_id=st.text(min_size=1), body=JSON, answer=st.dictionaries(st.text(), JSON, max_size=3))
def test_a_line_of_output_says_which_row_it_answers(custom_id: str, body: Any, answer: dict[str, Any]) -> None:
    row, run = row_of({"custom_id": custom_id, "body": body}), Run("a model")
    for result in (Result(200, answer), Result(400, answer)):
        line = result_line(row, result, run)
        assert line.endswith(b"\n") and line.count(b"\n") == 1
        assert read_done(line) == (row.name, row.digest, run.number, result.ok)
        found = json.loads(line)
        assert found["custom_id"] == custom_id and found["error"] is None
        assert found["response"]["status_code"] == result.status and found["response"]["body"] == answer
        assert all(read_done(line[:cut]) is None for cut in range(0, len(line) - 2, 31))
    assert pickle.loads(pickle.dumps((row, Result(200, answer)))) == (row, Result(200, answer))


def test_half_a_character_can_name_a_row() -> None:
    row, run = row_of({"custom_id": "\ud800", "body": "\udfff"}), Run("a model")
    line = unanswered_line(row, "batch_expired", "too late \ud800", run)
    assert read_done(line) == (row.name, row.digest, run.number, False)
    assert json.loads(line)["error"] == {"code": "batch_expired", "message": "too late \ud800"}


def test_counts_are_read_from_any_body() -> None:
    assert Result(200, {"usage": {"prompt_tokens": 3}}).count("usage", "prompt_tokens") == 3
    for body in ({}, {"usage": None}, {"usage": {"prompt_tokens": "3"}}, {"usage": {"prompt_tokens": True}}):
        assert Result(200, body).count("usage", "prompt_tokens") == 0
