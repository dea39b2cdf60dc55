"""Conversations as people write them, as plain lists of messages with text for content."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mimo_gguf.chat.template import Message
from mimo_gguf.core.errors import UsageError

_HINT = 'give a list of {"role": "user", "content": "..."}'


def read_messages(messages: Iterable[Message]) -> list[Message]:
    """The messages of a list, a tuple or a generator; content in parts of text becomes one text, a line for each part.

    Raises:
        UsageError: no message, something else than messages, or a part that is not text.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Iterable):
        raise no_conversation(messages)
    found = list(messages)
    if not found or not all(isinstance(each, Mapping) for each in found):
        raise no_conversation(messages)
    return [_with_text(each) for each in found]


def cut_after_last(prompt: str, messages: Sequence[Message]) -> str:
    """A rendered prompt up to the end of the last message's words, so that the model goes on with them.

    Raises:
        UsageError: the template has changed these words.
    """
    words = str(messages[-1].get("content") or "")
    at = prompt.rfind(words)
    if at < 0:
        words = words.strip()
        at = prompt.rfind(words)
    if at < 0 or not words:
        raise UsageError("the last message has no words to go on with", hint="leave continue_final_message out")
    return prompt[: at + len(words)]


def _with_text(message: Message) -> Message:
    content = message.get("content")
    if isinstance(content, str) or not isinstance(content, Sequence):
        return message
    return {**message, "content": "\n".join(map(_text_of, content))}


def _text_of(part: Any) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else None
    if not isinstance(text, str):
        raise UsageError(f"a part of a message that is not text: {part!r:.60}", hint="MiMo-7B reads text only")
    return text


def no_conversation(messages: object) -> UsageError:
    """The error about something that is not a conversation."""
    return UsageError(f"no conversation: {messages!r:.60}", hint=_HINT)
