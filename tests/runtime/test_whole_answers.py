"""Answers that are wanted whole: the same answers, without events in between."""

from __future__ import annotations

import asyncio
from dataclasses import replace
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


def request(number: int, **how: Any) -> Request:
    options = AnswerOptions(**{"max_tokens": 12 + number, "ignore_eos": True} | how)
    return Request((5, 6, 7 + number), replace(DRAWN, seed=number), options, opened="" if number % 2 else None)


def answered(model: LlamaModel, requests: list[Request], *, mtp: bool) -> tuple[list[Answer], list[list[Event]]]:
    """The answers, and each request's events."""
    options = SessionOptions(n_ctx=1024, n_parallel=2, n_threads=1, mtp=mtp, exact=True)
    with Session(model, options) as session:
        scheduler = Scheduler(session, Vocabulary(model))
        events: dict[int, list[Event]] = {scheduler.add(each): [] for each in requests}
        while not scheduler.idle:
            for event in scheduler.step():
                events[event.id].append(event)
    answers = [each[-1].answer for each in events.values()]
    return [answer for answer in answers if answer is not None], list(events.values())


@pytest.mark.parametrize("mtp", [False, True])
def test_a_whole_answer_is_the_same_and_its_last_event_has_all_text(tiny: LlamaModel, mtp: bool) -> None:
    requests = [request(number, **kind) for number, kind in enumerate(KINDS)]
    growing, steps = answered(tiny, requests, mtp=mtp)
    whole, events = answered(tiny, [replace(each, is_whole=True) for each in requests], mtp=mtp)
    assert len(whole) == len(requests)
    for one, other in zip(growing, whole, strict=True):
        assert replace(one, stats=other.stats) == other
        assert one.stats.n_generated == other.stats.n_generated
    for each, answer in zip(events, whole, strict=True):
        for kind, text in ((Kind.ANSWER, answer.text), (Kind.REASONING, answer.reasoning)):
            assert "".join(piece.text for piece in each[-1].pieces if piece.kind is kind) == text
        assert not any(event.pieces for event in each[:-1])
        assert len([event for event in each[:-1] if event.n_tokens]) == bool(answer.tokens)
    assert sum(map(len, steps)) > 2 * sum(map(len, events))


def test_a_stream_beside_a_whole_answer_does_not_wait_for_it(tiny: LlamaModel) -> None:
    """It is queued while the thread that steps is busy with an answer of which there is nothing to tell."""
    options = SessionOptions(n_ctx=4096, n_parallel=2, n_threads=1, mtp=False)
    with Session(tiny, options) as session:
        driver = Driver(Scheduler(session, Vocabulary(tiny)))

        async def ask() -> tuple[int, bool]:
            pump = Pump(driver)
            long = driver.submit([replace(request(1, max_tokens=None), is_whole=True)])
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
