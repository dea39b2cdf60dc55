"""Turns a prompt and its parameters into requests for the scheduler, and their events into one output."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from mimo_gguf.chat.answer import Answer
from mimo_gguf.core.errors import UsageError
from mimo_gguf.engine.sampling import MAX_SEED
from mimo_gguf.engine.stats import SessionStats
from mimo_gguf.llama.vocabulary import Vocabulary
from mimo_gguf.runtime.outputs import LogprobsAt, RequestMetrics, RequestOutput, make_output
from mimo_gguf.runtime.params import SamplingParams
from mimo_gguf.runtime.prompts import Prompt
from mimo_gguf.runtime.scheduler import Event, Request

_NOTHING: Final = Answer("", "", (), "abort", None, 0, None, SessionStats())  # of what has not begun


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt, its parameters, and the requests that answer it."""

    prompt: Prompt
    params: SamplingParams
    requests: tuple[Request, ...]


class Seeds:
    """Gives seeds to answers without one: always the same sequence for one `seed`, or None without it."""

    def __init__(self, seed: int | None) -> None:
        self._random = None if seed is None else random.Random(seed)

    def next(self) -> int | None:
        """The next seed, or None."""
        return None if self._random is None else self._random.randrange(MAX_SEED)


def ask(
    prompt: Prompt, params: SamplingParams, vocabulary: Vocabulary, seeds: Seeds, *, split_reasoning: bool
) -> Asked:
    """Makes the requests for `params.n` answers to `prompt`.

    Raises:
        UsageError: a parameter is out of range.
    """
    if not isinstance(params, SamplingParams):
        raise UsageError(f"not SamplingParams: {params!r:.60}", hint="SamplingParams(temperature=0.6)")
    params.check()
    prompt = prompt.last(params.truncate_prompt_tokens)
    grammar = params.form(split_reasoning=split_reasoning, inside=prompt.opened is not None)
    ending = params.ending(split_reasoning=split_reasoning)
    requests = []
    for number in range(params.n):
        sampling = params.sampling(number, vocabulary, grammar)
        if sampling.seed is None:
            sampling = replace(sampling, seed=seeds.next())
        options = replace(ending, prompt_logprobs=None) if number else ending  # the prompt is read once
        requests.append(Request(prompt.tokens, sampling, options, prompt.opened))
    return Asked(prompt, params, tuple(requests))


class Gathering:
    """Collects the events of the requests for one prompt."""

    def __init__(
        self, request_id: str, asked: Asked, ids: Sequence[int], vocabulary: Vocabulary, *, arrived: float | None = None
    ) -> None:
        """Begins to collect. `ids` are the scheduler's numbers of the requests."""
        self.request_id = request_id
        self.asked = asked
        self.metrics = RequestMetrics(arrival_time=time.time() if arrived is None else arrived)
        self._vocabulary = vocabulary
        self._places = {number: place for place, number in enumerate(ids)}
        self._answers: list[Answer | None] = [None] * len(ids)
        self._latest = [_NOTHING] * len(ids)
        self._logprobs: list[list[LogprobsAt]] = [[] for _ in ids]

    @property
    def ids(self) -> tuple[int, ...]:
        """The numbers of the requests in the scheduler."""
        return tuple(self._places)

    @property
    def is_done(self) -> bool:
        """Whether every answer has ended."""
        return None not in self._answers

    def add(self, event: Event) -> None:
        """Notes an event of one of the requests. Raises the request's error if it failed."""
        if event.error is not None:
            raise event.error
        now, metrics = time.time(), self.metrics
        metrics.first_scheduled_time = metrics.first_scheduled_time or now
        if event.n_tokens:
            metrics.first_token_time = metrics.first_token_time or now
            metrics.last_token_time = now
        if event.answer is not None:
            self._answers[self._places[event.id]] = event.answer
            if self.is_done:
                metrics.finished_time = now

    def output(self, so_far: Callable[[int], Answer | None] = lambda _: None) -> RequestOutput:
        """The output so far. `so_far` gives the present answer to a request, by its number, until it has ended."""
        answers = []
        for number, place in self._places.items():
            ended = self._answers[place]
            # While the last event of a request is on its way, only the latest answer before it is known.
            answer = self._latest[place] = ended or so_far(number) or self._latest[place]
            answers.append((answer, ended is not None))
        how: dict[str, Any] = {"with_text": self.asked.params.detokenize, "known": self._logprobs}
        return make_output(self.request_id, self.asked.prompt, answers, self._vocabulary, self.metrics, **how)


def request_ids() -> Callable[[], str]:
    """A function that gives the names "0", "1", ... to requests without one."""
    numbers = itertools.count()
    return lambda: str(next(numbers))
