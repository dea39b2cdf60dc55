"""Answers in the form of OpenAI's `/v1/responses`: whole, and as events."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from mimo_gguf.core.unguessable import unguessable_name
from mimo_gguf.engine.logprobs import Scores
from mimo_gguf.llama.vocabulary import Vocabulary
from mimo_gguf.server.answers import Answers
from mimo_gguf.server.blocks import Block, Blocks, Change, changes
from mimo_gguf.server.responses_requests import AllowedChoice, NamedChoice, ResponsesBody
from mimo_gguf.server.token_scores import chat_scores

_PREFIXES = {"reasoning": "rs", "text": "msg", "call": "fc"}
_ECHOED = ("instructions", "max_output_tokens", "temperature", "top_p")


@dataclass(slots=True)
class ResponseDocument:
    """The document of one response as it comes."""

    body: ResponsesBody
    model: str
    vocabulary: Vocabulary
    blocks: Blocks
    _id: str = field(default_factory=lambda: unguessable_name("resp_"))
    _created: int = field(default_factory=lambda: int(time.time()))
    _ids: dict[int, str] = field(default_factory=dict)

    def json(self, status: str, answers: Answers | None = None) -> dict[str, Any]:
        """The document, with the usage if the answer has ended."""
        body, choice, cut = self.body, self.body.tool_choice, status == "incomplete"
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "model": self.model,
            "output": [self.item(block, "completed") for block in self.blocks.all] if answers is not None else [],
            **{name: getattr(body, name) for name in _ECHOED},
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "tools": [tool.model_dump(by_alias=True) for tool in body.tools or ()],
            "tool_choice": choice.model_dump() if isinstance(choice, NamedChoice | AllowedChoice) else choice or "auto",
            "reasoning": {"effort": None if body.reasoning is None else body.reasoning.effort, "summary": None},
            "text": {"format": _format(body)},
            "top_logprobs": body.top_logprobs or 0,
            "previous_response_id": body.previous_response_id,
            "store": body.store is not False,
            "truncation": "disabled",
            "metadata": body.metadata or {},
            "usage": None if answers is None else _usage(answers),
        }

    def item(self, block: Block, status: str) -> dict[str, Any]:
        """A block as an item of the output."""
        head = {"id": self._id_of(block), "status": status}
        if block.kind == "call":
            call = {"call_id": block.id, "name": block.name, "arguments": block.text}
            return {"type": "function_call", **head, **call}
        content = [self.part(block)] if block.text or status == "completed" else []
        if block.kind == "reasoning":
            return {"type": "reasoning", **head, "summary": [], "content": content}
        return {"type": "message", **head, "role": "assistant", "content": content}

    def part(self, block: Block) -> dict[str, Any]:
        """The one part of a block of text or reasoning."""
        if block.kind == "reasoning":
            return {"type": "reasoning_text", "text": block.text}
        return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": self.scores(block.scores)}

    def scores(self, scores: Sequence[Scores]) -> list[dict[str, Any]]:
        """The log-probabilities of tokens of the text."""
        found: list[dict[str, Any]] = chat_scores(scores, self.body.top_logprobs or 0, self.vocabulary)["content"]
        return found

    def _id_of(self, block: Block) -> str:
        return self._ids.setdefault(block.number, unguessable_name(f"{_PREFIXES[block.kind]}_"))


async def whole_response(answers: Answers, document: ResponseDocument) -> dict[str, Any]:
    """The document of a response that is not streamed. Raises as `Answers.deltas`."""
    async with aclosing(changes(answers, document.blocks)) as found:
        async for _ in found:
            pass
    return document.json(_status(answers), answers)


async def response_events(answers: Answers, document: ResponseDocument) -> AsyncGenerator[dict[str, Any], None]:
    """The numbered events of a streamed response. Raises as `Answers.deltas`."""
    numbers = itertools.count()

    def numbered(event: dict[str, Any]) -> dict[str, Any]:
        return event | {"sequence_number": next(numbers)}

    async with aclosing(changes(answers, document.blocks)) as found:
        async for change in found:
            if change is not None:
                for event in _events(change, document):
                    yield numbered(event)
                continue
            for kind in ("created", "in_progress"):
                yield numbered({"type": f"response.{kind}", "response": document.json("in_progress")})
    status = _status(answers)
    yield numbered({"type": f"response.{status}", "response": document.json(status, answers)})


def _events(change: Change, document: ResponseDocument) -> Iterator[dict[str, Any]]:
    """The events of one change of a block."""
    what, block, new, scores = change
    place = {"output_index": block.number}
    at = {**place, "item_id": document.item(block, "in_progress")["id"]}
    content = {} if block.kind == "call" else {"content_index": 0}
    name = {"call": "function_call_arguments", "reasoning": "reasoning_text", "text": "output_text"}[block.kind]
    is_text = block.kind == "text"
    if what == "more":
        scored = {"logprobs": document.scores(scores)} if is_text else {}
        yield {"type": f"response.{name}.delta", **at, **content, "delta": new, **scored}
    elif what == "open":
        yield {"type": "response.output_item.added", **place, "item": document.item(block, "in_progress")}
        if block.kind != "call":
            yield {"type": "response.content_part.added", **at, **content, "part": document.part(block)}
    else:
        call = {"arguments": block.text, "name": block.name}
        done: dict[str, Any] = call if block.kind == "call" else {"text": block.text}
        done |= {"logprobs": document.scores(block.scores)} if is_text else {}
        yield {"type": f"response.{name}.done", **at, **content, **done}
        if block.kind != "call":
            yield {"type": "response.content_part.done", **at, **content, "part": document.part(block)}
        yield {"type": "response.output_item.done", **place, "item": document.item(block, "completed")}


def _status(answers: Answers) -> str:
    (growing,) = answers.all
    return "incomplete" if growing.finish == "length" else "completed"


def _format(body: ResponsesBody) -> dict[str, Any]:
    if body.text is None or body.text.format is None:
        return {"type": "text"}
    return body.text.format.model_dump(by_alias=True, exclude_none=True)


def _usage(answers: Answers) -> dict[str, Any]:
    usage = answers.usage()
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {**usage["prompt_tokens_details"], "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": usage["completion_tokens_details"],
        "total_tokens": usage["total_tokens"],
    }
