"""A conversation of questions and answers that can be undone, saved, loaded, and fitted into the window."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from mimo_gguf.chat.answer import Answer
from mimo_gguf.chat.reasoning import THINK_CLOSE, THINK_OPEN
from mimo_gguf.chat.template import Message
from mimo_gguf.core.documents import MEGABYTE, DocumentKind
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.output_file import atomic_output

_FORMAT: Final = "mimo-gguf conversation 1"
_SAVED: Final = DocumentKind(UsageError, "give a file that /save wrote", most_bytes=256 * MEGABYTE)
FULL: Final = 0.85  # share of the window from which a warning says what will be left out


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer."""

    question: str
    answer: str
    reasoning: str = ""
    finish_reason: str = "stop"


@dataclass(slots=True)
class Conversation:
    """A system message and turns.

    Attributes:
        keep_reasoning: give the model its earlier reasoning again. By default it is left out, as usual in the Qwen
            family.
        n_without_reasoning: number of first turns whose reasoning no longer fits into the window.
        n_left_out: number of first turns that no longer fit at all.
    """

    system: str = ""
    turns: list[Turn] = field(default_factory=list)
    keep_reasoning: bool = False
    n_without_reasoning: int = 0
    n_left_out: int = 0

    def messages(self, question: str | None = None) -> list[Message]:
        """The messages for the template: the turns that still fit, and the new question."""
        messages: list[Message] = [{"role": "system", "content": self.system}]
        for place, turn in enumerate(self.turns[self.n_left_out :], self.n_left_out):
            said = turn.answer
            if self.keep_reasoning and turn.reasoning and place >= self.n_without_reasoning:
                said = f"{THINK_OPEN}\n{turn.reasoning}\n{THINK_CLOSE}\n\n{turn.answer}"
            messages += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": said}]
        if question is not None:
            messages.append({"role": "user", "content": question})
        return messages

    def add(self, question: str, answer: Answer) -> None:
        """Adds a turn."""
        self.turns.append(Turn(question, answer.text, answer.reasoning, answer.finish_reason))

    def undo(self) -> Turn | None:
        """Removes and returns the last turn; None if there is none."""
        if not self.turns:
            return None
        turn = self.turns.pop()
        self.n_left_out = min(self.n_left_out, len(self.turns))
        self.n_without_reasoning = min(self.n_without_reasoning, len(self.turns))
        return turn

    def clear(self) -> None:
        """Removes all turns."""
        self.turns.clear()
        self.n_left_out = self.n_without_reasoning = 0

    def make_room(self, question: str, count_tokens: Callable[[list[Message]], int], room: int) -> tuple[int, int]:
        """Leaves out the oldest parts until the prompt has at most `room` tokens: kept reasoning first, then turns.

        The question stays, even if it is too long by itself.

        Returns:
            How many reasonings and how many turns were left out now.
        """
        reasonings, turns = 0, self.n_left_out
        while count_tokens(self.messages(question)) > room:
            oldest = self._oldest_reasoning()
            if oldest is not None:
                self.n_without_reasoning = oldest + 1
                reasonings += 1
            elif self.n_left_out < len(self.turns):
                self.n_left_out += 1
            else:
                break
        return reasonings, self.n_left_out - turns

    def _oldest_reasoning(self) -> int | None:
        """The index of the first turn whose reasoning is in the prompt; None if there is none."""
        first = max(self.n_without_reasoning, self.n_left_out) if self.keep_reasoning else len(self.turns)
        return next((place for place in range(first, len(self.turns)) if self.turns[place].reasoning), None)

    def next_to_leave_out(self) -> str:
        """The part that `make_room` would leave out first, in words; empty if nothing is left."""
        place = self._oldest_reasoning()
        if place is not None:
            return f"the reasoning of turn {place + 1} ({shortened(self.turns[place].question)})"
        if self.n_left_out < len(self.turns):
            return f"turn {self.n_left_out + 1} ({shortened(self.turns[self.n_left_out].question)})"
        return ""

    def save(self, path: Path) -> None:
        """Writes the conversation as JSON.

        Raises:
            OutputError: the file cannot be written.
        """
        with atomic_output(path) as file:
            text = json.dumps({"format": _FORMAT, **asdict(self)}, indent=2, ensure_ascii=False)
            file.write(text.encode("utf-8", "replace"))  # a question may contain half a surrogate pair

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """Reads a conversation that `save` wrote.

        Raises:
            UsageError: the file does not exist, or is not a saved conversation.
        """
        try:
            data: dict[str, Any] = _SAVED.read_json(path)
            if data.pop("format") != _FORMAT:
                raise ValueError("another format")
            turns = [Turn(**{name: str(value) for name, value in turn.items()}) for turn in data.pop("turns")]
            return cls(
                system=str(data["system"]),
                turns=turns,
                keep_reasoning=bool(data["keep_reasoning"]),
                n_without_reasoning=min(max(int(data.get("n_without_reasoning", 0)), 0), len(turns)),
                n_left_out=min(max(int(data["n_left_out"]), 0), len(turns)),
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            raise UsageError(f"{path}: not a saved conversation", hint="give a file that /save wrote") from None

    def as_markdown(self) -> str:
        """The conversation as Markdown: questions are headings, reasoning is folded."""
        parts = [f"> {self.system}\n"] if self.system else []
        for turn in self.turns:
            parts.append(f"## {turn.question}\n")
            if turn.reasoning:
                parts.append(f"<details><summary>Reasoning</summary>\n\n{turn.reasoning}\n\n</details>\n")
            parts.append(f"{turn.answer}\n")
        return "\n".join(parts)


def shortened(question: str) -> str:
    """The beginning of a question, on one line."""
    line = " ".join(question.split())
    return f'"{line}"' if len(line) <= 40 else f'"{line[:37]}..."'
