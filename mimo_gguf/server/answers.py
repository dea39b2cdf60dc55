"""Answers as they come: what each event adds to an answer, whichever form it is sent in."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from mimo_gguf.chat.answer import Answer
from mimo_gguf.chat.reasoning import Kind
from mimo_gguf.engine.logprobs import Scores
from mimo_gguf.engine.stats import SessionStats, total
from mimo_gguf.runtime.prompts import Prompt
from mimo_gguf.runtime.scheduler import Event
from mimo_gguf.server.engine import Call, Engine
from mimo_gguf.server.jobs import Job
from mimo_gguf.server.tool_calls import CallPiece, ToolCallReader


@dataclass(frozen=True, slots=True)
class Delta:
    """What is new in one answer.

    Attributes:
        index: the answer's number, counted through all prompts of the request.
        scores: of the new tokens, if they were requested.
        finish: "stop", "length", "tool_calls" or "abort", with the last delta; None before.
    """

    index: int
    text: str = ""
    reasoning: str = ""
    calls: tuple[CallPiece, ...] = ()
    scores: tuple[Scores, ...] = ()
    finish: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to send."""
        return not (self.text or self.reasoning or self.calls or self.scores or self.finish)


@dataclass(slots=True)
class Growing:
    """One answer as far as it has come."""

    index: int
    prompt: Prompt
    tools: ToolCallReader | None
    text: str = ""
    reasoning: str = ""
    scores: list[Scores] = field(default_factory=list)
    n_thought: int = 0  # tokens before the first of the answer's text
    finish: str | None = None
    answer: Answer | None = None  # once it has ended

    def add(self, event: Event, so_far: Answer | None, *, ran_out: bool) -> Delta:
        """Adds an event. `so_far` is the answer with its scores, or None if they were not requested."""
        reasoning = "".join(piece.text for piece in event.pieces if piece.kind is Kind.REASONING)
        text = "".join(piece.text for piece in event.pieces if piece.kind is Kind.ANSWER)
        self.n_thought = max(event.n_thought, self.n_thought)
        calls: list[CallPiece] = []
        if self.tools is not None:
            text, calls = self.tools.push(text)
            text += self.tools.finish() if event.is_last else ""
        new = () if so_far is None else (so_far.logprobs or ())[len(self.scores) :]
        self.scores += new
        self.text += text
        self.reasoning += reasoning
        if event.answer is not None:
            self.answer = event.answer
            self.finish = self._reason(event.answer, ran_out=ran_out)
        return Delta(self.index, text, reasoning, tuple(calls), tuple(new), self.finish)

    @property
    def n_reasoning(self) -> int:
        """The number of tokens of the reasoning, with its markers."""
        return self.n_thought if self.reasoning else 0

    def _reason(self, answer: Answer, *, ran_out: bool) -> str:
        calls = self.tools is not None and bool(self.tools.calls) and self.tools.is_complete
        if calls and answer.finish_reason != "length":
            return "tool_calls"
        return "length" if ran_out and answer.finish_reason == "abort" else answer.finish_reason


@dataclass(slots=True)
class Answers:
    """All answers to one request."""

    job: Job
    call: Call
    all: list[Growing] = field(default_factory=list)
    _by_id: dict[int, Growing] = field(default_factory=dict)

    @classmethod
    def begin(cls, job: Job, engine: Engine, *, is_whole: bool = False) -> Answers:
        """Queues the requests of a job. Raises as `Engine.submit`.

        Args:
            is_whole: whether only whole answers are wanted. If calls of tools must come one at a time, the text is
                looked at as it comes all the same.
        """
        is_whole = is_whole and (job.tools is None or job.tools.in_parallel)
        answers = cls(job, engine.submit(job.requests, is_whole=is_whole))
        prompts = [asked.prompt for asked in job.asked for _ in asked.requests]
        for index, (number, prompt) in enumerate(zip(answers.call.ids, prompts, strict=True)):
            reader = None if job.tools is None or job.tools.shown is None else ToolCallReader()
            answers.all.append(Growing(index, prompt, reader))
            answers._by_id[number] = answers.all[-1]
        return answers

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """Yields what is new until all answers have ended, empty deltas too. Raises as `Call.events`."""
        async with aclosing(self.call.events()) as events:
            async for event in events:
                growing = self._by_id[event.id]
                delta = growing.add(event, self._scored(event), ran_out=self.call.ran_out)
                if self._has_called_enough(growing):
                    self.call.cancel_one(event.id)
                yield delta

    def _scored(self, event: Event) -> Answer | None:
        return None if self.job.n_top is None else event.answer or self.call.so_far(event.id)

    def _has_called_enough(self, growing: Growing) -> bool:
        rule, reader = self.job.tools, growing.tools
        return (
            rule is not None and not rule.in_parallel and reader is not None and bool(reader.calls)
            and reader.is_complete and growing.finish is None
        )  # fmt: skip

    @property
    def finished(self) -> list[Answer]:
        """The answers that have ended."""
        return [each.answer for each in self.all if each.answer is not None]

    def usage(self) -> dict[str, Any]:
        """OpenAI's `usage`. The prompt of several answers counts once."""
        n_prompt = sum(len(asked.prompt.tokens) for asked in self.job.asked)
        n_said = sum(len(answer.tokens) for answer in self.finished)
        n_cached = sum(min(self._reused(asked.prompt), len(asked.prompt.tokens)) for asked in self.job.asked)
        return {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_said,
            "total_tokens": n_prompt + n_said,
            "prompt_tokens_details": {"cached_tokens": n_cached},
            "completion_tokens_details": {"reasoning_tokens": sum(each.n_reasoning for each in self.all)},
        }

    def _reused(self, prompt: Prompt) -> int:
        """The tokens of a prompt that its first answer found in the cache."""
        return next((e.answer.stats.n_reused for e in self.all if e.prompt is prompt and e.answer is not None), 0)

    def timings(self) -> dict[str, Any]:
        """Times and drafts of all answers together, with llama-server's names, and the share of right drafts."""
        return timings([answer.stats for answer in self.finished])


def timings(stats: Sequence[SessionStats]) -> dict[str, Any]:
    """The counts and times of some answers; times are sums, in milliseconds."""
    if not stats:
        return {}
    whole = total(stats)
    return {
        "prompt_n": whole.n_prompt,
        "cache_n": whole.n_reused,
        "prompt_ms": round(whole.prompt_s * 1000, 3),
        "prompt_per_second": _rounded(whole.prompt_tokens_per_s),
        "predicted_n": whole.n_generated,
        "predicted_ms": round(whole.generation_s * 1000, 3),
        "predicted_per_second": _rounded(whole.tokens_per_s),
        "draft_n": sum(whole.n_drafted),
        "draft_n_accepted": sum(whole.n_accepted),
        "acceptance": _rounded(whole.acceptance),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
