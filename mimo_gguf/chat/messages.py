"""Reads conversations in the forms that callers use, as lists of messages whose content is text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mimo_gguf.chat.template import Message
from mimo_gguf.core.errors import UsageError

_HINT = 'give a list of {"role": "user", "content": "..."}'


def read_messages(messages: Iterable[Message]) -> list[Message]:
    """Reads messages from a list, a tuple or a generator. Content in several parts becomes one text of several lines.

    Raises:
        UsageError: there is no message, something is not a message, or a part is not text.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Iterable):
        raise no_conversation(messages)
    found = list(messages)
    if not found or not all(isinstance(each, Mapping) for each in found):
        raise no_conversation(messages)
    return [_with_text(each) for each in found]


def cut_after_last(prompt: str, messages: Sequence[Message]) -> str:
    """Cuts a rendered prompt after the text of the last message, so that the model continues that text.

    Raises:
        UsageError: the last message has no text, or the template has changed it.
    """
    words = str(messages[-1].get("content") or "")
    at = prompt.rfind(words)
    if at < 0:
        words = words.strip()
        at = prompt.rfind(words)
    if at < 0 or not words:
        raise UsageError("the last message has no text to continue", hint="leave continue_final_message out")
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
        raise UsageError(f"a part of a message is not text: {part!r:.60}", hint="MiMo-7B reads text only")
    return text


def no_conversation(messages: object) -> UsageError:
    """The error for something that is not a conversation."""
    return UsageError(f"not a conversation: {messages!r:.60}", hint=_HINT)
