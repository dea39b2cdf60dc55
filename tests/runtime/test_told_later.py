"""Text that may wait for later text: the same answers, with fewer events, and nothing waits for a pass that is long."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from mimo_gguf.chat.answer import Answer, AnswerOptions
from mimo_gguf.chat.reasoning import Kind
from mimo_gguf.engine.sampling import SamplingOptions
from mimo_gguf.engine.session import Session, SessionOptions
from mimo_gguf.llama.api import LlamaModel
from mimo_gguf.llama.vocabulary import Vocabulary
from mimo_gguf.runtime.driver import Driver
from mimo_gguf.runtime.pump import Pump
from mimo_gguf.runtime.scheduler import Event, Request, Scheduler

DRAWN = SamplingOptions(temperature=1.5, seed=3)
KINDS: list[dict[str, Any]] = [{}, {"stop": ("e", "is")}, {"think_budget": 4}, {"logprobs": 2}, {"max_tokens": 0}]


@dataclass
class Clock:
    """Time that passes when the test says so, and by `tick` at each look at it. Every step makes one pass."""

    now: float = 100.001
    tick: float = 0.0

    def read(self) -> float:
        self.now += self.tick
        return self.now


@pytest.fixture
def whole_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock for steps that may make several passes."""
    found = Clock()
    monkeypatch.setattr("mimo_gguf.runtime.scheduler.time.perf_counter", found.read)
    return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, whole_clock: Clock) -> Clock:
    """A clock for steps that make one pass each."""
    monkeypatch.setattr(Session, "plain_passes", lambda *_: (_ for _ in list[None]()))
    return whole_clock


def request(number: int, every_s: float = 0.0, priority: int = 0, **how: Any) -> Request:
    options = AnswerOptions(**{"max_tokens": 12 + number, "ignore_eos": True} | how)
    opened = "" if number % 2 else None
    sampling = replace(DRAWN, seed=number)
    return Request((5, 6, 7 + number), sampling, options, opened, priority=priority, every_s=every_s)


@contextmanager
def scheduling(model: LlamaModel, *, n_parallel: int = 2, mtp: bool = False) -> Iterator[Scheduler]:
    options = SessionOptions(n_ctx=1024 * n_parallel, n_parallel=n_parallel, n_threads=1, mtp=mtp, exact=True)
    with Session(model, options) as session:
        yield Scheduler(session, Vocabulary(model))


def answered(scheduler: Scheduler, requests: list[Request]) -> tuple[list[Answer], list[list[Event]]]:
    """The answers, and each request's events."""
    events: dict[int, list[Event]] = {scheduler.add(each): [] for each in requests}
    while not scheduler.idle:
        for event in scheduler.step():
            events[event.id].append(event)
    answers = [each[-1].answer for each in events.values()]
    return [answer for answer in answers if answer is not None], list(events.values())


def text_of(events: list[Event], kind: Kind) -> str:
    return "".join(piece.text for event in events for piece in event.pieces if piece.kind is kind)


@pytest.mark.parametrize("mtp", [False, True])
@pytest.mark.parametrize("every_s", [0.004, math.inf])
def test_the_answers_are_the_same(tiny: LlamaModel, every_s: float, mtp: bool) -> None:
    requests = [request(number, **kind) for number, kind in enumerate(KINDS)]
    with scheduling(tiny, mtp=mtp) as scheduler:
        at_once, steps = answered(scheduler, requests)
    with scheduling(tiny, mtp=mtp) as scheduler:
        later, events = answered(scheduler, [replace(each, every_s=every_s) for each in requests])
    assert len(later) == len(requests)
    for one, other in zip(at_once, later, strict=True):
        assert replace(one, stats=other.stats) == other
        assert one.stats.n_generated == other.stats.n_generated
    for each, before, answer in zip(events, steps, later, strict=True):
        assert (text_of(each, Kind.ANSWER), text_of(each, Kind.REASONING)) == (answer.text, answer.reasoning)
        assert each[-1].n_thought == before[-1].n_thought
        if every_s == math.inf:
            assert len([event for event in each[:-1] if event.n_tokens]) == bool(answer.tokens), "the first token"


def test_where_the_answer_begins_is_counted(tiny: LlamaModel) -> None:
    """By the events of single tokens: the number of the first token with text of the answer."""
    with scheduling(tiny) as scheduler:
        closes = scheduler.vocabulary.tokenize("\n</think>\n\n")
        asked = replace(request(1, think_budget=4, max_tokens=20), sampling=replace(DRAWN, allowed_tokens=(72, 73)))
        (answer,), (events,) = answered(scheduler, [asked])
    assert answer.reasoning and answer.text
    first = next(event for event in events if text_of([event], Kind.ANSWER))
    assert events[-1].n_thought == first.n_tokens - 1 == 4 + len(closes)


def test_short_passes_share_events_which_all_requests_have_at_the_same_time(tiny: LlamaModel, clock: Clock) -> None:
    told: list[set[int]] = []
    with scheduling(tiny, n_parallel=3) as scheduler:
        for number in range(3):
            scheduler.add(request(number, 0.016, max_tokens=100))
        while not scheduler.idle:
            clock.now += 0.001
            told.append({event.id for event in scheduler.step() if event.n_tokens and not event.is_last})
    together = [each for each in told if each]
    assert len(told[0]) <= len(together[0]) == 3, "the first tokens do not wait"
    assert all(len(each) == 3 for each in together)
    assert 100 / 16 <= len(together) <= 100 / 16 + 3


@dataclass
class Passes:
    """The passes of a session: each takes `pass_s` of a clock, and during the tenth of them something is done."""

    session: Session
    clock: Clock
    pass_s: float = 0.0
    in_tenth: Callable[[], object] = lambda: None
    n: int = 0

    def __post_init__(self) -> None:
        self._decode = self.session.target.decode
        self.session.target.decode = self.decode  # type: ignore[method-assign,assignment]

    def decode(self, *given: Any) -> int:
        self.n += 1
        self.clock.now += self.pass_s
        if self.n == 10:
            self.in_tenth()
        return self._decode(*given)


@pytest.mark.parametrize(("pass_s", "n_steps"), [(0.001, 100 // 16), (0.005, 100 // 4), (0.017, 100)])
def test_a_step_makes_passes_for_16_ms(tiny: LlamaModel, whole_clock: Clock, pass_s: float, n_steps: int) -> None:
    with scheduling(tiny) as scheduler:
        Passes(scheduler.session, whole_clock, pass_s)
        scheduler.add(request(0, math.inf, max_tokens=100))
        n = 0
        while not scheduler.idle:
            assert not [event for event in scheduler.step() if event.n_tokens > 1 and not event.is_last]
            n += 1
    assert n_steps <= n <= n_steps + 2


def test_further_passes_leave_off_for_what_comes_meanwhile(tiny: LlamaModel, whole_clock: Clock) -> None:
    """A request, a cancel, and an answer's end. The clock stands still, so that only these end a step."""
    with scheduling(tiny) as scheduler:
        passes = Passes(scheduler.session, whole_clock)

        def passes_of_second_step(*requests: Request) -> int:
            for each in requests:
                scheduler.add(each)
            scheduler.step()  # reads the prompts, and tells of the first tokens
            passes.n = 0
            scheduler.step()
            return passes.n

        long = request(0, math.inf, max_tokens=100)
        passes.in_tenth = lambda: scheduler.add(request(2, math.inf, max_tokens=1))
        assert passes_of_second_step(long) == 10
        passes.in_tenth = scheduler.cancel_all
        while not scheduler.idle:
            scheduler.step()
        passes.n = 0
        assert passes_of_second_step(long) == 10
        assert [event.is_last for event in scheduler.step()] == [True]
        passes.in_tenth = lambda: None
        assert passes_of_second_step(long, request(1, math.inf, max_tokens=30)) == 29
        assert scheduler.n_running == 1


def test_further_passes_leave_off_where_the_text_ends(tiny: LlamaModel, whole_clock: Clock) -> None:
    with scheduling(tiny) as scheduler:
        (whole,), _ = answered(scheduler, [request(0, math.inf, max_tokens=100)])
        stop = whole.text[20:24]
        (stopped,), _ = answered(scheduler, [request(0, math.inf, max_tokens=100, stop=(stop,))])
    assert stopped.finish_reason == "stop" and stopped.text == whole.text[: whole.text.index(stop)]
    assert stopped.tokens == whole.tokens[: len(stopped.tokens)]


def test_a_budget_holds_in_further_passes(tiny: LlamaModel, whole_clock: Clock) -> None:
    asked = request(1, max_tokens=60, think_budget=12)
    with scheduling(tiny) as scheduler:
        (one,), _ = answered(scheduler, [asked])
        (other,), _ = answered(scheduler, [replace(asked, every_s=math.inf)])
    assert one.tokens == other.tokens and one.text


def test_each_token_of_long_passes_is_told(tiny: LlamaModel, clock: Clock) -> None:
    with scheduling(tiny) as scheduler:
        scheduler.add(request(0, 0.016, max_tokens=10))
        while not scheduler.idle:
            clock.now += 0.05
            n_tokens = [event.n_tokens for event in scheduler.step() if not event.is_last and event.n_tokens]
            assert len(n_tokens) <= 1
            assert scheduler.idle or not scheduler._running or n_tokens


@pytest.mark.parametrize("is_slow", [False, True])
def test_text_does_not_wait_while_a_prompt_is_read(tiny: LlamaModel, clock: Clock, is_slow: bool) -> None:
    with scheduling(tiny) as scheduler:
        clock.tick = 0.02 if is_slow else 0.0
        first = scheduler.add(request(0, 100.0, max_tokens=100))
        for _ in range(4):
            scheduler.step()
        second = scheduler.add(request(1, 100.0))
        n_passes = scheduler.session.stats.n_passes
        if is_slow:  # to read the first prompt took long: what was drawn is told before the next one is read
            (event,) = scheduler.step()
            assert event.id == first and event.n_tokens == 4 and event.pieces
            assert scheduler.session.stats.n_passes == n_passes
        assert {event.id for event in scheduler.step()} == {second}


def test_text_does_not_wait_while_its_request_is_interrupted(tiny: LlamaModel, clock: Clock) -> None:
    with scheduling(tiny, n_parallel=1) as scheduler:
        low = scheduler.add(request(0, 0.016, priority=-1, max_tokens=50))
        for _ in range(5):
            scheduler.step()
        scheduler.add(request(1, 0.016, max_tokens=50))
        event = scheduler.step()[0]
        assert event.id == low and event.n_tokens == 5 and event.pieces
        scheduler.cancel_all()
        scheduler.step()


def test_a_stream_beside_a_whole_answer_does_not_wait_for_it(tiny: LlamaModel) -> None:
    """It is queued while the thread that steps is busy with an answer of which there is nothing to tell."""
    options = SessionOptions(n_ctx=4096, n_parallel=2, n_threads=1, mtp=False)
    with Session(tiny, options) as session:
        driver = Driver(Scheduler(session, Vocabulary(tiny)))

        async def ask() -> tuple[int, bool]:
            pump = Pump(driver)
            long = driver.submit([request(1, math.inf, max_tokens=None)])
            first = pump.listen(long)
            await first.take()
            await asyncio.sleep(0.02)
            box = pump.listen(driver.submit([request(2)]))
            n_events = 0
            while True:
                events = await asyncio.wait_for(box.take(), 30)
                n_events += len(events)
                if any(event.is_last for event in events):
                    break
            still_at_it = not long.is_done
            long.cancel()
            while not any(event.is_last for event in await first.take()):
                pass
            pump.join()
            return n_events, still_at_it

        n_events, still_at_it = asyncio.run(ask())
    assert n_events > 14 and still_at_it
