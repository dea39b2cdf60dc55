"""Answers that are words, numbers or dates of a passage: which ones are right, and what an answer's text gives."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

_TAIL: Final = 2000  # characters at the end of an answer in which its last words are looked for
_DRESS: Final = re.compile(r"[*_`$]|\\text\b|\\mathrm\b")
_BOXED: Final = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_SAID: Final = re.compile(r"\banswer(?:\s+is\s*:?|\s*:)\s*(.*\S)", re.IGNORECASE)
_DATE: Final = ("day", "month", "year")


def possible_answers(*values: Any) -> list[str]:
    """All different right answers, each as one text; an answer of several spans has commas between them.

    Args:
        values: each a text; a list of the spans of one answer; or the record of DROP (arXiv 1903.00161): `number`,
            `spans` and `date`, of which one is filled. A record of lists has several answers.
    """
    texts = (text.strip() for value in values for text in _texts(value))
    return list(dict.fromkeys(text for text in texts if text))


def _texts(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        if isinstance(value.get("number"), Sequence) and not isinstance(value["number"], str):
            names = [name for name in ("number", "spans", "date") if value.get(name)]
            return [
                _of_record(dict(zip(names, each, strict=False))) for each in zip(*map(value.get, names), strict=False)
            ]
        return [_of_record(value)]
    if isinstance(value, Sequence) and not isinstance(value, str):
        if value and isinstance(value[0], Mapping):
            return [_of_record(each) for each in value]
        return [", ".join(map(str, value))]
    return [] if value is None else [str(value)]


def _of_record(record: Mapping[str, Any]) -> str:
    if record.get("number"):
        return str(record["number"])
    if record.get("spans"):
        return ", ".join(map(str, record["spans"]))
    date = record.get("date") or {}
    return " ".join(str(date[name]) for name in _DATE if date.get(name))


def find_spans(answer: str) -> str | None:
    r"""What an answer gives at its end; None if it is empty.

    Bold, code and dollar signs do not count. The last of these is taken, the first kind that there is: `\boxed{...}`, a
    line `Answer: ...` or `the answer is ...`, a last line.
    """
    text = _DRESS.sub("", answer[-_TAIL:])
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = _BOXED.findall(text) or _SAID.findall(text) or lines[-1:]
    return found[-1].strip() or None if found else None
