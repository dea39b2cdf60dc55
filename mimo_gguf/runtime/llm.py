"""`LLM`, `SamplingParams` and their outputs with vLLM's names, for scripts that know those: many prompts at a time.

from mimo_gguf import LLM, SamplingParams

llm = LLM("MiMo-7B-RL-Q4_K_M.gguf")
conversations = [[{"role": "user", "content": question}] for question in ("What is 17 + 25?", "Who are you?")]
for output in llm.chat(conversations, SamplingParams(max_tokens=500)):
    print(output.outputs[0].text)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from mimo_gguf.chat.answer import Answer, AnswerOptions, FinishReason, stop_texts
from mimo_gguf.chat.reasoning import opened_block
from mimo_gguf.chat.template import Message
from mimo_gguf.core.errors import UsageError
from mimo_gguf.engine.sampling import MAX_SEED, SamplingOptions
from mimo_gguf.engine.session import SessionOptions
from mimo_gguf.runtime.model import Model
from mimo_gguf.runtime.scheduler import Request


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
    finish_reason: FinishReason


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
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        system: str | None = "",
    ) -> list[RequestOutput]:
        """Answers a conversation, or several, in their order. `system` as for `Model.chat`.

        Raises:
            UsageError: a conversation the template does not take, parameters out of range or of another number.
        """
        is_one = bool(messages) and isinstance(messages[0], Mapping)
        conversations = cast("Sequence[Sequence[Message]]", [messages] if is_one else messages)
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
        tokens = [tuple(self.model.vocabulary.tokenize(prompt)) for prompt in prompts]
        self._check_prompts(tokens)
        requests = [
            Request(ids, each.sampling(number), each.ending(split_reasoning=split_reasoning), opened_block(prompt))
            for prompt, ids, each in zip(prompts, tokens, params, strict=True)
            for number in range(each.n)
        ]
        answers = iter(self._serve(requests))
        return [
            RequestOutput(prompt, ids, tuple(_output(number, next(answers)) for number in range(each.n)))
            for prompt, ids, each in zip(prompts, tokens, params, strict=True)
        ]

    def _check_prompts(self, prompts: Sequence[Sequence[int]]) -> None:
        for number, tokens in enumerate(prompts, 1):
            try:
                self.model.slot.check_prompt(tokens)
            except UsageError as error:
                raise UsageError(error.message.replace("the prompt", f"prompt {number}"), hint=error.hint) from None

    def _serve(self, requests: Sequence[Request]) -> list[Answer]:
        """The answers to all of these, in their order."""
        ticket = self.model.driver.submit(requests)
        answers: dict[int, Answer] = {}
        try:
            for event in ticket.events():
                if event.error is not None:
                    raise event.error
                if event.answer is not None:
                    answers[event.id] = event.answer
        finally:
            ticket.cancel()
        return [answers[request_id] for request_id in ticket.ids]


def _output(number: int, answer: Answer) -> CompletionOutput:
    return CompletionOutput(
        index=number,
        text=answer.text,
        reasoning=answer.reasoning,
        token_ids=answer.tokens,
        finish_reason=answer.finish_reason,
    )
