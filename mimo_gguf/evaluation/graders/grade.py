"""What a grader says about an answer, and the graders that need no library: a choice's letter, and whole numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

_TAIL: Final = 2000  # characters at the end of an answer in which a choice is looked for
_DRESS: Final = re.compile(r"[*_`~$]|\\text|\\mathrm|\\mathbf|\\boldsymbol|\\,|\\ ")
_BOXED: Final = re.compile(r"\\boxed\s*\{[\s{(]*([A-Za-z])[\s})]*[.):]?[^{}]{0,200}\}")
# The words may be in any case, the letter is a capital one: `a` is an article, and `I think` is no choice.
_SAID: Final = re.compile(
    r"\b(?i:answer)(?i:\s+is)?\s*[:=]?\s*(?i:option|choice)?\s*[({]?([A-Z])\b(?!['’])(?!(?<=I)\s+[a-z])"
)
_ALONE: Final = re.compile(r"^[({]?([A-Z])[)}]?\.?$")
_NUMBER: Final = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?")
_BOX: Final = re.compile(r"\\boxed\s*\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Grade:
    """The judgement of an answer.

    Attributes:
        score: 1 if it is right, 0 if it is wrong; of spans how much of it is right.
        found: what the grader took for the answer; None if it found none.
        why: what is wrong, if more is to be said than that it is.
    """

    score: float
    found: str | None = None
    why: str | None = None

    @classmethod
    def from_json(cls, value: Any) -> Grade:
        """The grade in a document that `as_json` made. Raises ValueError if it is not one."""
        if not isinstance(value, dict) or not isinstance(value.get("score"), int | float):
            raise ValueError("not a grade")
        return cls(float(value["score"]), value.get("found"), value.get("why"))

    def as_json(self) -> dict[str, Any]:
        """The grade as a JSON document."""
        return {"score": self.score, "found": self.found, "why": self.why}


def find_letter(answer: str, n_choices: int) -> str | None:
    r"""The letter that an answer chooses; None if it chooses none, or none of the first `n_choices` letters.

    Bold, code and dollar signs do not count. The last of these decides, the first kind that there is:

    1. `\boxed{C}`, also with the choice's text behind the letter;
    2. `Answer: C`, `the answer is (C)`, `the answer is option C`;
    3. a last line that is a letter alone: `C`, `(C)`, `C.`
    """
    text = _DRESS.sub("", answer[-_TAIL:])
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "").strip()
    letters = [found.upper() for found in _BOXED.findall(text)] or _SAID.findall(text) or _ALONE.findall(last)
    letter = letters[-1] if letters else None
    return letter if letter is not None and ord(letter) - ord("A") < n_choices else None


def grade_choice(answer: str, expected: Any) -> Grade:
    """Compares the letter that an answer chooses with the right one."""
    letter = find_letter(answer, int(expected["n_choices"]))
    return Grade(float(letter == expected["letter"]), letter, None if letter else "it chooses nothing")


def grade_number(answer: str, expected: Any) -> Grade:
    r"""Compares the last number of an answer with the right one: in its last `\boxed{}`, if it has one."""
    boxes = _BOX.findall(answer)
    numbers = _NUMBER.findall(boxes[-1] if boxes else answer)
    if not numbers:
        return Grade(0.0, None, "it has no number")
    found = numbers[-1].replace(",", "")
    return Grade(float(_plain(found) == _plain(str(expected))), found)


def _plain(number: str) -> str:
    """A number without what changes nothing: zeros before and behind it, and a plus."""
    whole, _, part = number.lstrip("+").partition(".")
    sign, digits = ("-", whole[1:]) if whole.startswith("-") else ("", whole)
    text = f"{digits.lstrip('0') or '0'}.{part.rstrip('0')}".rstrip(".")
    return text if text == "0" else sign + text
