"""Rows of a batch in OpenAI's form: one JSON object a line comes in, one goes out, and both have its `custom_id`.

In:  {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}
Out: {"id": "batch_req_...", "custom_id": "a", "response": {"status_code": 200, "body": {...}, ...}, "error": null}

The digits of an output's id say which row it answers, and with which model. So a file of outputs tells by itself
whether it belongs to a batch, and nothing has to be kept beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from mimo_gguf.core.digests import ROW, ROW_NAME, ROW_RUN

ID_PREFIX: Final = "batch_req_"
_ROW_DIGITS: Final = 16
_RUN_DIGITS: Final = 8
_SEEDS: Final = 1 << 31
_LONGEST_SHOWN: Final = 60  # characters of a custom_id in a message
_BROKEN: Final = (ValueError, RecursionError)  # of json for what is not JSON; a wrong encoding is a ValueError


@dataclass(frozen=True, slots=True)
class Row:
    """A request of a batch. It can be pickled, and so be answered on another machine.

    Attributes:
        number: its line in the input, from 1 on.
        custom_id: its name, which no other row has.
        method, url, body: the request, as a client would send it. Nobody has checked them yet.
    """

    number: int
    custom_id: str
    method: Any
    url: Any
    body: Any

    @property
    def name(self) -> int:
        """A number of 64 bits that stands for the custom_id."""
        return name_of(self.custom_id)

    @property
    def digest(self) -> int:
        """A number of 64 bits that changes with anything in the row, but for spaces and the order of keys."""
        text = json.dumps([self.custom_id, self.method, self.url, self.body], sort_keys=True, separators=(",", ":"))
        return int.from_bytes(ROW.of(text.encode()))

    @property
    def seed(self) -> int:
        """The seed of a row that gives none: always the same for one custom_id, whatever stands around it."""
        return self.name % _SEEDS

    @property
    def beginning(self) -> str:
        """A text that begins as the prompt does: sorted by it, rows with a common beginning stand together."""
        body = self.body if isinstance(self.body, dict) else {}
        parts = [body.get("tools"), body.get("messages", body.get("prompt"))]
        return json.dumps(parts, ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Result:
    """What a row was answered with, as over HTTP. It can be pickled.

    Attributes:
        status: 200, or the status of a failure.
        body: the answer's document, or `{"error": {"message", "type", "param", "code"}}`.
    """

    status: int
    body: dict[str, Any]

    @property
    def ok(self) -> bool:
        """Whether it is an answer."""
        return self.status == 200

    def count(self, part: str, name: str) -> int:
        """A count in a part of the body, like `usage` or `timings`; 0 if there is none."""
        values = self.body.get(part)
        value = values.get(name) if isinstance(values, Mapping) else None
        return value if isinstance(value, int) and not isinstance(value, bool) else 0


@dataclass(frozen=True, slots=True)
class Fault:
    """A line that is not a row, or cannot be told from another one.

    Attributes:
        number: the line, from 1 on.
        code: OpenAI's word for it.
        message: what is wrong.
        param: the field that is wrong; None for the whole line.
    """

    number: int
    code: str
    message: str
    param: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The fault as OpenAI lists it among the errors of a batch."""
        return {"code": self.code, "line": self.number, "message": self.message, "param": self.param}


class Done(NamedTuple):
    """What a line of output says: the row that it answers, by name and digest, the run, and whether it is an answer."""

    name: int
    digest: int
    run: int
    ok: bool


@dataclass(frozen=True, slots=True)
class Run:
    """The run that answers: whatever decides the answers, as a few digits in the id of each.

    Attributes:
        fingerprint: any text that is the same for the same model and the same settings.
    """

    fingerprint: str
    number: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "number", int.from_bytes(ROW_RUN.of(self.fingerprint.encode())[: _RUN_DIGITS // 2]))

    def id_of(self, row: Row) -> str:
        """The digits of the ids in a row's output."""
        return f"{row.digest:0{_ROW_DIGITS}x}{self.number:0{_RUN_DIGITS}x}"


def name_of(custom_id: str) -> int:
    """A number of 64 bits that stands for a custom_id."""
    return int.from_bytes(ROW_NAME.of(custom_id.encode("utf-8", "surrogatepass")))


def shown(custom_id: str) -> str:
    """A custom_id for a message: in quotes, and cut if it is long."""
    return repr(custom_id if len(custom_id) <= _LONGEST_SHOWN else custom_id[:_LONGEST_SHOWN] + "...")


def read_row(line: bytes, number: int) -> Row | Fault:
    """The row on a line, or why there is none: not JSON, or without a custom_id to answer under."""
    try:
        found = json.loads(line)
    except _BROKEN as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        return Fault(number, "invalid_json_line", f"not JSON: {reason}")
    if not isinstance(found, dict):
        return Fault(number, "invalid_json_line", "not a JSON object")
    custom_id = found.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        return Fault(number, "missing_required_parameter", "custom_id must be a text", "custom_id")
    return Row(number, custom_id, found.get("method"), found.get("url"), found.get("body"))


def result_line(row: Row, result: Result, run: Run) -> bytes:
    """The line of output that answers a row."""
    digits = run.id_of(row)
    response = {"status_code": result.status, "request_id": f"req_{digits}", "body": result.body}
    return _line({"id": ID_PREFIX + digits, "custom_id": row.custom_id, "response": response, "error": None})


def unanswered_line(row: Row, code: str, message: str, run: Run) -> bytes:
    """The line of output of a row that nobody tried to answer."""
    error = {"code": code, "message": message}
    return _line({"id": ID_PREFIX + run.id_of(row), "custom_id": row.custom_id, "response": None, "error": error})


def fault_line(fault: Fault) -> bytes:
    """The line of output of a line that is not a row, for output that goes into a pipe."""
    error = {"code": fault.code, "message": f"line {fault.number}: {fault.message}"}
    return _line({"id": None, "custom_id": None, "response": None, "error": error})


def read_done(line: bytes) -> Done | None:
    """What a line of output says; None if it is torn, or not one of ours."""
    try:
        found = json.loads(line)
        custom_id, digits, response = found["custom_id"], found["id"].removeprefix(ID_PREFIX), found["response"]
        if len(digits) != _ROW_DIGITS + _RUN_DIGITS:
            return None
        digest, run = int(digits[:_ROW_DIGITS], 16), int(digits[_ROW_DIGITS:], 16)
        ok = response is not None and response["status_code"] == 200
        return Done(name_of(custom_id), digest, run, ok)
    except (*_BROKEN, KeyError, TypeError, AttributeError):
        return None


def _line(document: dict[str, Any]) -> bytes:
    try:
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    except UnicodeEncodeError:  # half a character, which JSON can spell and UTF-8 cannot
        return json.dumps(document, separators=(",", ":")).encode() + b"\n"
