"""Looks through a whole input before anything is answered: what is in it, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from mimo_gguf.batch.ids import IdTable
from mimo_gguf.batch.reading import Line, Lines
from mimo_gguf.batch.rows import Fault, Result, Row, read_row, shown
from mimo_gguf.core.errors import UsageError

Refuse = Callable[[Row], Result | None]
_MOST_FAULTS: Final = 100  # that are described; the others are counted
_TEMPLATE_TOKENS: Final = 64  # more than a template adds to a prompt
_MESSAGE_TOKENS: Final = 16  # more than it adds to a message
_SHOWN: Final = 3
_A_ROW: Final = '{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {...}}'
_OTHER_INPUT: Final = "give another -o, or start over with --force"


@dataclass(slots=True)
class Survey:
    """What an input holds.

    Attributes:
        n_rows: its rows.
        n_answered: rows that an earlier run has answered.
        n_refused, refused: rows that will be answered with an error, because nobody can answer them; the first of them.
        n_faults, faults: lines that are not rows of their own; the first of them.
        longest: tokens that no prompt and its answer exceed together; None if a row sets its answer no limit.
        longest_prompt: tokens that no prompt exceeds.
    """

    n_rows: int = 0
    n_answered: int = 0
    n_refused: int = 0
    refused: tuple[Row, Result] | None = None
    n_faults: int = 0
    faults: list[Fault] = field(default_factory=list)
    longest: int | None = 0
    longest_prompt: int = 0

    @property
    def n_left(self) -> int:
        """The rows that are still to be answered."""
        return self.n_rows - self.n_answered

    def add_fault(self, fault: Fault) -> None:
        """Notes a line that is not a row."""
        self.n_faults += 1
        if len(self.faults) < _MOST_FAULTS:
            self.faults.append(fault)

    def check(self, name: str) -> None:
        """Refuses an input in which lines cannot be answered under their own name, or no row can be answered.

        Args:
            name: the input's, for the message.

        Raises:
            UsageError: there is no row, a line is not one, a custom_id is used twice, or all rows are refused.
        """
        if self.faults:
            found = "; ".join(f"line {fault.number}: {fault.message}" for fault in self.faults[:_SHOWN])
            more = f"; and {self.n_faults - _SHOWN} more" if self.n_faults > _SHOWN else ""
            raise UsageError(f"{name}: {found}{more}", hint="give each line a custom_id of its own, and repeat")
        if not self.n_rows:
            raise UsageError(
                f"{name}: has no rows", hint='{"custom_id": "1", "method": "POST", "url": ..., "body": ...}'
            )
        if self.refused is not None and self.n_refused == self.n_rows:
            row, result = self.refused
            raise UsageError(f"{name}: no row can be answered; line {row.number}: {why(result)}", hint=_hint(result))


def survey(lines: Lines, refuse: Refuse, answered: IdTable) -> Survey:
    """Reads all lines, and answers none.

    Args:
        refuse: gives the result of a row that is refused whatever the model says; None for others.
        answered: the rows that an earlier run has answered: names and digests.

    Raises:
        UsageError: an answered row has another text now, or is not in the input any more.
    """
    found, numbers = Survey(), IdTable()
    for line in _all(lines):
        row = row_of(line)
        if isinstance(row, Fault):
            found.add_fault(row)
            continue
        earlier = numbers.put(row.name, row.number)
        if earlier is not None:
            found.add_fault(duplicate(row, earlier))
            continue
        found.n_rows += 1
        found.n_answered += is_answered(row, answered)
        _measure(row, found)
        refused = refuse(row)
        if refused is not None:
            found.n_refused += 1
            found.refused = found.refused or (row, refused)
    if found.n_answered < len(answered) and not found.n_faults:
        n = len(answered) - found.n_answered
        raise UsageError(f"{n} of the answered rows are not in the input any more", hint=_OTHER_INPUT)
    return found


def is_answered(row: Row, answered: IdTable) -> bool:
    """Whether an earlier run has answered a row. Raises UsageError if the row had another text then."""
    known = answered.get(row.name)
    if known is not None and known != row.digest:
        raise UsageError(
            f"line {row.number}: the row {shown(row.custom_id)} has changed since it was answered", hint=_OTHER_INPUT
        )
    return known is not None


def row_of(line: Line) -> Row | Fault:
    """The row on a line, or why there is none."""
    if line.data is None:
        return Fault(line.number, "invalid_json_line", "longer than any row")
    return read_row(line.data, line.number)


def duplicate(row: Row, earlier: int) -> Fault:
    """The fault of a row whose custom_id is that of an earlier line."""
    message = f"the custom_id {shown(row.custom_id)} is that of line {earlier}, too"
    return Fault(row.number, "duplicate_custom_id", message, "custom_id")


def why(result: Result) -> str:
    """The message of a failure."""
    error = result.body.get("error")
    return str(error.get("message")) if isinstance(error, dict) else f"status {result.status}"


def _all(lines: Lines) -> Iterator[Line]:
    while block := lines.block():
        yield from block


def _hint(result: Result) -> str:
    error = result.body.get("error")
    is_name = isinstance(error, dict) and error.get("code") == "model_not_found"
    return "give the model this name, too: --alias NAME" if is_name else "correct the rows, and repeat"


def _measure(row: Row, found: Survey) -> None:
    """Notes how long a row may become. No token has less than a byte, so its text's bytes are a bound."""
    body = row.body if isinstance(row.body, dict) else {}
    messages = body.get("messages")
    n_messages = len(messages) if isinstance(messages, list) else 0
    n_prompt = len(row.beginning.encode("utf-8", "replace")) + _TEMPLATE_TOKENS + _MESSAGE_TOKENS * n_messages
    found.longest_prompt = max(found.longest_prompt, n_prompt)
    limits = [body.get("max_completion_tokens"), body.get("max_tokens")]
    limit = next((each for each in limits if isinstance(each, int)), None)
    if limit is None or found.longest is None:
        found.longest = None
    else:
        found.longest = max(found.longest, n_prompt + limit)
