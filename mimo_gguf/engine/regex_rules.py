"""Grammar rules for a JSON schema's `pattern`: the regular expressions that most schemas use, inside a JSON string.

Everything that matches also matches in ECMAScript and in Python. So `\\d`, `\\w` and `\\s` are ASCII, and `.` and
negated sets match only characters that need no escape in JSON other than `\\"` and `\\\\`.
"""

from __future__ import annotations

from typing import Final

from mimo_gguf.engine.gbnf import EMPTY, Chars, Literal, Node, Repeat, Seq, alt

Ranges = tuple[tuple[int, int], ...]

# Characters that stand in a JSON string as they are. DEL could, but is invisible.
RAW: Final[Ranges] = ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0x7E), (0x80, 0xD7FF), (0xE000, 0x10FFFF))
_SHOWN: Final[Ranges] = ((0x20, 0x7E), (0xA0, 0xD7FF), (0xE000, 0x10FFFF))  # `.` without line ends
_DIGITS: Final[Ranges] = ((0x30, 0x39),)
_WORD: Final[Ranges] = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_BLANK: Final[Ranges] = ((0x09, 0x0A), (0x0D, 0x0D), (0x20, 0x20))
_ASCII: Final[Ranges] = ((0x20, 0x7E),)
_ESCAPES: Final = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}
_SHORT: Final = {0x08: "\\b", 0x09: "\\t", 0x0A: "\\n", 0x0C: "\\f", 0x0D: "\\r", 0x22: '\\"', 0x5C: "\\\\"}
_TIMES_MOST: Final = 1000
_DEPTH_MOST: Final = 50


class NotPossible(Exception):
    """A part of a regular expression that these rules cannot express; the message names it."""


def rules_of_pattern(pattern: str, anything: Node) -> Node:
    """The rules for JSON strings, without the quotes, in which `pattern` is found.

    Args:
        anything: matches any characters of a string; used on the sides where the pattern is not anchored.

    Raises:
        NotPossible: the pattern is broken, or has a part that the rules cannot express.
    """
    reader = _Reader(pattern, anything)
    node = reader.alternatives(top=True)
    if reader.here():
        raise NotPossible(f"{reader.here()!r} at {reader.at}")
    return node


def text_in_string(text: str) -> Literal:
    """A text as it stands in a JSON string."""
    return Literal("".join(_escaped(ord(letter)) for letter in text))


def _escaped(code: int) -> str:
    if code in _SHORT:
        return _SHORT[code]
    return f"\\u{code:04x}" if code < 0x20 or code == 0x7F else chr(code)


def _set_in_string(ranges: Ranges) -> Node:
    """One character of a set, as it stands in a JSON string."""
    raw = _common(ranges, RAW)
    escaped = [code for code in (*range(0x20), 0x22, 0x5C, 0x7F) if any(a <= code <= b for a, b in ranges)]
    if not raw and not escaped:
        raise NotPossible("a set of no characters")
    return alt([*([Chars(raw)] if raw else []), *(Literal(_escaped(code)) for code in escaped)])


def _common(first: Ranges, second: Ranges) -> Ranges:
    both = ((max(a, c), min(b, d)) for a, b in first for c, d in second)
    return tuple((low, high) for low, high in both if low <= high)


def _without(ranges: Ranges, removed: Ranges) -> Ranges:
    left = list(ranges)
    for low, high in removed:
        left = [
            piece for a, b in left for piece in ((a, min(b, low - 1)), (max(a, high + 1), b)) if piece[0] <= piece[1]
        ]
    return tuple(left)


class _Reader:
    """Reads a regular expression by recursive descent from the position `at`."""

    def __init__(self, pattern: str, anything: Node) -> None:
        self._pattern = pattern
        self._anything = anything
        self._depth = 0
        self.at = 0

    def here(self) -> str:
        """The character at the position; empty at the end of the pattern."""
        return self._pattern[self.at : self.at + 1]

    def alternatives(self, *, top: bool) -> Node:
        """Reads branches divided by `|`, up to the end or a closing parenthesis. Only `top` branches have anchors."""
        options = [self._branch(top=top)]
        while self.here() == "|":
            self.at += 1
            options.append(self._branch(top=top))
        return alt(options)

    def _branch(self, *, top: bool) -> Node:
        parts: list[Node] = []
        if top and self.here() == "^":
            self.at += 1
        elif top:
            parts.append(self._anything)
        while (here := self.here()) and here not in "|)$":
            parts.append(self._quantified(self._atom(here)))
        if top and self.here() == "$":
            self.at += 1
        elif top:
            parts.append(self._anything)
        return Seq(tuple(parts))

    def _atom(self, here: str) -> Node:
        self.at += 1
        if here == "(":
            return self._group()
        if here == "[":
            return _set_in_string(self._set())
        if here == ".":
            return _set_in_string(_SHOWN)
        if here == "\\":
            return _set_in_string(self._escape())
        if here in "*+?{^":
            raise NotPossible(f"{here!r} at {self.at - 1}")
        return text_in_string(here)

    def _group(self) -> Node:
        if self.here() == "?":
            if self._pattern[self.at : self.at + 2] != "?:":
                raise NotPossible(f"'({self._pattern[self.at : self.at + 3]}...' at {self.at - 1}")
            self.at += 2
        self._depth += 1
        if self._depth > _DEPTH_MOST:
            raise NotPossible(f"more than {_DEPTH_MOST} parentheses inside each other")
        node = self.alternatives(top=False)
        if self.here() != ")":
            raise NotPossible(f"{self.here() or 'its end'!r} instead of ')' at {self.at}")
        self.at += 1
        self._depth -= 1
        return node

    def _quantified(self, node: Node) -> Node:
        here = self.here()
        if not here or here not in "*+?{":
            return node
        self.at += 1
        least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(here) or self._times()
        if self.here() == "?":  # reluctant: the same texts
            self.at += 1
        if self.here() and self.here() in "*+{":
            raise NotPossible(f"{self.here()!r} at {self.at}")
        if max(least, most or 0) > _TIMES_MOST:
            raise NotPossible(f"more than {_TIMES_MOST} repetitions")
        if most is not None and most < least:
            raise NotPossible(f"{{{least},{most}}}")
        return EMPTY if most == 0 else Repeat(node, least, most)

    def _times(self) -> tuple[int, int | None]:
        end = self._pattern.find("}", self.at)
        least, comma, most = self._pattern[self.at : max(end, self.at)].partition(",")
        self.at = end + 1
        numbers = [text for text in (least, most) if text]
        if not least or not all(text.isdecimal() and len(text) < 7 for text in numbers):
            raise NotPossible("a brace that is not a number of repetitions")
        return int(least), (int(most) if most else None) if comma else int(least)

    def _set(self) -> Ranges:
        negated = self.here() == "^"
        self.at += negated
        found: list[tuple[int, int]] = []
        classes = False
        while self.here() != "]":
            low = self._member()
            classes = classes or len(low) > 1
            if self.here() == "-" and self._pattern[self.at + 1 : self.at + 2] not in ("]", "") and len(low) == 1:
                self.at += 1
                high = self._member()
                if len(high) != 1 or high[0][0] < low[0][0]:
                    raise NotPossible(f"a range at {self.at}")
                low = ((low[0][0], high[0][0]),)
            found += low
        self.at += 1
        if not negated:
            return tuple(found)
        return _without(_ASCII if classes or tuple(found) == _DIGITS else _SHOWN, tuple(found))

    def _member(self) -> Ranges:
        here = self.here()
        if not here:
            raise NotPossible("a set that does not end")
        self.at += 1
        return self._escape() if here == "\\" else ((ord(here), ord(here)),)

    def _escape(self) -> Ranges:
        """Reads what follows a backslash: the characters that it stands for."""
        kind = self.here()
        self.at += 1
        classes = {"d": _DIGITS, "w": _WORD, "s": _BLANK}
        if kind.lower() in classes:
            known = classes[kind.lower()]
            return known if kind.islower() else _without(_ASCII, known)
        if kind in ("x", "u"):
            n = 2 if kind == "x" else 4
            digits = self._pattern[self.at : self.at + n]
            self.at += n
            if len(digits) != n or not all(digit in "0123456789abcdefABCDEF" for digit in digits):
                raise NotPossible(f"'\\{kind}{digits}'")
            return ((int(digits, 16), int(digits, 16)),)
        if kind in _ESCAPES:
            return ((ord(_ESCAPES[kind]), ord(_ESCAPES[kind])),)
        if not kind or kind.isalnum():
            raise NotPossible(f"'\\{kind}'")
        return ((ord(kind), ord(kind)),)


_FORMATS: Final = {
    "date": r"DATE",
    "time": r"TIME",
    "date-time": r"DATET" + r"TIME",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "ipv4": r"BYTE\.BYTE\.BYTE\.BYTE",
    "ipv6": r"[0-9a-f]{1,4}(:[0-9a-f]{1,4}){7}",
    "hostname": r"LABEL(\.LABEL){0,3}",
    "email": r"[a-z0-9_+-]{1,32}(\.[a-z0-9_+-]{1,16}){0,2}@LABEL(\.LABEL){1,3}",
    "uri": r"https?://LABEL(\.LABEL){1,3}(/[A-Za-z0-9._~-]{1,64}){0,8}/?",
}
_PARTS: Final = {
    "DATE": r"[12][0-9]{3}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    r"|02-(0[1-9]|1[0-9]|2[0-8]))",
    "TIME": r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-](0[0-9]|1[0-4]):[0-5][0-9])",
    "BYTE": r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])",
    "LABEL": r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?",
}
FORMATS: Final = tuple(_FORMATS)


def rules_of_format(name: str) -> Node:
    """The rules for a string, without the quotes, in one of the FORMATS; 29 February is left out."""
    pattern = _FORMATS[name]
    for part, meaning in _PARTS.items():
        pattern = pattern.replace(part, f"({meaning})")
    return rules_of_pattern(f"^({pattern})$", EMPTY)
