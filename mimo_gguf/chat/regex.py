"""Converts a regular expression to a grammar. Whatever dialects read in different ways is refused.

It knows literals, `.`, sets, `\\d \\w \\s` (ASCII) and their opposites, groups, `|`, and `* + ? {m,n}`, lazy or not.
The whole answer must match, so laziness makes no difference, and neither do `^` at the beginning and `$` at the end.
"""

from __future__ import annotations

from typing import Final

from mimo_gguf.core.errors import UsageError

_CLASSES: Final = {"d": "0-9", "w": "0-9A-Za-z_", "s": " \\t\\n\\r"}
_ESCAPES: Final = {"n": "\\n", "t": "\\t", "r": "\\r"}
_TIMES_MOST: Final = 1000
_DEPTH_MOST: Final = 50


def grammar_of_regex(pattern: str) -> str:
    """The GBNF grammar of texts that match `pattern` from beginning to end.

    Raises:
        UsageError: the expression is broken, or a grammar cannot express a part of it.
    """
    if not isinstance(pattern, str):
        raise UsageError(f"not a regular expression: {pattern!r:.60}", hint=r'give a text: regex=r"\d+"')
    reader = _Reader(pattern.removeprefix("^"))
    rule = reader.alternatives()
    if reader.rest:
        raise reader.refusal()
    return f"root ::= {rule}"


class _Reader:
    """Reads an expression by recursive descent, and writes it as GBNF."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0
        self._depth = 0

    @property
    def rest(self) -> str:
        return self._pattern[self._at :]

    def refusal(self) -> UsageError:
        return UsageError(
            f"the regular expression {self._pattern!r:.60} cannot be read at {self.rest[:10]!r}",
            hint="use literals, sets, groups, | and * + ? {m,n}; or give a grammar",
        )

    def alternatives(self) -> str:
        options = [self._sequence()]
        while self._accept("|"):
            options.append(self._sequence())
        return " | ".join(options)

    def _sequence(self) -> str:
        parts: list[str] = []
        while self.rest and self.rest[0] not in "|)":
            if self.rest == "$":
                self._at += 1
                break
            parts.append(self._atom() + self._times())
        return " ".join(parts) or '""'

    def _atom(self) -> str:
        letter = self._next()
        if letter == "(":
            return self._group()
        if letter == "[":
            return self._set()
        if letter == ".":
            return "[^\\n]"
        if letter == "\\":
            return self._escape()
        if letter in "*+?{}^$)]":
            self._at -= 1
            raise self.refusal()
        return f'"{_quoted(letter)}"'

    def _group(self) -> str:
        self._depth += 1
        if self._depth > _DEPTH_MOST:
            raise self.refusal()
        if self.rest.startswith("?") and not self._accept("?:"):
            raise self.refusal()
        inner = self.alternatives()
        if not self._accept(")"):
            raise self.refusal()
        self._depth -= 1
        return f"( {inner} )"

    def _escape(self) -> str:
        letter = self._next()
        if letter.lower() in _CLASSES:
            return f"[{'^' * letter.isupper()}{_CLASSES[letter.lower()]}]"
        return f'"{self._escaped(letter)}"'

    def _escaped(self, letter: str) -> str:
        """An escaped character, as GBNF writes it."""
        if letter.isalnum() and letter not in _ESCAPES:
            self._at -= 2
            raise self.refusal()
        return _ESCAPES.get(letter) or _quoted(letter)

    def _set(self) -> str:
        inner = "^" if self._accept("^") else ""
        is_first = True
        while is_first or not self.rest.startswith("]"):
            letter, is_first = self._next(), False
            if letter == "\\":
                letter = self._next()
                inner += _CLASSES[letter] if letter in _CLASSES else self._escaped(letter)
            elif letter == "-" and (inner in ("", "^") or self.rest.startswith("]")):
                inner += "\\x2D"
            else:
                inner += letter if letter == "-" else _quoted(letter)
        self._at += 1
        return f"[{inner}]"

    def _times(self) -> str:
        if self._accept("{"):
            least, _, most = (bounds := self._until("}")).partition(",")
            numbers = [number for number in (least, most) if number]
            if not least or not all(n.isascii() and n.isdigit() and int(n) <= _TIMES_MOST for n in numbers):
                raise self.refusal()
            times = "{" + bounds + "}"
        else:
            times = next((sign for sign in "*+?" if self._accept(sign)), "")
        if times:
            self._accept("?")
        return times

    def _until(self, end: str) -> str:
        found, _, _ = self.rest.partition(end)
        self._at += len(found) + 1
        return found

    def _accept(self, text: str) -> bool:
        """Moves behind `text` if it comes next. Returns whether it does."""
        is_there = self.rest.startswith(text)
        self._at += len(text) * is_there
        return is_there

    def _next(self) -> str:
        if not self.rest:
            raise UsageError(f"the regular expression {self._pattern!r:.60} ends too early", hint="close it")
        self._at += 1
        return self._pattern[self._at - 1]


def _quoted(letter: str) -> str:
    """A character as it stands in a grammar's literal or set."""
    if letter in '"\\[]^-' or not letter.isprintable():
        code = ord(letter)
        return f"\\x{code:02X}" if code < 0x100 else f"\\U{code:08X}" if code > 0xFFFF else f"\\u{code:04X}"
    return letter
