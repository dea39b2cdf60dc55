"""The scheduler (continuous batching): requests wait for a slot of the session, and all that have one run together.

Calls go down (scheduler, session, slot), events come up. All policy is here: which request gets which slot, which of
two with a common prefix waits for the other, the reasoning budget, stop texts, and what ends an answer.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

from mimo_gguf.chat.answer import Answer
from mimo_gguf.core.errors import MimoGgufError, UsageError
from mimo_gguf.engine.parking import Parking
from mimo_gguf.engine.sampling import Sampler
from mimo_gguf.engine.session import Drawn, Outcome, Session
from mimo_gguf.engine.slot import Slot, WindowFull, common_prefix
from mimo_gguf.llama.vocabulary import Vocabulary
from mimo_gguf.runtime.line import Line
from mimo_gguf.runtime.running import Event as Event
from mimo_gguf.runtime.running import Job
from mimo_gguf.runtime.running import Request as Request

# A request waits if its prompt has so many first tokens in common with one being read, whose cells it then shares.
_WORTH_WAITING: Final = 32
_SHORT_S: Final = 0.016  # of a step for which a text that was drawn, or the next step, can wait
_LOOKED_AT: Final = 4  # requests passed over for each slot, so that one that waits does not keep a slot idle


class Scheduler:
    """Runs the requests of one session. `add` and `cancel` may be called from any thread, `step` from one at a time."""

    def __init__(self, session: Session, vocabulary: Vocabulary) -> None:
        self.session = session
        self.vocabulary = vocabulary
        self._ids = itertools.count(1)
        self._waiting: Line[Job] = Line()
        self._running: dict[Slot, Job] = {}
        self._ends = itertools.count(1)
        self._used = dict.fromkeys(session.slots, 0)  # slot -> the number of the end of the last request in it
        self.parking = Parking(session, session.options.parked_bytes)
        self._jobs: dict[int, Job] = {}  # waiting and running
        self._cancelled: deque[Job] = deque()  # and not yet ended
        self._reading_s = math.inf  # of the last step that read a prompt
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
        job = Job(next(self._ids), request, self.session, self.vocabulary)
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
        """Gives free slots to waiting requests, then makes a pass for all that have a slot; more if passes are short.

        More are made for 16 ms, as long as there is nothing to tell and nothing else to do.

        If llama.cpp fails, every request with a slot ends with that error; the others go on waiting. If the model was
        closed, all requests end.
        """
        events: list[Event] = []
        try:
            with self.session.target.lock:  # so that it is not closed while its logits are read
                self._step(events)
        except MimoGgufError as error:
            ended = self._drop(self._jobs.values() if self.session.target.closed else self._running.values())
            events += [event._replace(error=error) for event in ended]
        except BaseException:
            self._drop(self._running.values())
            raise
        return events

    def _step(self, events: list[Event]) -> None:
        """Makes the step. Adds to `events` as they come, so that none is lost if it fails."""
        if self._cancelled:
            events += self._end_cancelled()
        began_s = time.perf_counter()
        if self._waiting:
            events += self._interrupt_lower(began_s)
            self._admit()
        events += self._close_reasoning(began_s)
        reads = any(slot.prompt for slot in self._running)
        if reads and self._reading_s > _SHORT_S:
            n_events = len(events)
            events += [job.tell(began_s) for job in self._running.values() if job.has_waiting_text]
            if len(events) > n_events:  # what was drawn does not wait for a pass that may take long
                return
        samplers = {slot: job.sampler for slot, job in self._running.items() if not job.is_over}
        if samplers:
            outcomes, now_s = self.session.step(samplers), time.perf_counter()
            self._reading_s = now_s - began_s if reads else self._reading_s
            events += self._note(outcomes, now_s)
            if not events and now_s < (until_s := began_s + _SHORT_S):
                events += self._draw_on(samplers, until_s)
        events += self._end_over()

    def _draw_on(self, samplers: Mapping[Slot, Sampler], until_s: float) -> list[Event]:
        """Makes further passes that only draw. Returns the events of the last one."""
        jobs = [self._running[slot] for slot in samplers]
        if any(job.said.limits_reasoning for job in jobs):
            return []
        with contextlib.closing(self.session.plain_passes(samplers)) as passes:
            while not (self._waiting or any(job.is_over for job in jobs)):
                outcomes, now_s = next(passes, None), time.perf_counter()
                if outcomes is None:
                    break
                events = list(self._note(outcomes, now_s))
                if events or now_s >= until_s:
                    return events
        return []

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

    def _interrupt_lower(self, now_s: float) -> Iterable[Event]:
        """Frees a slot for a request of a higher priority than one that runs, which goes on later.

        Yields an event of what it has said by then.
        """
        if len(self._running) < len(self.session.slots):
            return
        first = self._waiting.next(self._running.values())
        slot, lowest = min(self._running.items(), key=lambda entry: (entry[1].priority, -entry[1].id))
        if first is None or lowest.priority >= first.priority or not lowest.can_pause:
            return
        if lowest.has_waiting_text:
            yield lowest.tell(now_s)
        self._waiting.add(lowest, goes_first=True)  # first, so that an exception in between cannot lose it
        with self._assigning:
            lowest.pause()
            del self._running[slot]
            self._used[slot] = next(self._ends)
            slot.clear_cancel()  # whoever is cancelled is in `_cancelled`, too
        self.session.drop_unfinished(slot)

    def _suits(self, slot: Slot, job: Job) -> tuple[int, int]:
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

    def _gains_by_waiting(self, job: Job) -> bool:
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

    def _reading(self) -> list[Job]:
        return [job for slot, job in self._running.items() if slot.prompt and not job.said.tokens]

    def _close_reasoning(self, now_s: float) -> Iterable[Event]:
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
                yield from job.insert(closing, now_s)

    def _note(self, outcomes: dict[Slot, Outcome], now_s: float) -> Iterable[Event]:
        """Notes the outcomes of a step. Yields an event for each request of which there is something to tell."""
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
                yield from job.add(outcome.token, now_s)
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

    def _end(self, job: Job) -> Event:
        """Ends a request and frees its slot. Returns its last event."""
        event = job.end()
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
        return event

    def _drop(self, jobs: Iterable[Job]) -> list[Event]:
        """Ends these requests after a step that failed, so that every slot is consistent. Returns their last events."""
        for slot, job in list(self._running.items()):
            job.slot = slot
        ended = []
        for job in list(jobs):
            self._waiting.remove(job)
            try:
                ended.append(self._end(job))
            except UsageError:
                ended.append(Event(job.id, answer=job.answer))
        return ended
