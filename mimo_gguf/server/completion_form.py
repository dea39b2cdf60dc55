"""Answers in the form of `/v1/completions`: whole, and in chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from mimo_gguf.engine.logprobs import Scores
from mimo_gguf.llama.vocabulary import Vocabulary
from mimo_gguf.runtime.prompts import Prompt
from mimo_gguf.server.answers import Answers, Growing
from mimo_gguf.server.chat_form import Head, read_whole
from mimo_gguf.server.token_scores import completion_scores

_KIND = "text_completion"


async def whole_completion(answers: Answers, head: Head, vocabulary: Vocabulary) -> dict[str, Any]:
    """The document of a completion that is not streamed. Raises as `Answers.deltas`."""
    await read_whole(answers)
    before = _prompt_scores(answers)
    return head.document(_KIND) | {
        "choices": [
            _choice(growing, answers, before.get(id(growing.prompt), ()), vocabulary) for growing in answers.all
        ],
        "usage": answers.usage(),
        "timings": answers.timings(),
    }


async def completion_chunks(
    answers: Answers, head: Head, vocabulary: Vocabulary, *, with_usage: bool
) -> AsyncGenerator[dict[str, Any], None]:
    """The chunks of a completion. With `echo` the prompt comes first, its scores with the last chunk.

    Raises as `Answers.deltas`.
    """
    n_top = answers.job.n_top

    def chunk(index: int, text: str, finish: str | None, logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        usage = {"usage": None} if with_usage else {}
        return head.document(_KIND) | {"choices": [choice]} | usage

    async with aclosing(answers.deltas()) as deltas:
        begun: set[int] = set()
        n_scored = dict.fromkeys(range(len(answers.all)), 0)
        async for delta in deltas:
            if answers.job.echo and delta.index not in begun:
                begun.add(delta.index)
                yield chunk(delta.index, prompt_text(answers.all[delta.index].prompt, vocabulary), None)
            if delta.text or delta.scores:
                logprobs = None
                if n_top is not None:
                    growing, first = answers.all[delta.index], n_scored[delta.index]
                    n_scored[delta.index] += len(delta.scores)
                    logprobs = _scores_from(growing, first, n_top, vocabulary)
                yield chunk(delta.index, delta.text, None, logprobs)
            if delta.finish is not None:
                last = len(answers.finished) == len(answers.all)
                yield chunk(delta.index, "", delta.finish) | ({"timings": answers.timings()} if last else {})
    if with_usage:
        yield head.document(_KIND) | {"choices": [], "usage": answers.usage()}


def prompt_text(prompt: Prompt, vocabulary: Vocabulary) -> str:
    """The text of a prompt, control tokens by their names."""
    if prompt.text is not None:
        return prompt.text
    return b"".join(vocabulary.piece(token, special=True) for token in prompt.tokens).decode("utf-8", "replace")


def _scores_from(growing: Growing, first: int, n_top: int, vocabulary: Vocabulary) -> dict[str, Any]:
    """The scores of the answer's tokens from number `first` on. Text offsets count from the answer's beginning."""
    new = growing.scores[first:]
    before = sum(
        len(vocabulary.piece(s[0].token, special=True).decode("utf-8", "replace")) for s in growing.scores[:first]
    )
    return completion_scores([each[0].token for each in new], new, n_top, vocabulary, before)


def _choice(growing: Growing, answers: Answers, before: tuple[Scores, ...], vocabulary: Vocabulary) -> dict[str, Any]:
    echo, n_top = answers.job.echo, answers.job.n_top
    logprobs = None
    if n_top is not None:
        tokens = [each[0].token for each in growing.scores]
        if echo:
            tokens = [*growing.prompt.tokens, *tokens]
        offset = 0 if echo else len(growing.prompt.text or "")
        logprobs = completion_scores(tokens, [*(before if echo else ()), *growing.scores], n_top, vocabulary, offset)
    return {
        "index": growing.index,
        "text": (prompt_text(growing.prompt, vocabulary) if echo else "") + growing.text,
        "logprobs": logprobs,
        "finish_reason": growing.finish,
    }


def _prompt_scores(answers: Answers) -> dict[int, tuple[Scores, ...]]:
    """The scores of each prompt's tokens, which its first answer has."""
    found: dict[int, tuple[Scores, ...]] = {}
    for each in answers.all:
        if each.answer is not None and each.answer.prompt_logprobs is not None:
            found[id(each.prompt)] = each.answer.prompt_logprobs
    return found
