"""The outputs of `LLM` and `AsyncLLM`, with vLLM's names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mimo_gguf.chat.answer import Answer, FinishReason
from mimo_gguf.engine.logprobs import Scores
from mimo_gguf.llama.vocabulary import Vocabulary
from mimo_gguf.runtime.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Logprob:
    """The score of a token: the natural logarithm of its probability, its rank (1 is the likeliest), and its text."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


LogprobsAt = dict[int, Logprob]  # of one position: token id -> its score there


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One answer.

    Attributes:
        index: its number among the answers to this prompt.
        text: its text; from `chat` without the reasoning.
        token_ids: all of its tokens, with reasoning and end token.
        cumulative_logprob: the sum of the tokens' log-probabilities, if `logprobs` was requested.
        finish_reason: "stop", "length" (it was cut off) or "abort"; None while it goes on.
        stop_reason: the stop string or stop token id that ended it; None for any other end.
        reasoning: the text inside `<think>...</think>`, from `chat`.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    cumulative_logprob: float | None = None
    logprobs: list[LogprobsAt] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    reasoning: str = ""

    def finished(self) -> bool:
        """Whether it has ended."""
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestMetrics:
    """Times of a request in seconds since 1970. `last_token_time` and `finished_time` are those of its last answer."""

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    last_token_time: float | None = None
    finished_time: float | None = None

    @property
    def time_in_queue(self) -> float | None:
        """The seconds until the request first got a slot; None until then."""
        return None if self.first_scheduled_time is None else self.first_scheduled_time - self.arrival_time


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A prompt and its answers. Two outputs are equal if these are.

    Attributes:
        prompt: None if only its tokens were given.
        prompt_logprobs: one entry for each token of the prompt, None for the first.
        finished: whether every answer has ended.
        num_cached_tokens: tokens of the prompt that were in the KV cache before the first answer.
    """

    request_id: str = field(compare=False)
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    prompt_logprobs: list[LogprobsAt | None] | None
    outputs: tuple[CompletionOutput, ...]
    finished: bool
    metrics: RequestMetrics | None = field(default=None, compare=False)
    num_cached_tokens: int | None = field(default=None, compare=False)


def make_output(
    request_id: str,
    prompt: Prompt,
    answers: Sequence[tuple[Answer, bool]],
    vocabulary: Vocabulary,
    metrics: RequestMetrics,
    *,
    with_text: bool = True,
    known: Sequence[list[LogprobsAt]] = (),
) -> RequestOutput:
    """The output of a prompt.

    Args:
        answers: each answer, and whether it has ended.
        known: for each answer the `logprobs` of earlier outputs. New ones are appended, because converting all of them
            for every token would be slow.
    """
    first = answers[0][0] if answers else None
    before = None if first is None or first.prompt_logprobs is None else first.prompt_logprobs
    return RequestOutput(
        request_id=request_id,
        prompt=prompt.text,
        prompt_token_ids=prompt.tokens,
        prompt_logprobs=None if before is None else [_at(scores, vocabulary) or None for scores in before],
        outputs=tuple(
            _completion(index, answer, vocabulary, known[index] if known else [], ended=ended, with_text=with_text)
            for index, (answer, ended) in enumerate(answers)
        ),
        finished=all(ended for _, ended in answers),
        metrics=metrics,
        num_cached_tokens=None if first is None else first.stats.n_reused,
    )


def _completion(
    index: int, answer: Answer, vocabulary: Vocabulary, known: list[LogprobsAt], *, ended: bool, with_text: bool
) -> CompletionOutput:
    scores = answer.logprobs
    known += [_at(each, vocabulary) for each in (scores or ())[len(known) :]]
    return CompletionOutput(
        index=index,
        text=answer.text if with_text else "",
        token_ids=answer.tokens,
        cumulative_logprob=None if scores is None else sum(each[0].logprob for each in scores),
        logprobs=None if scores is None else list(known),
        finish_reason=answer.finish_reason if ended else None,
        stop_reason=answer.stop_reason if ended and answer.finish_reason == "stop" else None,
        reasoning=answer.reasoning if with_text else "",
    )


def _at(scores: Scores, vocabulary: Vocabulary) -> LogprobsAt:
    return {
        token: Logprob(logprob, rank, vocabulary.piece(token, special=True).decode("utf-8", "replace"))
        for token, logprob, rank in scores
    }
