"""Any number of threads: LLM batches what they ask, Model has one conversation, a Session serves in turn."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mimo_gguf.chat.answer import AnswerOptions
from mimo_gguf.core.errors import BackendError, MimoGgufError, UsageError
from mimo_gguf.engine.sampling import Sampler, SamplingOptions
from mimo_gguf.engine.session import Session, SessionOptions
from mimo_gguf.engine.single import next_token, read_prompt
from mimo_gguf.engine.state import load_state, save_state
from mimo_gguf.llama.api import LlamaModel
from mimo_gguf.llama.vocabulary import Vocabulary
from mimo_gguf.runtime.driver import Driver
from mimo_gguf.runtime.model import Model
from mimo_gguf.runtime.scheduler import Request, Scheduler
from tests.devices import on_gpu

GREEDY = SamplingOptions(temperature=0)
# In float32, where batches of other sizes round alike, so that each says to the token what it says alone.
EXACT = SessionOptions(n_ctx=256, n_threads=1, adaptive=False, kv_type="f32", flash_attn=False)


def prompts(n: int, seed: int = 0) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(0, 256, int(rng.integers(2, 60))).tolist()) for _ in range(n)]


def request(prompt: tuple[int, ...], n: int = 20) -> Request:
    return Request(prompt, GREEDY, AnswerOptions(max_tokens=n, split_reasoning=False))


def driver_of(session: Session) -> Driver:
    return Driver(Scheduler(session, Vocabulary(session.model)))


def alone(model: LlamaModel, prompt: tuple[int, ...], n: int = 20) -> tuple[int, ...]:
    with Session(model, replace(EXACT, mtp=False)) as session, Sampler(model, GREEDY) as sampler:
        read_prompt(session, prompt)
        tokens = [next_token(session, sampler)]
        ends = Vocabulary(model).end_tokens
        while len(tokens) < n and tokens[-1] not in ends:
            tokens.append(next_token(session, sampler))
        return tuple(tokens)


def test_answers_from_many_threads_are_what_each_is_alone(tiny: LlamaModel) -> None:
    asked = prompts(24)
    wanted = [alone(tiny, prompt) for prompt in asked]
    with Session(tiny, replace(EXACT, n_ctx=4 * 256, n_parallel=4)) as session, ThreadPoolExecutor(8) as pool:
        driver = driver_of(session)

        def ask(number: int) -> list[tuple[int, ...]]:
            ticket = driver.submit([request(prompt) for prompt in asked[3 * number : 3 * number + 3]])
            answers = {event.id: event.answer for event in ticket.events() if event.answer is not None}
            return [answers[request_id].tokens for request_id in ticket.ids]

        said = [tokens for answers in pool.map(ask, range(8)) for tokens in answers]
        others = [number for number in range(24) if said[number] != wanted[number]]
        assert len(others) <= 2 * on_gpu(), others  # where two tokens are near, a GPU's rounding may choose the other
        assert session.stats.n_passes < sum(map(len, wanted))  # they shared passes


def test_some_are_cancelled_while_others_go_on(tiny: LlamaModel) -> None:
    asked = prompts(16, seed=1)
    wanted = [alone(tiny, prompt, 30) for prompt in asked]
    with Session(tiny, replace(EXACT, n_ctx=3 * 256, n_parallel=3)) as session, ThreadPoolExecutor(6) as pool:
        driver = driver_of(session)

        def ask(number: int) -> tuple[tuple[int, ...], str]:
            ticket = driver.submit([request(asked[number], 30)])
            for event in ticket.events():
                if number % 3 == 0 and event.n_tokens >= number:
                    ticket.cancel()
                if event.answer is not None:
                    return event.answer.tokens, event.answer.finish_reason
            raise AssertionError

        for number, (tokens, reason) in enumerate(pool.map(ask, range(16))):
            assert tokens == wanted[number][: len(tokens)]
            assert reason == "abort" or tokens == wanted[number]
        assert not driver._boxes and driver.scheduler.idle


def test_a_dropped_ticket_frees_its_slot(tiny: LlamaModel) -> None:
    with Session(tiny, EXACT) as session:
        driver = driver_of(session)
        first = driver.submit([request((1, 2, 3), 200)])
        first.wait()
        del first
        (event,) = [event for event in driver.submit([request((5, 6))]).events() if event.answer is not None]
        assert event.answer is not None and event.answer.tokens == alone(tiny, (5, 6))
        assert not driver._boxes


def test_a_common_prompt_is_read_once(tiny: LlamaModel) -> None:
    prompt = tuple(np.random.default_rng(3).integers(0, 256, 150).tolist())
    wanted = alone(tiny, prompt)
    with Session(tiny, replace(EXACT, n_ctx=4 * 256, n_parallel=4)) as session:
        driver = driver_of(session)
        ticket = driver.submit([request(prompt)] * 6)
        answers = [event.answer for event in ticket.events() if event.answer is not None]
        assert [answer.tokens for answer in answers] == [wanted] * 6
        assert session.stats.n_prompt < 150 + 6 * 8  # the last token or two are read again for their logits and states


def test_a_long_prompt_does_not_keep_others_waiting(tiny: LlamaModel) -> None:
    options = replace(EXACT, n_ctx=2 * 1024, n_parallel=2, n_batch=32)
    with Session(tiny, options) as session:
        scheduler = Scheduler(session, Vocabulary(tiny))
        long = scheduler.add(request(tuple([7] * 900), 2))
        short = scheduler.add(request((1, 2, 3), 20))
        ended = []
        while not scheduler.idle:
            ended += [event.id for event in scheduler.step() if event.answer is not None]
        assert ended == [short, long]


def test_one_that_fails_does_not_end_the_others(tiny: LlamaModel) -> None:
    wanted = alone(tiny, (1, 2, 3))
    with Session(tiny, replace(EXACT, n_ctx=512, n_parallel=2)) as session:
        driver = driver_of(session)
        wrong = replace(request((4, 5)), sampling=SamplingOptions(grammar="root := 5"))
        dead_end = replace(request((4, 6)), sampling=replace(GREEDY, grammar='root ::= "\\x00\\x00"'))
        ticket = driver.submit([wrong, request((1, 2, 3)), dead_end])
        last = {event.id: event for event in ticket.events() if event.is_last}
        errors = [last[request_id].error for request_id in ticket.ids]
        assert isinstance(errors[0], UsageError) and "not valid GBNF" in errors[0].message
        assert errors[1] is None and last[ticket.ids[1]].answer is not None
        assert last[ticket.ids[1]].answer.tokens == wanted  # type: ignore[union-attr]


def test_a_failed_pass_ends_what_ran_and_the_rest_goes_on(tiny: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with Session(tiny, EXACT) as session:
        driver = driver_of(session)
        ticket = driver.submit([request((1, 2, 3)), request((4, 5))])
        with monkeypatch.context() as patched:
            patched.setattr(session.target, "_decode", lambda *_: -3)
            (event,) = [event for event in ticket.wait() if event.is_last]
        assert event.id == ticket.ids[0] and isinstance(event.error, BackendError)
        (event,) = [event for event in ticket.events() if event.is_last]
        assert event.answer is not None and event.answer.tokens == alone(tiny, (4, 5))


def test_two_threads_in_one_session_are_served_in_turn(tiny: LlamaModel) -> None:
    asked = prompts(2, seed=5)
    wanted = [alone(tiny, prompt, 40) for prompt in asked]
    with Session(tiny, replace(EXACT, n_ctx=512, n_parallel=2)) as session:
        said: list[list[int]] = [[], []]

        def work(number: int) -> None:
            slot = session.slots[number]
            with Sampler(tiny, GREEDY) as sampler:
                read_prompt(session, asked[number], slot)
                said[number] = [next_token(session, sampler, slot) for _ in range(len(wanted[number]))]

        in_threads([lambda: work(0), lambda: work(1)])
        assert [tuple(tokens) for tokens in said] == wanted


@pytest.mark.many_passes
def test_a_model_has_one_conversation(tiny_path: Path) -> None:
    """A second thread is told so, whenever it comes, and the first one's answer is not touched."""
    with Model.open(tiny_path, session=EXACT) as model:
        wanted = model.complete("a b c", temperature=0, max_tokens=60).tokens
        answers: list[tuple[int, ...]] = []
        refused: list[MimoGgufError] = []

        def ask() -> None:
            for _ in range(10):
                try:
                    answers.append(model.complete("a b c", temperature=0, max_tokens=60).tokens)
                except UsageError as error:
                    refused.append(error)

        in_threads([ask, ask, ask])
        assert len(answers) + len(refused) == 30 and refused
        assert set(answers) == {wanted}
        assert all("being generated" in error.message for error in refused)


def test_what_ended_in_a_failed_step_is_told(tiny: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise BackendError("it failed", hint="")

    with Session(tiny, replace(EXACT, n_ctx=512, n_parallel=2, n_batch=32)) as session:
        scheduler = Scheduler(session, Vocabulary(tiny))
        ids = [scheduler.add(request((1, 2, 3), 1)), scheduler.add(request(tuple(range(100)), 0))]
        monkeypatch.setattr(session, "evaluate", fail)
        events = [event for event in scheduler.step() if event.is_last]
        assert [(event.id, event.error is None) for event in events] == [(ids[0], True), (ids[1], False)]
        assert scheduler.idle


def test_short_prompts_do_not_keep_a_long_one_waiting_for_ever(tiny: LlamaModel) -> None:
    with Session(tiny, replace(EXACT, n_ctx=3 * 512, n_parallel=3, n_batch=32, mtp=False)) as session:
        scheduler = Scheduler(session, Vocabulary(tiny))
        long, n_steps, ended = scheduler.add(request(tuple([7] * 200), 1)), 0, False
        while not ended:
            while scheduler.n_waiting < 3:
                scheduler.add(request((n_steps % 200, *range(30)), 1))
            ended = any(event.id == long and event.is_last for event in scheduler.step())
            n_steps += 1
            assert n_steps < 200


def test_caches_are_saved_between_two_passes(tiny: LlamaModel, tmp_path: Path) -> None:
    with Session(tiny, EXACT) as session:
        read_prompt(session, [1, 2, 3])
        saves = threading.Thread(target=save_state, args=(session, session.slot, "key", tmp_path / "state"))
        with session.target.lock:
            saves.start()
            saves.join(0.2)
            assert saves.is_alive()
        saves.join()
        assert load_state(session, session.slot, "key", tmp_path / "state")


def in_threads(work: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=each) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
