"""Idle conversations in the host's memory: the same answers with and without, fewer tokens read, bounded bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from mimo_gguf.chat.answer import Answer, AnswerOptions
from mimo_gguf.engine import parking
from mimo_gguf.engine.parking import Parking
from mimo_gguf.engine.sampling import Sampler, SamplingOptions
from mimo_gguf.engine.session import Session, SessionOptions
from mimo_gguf.engine.single import next_token, read_prompt
from mimo_gguf.engine.state import read_caches, write_caches
from mimo_gguf.llama.api import LlamaModel
from mimo_gguf.llama.vocabulary import Vocabulary
from mimo_gguf.runtime.scheduler import Request, Scheduler

OPTIONS = SessionOptions(n_ctx=512, n_parallel=2, n_threads=1, adaptive=False, n_draft=2, exact=True)
ENOUGH = 64 << 20
GREEDY = SamplingOptions(temperature=0)


def ask(scheduler: Scheduler, prompt: Sequence[int], n: int = 8) -> Answer:
    """The answer to one prompt, which nothing else disturbs."""
    scheduler.add(Request(tuple(prompt), GREEDY, AnswerOptions(max_tokens=n, ignore_eos=True)))
    answers: list[Answer] = []
    while not answers:
        for event in scheduler.step():
            assert event.error is None
            answers += [event.answer] if event.answer is not None else []
    return answers[0]


def conversations(n: int, length: int = 80) -> Iterator[list[int]]:
    """Beginnings that differ from the first token on."""
    for number in range(n):
        yield [(number * 37 + i * 11) % 250 for i in range(length)]


def two_rounds(model: LlamaModel, options: SessionOptions) -> tuple[list[tuple[int, ...]], list[int], Parking]:
    """Five conversations in two slots, each going on once. What they said, and the tokens that each found."""
    with Session(model, options) as session:
        scheduler = Scheduler(session, Vocabulary(model))
        said, found, talks = [], [], list(conversations(5))
        for _ in range(2):
            for number, talk in enumerate(talks):
                answer = ask(scheduler, talk)
                said.append(answer.tokens)
                found.append(answer.stats.n_reused)
                talks[number] = [*talk, *answer.tokens, 7, 8, 9]
        return said, found, scheduler.parking


@pytest.mark.parametrize("mtp", [True, False])
@pytest.mark.parametrize("exact", [True, False])
def test_the_same_is_said_and_less_is_read(tiny: LlamaModel, mtp: bool, exact: bool) -> None:
    options = replace(OPTIONS, mtp=mtp, exact=exact)
    without, read, off = two_rounds(tiny, options)
    said, found, on = two_rounds(tiny, replace(options, parked_bytes=ENOUGH))
    assert said == without
    assert read == [0] * 10 and (len(off), off.n_bytes, off.n_parked) == (0, 0, 0)
    assert found[:5] == [0] * 5 and all(80 <= n <= 88 for n in found[5:])
    assert on.n_returned == 5 and on.n_parked >= 6


@pytest.mark.parametrize("mtp", [True, False])
@pytest.mark.parametrize("exact", [True, False])
def test_what_was_shared_stays_when_its_source_gets_another_conversation(
    tiny: LlamaModel, mtp: bool, exact: bool
) -> None:
    """Without a pass in between. llama.cpp copies a divided cache with the next pass, and as it is by then."""
    first, second = conversations(2)
    with Session(tiny, replace(OPTIONS, mtp=mtp, exact=exact)) as session:
        source, other = session.slots
        texts = []
        for disturbed in (False, True):
            for slot in session.slots:
                session.reset(slot)
            read_prompt(session, second, source)
            parked = read_caches(session, source)
            read_prompt(session, first, source)
            assert session.begin(other, [*first, 7, 8]) >= len(first) - 1
            if disturbed:
                assert write_caches(session, source, parked)
            sampler = Sampler(tiny, GREEDY)
            texts.append([next_token(session, sampler, other) for _ in range(12)])
    assert texts[1] == texts[0]


def test_what_drafts_know_comes_back_too(tiny: LlamaModel) -> None:
    """Drafts after a return are those of a session in which the conversation never left its slot."""
    talk, *others = conversations(4)
    drafts = []
    for options in (replace(OPTIONS, parked_bytes=ENOUGH), replace(OPTIONS, n_ctx=2048, n_parallel=8)):
        with Session(tiny, options) as session:
            scheduler = Scheduler(session, Vocabulary(tiny))
            first = ask(scheduler, talk)
            for other in others:
                ask(scheduler, other)
            again = ask(scheduler, [*talk, *first.tokens, 5], 40)
            assert again.stats.n_reused >= len(talk)
            drafts.append((again.tokens, again.stats.n_drafted, again.stats.n_accepted))
    assert drafts[0] == drafts[1]


def test_bytes_are_bounded_and_the_least_recently_used_goes(tiny: LlamaModel) -> None:
    with Session(tiny, replace(OPTIONS, parked_bytes=ENOUGH)) as session:
        scheduler = Scheduler(session, Vocabulary(tiny))
        for talk in conversations(3):
            ask(scheduler, talk)
        one = scheduler.parking.n_bytes
        assert len(scheduler.parking) == 1 and one > 0
    with Session(tiny, replace(OPTIONS, parked_bytes=int(2.5 * one))) as session:
        scheduler = Scheduler(session, Vocabulary(tiny))
        for talk in conversations(7):
            ask(scheduler, talk)
            assert scheduler.parking.n_bytes <= 2.5 * one
        talks = list(conversations(7))  # 5 and 6 have the slots, 3 and 4 are parked
        assert [scheduler.parking.longest(talk) >= 80 for talk in talks] == [False] * 3 + [True] * 2 + [False] * 2
    with Session(tiny, replace(OPTIONS, parked_bytes=one // 2)) as session:
        scheduler = Scheduler(session, Vocabulary(tiny))
        for talk in conversations(4):
            ask(scheduler, talk)
        assert len(scheduler.parking) == 0, "one alone is too large"


def test_a_beginning_that_several_go_on_from_stays(tiny: LlamaModel) -> None:
    common, *others = conversations(3, 100)
    with Session(tiny, replace(OPTIONS, parked_bytes=ENOUGH)) as session:
        scheduler = Scheduler(session, Vocabulary(tiny))
        ask(scheduler, [*common, 1, 2, 3])
        for other in others:
            ask(scheduler, other)
        for last in (4, 5):  # not what was said before, only the beginning
            assert ask(scheduler, [*common, last]).stats.n_reused >= 99
        assert scheduler.parking.longest([*common, 1, 2, 3]) == 103, "the first conversation can still go on"


def test_one_that_cannot_be_used_is_dropped(tiny: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    talk, *others = conversations(4)
    with Session(tiny, replace(OPTIONS, parked_bytes=ENOUGH)) as session:
        scheduler = Scheduler(session, Vocabulary(tiny))
        first = ask(scheduler, talk)
        for other in others:
            ask(scheduler, other)
        wanted = two_rounds(tiny, OPTIONS)[0][5]
        assert scheduler.parking.longest(talk) == len(talk)

        def refuse(session: Session, slot: object, caches: object) -> bool:
            return False

        monkeypatch.setattr(parking, "write_caches", refuse)
        again = ask(scheduler, [*talk, *first.tokens, 7, 8, 9])
        assert again.tokens == wanted and again.stats.n_reused == 0
        assert scheduler.parking.longest(talk) < len(talk)


def test_slots_are_used_before_anything_is_parked(tiny: LlamaModel) -> None:
    with Session(tiny, replace(OPTIONS, n_ctx=2048, n_parallel=4, parked_bytes=ENOUGH)) as session:
        scheduler = Scheduler(session, Vocabulary(tiny))
        talks = list(conversations(4))
        for talk in talks:
            ask(scheduler, talk)
        assert len(scheduler.parking) == 0
        assert all(ask(scheduler, [*talk, 3]).stats.n_reused >= 79 for talk in talks)
        ask(scheduler, next(conversations(1, 50))[::-1])
        assert scheduler.parking.longest(talks[0]) == 80, "the slot that was used longest ago"
