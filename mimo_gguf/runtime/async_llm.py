"""`AsyncLLM`: many answers at a time for asyncio, each as it grows.

from mimo_gguf import AsyncLLM, SamplingParams

llm = AsyncLLM("MiMo-7B-RL-Q4_K_M.gguf")
async for output in llm.generate("Once upon a time", SamplingParams(max_tokens=50), "1"):
    print(output.outputs[0].text)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from mimo_gguf.chat.template import Message
from mimo_gguf.core.errors import UsageError
from mimo_gguf.runtime.driver import Ticket
from mimo_gguf.runtime.llm import LLM
from mimo_gguf.runtime.outputs import CompletionOutput, RequestOutput
from mimo_gguf.runtime.params import RequestOutputKind, SamplingParams
from mimo_gguf.runtime.prompts import PromptType
from mimo_gguf.runtime.pump import Pump
from mimo_gguf.runtime.requests import Asked, Gathering


class AsyncLLM:
    """An `LLM` for any number of asyncio tasks, whose answers are batched. Cancelling a task aborts its request."""

    def __init__(self, model: str | Path, **arguments: Any) -> None:
        """Loads a model; the arguments are those of `LLM`."""
        self.llm = LLM(model, **arguments)
        self._pump = Pump(self.llm.model.driver)
        self._running: dict[str, Ticket] = {}

    def shutdown(self) -> None:
        """Ends all answers with "abort" and frees the model."""
        self.llm.close()
        self._pump.join()

    close = shutdown

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.shutdown)

    async def generate(
        self, prompt: PromptType, sampling_params: SamplingParams | None, request_id: str
    ) -> AsyncIterator[RequestOutput]:
        """Continues a prompt without a template. Yields the growing output; the last one is `finished`.

        Args:
            prompt: a text, token ids, `{"prompt": text}` or `{"prompt_token_ids": ids}`.
            request_id: the name for `abort`, which no other running request may have.

        Raises:
            UsageError: the prompt, a parameter or the id is not valid, or the model was closed.
            BackendError: llama.cpp failed.
        """
        asked = self.llm.ask(prompt, sampling_params, split_reasoning=False)
        async for output in self._stream(asked, request_id):
            yield output

    async def chat(
        self, messages: Iterable[Message], sampling_params: SamplingParams | None, request_id: str, **how: Any
    ) -> AsyncIterator[RequestOutput]:
        """Answers a conversation, with reasoning and text apart; otherwise as `generate`.

        Args:
            how: further arguments of `LLM.chat`: `tools`, `chat_template`, `system`, ...
        """
        prompt = self.llm.render(messages, **how)
        asked = self.llm.ask(prompt, sampling_params, split_reasoning=True)
        async for output in self._stream(asked, request_id):
            yield output

    async def abort(self, request_id: str) -> None:
        """Ends a request as soon as possible: its last output says "abort". Does nothing if it has ended."""
        ticket = self._running.get(request_id)
        if ticket is not None:
            ticket.cancel()

    async def _stream(self, asked: Asked, request_id: str) -> AsyncIterator[RequestOutput]:
        if request_id in self._running:
            raise UsageError(f"request {request_id!r} is being answered", hint="give each request an id of its own")
        driver = self.llm.model.driver
        self._pump.gather()
        ticket = driver.submit(asked.requests)
        self._running[request_id] = ticket
        gathering = Gathering(request_id, asked, ticket.ids, self.llm.model.vocabulary)
        kind, before = asked.params.output_kind, None
        try:
            box = self._pump.listen(ticket)
            while not gathering.is_done:
                for event in await box.take():
                    gathering.add(event)
                if kind is not RequestOutputKind.FINAL_ONLY or gathering.is_done:
                    output = gathering.output(driver.answer)
                    yield output if kind is not RequestOutputKind.DELTA else _new_in(output, before)
                    before = output
            if not ticket.ids:
                yield gathering.output()
        finally:
            ticket.cancel()
            del self._running[request_id]


def _new_in(output: RequestOutput, before: RequestOutput | None) -> RequestOutput:
    """The part of `output` that is new since `before`."""
    if before is None:
        return output
    pairs = zip(output.outputs, before.outputs, strict=True)
    return replace(output, outputs=tuple(_difference(now, earlier) for now, earlier in pairs))


def _difference(now: CompletionOutput, earlier: CompletionOutput) -> CompletionOutput:
    n = len(earlier.token_ids)
    return replace(
        now,
        text=now.text[len(earlier.text) :],
        reasoning=now.reasoning[len(earlier.reasoning) :],
        token_ids=now.token_ids[n:],
        logprobs=None if now.logprobs is None else now.logprobs[n:],
    )
