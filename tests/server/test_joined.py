"""Events that come together become one chunk, if nothing that a client is told gets lost by it."""

from __future__ import annotations

from mimo_gguf.chat.reasoning import Kind, Piece
from mimo_gguf.core.errors import UsageError
from mimo_gguf.runtime.scheduler import Event
from mimo_gguf.server.engine import joined


def said(n_tokens: int, text: str, kind: Kind = Kind.ANSWER, number: int = 1) -> Event:
    return Event(number, (Piece(kind, text),), n_tokens) if text else Event(number, (), n_tokens)


def test_text_of_one_kind_is_joined() -> None:
    (only,) = joined([said(1, "a"), said(2, ""), said(3, "b")])
    assert "".join(piece.text for piece in only.pieces) == "ab"


def test_where_the_reasoning_ends_is_kept() -> None:
    events = [said(1, "x", Kind.REASONING), said(2, "y", Kind.REASONING), said(3, ""), said(4, "a"), said(5, "b")]
    thought, answered = joined(events)
    assert {piece.kind for piece in thought.pieces} == {Kind.REASONING}
    assert answered.n_tokens == 4, "the first of the answer's tokens"


def test_what_is_no_plain_text_stays_alone() -> None:
    failed = Event(1, error=UsageError("no"))
    events = [Event(1, n_read=4, n_to_read=8), Event(1, n_read=8, n_to_read=8), said(1, "a"), failed]
    assert joined(events) == events


def test_answers_are_not_mixed() -> None:
    events = [said(1, "a"), said(1, "b", number=2), said(2, "c")]
    assert joined(events) == events
