"""Reads calls of tools out of an answer as it streams: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

The name comes as soon as it is complete, and the arguments in pieces. What does not have this form stays text.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Final

from mimo_gguf.chat.text_stream import held_back
from mimo_gguf.core.unguessable import unguessable_name

OPEN: Final = "<tool_call>"
CLOSE: Final = "</tool_call>"
# Up to the first character of the arguments, if they are an object and the name comes before them.
_HEAD: Final = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of a call. The first one has its id and name; all have a part of the arguments, which may be empty."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


@dataclass(slots=True)
class Call:
    """A call that was read: `arguments` is a JSON text."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class ToolCallReader:
    """Separates the text of an answer from its calls.

    Attributes:
        calls: those whose name is known.
        is_complete: whether the last call has ended.
    """

    calls: list[Call] = field(default_factory=list)
    is_complete: bool = True
    _held: str = ""  # text that may begin a call, or a call's body that is not yet understood
    _inside: bool = False
    _object: _ObjectEnd | None = None  # the arguments that are being passed on

    def push(self, text: str) -> tuple[str, list[CallPiece]]:
        """Adds text. Returns the plain text and the pieces of calls that are certain now."""
        self._held += text
        plain: list[str] = []
        pieces: list[CallPiece] = []
        while self._step(plain, pieces):
            pass
        return "".join(plain), pieces

    def finish(self) -> str:
        """Returns the text that was held back, because no more will come; a call that never ended is text."""
        rest, self._held = self._held, ""
        if self._object is not None:
            return ""
        return f"{OPEN}{rest}" if self._inside else rest if not self.calls else rest.rstrip()

    def _step(self, plain: list[str], pieces: list[CallPiece]) -> bool:
        """Moves what is certain out of what is held. Returns whether there may be more to do."""
        if self._object is not None:
            return self._pass_on(self._object, pieces)
        if self._inside:
            return self._read_body(plain, pieces)
        before, marker, after = self._held.partition(OPEN)
        if marker:
            self._put(plain, before.rstrip("\n"))
            self._held, self._inside = after, True
            return True
        keep = held_back(self._held, (OPEN,))
        body = self._held[: len(self._held) - keep]
        ready = body.rstrip("\n")  # line ends before a call are not text
        self._put(plain, ready)
        self._held = self._held[len(ready) :]
        return False

    def _put(self, plain: list[str], text: str) -> None:
        if self.calls and not text.strip():  # between two calls
            return
        plain.append(text)

    def _read_body(self, plain: list[str], pieces: list[CallPiece]) -> bool:
        head = _HEAD.match(self._held)
        name = None if head is None else _text_of(head[1])
        if head is not None and name:
            self._begin(name, pieces)
            self._held, self._object = self._held[head.end() :], _ObjectEnd()
            return True
        body, marker, after = self._held.partition(CLOSE)
        if not marker:
            return False
        self._held, self._inside = after, False
        read = _whole_call(body)
        if read is None:
            plain.append(f"{OPEN}{body}{CLOSE}")
        else:
            self._begin(read[0], pieces)
            self._add_arguments(read[1], pieces)
            self.is_complete = True
        return True

    def _begin(self, name: str, pieces: list[CallPiece]) -> None:
        call = Call(unguessable_name("call_"), name)
        self.calls.append(call)
        self.is_complete = False
        pieces.append(CallPiece(len(self.calls) - 1, "", call.id, name))

    def _add_arguments(self, text: str, pieces: list[CallPiece]) -> None:
        if text:
            self.calls[-1].arguments += text
            pieces.append(CallPiece(len(self.calls) - 1, text))

    def _pass_on(self, arguments: _ObjectEnd, pieces: list[CallPiece]) -> bool:
        """Passes arguments on up to the bracket that ends them; what follows up to the marker is dropped."""
        if not arguments.has_ended:
            n = arguments.find_end(self._held)
            self._add_arguments(self._held[:n], pieces)
            self._held = self._held[n:]
        if not arguments.has_ended:
            return False
        _, marker, after = self._held.partition(CLOSE)
        if not marker:
            return False
        self._held, self._inside, self._object, self.is_complete = after, False, None, True
        return True


@dataclass(slots=True)
class _ObjectEnd:
    """Finds where a JSON object ends in text that comes in pieces."""

    has_ended: bool = False
    _depth: int = 0
    _in_string: bool = False
    _escaped: bool = False

    def find_end(self, text: str) -> int:
        """The number of characters of `text` that belong to the object."""
        for place, character in enumerate(text):
            if self._in_string:
                self._in_string = self._escaped or character != '"'
                self._escaped = not self._escaped and character == "\\"
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if not self._depth:
                    self.has_ended = True
                    return place + 1
        return len(text)


def _text_of(json_text: str) -> str | None:
    try:
        return str(json.loads(json_text))
    except ValueError:
        return None


def _whole_call(body: str) -> tuple[str, str] | None:
    """The name and the arguments of a call in any order; None if it is not one."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("name"), str) or not found["name"]:
        return None
    arguments = found.get("arguments", {})
    return found["name"], arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
