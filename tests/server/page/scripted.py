"""A model whose answers are written down: the real application, with what it says and how fast."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mimo_gguf.chat.answer import Answer
from mimo_gguf.chat.reasoning import Kind, Piece
from mimo_gguf.engine.stats import SessionStats
from mimo_gguf.runtime.llm import LLM
from mimo_gguf.runtime.scheduler import Event, Request
from mimo_gguf.server.engine import Engine, Limits

CHARACTERS = 4  # of a token


@dataclass(slots=True)
class Said:
    """An answer.

    Attributes:
        pace_s: seconds for each token.
        reads: tokens of the prompt read so far, one event each, before the first token.
        gate: if given, half of the answer comes before it is opened.
    """

    text: str
    thinking: str = ""
    pace_s: float = 0.0
    reads: tuple[int, ...] = ()
    gate: threading.Event | None = None

    def pieces(self) -> list[Piece]:
        """The answer, a piece for each token."""
        return [
            Piece(kind, text[at : at + CHARACTERS])
            for kind, text in ((Kind.REASONING, self.thinking), (Kind.ANSWER, self.text))
            for at in range(0, len(text), CHARACTERS)
        ]


@dataclass(slots=True)
class Script:
    """What is answered to which question; the last one that matches counts."""

    answers: dict[str, Said] = field(default_factory=dict)
    asked: list[Request] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)

    def said(self, prompt: str) -> Said:
        """The answer to a prompt. If the prompt ends within it, only the rest."""
        question, _, begun = prompt.rpartition("<|im_start|>assistant\n")
        found = [(question.rfind(name), said) for name, said in self.answers.items() if name in question]
        said = max(found, key=lambda pair: pair[0])[1] if found else Said("I have nothing to say.")
        thinking, closed, text = begun.removeprefix("<think>\n").partition("\n</think>\n\n")
        if not begun:
            return said
        if begun.startswith("<think>") and not closed:
            return Said(said.text, said.thinking.removeprefix(thinking), said.pace_s)
        return Said(said.text.removeprefix(text if closed else begun), "", said.pace_s)


class ScriptedEngine(Engine):
    """An engine that answers from a script."""

    def __init__(self, llm: LLM, limits: Limits | None = None) -> None:
        super().__init__(llm, limits)
        self.script = Script()
        self.n_cancelled = 0

    def submit(self, requests: Sequence[Request], *, is_whole: bool = False) -> Any:
        return ScriptedCall(self, requests)


class ScriptedCall:
    """The events of one answer."""

    def __init__(self, engine: ScriptedEngine, requests: Sequence[Request]) -> None:
        (self._request,) = requests
        self._engine, self.ids, self.ran_out = engine, [1], False
        self._stats = SessionStats(1)
        engine.script.asked.append(self._request)
        self._prompt = engine.llm.get_tokenizer().decode(list(self._request.prompt))
        engine.script.prompts.append(self._prompt)

    async def events(self) -> AsyncGenerator[Event, None]:
        said = self._engine.script.said(self._prompt)
        finished = False
        try:
            for read in said.reads:
                yield Event(1, n_read=read, n_to_read=said.reads[-1])
                await asyncio.sleep(max(said.pace_s, 0.01))
            pieces = said.pieces()
            n_thought = 0
            for place, piece in enumerate(pieces):
                if said.gate is not None and place == len(pieces) // 2:
                    await asyncio.to_thread(said.gate.wait, 60)
                self._count(said)
                n_thought = place + 1 if piece.kind is Kind.REASONING else n_thought
                yield Event(1, (piece,), place + 1, n_thought=n_thought)
                await asyncio.sleep(said.pace_s)
            finished = True
            yield Event(1, (), len(pieces), answer=self._answer(said, len(pieces)), n_thought=n_thought)
        finally:
            self._engine.n_cancelled += not finished

    def _count(self, said: Said) -> None:
        self._stats.add_token(said.pace_s or 0.02)
        self._stats.add_pass(1, int(self._stats.n_generated % 4 != 0), whole=True)

    def _answer(self, said: Said, n_tokens: int) -> Answer:
        stop = "stop" if self._request.options.max_tokens is None else "length"
        return Answer(
            said.text, said.thinking, (1,) * n_tokens, stop, None, len(self._request.prompt), None, self._stats.copy()  # type: ignore[arg-type]
        )  # fmt: skip

    def so_far(self, request_id: int) -> Answer | None:
        return self._answer(Said(""), self._stats.n_generated)

    def cancel(self) -> None: ...

    def cancel_one(self, request_id: int) -> None: ...
