"""The scheduler (continuous batching): requests wait for a slot of the session, and all that have one run together.

Calls go down (scheduler, session, slot), events come up. All policy is here: which request gets which slot, which of
two with a common prefix waits for the other, the reasoning budget, stop texts, and what ends an answer.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from mimo_gguf.chat.answer import Answer, AnswerOptions, AnswerText
from mimo_gguf.chat.reasoning import Kind, Piece
from mimo_gguf.core.errors import MimoGgufError, UsageError
from mimo_gguf.engine.parking import Parking
from mimo_gguf.engine.sampling import Sampler, SamplingOptions
from mimo_gguf.engine.session import Drawn, Outcome, Session
from mimo_gguf.engine.slot import Slot, WindowFull, common_prefix
from mimo_gguf.engine.stats import SessionStats
from mimo_gguf.llama.vocabulary import Vocabulary
from mimo_gguf.runtime.line import Line
from mimo_gguf.runtime.scores import AnswerScores

# A request waits if its prompt has so many first tokens in common with one being read, whose cells it then shares.
_WORTH_WAITING: Final = 32
_LOOKED_AT: Final = 4  # requests passed over for each slot, so that one that waits does not keep a slot idle


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
        is_whole: whether only the whole answer is wanted: of its text there is no event but the last one.
    """

    prompt: tuple[int, ...]
    sampling: SamplingOptions
    options: AnswerOptions = field(default_factory=AnswerOptions)
    opened: str | None = None
    n_draft: int | None = None
    priority: int = 0
    client: str = ""
    is_whole: bool = False


class Event(NamedTuple):
    """The result of a step for a request.

    Attributes:
        id: the request's number, from `Scheduler.add`.
        pieces: new pieces of text.
        n_tokens: number of tokens of the answer so far.
        n_read, n_to_read: tokens of the prompt evaluated so far, and to be evaluated in all; 0 if nothing is new.
        answer: the answer, in the last event of a request.
        error: the reason of a failure, in the last event of a request that failed.
    """

    id: int
    pieces: tuple[Piece, ...] = ()
    n_tokens: int = 0
    n_read: int = 0
    n_to_read: int = 0
    answer: Answer | None = None
    error: MimoGgufError | None = None

    @property
    def is_last(self) -> bool:
        """Whether nothing more will come for this request."""
        return self.answer is not None or self.error is not None


class Scheduler:
    """Runs the requests of one session. `add` and `cancel` may be called from any thread, `step` from one at a time."""

    def __init__(self, session: Session, vocabulary: Vocabulary) -> None:
        self.session = session
        self.vocabulary = vocabulary
        self._ids = itertools.count(1)
        self._waiting: Line[_Job] = Line()
        self._running: dict[Slot, _Job] = {}
        self._ends = itertools.count(1)
        self._used = dict.fromkeys(session.slots, 0)  # slot -> the number of the end of the last request in it
        self.parking = Parking(session, session.options.parked_bytes)
        self._jobs: dict[int, _Job] = {}  # waiting and running
        self._cancelled: deque[_Job] = deque()  # and not yet ended
        self._assigning = threading.RLock()  # so that a cancel meets this request, not the next one in its slot

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._jobs

    @property
    def n_running(self) -> int:
        """The number of requests that have a slot."""
        return len(self._running)

    @property
    def n_waiting(self) -> int:
        """The number of requests that have no slot yet."""
        return len(self._waiting)

    def n_open(self, priority: int, client: str | None = None) -> int:
        """The number of requests of this priority and higher ones that have not ended, of one client or of all."""
        jobs = list(self._jobs.values())
        return sum(job.priority >= priority and client in (None, job.client) for job in jobs)

    def n_waiting_from(self, priority: int) -> int:
        """The number of requests of this priority and higher ones that have no slot yet."""
        return self._waiting.n_from(priority)

    def has_slot(self, request_id: int) -> bool:
        """Whether a request has a slot now."""
        job = self._jobs.get(request_id)
        return job is not None and job.slot is not None

    def add(self, request: Request) -> int:
        """Queues a request. Returns its number, which its events have.

        Raises:
            UsageError: the prompt is empty.
            WindowFull: the prompt leaves no room for an answer.
        """
        self.session.slot.check_prompt(request.prompt)
        job = _Job(next(self._ids), request, self.session, self.vocabulary)
        self._jobs[job.id] = job  # first: once it waits another thread may answer it
        self._waiting.add(job)
        return job.id

    def cancel(self, request_id: int) -> None:
        """Ends a request as soon as possible, if it has not ended. May be called from a signal handler."""
        with self._assigning:
            job = self._jobs.get(request_id)
            if job is not None:
                job.cancel()
                self._cancelled.append(job)

    def cancel_all(self) -> None:
        """Cancels all requests."""
        for request_id in list(self._jobs):
            self.cancel(request_id)

    def answer(self, request_id: int) -> Answer | None:
        """The answer to a request so far; None if it has ended."""
        job = self._jobs.get(request_id)
        return None if job is None else job.answer

    def step(self) -> list[Event]:
        """Gives free slots to waiting requests, then makes at most one pass for all that have a slot.

        If llama.cpp fails, every request with a slot ends with that error; the others go on waiting. If the model was
        closed, all requests end.
        """
        events: list[Event] = []
        try:
            with self.session.target.lock:  # so that it is not closed while its logits are read
                self._step(events)
        except MimoGgufError as error:
            dropped = self._drop(self._jobs.values() if self.session.target.closed else self._running.values())
            events += [Event(job.id, answer=job.answer, error=error) for job in dropped]
        except BaseException:
            self._drop(self._running.values())
            raise
        return events

    def _step(self, events: list[Event]) -> None:
        """Makes the step. Adds to `events` as they come, so that none is lost if it fails."""
        if self._cancelled:
            events += self._end_cancelled()
        if self._waiting:
            self._admit()
        events += self._close_reasoning()
        samplers = {slot: job.sampler for slot, job in self._running.items() if not job.is_over}
        if samplers:
            events += self._note(self.session.step(samplers))
        events += self._end_over()

    def _end_cancelled(self) -> Iterable[Event]:
        while self._cancelled:
            job = self._cancelled.popleft()
            if job.id not in self._jobs:
                continue
            if not job.is_over:
                job.said.end("abort")
            self._waiting.remove(job)
            yield self._end(job)

    def _admit(self) -> None:
        """Gives each free slot the request whose turn it is; one that can soon share a prefix waits for that."""
        if len(self._running) == len(self.session.slots):
            self._interrupt_lower()
        free = [slot for slot in self.session.slots if slot not in self._running]
        passed_over: set[int] = set()
        while free and len(passed_over) < _LOOKED_AT * len(self.session.slots):
            job = self._waiting.next(self._running.values(), passed_over)
            if job is None:
                break
            if self._gains_by_waiting(job):
                passed_over.add(job.id)
                continue
            slot = max(free, key=lambda slot: self._suits(slot, job))
            free.remove(slot)
            with self._assigning:
                self._running[slot] = job
                job.slot = slot
            self._waiting.serve(job)  # last, so that an exception in between cannot lose it
            try:
                self.parking.make_way(slot, job.to_read, reads_anew=job.wants_rows)
                job.begin(slot)
            except MimoGgufError as error:
                job.error = error

    def _interrupt_lower(self) -> None:
        """Frees a slot for a request of a higher priority than one that runs, which goes on later."""
        first = self._waiting.next(self._running.values())
        slot, lowest = min(self._running.items(), key=lambda entry: (entry[1].priority, -entry[1].id))
        if first is None or lowest.priority >= first.priority or not lowest.can_pause:
            return
        self._waiting.add(lowest, goes_first=True)  # first, so that an exception in between cannot lose it
        with self._assigning:
            lowest.pause()
            del self._running[slot]
            self._used[slot] = next(self._ends)
            slot.clear_cancel()  # whoever is cancelled is in `_cancelled`, too
        self.session.drop_unfinished(slot)

    def _suits(self, slot: Slot, job: _Job) -> tuple[int, int]:
        """How well a request goes into a free slot; what two have in common is shared between slots in any case.

        Best is one whose conversation goes on, then an empty one, then one with mostly the same tokens, then the one
        that was used longest ago.
        """
        n_tokens = len(slot.tokens)
        same = 0 if job.wants_rows else common_prefix(slot.tokens, job.to_read)
        if not n_tokens:
            return 2, 0
        if same == n_tokens:
            return 3, same
        return (1, same) if 2 * same > n_tokens else (0, -self._used[slot])

    def _gains_by_waiting(self, job: _Job) -> bool:
        """Whether a prompt that is being read has more first tokens in common with this one than any slot has."""
        if job.wants_rows:
            return False
        coming = [common_prefix(other.prompt, job.prompt) for other in self._reading()]
        most = max(coming, default=0)
        if most < _WORTH_WAITING:
            return False
        there = max(common_prefix(slot.tokens, job.prompt) for slot in self.session.slots)
        there = max(there, self.parking.longest(job.prompt))
        return most >= there + _WORTH_WAITING

    def _reading(self) -> list[_Job]:
        return [job for slot, job in self._running.items() if slot.prompt and not job.said.tokens]

    def _close_reasoning(self) -> Iterable[Event]:
        """Closes the reasoning blocks whose budget is used up."""
        for slot, job in self._running.items():
            closing = job.said.closing(job.sampler) if job.said.limits_reasoning and not job.is_over else []
            if not closing:
                continue
            try:
                self.session.insert(slot, closing, job.sampler)
            except WindowFull:
                job.said.end("length", "window")
            else:
                if job.scores is not None:  # before the tokens, so that every token always has a score
                    job.scores.add_inserted(closing)
                pieces = job.said.add_inserted(closing)
                if not job.is_whole:
                    yield job.event(pieces)

    def _note(self, outcomes: dict[Slot, Outcome]) -> Iterable[Event]:
        """Notes the outcomes of a step. Yields an event for each request with something new."""
        for slot, job in self._running.items():
            outcome = outcomes.get(slot)
            if job.scores is not None:
                job.scores.add_rows(slot.read_rows, self.session.target)
            if outcome is None:
                if slot.prompt:
                    yield Event(job.id, n_read=job.n_to_read - len(slot.prompt), n_to_read=job.n_to_read)
            elif isinstance(outcome, Drawn):
                if not job.said.tokens:
                    yield Event(job.id, n_read=job.n_to_read, n_to_read=job.n_to_read)
                if job.scores is not None:
                    job.scores.add_drawn(self.session.target.logits(outcome.row), outcome.token)
                yield from job.add(outcome.token)
            elif outcome.reason == "window":
                job.said.end("length", "window")
            elif outcome.reason == "failed":
                job.error = outcome.error
            else:
                job.said.end("abort")

    def _end_over(self) -> Iterable[Event]:
        """Ends the requests that are over. With `max_tokens=0` the prompt is read first, for scores and reuse."""
        for slot, job in [(slot, job) for slot, job in self._running.items() if job.is_over]:
            if job.reads_on:
                self.session.evaluate([slot])
                if job.scores is not None:
                    job.scores.add_rows(slot.read_rows, self.session.target)
            else:
                yield self._end(job)

    def _end(self, job: _Job) -> Event:
        """Ends a request and frees its slot. Returns its last event."""
        rest = tuple(job.end())
        with self._assigning:
            self._jobs.pop(job.id, None)
            slot, job.slot = job.slot, None
            if slot is not None:
                self._running.pop(slot, None)
                self._used[slot] = next(self._ends)
                slot.clear_cancel()  # no later cancel of this request can reach the slot
        if slot is not None:
            with contextlib.suppress(UsageError):  # the model was closed, and with it every slot
                self.session.drop_unfinished(slot)
        return Event(job.id, rest, len(job.said.tokens), answer=job.answer, error=job.error)

    def _drop(self, jobs: Iterable[_Job]) -> list[_Job]:
        """Ends these requests after a step that failed, so that every slot is consistent. Returns them."""
        for slot, job in list(self._running.items()):
            job.slot = slot
        dropped = list(jobs)
        for job in dropped:
            self._waiting.remove(job)
            with contextlib.suppress(UsageError):
                self._end(job)
        return dropped


class _Job:
    """A request that waits or runs, and its answer so far."""

    def __init__(self, number: int, request: Request, session: Session, vocabulary: Vocabulary) -> None:
        self.id = number
        self.priority, self.client, self.is_whole = request.priority, request.client, request.is_whole
        self.prompt = list(request.prompt)
        self.said = AnswerText(vocabulary, request.options, request.opened)
        self.sampler: Sampler  # from `begin` on
        self.slot: Slot | None = None
        self.error: MimoGgufError | None = None
        self.is_cancelled = False
        self.n_to_read = 0
        self._says_late = request.is_whole and self.said.can_wait
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

    def add(self, token: int) -> Sequence[Event]:
        """Adds a token that was drawn. Returns its event; of a whole answer only the first token has one."""
        if not self.is_whole:
            return (self.event(self.said.add(token)),)
        if self._says_late:
            self.said.note(token)
        else:
            self.said.add(token)
        return (self.event(()),) if len(self.said.tokens) == 1 else ()

    def event(self, pieces: Sequence[Piece]) -> Event:
        return Event(self.id, tuple(pieces), len(self.said.tokens))

    def end(self) -> list[Piece]:
        """Ends the answer. Returns the pieces of text that no event had."""
        if hasattr(self, "sampler"):
            self.sampler.close()
        self._stats = self._counts()
        pieces = self.said.say() + self.said.finish()
        return self.said.pieces if self.is_whole else pieces

    def _counts(self) -> SessionStats:
        if self._stats is not None:
            return self._stats
        if self._used is None or self._before is None:
            return self._earlier
        return self._earlier + self._used.stats.since(self._before)

    @property
    def answer(self) -> Answer:
        """The answer so far; of a whole one the text is known at its end only."""
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
            n_thought=self.said.n_thought,
        )


def _wants_scores(options: AnswerOptions) -> bool:
    return options.logprobs is not None or options.prompt_logprobs is not None
