"""Answers that are words, numbers or dates of a passage: which ones are right, and what an answer's text gives."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

_TAIL: Final = 2000  # characters at the end of an answer in which its last words are looked for
_DRESS: Final = re.compile(r"[*_`$]|\\text\b|\\mathrm\b")
_BOXED: Final = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_SAID: Final = re.compile(r"\banswer(?:\s+is\s*:?|\s*:)\s*(.*\S)", re.IGNORECASE)
_PARTS: Final = ("number", "spans", "date")
_DATE: Final = ("day", "month", "year")


def possible_answers(*values: Any) -> list[str]:
    """All different right answers, each as one text; an answer of several spans has commas between them.

    Args:
        values: each a text; a list of the spans of one answer; or the record of DROP (arXiv 1903.00161): `number`,
            `spans` and `date`, of which one is filled. A record of lists, or a list of records, has several answers.

    Raises:
        ValueError: a value has another form.
    """
    texts = (text.strip() for value in values for text in _texts(value))
    return list(dict.fromkeys(text for text in texts if text))


def _texts(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [_of_record(record) for record in _records(value)]
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return [_of_record(record) for record in value]
    return [_joined(value)]


def _records(value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The records in a record of lists, which has each field of all of them; or the one that it is."""
    if not isinstance(value.get("number"), list):
        return [value]
    several = {name: value[name] for name in _PARTS if value.get(name) and isinstance(value[name], list)}
    return [dict(zip(several, each, strict=False)) for each in zip(*several.values(), strict=False)]


def _of_record(record: Any) -> str:
    if not isinstance(record, Mapping) or record.keys().isdisjoint(_PARTS):
        raise ValueError(f"not a record with {', '.join(_PARTS)}")
    date = record.get("date") or {}
    if not isinstance(date, Mapping):
        raise ValueError("date is not a record")
    day = " ".join(_joined(date[name]) for name in _DATE if date.get(name))
    return _joined(record.get("number") or record.get("spans") or day)


def _joined(value: Any) -> str:
    """A text, or several with commas between them; numbers are texts, too."""
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, str | int | float) for part in parts):
        raise ValueError("neither a text nor a list of texts")
    return ", ".join(map(str, parts))


def find_spans(answer: str) -> str | None:
    r"""What an answer gives at its end; None if it is empty.

    Bold, code and dollar signs do not count. The last of these is taken, the first kind that there is: `\boxed{...}`, a
    line `Answer: ...` or `the answer is ...`, a last line.
    """
    text = _DRESS.sub("", answer[-_TAIL:])
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = _BOXED.findall(text) or _SAID.findall(text) or lines[-1:]
    return found[-1].strip() or None if found else None
