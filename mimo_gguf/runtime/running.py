"""A request and what becomes of it: its answer as it grows, and the events that tell of it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mimo_gguf.chat.answer import Answer, AnswerOptions, AnswerText
from mimo_gguf.chat.reasoning import Kind, Piece
from mimo_gguf.core.errors import MimoGgufError, UsageError
from mimo_gguf.engine.sampling import Sampler, SamplingOptions
from mimo_gguf.engine.session import Session
from mimo_gguf.engine.slot import Slot
from mimo_gguf.engine.stats import SessionStats
from mimo_gguf.llama.vocabulary import Vocabulary
from mimo_gguf.runtime.scores import AnswerScores


@dataclass(frozen=True, slots=True)
class Request:
    """A request for one answer.

    Attributes:
        prompt: the tokens of the prompt.
        sampling: how tokens are drawn.
        options: what ends the answer, and how long it may think.
        opened: the prompt's text after its own `<think>`; None if it opened no block.
        n_draft: tokens drafted at a time for this answer, at most; 0 for none, None for as many as the session drafts.
        priority: a request with a higher one gets a slot first, and its prompt is read first; below 0 for work in the
            background.
        client: whose request it is. Of requests of one priority, each client has its turn.
        every_s: seconds that text may wait for later text, so that one event tells of both; infinity if only the whole
            answer is wanted. The first token and the last event never wait.
    """

    prompt: tuple[int, ...]
    sampling: SamplingOptions
    options: AnswerOptions = field(default_factory=AnswerOptions)
    opened: str | None = None
    n_draft: int | None = None
    priority: int = 0
    client: str = ""
    every_s: float = 0.0


class Event(NamedTuple):
    """The result of a step for a request.

    Attributes:
        id: the request's number, from `Scheduler.add`.
        pieces: new pieces of text.
        n_tokens: number of tokens of the answer so far.
        n_read, n_to_read: tokens of the prompt evaluated so far, and to be evaluated in all; 0 if nothing is new.
        answer: the answer, in the last event of a request.
        error: the reason of a failure, in the last event of a request that failed.
        n_thought: number of tokens before the first one of the answer's text.
    """

    id: int
    pieces: tuple[Piece, ...] = ()
    n_tokens: int = 0
    n_read: int = 0
    n_to_read: int = 0
    answer: Answer | None = None
    error: MimoGgufError | None = None
    n_thought: int = 0

    @property
    def is_last(self) -> bool:
        """Whether nothing more will come for this request."""
        return self.answer is not None or self.error is not None


class Job:
    """A request that waits or runs, and its answer so far."""

    def __init__(self, number: int, request: Request, session: Session, vocabulary: Vocabulary) -> None:
        self.id = number
        self.priority, self.client = request.priority, request.client
        self.prompt = list(request.prompt)
        self.said = AnswerText(vocabulary, request.options, request.opened)
        self.sampler: Sampler  # from `begin` on
        self.slot: Slot | None = None
        self.error: MimoGgufError | None = None
        self.is_cancelled = False
        self.n_to_read = 0
        self._every_s, self._can_wait = request.every_s, self.said.can_wait
        self._next_s = 0.0  # when the next event is due
        self._untold: list[Piece] = []  # said, and in no event yet
        self._session = session
        self._options = request.options
        self._n_draft = request.n_draft
        self.scores = AnswerScores(self.prompt, request.options) if _wants_scores(request.options) else None
        self._sampling = request.sampling.seeded()
        self._used: Slot | None = None
        self._before: SessionStats | None = None
        self._earlier = SessionStats(session.options.n_draft)  # before it was interrupted
        self._stats: SessionStats | None = None  # of the whole answer, once it has ended

    @property
    def is_over(self) -> bool:
        return self.said.ended or self.error is not None

    @property
    def reads_on(self) -> bool:
        """Whether the prompt must still be read although no token is wanted."""
        is_empty = self.said.stop_reason == "max_tokens" and not self.said.tokens
        return is_empty and self.error is None and self.slot is not None and bool(self.slot.prompt)

    @property
    def can_pause(self) -> bool:
        """Whether it can be interrupted and go on later; scores of a prompt would be made twice."""
        return not self.is_over and not self.wants_rows

    @property
    def wants_rows(self) -> bool:
        """Whether each token of the prompt gives logits."""
        return self._options.prompt_logprobs is not None

    @property
    def _late(self) -> frozenset[int]:
        """The tokens that may not be drawn among the first `min_tokens`."""
        return self.said.ends if self._options.min_tokens else frozenset()

    def cancel(self) -> None:
        self.is_cancelled = True
        if self.slot is not None:
            self.slot.cancel()

    def begin(self, slot: Slot) -> None:
        """Begins in a slot.

        Raises:
            UsageError: the grammar is not GBNF, a bias names an unknown token, or the model was closed.
        """
        self._before, self._used = slot.stats.copy(), slot
        if not hasattr(self, "sampler"):  # else it goes on where it was interrupted
            self.sampler = Sampler(
                self._session.model, self._sampling, self.prompt, at_first=self._late, n_first=self._options.min_tokens
            )
        self._session.begin(slot, self.to_read, wants_rows=self.wants_rows, n_draft=self._n_draft)
        slot.priority = self.priority
        self.n_to_read = len(slot.prompt)

    def pause(self) -> None:
        """Leaves its slot, to begin again later."""
        self._earlier, self.slot = self._counts(), None
        self._used = self._before = None

    @property
    def to_read(self) -> list[int]:
        """The prompt, and what was drawn before it was interrupted."""
        return self.prompt + list(self.said.tokens)

    def add(self, token: int, now_s: float) -> Sequence[Event]:
        """Adds a token that was drawn. Returns an event if one is due; else its text waits for that of later tokens."""
        self.said.note(token)
        if not self._can_wait:
            self._untold += self.said.say()
        return (self.tell(now_s),) if now_s >= self._next_s else ()

    def insert(self, tokens: Sequence[int], now_s: float) -> Sequence[Event]:
        """Adds tokens that were inserted to close the reasoning. Returns events as `add`."""
        self._untold += self.said.add_inserted(tokens)
        return (self.tell(now_s),) if now_s >= self._next_s else ()

    def tell(self, now_s: float) -> Event:
        """An event of all that is not told yet. The next one is due when `every_s` have passed; all jobs tell then."""
        if self._every_s:
            self._next_s = (now_s // self._every_s + 1) * self._every_s
        pieces, self._untold = (*self._untold, *self.said.say()), []
        return Event(self.id, pieces, len(self.said.tokens), n_thought=self.said.n_thought)

    @property
    def has_waiting_text(self) -> bool:
        """Whether text waits that somebody wants before the end."""
        return self._every_s < math.inf and bool(self._untold or self.said.n_unsaid)

    def end(self) -> Event:
        """Ends the answer. Returns its last event."""
        if hasattr(self, "sampler"):
            self.sampler.close()
        self._stats = self._counts()
        with contextlib.suppress(UsageError):  # the model was closed, and what was not said is lost
            self._untold += self.said.say()
        pieces = (*self._untold, *self.said.finish())
        return Event(
            self.id, pieces, len(self.said.tokens), answer=self.answer, error=self.error, n_thought=self.said.n_thought
        )

    def _counts(self) -> SessionStats:
        if self._stats is not None:
            return self._stats
        if self._used is None or self._before is None:
            return self._earlier
        return self._earlier + self._used.stats.since(self._before)

    @property
    def answer(self) -> Answer:
        """The answer so far, with the text that events have told of."""
        tokens = tuple(self.said.tokens)
        return Answer(
            text=self.said.text(Kind.ANSWER),
            reasoning=self.said.text(Kind.REASONING),
            tokens=tokens,
            finish_reason=self.said.finish_reason,
            stop_reason=self.said.stop_reason,
            n_prompt=len(self.prompt),
            seed=None if self._sampling.greedy else self._sampling.seed,
            stats=self._counts(),
            logprobs=self.scores.of_answer(len(tokens)) if self.scores else None,
            prompt_logprobs=self.scores.of_prompt if self.scores else None,
        )


def _wants_scores(options: AnswerOptions) -> bool:
    return options.logprobs is not None or options.prompt_logprobs is not None
