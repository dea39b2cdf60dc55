"""One answer as a row of blocks: reasoning, text, calls. Anthropic's form and OpenAI's newer one are made of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from mimo_gguf.engine.logprobs import Scores
from mimo_gguf.server.answers import Answers, Delta
from mimo_gguf.server.token_scores import TextScores

BlockKind = Literal["reasoning", "text", "call"]


@dataclass(slots=True)
class Block:
    """A block as far as it has come. A call has an id and a name, and its text is its arguments as JSON.

    Attributes:
        scores: those of the tokens of a text, if they were requested.
    """

    kind: BlockKind
    number: int
    text: str = ""
    id: str = ""
    name: str = ""
    scores: list[Scores] = field(default_factory=list)


class Change(NamedTuple):
    """What happens to a block: it is opened, grows by `new` with the scores of its tokens, or is closed."""

    what: Literal["open", "more", "close"]
    block: Block
    new: str = ""
    scores: tuple[Scores, ...] = ()


@dataclass(slots=True)
class Blocks:
    """The blocks of an answer.

    Attributes:
        shows_reasoning: whether there are blocks of reasoning.
        scored: finds the scores of texts; None if they were not requested.
    """

    shows_reasoning: bool = True
    scored: TextScores | None = None
    all: list[Block] = field(default_factory=list)
    _is_open: bool = False

    def add(self, delta: Delta) -> Iterator[Change]:
        """Yields what a delta changes."""
        if self.scored is not None:
            self.scored.add(delta.scores)
        if delta.reasoning and self.shows_reasoning:
            yield from self._grow("reasoning", delta.reasoning)
        if delta.text:
            yield from self._grow("text", delta.text)
        for piece in delta.calls:
            if piece.name is not None:
                yield from self._open(Block("call", len(self.all), id=piece.id or "", name=piece.name))
            if piece.arguments:
                yield from self._grow("call", piece.arguments)
        if delta.finish is not None:
            yield from self._close()

    def _grow(self, kind: BlockKind, new: str) -> Iterator[Change]:
        if not self._is_open or self.all[-1].kind != kind:
            yield from self._open(Block(kind, len(self.all)))
        scores = self.scored.take() if self.scored is not None and kind == "text" else ()
        self.all[-1].text += new
        self.all[-1].scores += scores
        yield Change("more", self.all[-1], new, scores)

    def _open(self, block: Block) -> Iterator[Change]:
        yield from self._close()
        self.all.append(block)
        self._is_open = True
        yield Change("open", block)

    def _close(self) -> Iterator[Change]:
        if self._is_open:
            self._is_open = False
            block = self.all[-1]
            if self.scored is not None and block.kind == "text" and (late := self.scored.finish()):
                block.scores += late
                yield Change("more", block, "", late)  # the scores of the last tokens may come after their text
            yield Change("close", block)


async def changes(answers: Answers, blocks: Blocks) -> AsyncGenerator[Change | None, None]:
    """Yields None when the answer begins to come, then what happens to its blocks. Raises as `Answers.deltas`."""
    has_begun = False
    async with aclosing(answers.deltas()) as deltas:
        async for delta in deltas:
            if not has_begun:
                has_begun = True
                yield None
            for change in blocks.add(delta):
                yield change
