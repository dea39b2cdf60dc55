"""`LLM`, `SamplingParams` and their outputs with vLLM's names, for scripts that know those: many prompts at a time.

from mimo_gguf import LLM, SamplingParams

llm = LLM("MiMo-7B-RL-Q4_K_M.gguf")
conversations = [[{"role": "user", "content": question}] for question in ("What is 17 + 25?", "Who are you?")]
for output in llm.chat(conversations, SamplingParams(max_tokens=500)):
    print(output.outputs[0].text)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, cast

from mimo_gguf.chat.answer import AnswerOptions, AnswerText, FinishReason, stop_texts
from mimo_gguf.chat.reasoning import Kind, opened_block
from mimo_gguf.chat.template import Message
from mimo_gguf.core.errors import UsageError
from mimo_gguf.engine.sampling import MAX_SEED, Sampler, SamplingOptions
from mimo_gguf.engine.session import SessionOptions
from mimo_gguf.engine.slot import Cancelled, Slot, WindowFull
from mimo_gguf.runtime.model import Model

Conversation = Sequence[Message]
EndedBy = Literal["stop", "length", "abort"]
_ENDED_BY: Final[dict[FinishReason, EndedBy]] = {
    "stop": "stop", "stop_string": "stop", "length": "length", "context": "length", "cancelled": "abort",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """vLLM's names for `SamplingOptions` and `AnswerOptions`, with the defaults of these: what Xiaomi recommends.

    Attributes:
        n: answers to each prompt.
        top_k: 0 and -1 switch it off.
        max_tokens: None lets an answer go on until the model ends it or its window is full.
        thinking_token_budget: `AnswerOptions.think_budget`.
    """

    n: int = 1
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: str | Sequence[str] | None = ()
    max_tokens: int | None = None
    thinking_token_budget: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises UsageError for a number of answers that makes no sense."""
        if self.n < 0:
            raise UsageError(f"{self.n} answers to a prompt", hint="SamplingParams(n=1)")

    def sampling(self, number: int = 0) -> SamplingOptions:
        """What draws the tokens of answer `number` of `n`: each has a seed of its own.

        Raises:
            UsageError: a value out of range.
        """
        seed = self.seed
        if seed is not None and number:
            seed = (seed + number) % (MAX_SEED + 1)
        return SamplingOptions(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(self.top_k, 0),
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repeat_penalty=self.repetition_penalty,
            seed=seed,
            logit_bias=self.logit_bias,
        )

    def ending(self, *, split_reasoning: bool) -> AnswerOptions:
        """What ends the answer."""
        return AnswerOptions(self.max_tokens, stop_texts(self.stop), self.thinking_token_budget, split_reasoning)


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One answer; `reasoning` is what stood inside `<think>...</think>`, which `text` leaves out."""

    index: int
    text: str
    reasoning: str
    token_ids: tuple[int, ...]
    finish_reason: EndedBy


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A prompt and its answers."""

    prompt: str
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]


class LLM:
    """A model that answers many prompts, `max_num_seqs` at a time, each as it would alone."""

    def __init__(
        self,
        model: str | Path,
        *,
        max_model_len: int | None = None,
        max_num_seqs: int = 4,
        options: SessionOptions | None = None,
        **load: Any,
    ) -> None:
        """Loads a GGUF.

        Args:
            max_model_len: tokens that one prompt and its answer may have together; None: what fits into memory.
            max_num_seqs: prompts answered at a time; they share the KV cache.
            load: anything else that `Model.load` takes.

        Raises:
            UsageError, GgufError, DoesNotFit, BackendError: as `Model.load`.
        """
        options = replace(options or SessionOptions(), n_parallel=max_num_seqs)
        n_ctx = None if max_model_len is None else max_model_len * max_num_seqs
        self.model = Model.load(model, n_ctx=n_ctx, options=options, **load)

    def close(self) -> None:
        """Frees contexts and weights."""
        self.model.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        system: str | None = "",
    ) -> list[RequestOutput]:
        """Answers a conversation, or several, in their order. `system` as for `Model.chat`.

        Raises:
            UsageError: a conversation the template does not take, parameters out of range or of another number.
        """
        is_one = bool(messages) and isinstance(messages[0], Mapping)
        conversations = cast("Sequence[Conversation]", [messages] if is_one else messages)
        prompts = [self.model.prompt_text(conversation, system=system) for conversation in conversations]
        return self._answer(prompts, sampling_params, split_reasoning=True)

    def generate(
        self, prompts: str | Sequence[str], sampling_params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[RequestOutput]:
        """Continues a prompt, or several, as they stand: no template, no splitting of reasoning. Else as `chat`."""
        return self._answer([prompts] if isinstance(prompts, str) else prompts, sampling_params, split_reasoning=False)

    def _answer(
        self,
        prompts: Sequence[str],
        given: SamplingParams | Sequence[SamplingParams] | None,
        *,
        split_reasoning: bool,
    ) -> list[RequestOutput]:
        params = [given or SamplingParams()] * len(prompts) if not isinstance(given, Sequence) else given
        if len(params) != len(prompts):
            raise UsageError(f"{len(params)} parameters for {len(prompts)} prompts", hint="give one, or one for each")
        tokens = [self.model.vocabulary.tokenize(prompt) for prompt in prompts]
        if not all(tokens):
            raise UsageError(f"prompt {tokens.index([]) + 1} has no tokens", hint="give some text")
        requests = [
            [_Request(self.model, prompt, ids, each, number, split_reasoning) for number in range(each.n)]
            for prompt, ids, each in zip(prompts, tokens, params, strict=True)
        ]
        self._serve(deque(request for group in requests for request in group))
        return [
            RequestOutput(prompt, tuple(ids), tuple(request.output for request in group))
            for prompt, ids, group in zip(prompts, tokens, requests, strict=True)
        ]

    def _serve(self, waiting: deque[_Request]) -> None:
        session = self.model.session
        self.model.stop_running()
        running: dict[Slot, _Request] = {}
        try:
            while waiting or running:
                free = [slot for slot in session.slots if slot not in running]
                for slot in free[: len(waiting)]:
                    request = waiting.popleft()
                    request.begin(slot)
                    running[slot] = request
                for slot, request in running.items():
                    request.close_reasoning(slot)
                for slot, outcome in session.step(
                    {slot: request.sampler for slot, request in running.items() if not request.said.ended}
                ).items():
                    running[slot].take(outcome)
                for slot in [slot for slot, request in running.items() if request.said.ended]:
                    running.pop(slot).end(slot)
        finally:
            for slot, request in running.items():
                request.end(slot)


class _Request:
    """One answer on its way."""

    def __init__(
        self, model: Model, prompt: str, tokens: list[int], params: SamplingParams, number: int, split_reasoning: bool
    ) -> None:
        options = params.ending(split_reasoning=split_reasoning)
        self.said = AnswerText(model.vocabulary, options, opened_block(prompt))
        self.number = number
        self._prompt = tokens
        self._native = model.native
        self._sampling = params.sampling(number)
        self.sampler: Sampler

    def begin(self, slot: Slot) -> None:
        self.sampler = Sampler(self._native, self._sampling, self._prompt)
        slot.forget_cancel()
        try:
            slot.begin(self._prompt)
        except WindowFull as full:
            self.take(full)

    def close_reasoning(self, slot: Slot) -> None:
        """Where its budget is used up."""
        if closing := self.said.closing(self.sampler):
            try:
                slot.insert(closing, self.sampler)
            except WindowFull as full:
                self.take(full)
            else:
                self.said.put(closing)

    def take(self, outcome: int | Cancelled | WindowFull) -> None:
        if isinstance(outcome, int):
            self.said.take(outcome)
        else:
            self.said.end("context" if isinstance(outcome, WindowFull) else "cancelled")

    def end(self, slot: Slot) -> None:
        self.sampler.close()
        slot.settle()
        self.said.finish()

    @property
    def output(self) -> CompletionOutput:
        return CompletionOutput(
            index=self.number,
            text=self.said.text(Kind.ANSWER),
            reasoning=self.said.text(Kind.REASONING),
            token_ids=tuple(self.said.tokens),
            finish_reason=_ENDED_BY[self.said.reason],
        )
