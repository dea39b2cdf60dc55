"""A conversation as people have it: turns that can be undone, saved, loaded, and fitted into the context window."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.output_file import atomic_output
from mimo_gguf.runtime.chat_template import Message
from mimo_gguf.runtime.model import Answer
from mimo_gguf.runtime.reasoning import THINK_CLOSE, THINK_OPEN

_FORMAT: Final = "mimo-gguf conversation 1"
FULL: Final = 0.85  # share of the window from which people are told what will be left out


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer."""

    question: str
    answer: str
    reasoning: str = ""
    finish_reason: str = "stop"


@dataclass(slots=True)
class Conversation:
    """Turns under a system message.

    Attributes:
        keep_reasoning: give the model its earlier reasoning back; by default it is left out, as Qwen-family chats do.
        n_left_out: turns at the beginning that no longer fit into the window.
    """

    system: str = ""
    turns: list[Turn] = field(default_factory=list)
    keep_reasoning: bool = False
    n_left_out: int = 0

    def messages(self, question: str | None = None) -> list[Message]:
        """What the template is given: the turns that still fit, and the question to be answered."""
        messages: list[Message] = [{"role": "system", "content": self.system}]
        for turn in self.turns[self.n_left_out :]:
            said = turn.answer
            if self.keep_reasoning and turn.reasoning:
                said = f"{THINK_OPEN}\n{turn.reasoning}\n{THINK_CLOSE}\n\n{turn.answer}"
            messages += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": said}]
        if question is not None:
            messages.append({"role": "user", "content": question})
        return messages

    def add(self, question: str, answer: Answer) -> None:
        self.turns.append(Turn(question, answer.text, answer.reasoning, answer.finish_reason))

    def undo(self) -> Turn | None:
        """Takes the last turn back; None when there is none."""
        if not self.turns:
            return None
        turn = self.turns.pop()
        self.n_left_out = min(self.n_left_out, len(self.turns))
        return turn

    def clear(self) -> None:
        self.turns.clear()
        self.n_left_out = 0

    def make_room(self, question: str, count_tokens: Callable[[list[Message]], int], room: int) -> int:
        """Leaves out the oldest turns until the prompt has at most `room` tokens; how many were left out now.

        Reasoning goes first, where it was kept. The question itself is never touched, even when it alone is too long.
        """
        before = self.n_left_out
        if self.keep_reasoning and count_tokens(self.messages(question)) > room:
            self.keep_reasoning = False
        while self.n_left_out < len(self.turns) and count_tokens(self.messages(question)) > room:
            self.n_left_out += 1
        return self.n_left_out - before

    def save(self, path: Path) -> None:
        """Writes the conversation as JSON.

        Raises:
            OutputError: it cannot be written.
        """
        with atomic_output(path) as file:
            file.write(json.dumps({"format": _FORMAT, **asdict(self)}, indent=2, ensure_ascii=False).encode())

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """Reads what `save` wrote.

        Raises:
            UsageError: no such file, or no conversation.
        """
        try:
            data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if data.pop("format") != _FORMAT:
                raise ValueError("another format")
            turns = [Turn(**{name: str(value) for name, value in turn.items()}) for turn in data.pop("turns")]
            return cls(
                system=str(data["system"]),
                turns=turns,
                keep_reasoning=bool(data["keep_reasoning"]),
                n_left_out=min(int(data["n_left_out"]), len(turns)),
            )
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror or error}", hint="check the path") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{path}: not a saved conversation: {error}", hint="give a file that /save wrote"
            ) from None

    def as_markdown(self) -> str:
        """The conversation to read: questions as headings, reasoning folded away."""
        parts = [f"> {self.system}\n"] if self.system else []
        for turn in self.turns:
            parts.append(f"## {turn.question}\n")
            if turn.reasoning:
                parts.append(f"<details><summary>Reasoning</summary>\n\n{turn.reasoning}\n\n</details>\n")
            parts.append(f"{turn.answer}\n")
        return "\n".join(parts)
