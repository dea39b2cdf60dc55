"""Answers as a batch wrote them: the text to grade, how it ended, and what it cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mimo_gguf.batch.output import partial_path
from mimo_gguf.batch.rows import read_done
from mimo_gguf.core.errors import OutputError
from mimo_gguf.core.paths import path_kind

_THOUGHT: Final = "<think>"
_END_OF_THOUGHT: Final = "</think>"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to one row.

    Attributes:
        custom_id: the row's name.
        id: what the server calls it; None for an error.
        text: what was said after thinking.
        finish: how it ended: `stop`, `length`, or another word of the server.
        n_tokens: tokens that were generated.
        seconds: time for prompt and answer; None if the server does not say.
        error: why there is no answer; None for one.
    """

    custom_id: str
    id: str | None
    text: str
    finish: str | None
    n_tokens: int
    seconds: float | None
    error: str | None = None

    @property
    def is_cut(self) -> bool:
        """Whether it reached the token limit before its end."""
        return self.finish == "length"


def read_answers(path: Path) -> Iterator[Answer]:
    """Yields the answers in an output of a batch, finished or not. A line that is half written is left out.

    Raises:
        OutputError: it cannot be read.
    """
    for source in (partial_path(path), path):
        if path_kind(source) == "file" and source.stat().st_size:
            break
    else:
        return
    try:
        with source.open("rb") as file:
            for line in file:
                if line.endswith(b"\n") and read_done(line) is not None:
                    yield _answer(json.loads(line))
    except OSError as error:
        raise OutputError(f"{source}: {error.strerror or error}", hint="check the file and its permissions") from None


def _answer(found: Mapping[str, Any]) -> Answer:
    name, response = found["custom_id"], found["response"] or {}
    if response.get("status_code") != 200:
        return Answer(name, None, "", None, 0, None, _error(found.get("error"), response.get("body")))
    try:
        body = response["body"]
        choice = body["choices"][0]
        usage = body.get("usage") or {}
        return Answer(
            name, str(body.get("id") or found["id"]), _text(choice["message"]), choice.get("finish_reason"),
            int(usage.get("completion_tokens") or 0), _seconds(body.get("timings")),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return Answer(name, None, "", None, 0, None, "what the server sent is not an answer of a chat")


def _text(message: Mapping[str, Any]) -> str:
    """What was said after thinking. A server that does not keep thoughts apart leaves a mark behind them."""
    text = str(message.get("content") or "")
    if message.get("reasoning_content") or message.get("reasoning"):
        return text
    _, mark, after = text.rpartition(_END_OF_THOUGHT)
    if mark:
        return after.strip()
    return "" if text.lstrip().startswith(_THOUGHT) else text  # it was cut off while it was thinking


def _error(*places: Any) -> str:
    """The message of an error, which is in one of these places."""
    for place in places:
        inner = place.get("error", place) if isinstance(place, dict) else None
        if isinstance(inner, dict) and inner.get("message"):
            return str(inner["message"])
    return "no answer"


def _seconds(timings: Any) -> float | None:
    """Seconds for prompt and answer, as llama-server and this program's server state them."""
    if not isinstance(timings, dict):
        return None
    parts = [timings.get(name) for name in ("prompt_ms", "predicted_ms")]
    known = [float(part) for part in parts if isinstance(part, int | float)]
    return sum(known) / 1000 if known else None
