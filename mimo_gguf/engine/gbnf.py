"""Grammars as values: nodes, which can be written as GBNF, llama.cpp's grammar language, and read from it.

The language is described in https://github.com/ggml-org/llama.cpp/blob/0c1e57098/grammars/README.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

NESTED_MOST: Final = 200  # parentheses; llama.cpp reads them recursively and crashes at about 15 000


@dataclass(frozen=True, slots=True)
class Literal:
    """Exactly this text."""

    text: str


@dataclass(frozen=True, slots=True)
class Chars:
    """One character inside the ranges (code points, both ends included); if `negated`, one outside of them."""

    ranges: tuple[tuple[int, int], ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Ref:
    """Whatever matches the rule of this name."""

    name: str


@dataclass(frozen=True, slots=True)
class Seq:
    """All parts, one after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Alt:
    """One of the options; without options nothing matches."""

    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """The node `least` to `most` times; None sets no upper limit."""

    node: Node
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Token:
    """A token of the vocabulary, as GBNF writes it: `<think>`, `!<[13]>`."""

    text: str


Node = Literal | Chars | Ref | Seq | Alt | Repeat | Token
Rules = Mapping[str, Node]

EMPTY: Final = Seq(())
NEVER: Final = Alt(())


def seq(*parts: Node | str) -> Node:
    """The parts one after the other; a text becomes a Literal."""
    return Seq(tuple(Literal(part) if isinstance(part, str) else part for part in parts))


def alt(options: Iterable[Node]) -> Node:
    """One of the options; a single option becomes that node itself."""
    options = tuple(options)
    return options[0] if len(options) == 1 else Alt(options)


def optional(node: Node) -> Node:
    """`node` or nothing."""
    return Repeat(node, 0, 1)


def literals(texts: Iterable[str]) -> Node:
    """One of the texts, as a tree of common prefixes, because llama.cpp tracks all alternatives at the same time."""
    tree: dict[str, list[str]] = {}
    ends = False
    for text in dict.fromkeys(texts):
        ends = ends or not text
        if text:
            tree.setdefault(text[0], []).append(text[1:])
    options: list[Node] = []
    for first, rests in tree.items():
        shared = _shared_start(rests)
        rest = literals(text[len(shared) :] for text in rests) if len(rests) > 1 else EMPTY
        options.append(Literal(first + shared) if rest == EMPTY else seq(first + shared, rest))
    return alt([*options, *[EMPTY] * ends])


def holds(node: Node, leaf: Callable[[Node], bool]) -> bool:
    """Whether something holds for a text that a node matches, if it holds for a text by holding for all its parts.

    Args:
        leaf: tells it of a node without parts: of literals, characters, tokens and references.
    """
    match node:
        case Seq(parts):
            return all(holds(part, leaf) for part in parts)
        case Alt(options):
            return any(holds(option, leaf) for option in options)
        case Repeat(inner, least, _):
            return least == 0 or holds(inner, leaf)
        case _:
            return leaf(node)


def _shared_start(texts: list[str]) -> str:
    low, high = min(texts), max(texts)
    return low[: next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))]


# ---- writing


def render(rules: Rules) -> str:
    """The rules as GBNF; the first one must be `root`."""
    return "".join(f"{name} ::= {_text(node, outer=True)}\n" for name, node in rules.items())


def _text(node: Node, *, outer: bool = False) -> str:
    match node:
        case Literal(text):
            return '"' + "".join(_character(ord(letter), '"\\') for letter in text) + '"'
        case Chars((), True):
            return "."
        case Chars(ranges, negated):
            inner = "".join(
                _character(a, "[]\\^-") + ("-" + _character(b, "[]\\^-") if b > a else "") for a, b in ranges
            )
            return f"[{'^' * negated}{inner}]"
        case Ref(name):
            return name
        case Token(text):
            return text
        case Repeat(inner, least, most):
            return _atom(inner) + _times(least, most)
        case Seq(parts):
            text = " ".join(_text(part) for part in parts if part != EMPTY) or '""'
            return text if outer or len(parts) < 2 else f"({text})"
        case Alt(options):
            text = " | ".join(_text(option) for option in options)
            return text if outer else f"({text})"


def _atom(node: Node) -> str:
    """A node as a single item, after which a repetition may stand."""
    text = _text(node)
    is_one = isinstance(node, Chars | Ref | Literal | Token) or text.startswith("(")
    return text if is_one else f"({text})"


def _times(least: int, most: int | None) -> str:
    known = {(0, 1): "?", (0, None): "*", (1, None): "+"}.get((least, most))
    if known:
        return known
    return f"{{{least}}}" if least == most else f"{{{least},{'' if most is None else most}}}"


def _character(code: int, escaped: str) -> str:
    """A character in a literal or a set, as a number unless it is printable ASCII without a meaning of its own."""
    if 0x20 <= code < 0x7F and chr(code) not in escaped:
        return chr(code)
    return f"\\x{code:02X}" if code < 0x100 else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


# ---- reading


class NotGbnf(Exception):
    """The text is not GBNF. llama.cpp's own parser explains why."""


class NestedTooDeep(Exception):
    """The text has more than NESTED_MOST parentheses inside each other."""


def parse(text: str) -> dict[str, Node]:
    """Reads the rules of a GBNF text, by name.

    Raises:
        NotGbnf: llama.cpp would refuse the text, too.
        NestedTooDeep: llama.cpp's parser would crash.
    """
    return _Reader(text).rules()


class _Reader:
    """Reads GBNF by recursive descent from a position in the text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0

    def rules(self) -> dict[str, Node]:
        found: dict[str, Node] = {}
        self._space(lines=True)
        while self._here():
            name = self._name()
            self._space(lines=False)
            self._expect("::=")
            self._space(lines=True)
            found[name] = self._alternatives(lines=False)
            if self._here() and self._here() not in "\r\n":
                raise NotGbnf
            self._space(lines=True)
        return found

    def _alternatives(self, *, lines: bool) -> Node:
        options = [self._sequence(lines=lines)]
        while self._here() == "|":
            self._at += 1
            self._space(lines=True)
            options.append(self._sequence(lines=lines))
        return alt(options)

    def _sequence(self, *, lines: bool) -> Node:
        parts: list[Node] = []
        while here := self._here():
            if here in "*+?{":
                if not parts:
                    raise NotGbnf
                parts[-1] = Repeat(parts[-1], *self._repetition(here))
            elif (item := self._item(here)) is not None:
                parts.append(item)
            else:
                break
            self._space(lines=lines)
        return parts[0] if len(parts) == 1 else Seq(tuple(parts))

    def _item(self, here: str) -> Node | None:
        if here == '"':
            return self._literal()
        if here == "[":
            return self._set()
        if here == ".":
            self._at += 1
            return Chars((), negated=True)
        if here == "(":
            return self._group()
        if here in "<!":
            end = self._text.find(">", self._at) + 1 or len(self._text)
            token, self._at = Token(self._text[self._at : end]), end
            return token
        return Ref(self._name()) if _is_word(here) else None

    def _group(self) -> Node:
        self._depth += 1
        if self._depth > NESTED_MOST:
            raise NestedTooDeep
        self._at += 1
        self._space(lines=True)
        node = self._alternatives(lines=True)
        self._expect(")")
        self._depth -= 1
        return node

    def _literal(self) -> Node:
        self._at += 1
        letters: list[str] = []
        while self._here() != '"':
            letters.append(chr(self._code()))
        self._at += 1
        return Literal("".join(letters))

    def _set(self) -> Node:
        self._at += 1
        negated = self._here() == "^"
        self._at += negated
        ranges: list[tuple[int, int]] = []
        while self._here() != "]":
            first = last = self._code()
            if self._here() == "-" and self._text[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                last = self._code()
            ranges.append((first, last))
        self._at += 1
        return Chars(tuple(ranges), negated)

    def _code(self) -> int:
        """Reads one character of a literal or a set, which may be escaped."""
        here = self._here()
        if not here:
            raise NotGbnf
        self._at += 1
        if here != "\\":
            return ord(here)
        kind = self._here()
        self._at += 1
        if kind in _HEX:
            digits = self._text[self._at : self._at + _HEX[kind]]
            self._at += _HEX[kind]
            try:
                return min(int(digits, 16), 0x10FFFF)
            except ValueError:
                raise NotGbnf from None
        return ord(_ESCAPES.get(kind, kind) or "?")

    def _repetition(self, here: str) -> tuple[int, int | None]:
        self._at += 1
        if here != "{":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[here]
        end = self._text.find("}", self._at)
        least, comma, most = self._text[self._at : end].partition(",")
        self._at = end + 1
        try:
            number = _count(least)
            return number, (_count(most) if most.strip() else None) if comma else number
        except ValueError:
            raise NotGbnf from None

    def _name(self) -> str:
        start = self._at
        while _is_word(self._here()):
            self._at += 1
        if start == self._at:
            raise NotGbnf
        return self._text[start : self._at]

    def _space(self, *, lines: bool) -> None:
        """Skips blanks and comments, and with `lines` also line breaks."""
        blanks = " \t\r\n" if lines else " \t"
        while here := self._here():
            if here == "#":
                while self._here() and self._here() not in "\r\n":
                    self._at += 1
            elif here in blanks:
                self._at += 1
            else:
                return

    def _expect(self, text: str) -> None:
        if not self._text.startswith(text, self._at):
            raise NotGbnf
        self._at += len(text)

    def _here(self) -> str:
        """The character at the position; empty at the end of the text."""
        return self._text[self._at : self._at + 1]


_HEX: Final = {"x": 2, "u": 4, "U": 8}
_ESCAPES: Final = {"t": "\t", "r": "\r", "n": "\n"}


def _is_word(letter: str) -> bool:
    return letter == "-" or (letter.isascii() and letter.isalnum())


def _count(text: str) -> int:
    """Reads a number of repetitions, of which at most 18 digits count."""
    if not text.strip().isdigit():
        raise ValueError(text)
    return int(text.strip()[:18])
