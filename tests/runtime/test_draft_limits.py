"""Each request says how many tokens are drafted for it; that changes its counts and no token."""

from __future__ import annotations

from pathlib import Path

from mimo_gguf.chat.answer import Answer, AnswerOptions
from mimo_gguf.engine.sampling import SamplingOptions
from mimo_gguf.engine.session import SessionOptions
from mimo_gguf.runtime.model import Model
from mimo_gguf.runtime.scheduler import Request
from tests.runtime.test_model import trained_path

__all__ = ["trained_path"]


def answers(model: Model, limits: list[int | None]) -> list[Answer]:
    prompt = tuple(model.vocabulary.tokenize(model.prompt_text([{"role": "user", "content": "Who are you?"}])))
    sampling, options = SamplingOptions(temperature=0), AnswerOptions(max_tokens=30)
    requests = [Request(prompt, sampling, options, n_draft=limit) for limit in limits]
    ticket = model.driver.submit(requests)
    found = {event.id: event.answer for event in ticket.events() if event.answer is not None}
    return [found[number] for number in ticket.ids]


def test_each_request_has_a_limit_of_its_own(trained_path: Path) -> None:
    options = SessionOptions(n_ctx=1024, n_parallel=5, n_threads=1, n_draft=3, adaptive=False, exact=True)
    with Model.open(trained_path, session=options) as model:
        three, none, one, two, more = answers(model, [None, 0, 1, 2, 99])
        (again,) = answers(model, [None])  # in a slot that had a limit
    places = [[n > 0 for n in answer.stats.n_drafted] for answer in (three, none, one, two, more)]
    assert places == [[True] * 3, [False] * 3, [True, False, False], [True, True, False], [True] * 3]
    assert none.stats.n_passes == 29 > one.stats.n_passes > three.stats.n_passes
    assert len({answer.tokens for answer in (three, none, one, two, more, again)}) == 1
    assert again.stats.n_drafted[2] > 0
