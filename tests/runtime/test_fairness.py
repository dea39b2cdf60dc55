"""A long prompt, a busy client and work in the background do not keep others waiting: counts of passes, not times."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from mimo_gguf.chat.answer import Answer, AnswerOptions
from mimo_gguf.engine.sampling import SamplingOptions
from mimo_gguf.engine.session import Session, SessionOptions
from mimo_gguf.llama.api import LlamaContext, LlamaModel
from mimo_gguf.llama.vocabulary import Vocabulary
from mimo_gguf.runtime.scheduler import Request, Scheduler

GREEDY = SamplingOptions(temperature=0)
LONG = tuple(i * 7 % 250 for i in range(4000))


def request(prompt: tuple[int, ...], n: int, **how: Any) -> Request:
    return Request(prompt, GREEDY, AnswerOptions(max_tokens=n, ignore_eos=True), **how)


@dataclass
class Passes:
    """The rows of each pass of the target, on a machine that takes `a + b * rows` seconds for it."""

    a: float = 0.0
    b: float = 0.0
    rows: list[int] = field(default_factory=list)
    now: float = 0.0

    def seconds(self, rows: int) -> float:
        return self.a + self.b * rows


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    found, real = Passes(), LlamaContext.decode

    def decode(context: LlamaContext, batch: Any, *how: Any) -> int:
        if context.other is None:
            found.rows.append(batch.n_tokens)
            found.now += found.seconds(batch.n_tokens)
        return real(context, batch, *how)

    monkeypatch.setattr(LlamaContext, "decode", decode)
    monkeypatch.setattr("mimo_gguf.engine.session.time.perf_counter", lambda: found.now)
    return found


@contextmanager
def running(model: LlamaModel, n: int, *, mtp: bool, **options: Any) -> Iterator[tuple[Scheduler, dict[int, int]]]:
    """A scheduler in which `n` conversations draw, and the number of tokens that each has."""
    how = SessionOptions(
        n_ctx=4352 * (n + 1), n_parallel=n + 1, n_threads=2, n_draft=1, adaptive=False, mtp=mtp, **options
    )
    with Session(model, how) as session:
        scheduler = Scheduler(session, Vocabulary(model))
        tokens = dict.fromkeys([scheduler.add(request((5, 6, 7 + i), 2000)) for i in range(n)], 0)
        while min(tokens.values()) < 3:
            step(scheduler, tokens)
        yield scheduler, tokens
        scheduler.cancel_all()
        scheduler.step()


def step(scheduler: Scheduler, tokens: dict[int, int]) -> None:
    for event in scheduler.step():
        assert event.error is None
        tokens[event.id] = max(tokens.get(event.id, 0), event.n_tokens)


@pytest.mark.many_passes
@pytest.mark.parametrize("mtp", [False, True])
def test_while_a_long_prompt_is_read_each_conversation_gets_a_token_per_pass(
    tiny: LlamaModel, passes: Passes, mtp: bool
) -> None:
    with running(tiny, 3, mtp=mtp) as (scheduler, tokens):
        scheduler.add(request((9, 9, 9), 1))  # so that the speed of reading is known
        long = scheduler.add(request(LONG, 1))
        while scheduler.n_waiting:
            step(scheduler, tokens)
        talks = [number for number in tokens if number < long][:3]
        while not tokens.get(long):
            n_passes, before = len(passes.rows), dict(tokens)
            step(scheduler, tokens)
            made = len(passes.rows) - n_passes
            assert all(tokens[number] - before[number] >= made for number in talks)
        assert 8 <= sum(rows > 8 for rows in passes.rows) <= 12, "as few passes as there is room for: nothing is slow"


def test_pieces_are_so_small_that_a_pass_lasts_as_long_as_allowed(tiny: LlamaModel, passes: Passes) -> None:
    passes.a, passes.b = 0.1, 0.004  # 100 tokens in half a second
    with running(tiny, 2, mtp=False, max_pause_s=0.5) as (scheduler, tokens):
        long = scheduler.add(request(LONG[:2000], 1))
        del passes.rows[:]
        while not tokens.get(long):
            step(scheduler, tokens)
    pieces = [rows for rows in passes.rows if rows > 2]
    assert max(passes.seconds(rows) for rows in pieces) <= 0.51
    assert sum(passes.seconds(rows) for rows in pieces[3:-1]) / len(pieces[3:-1]) > 0.45, "and not smaller"


def test_alone_a_prompt_is_read_in_the_largest_pieces(tiny: LlamaModel, passes: Passes) -> None:
    passes.b = 1.0
    options = SessionOptions(n_ctx=4352, n_threads=2, mtp=False)
    with Session(tiny, options) as session:
        scheduler = Scheduler(session, Vocabulary(tiny))
        scheduler.add(request(LONG[:2000], 1))
        while not scheduler.idle:
            scheduler.step()
    assert passes.rows == [512, 512, 512, 464]


def ends(scheduler: Scheduler) -> list[int]:
    """The numbers of the requests in the order in which they end."""
    found = []
    while not scheduler.idle:
        found += [event.id for event in scheduler.step() if event.is_last]
    return found


def test_a_client_with_many_requests_does_not_keep_another_waiting(tiny: LlamaModel) -> None:
    options = SessionOptions(n_ctx=512, n_parallel=2, n_threads=1, mtp=False)
    with Session(tiny, options) as session:
        scheduler = Scheduler(session, Vocabulary(tiny))
        many = [scheduler.add(request((i, 2, 3), 3, client="many")) for i in range(100)]
        for _ in range(6):
            scheduler.step()
        few = [scheduler.add(request((i, 5, 6), 3, client="few")) for i in range(3)]
        order = ends(scheduler)
    assert max(order.index(number) for number in few) <= 8
    assert [number for number in order if number in many] == [number for number in many if number in order]


def test_the_background_waits_and_its_prompts_are_read_last(tiny: LlamaModel) -> None:
    options = SessionOptions(n_ctx=2048, n_parallel=2, n_threads=1, mtp=False, n_batch=64)
    with Session(tiny, options) as session:
        scheduler = Scheduler(session, Vocabulary(tiny))
        batch = [scheduler.add(request((i, *LONG[:300]), 2, priority=-1)) for i in range(3)]
        person = scheduler.add(request((77, *LONG[:400]), 2))
        assert ends(scheduler) == [person, *batch]


@pytest.mark.parametrize("parked_bytes", [0, 1 << 24])
def test_work_in_the_background_is_interrupted_and_goes_on(tiny: LlamaModel, parked_bytes: int) -> None:
    options = SessionOptions(
        n_ctx=1024, n_parallel=2, n_threads=1, n_draft=1, adaptive=False, exact=True, parked_bytes=parked_bytes
    )
    batch = [request((i, *LONG[:100]), 40, priority=-1) for i in range(2)]

    def answers(scheduler: Scheduler, persons: int) -> dict[int, Answer]:
        """All answers; persons come one after the other while the batch runs."""
        found: dict[int, Answer] = {}
        for each in batch:
            scheduler.add(each)
        waits = 0
        while not scheduler.idle:
            for event in scheduler.step():
                assert event.error is None
                found |= {event.id: event.answer} if event.answer is not None else {}
            waits += 1
            if persons and waits % 8 == 0:
                persons -= 1
                number = scheduler.add(request((50 + persons, *LONG[:60]), 3))
                began = waits
                while number not in found:
                    found |= {event.id: event.answer for event in scheduler.step() if event.answer is not None}
                    waits += 1
                assert waits - began <= 8, "it does not wait for the end of a row"
        return found

    with Session(tiny, options) as session:
        alone = answers(Scheduler(session, Vocabulary(tiny)), 0)
    with Session(tiny, options) as session:
        scheduler = Scheduler(session, Vocabulary(tiny))
        disturbed = answers(scheduler, 3)
        assert len(disturbed) == 5 and (scheduler.parking.n_returned > 0) == bool(parked_bytes)
    for number in (1, 2):
        assert disturbed[number].tokens == alone[number].tokens
        assert disturbed[number].finish_reason == "length"
        assert disturbed[number].stats.n_generated == alone[number].stats.n_generated == 40
    assert sum(disturbed[n].stats.n_prompt for n in (1, 2)) > sum(alone[n].stats.n_prompt for n in (1, 2))
