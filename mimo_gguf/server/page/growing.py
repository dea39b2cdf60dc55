"""A text that grows, as blocks of HTML. Only the last blocks change, so only they are rendered again, and sent."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from mimo_gguf.server.page.markdown import GROWING, PARSER

LONGEST: Final = 400_000  # characters that are rendered; what comes after them is plain text
_HEAD: Final = re.compile(r"\s{0,3}\|.*[^|\s]")
_RULE: Final = re.compile(r"[|:\-\s]*")


@dataclass(frozen=True, slots=True)
class Change:
    """The blocks of a text from one place on; those before have not changed."""

    start: int
    blocks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Block:
    html: str
    kind: str  # of its first token
    line: int  # the first one


@dataclass(slots=True)
class GrowingText:
    """Markdown that grows.

    Attributes:
        text: all of it.
        blocks: the HTML of each block, as last rendered.
    """

    text: str = ""
    blocks: list[str] = field(default_factory=list)
    _cut: int = 0  # where the first block begins that may still change
    _n_closed: int = 0  # blocks before that
    _references: dict[str, Any] = field(default_factory=dict)  # addresses of links, defined before that

    def add(self, more: str) -> None:
        """Adds text, which `change` renders."""
        self.text += more.replace("\r", "")

    def change(self, *, ended: bool = False) -> Change | None:
        """Renders what is new; None if nothing looks different.

        Args:
            ended: whether this is the whole text. Then all is rendered, as if it had not grown.
        """
        if ended:
            return self._replace(0, render(self.text))
        tail = self.text[self._cut : LONGEST]
        found, env = self._read(tail)
        changed = self._replace(self._n_closed, [block.html for block in found])
        self._close(tail, found, env["references"])
        return changed

    def _read(self, tail: str) -> tuple[list[_Block], dict[str, Any]]:
        env = {"references": dict(self._references), GROWING: True}
        found = _blocks(tail, env)
        completed = _with_table(tail, found)
        if completed is not None:
            env = {"references": dict(self._references), GROWING: True}
            found = _blocks(completed, env)
        return found, env

    def _replace(self, first: int, new: Sequence[str]) -> Change | None:
        """Replaces the blocks from one on."""
        old = self.blocks[first:]
        n_same = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
        if n_same == len(old) == len(new):
            return None
        self.blocks[first + n_same :] = new[n_same:]
        return Change(first + n_same, tuple(new[n_same:]))

    def _close(self, tail: str, found: Sequence[_Block], references: Mapping[str, Any]) -> None:
        """Closes the blocks before the last one that begins with a whole line.

        The last line may still turn out to belong to the block before it.
        """
        n_whole = tail.count("\n")
        last = max((place for place, block in enumerate(found) if block.line < n_whole), default=0)
        if last == 0:
            return
        line = found[last].line
        known = {name: each for name, each in references.items() if each["map"][1] <= line}
        self._references = {name: each | {"map": [0, 0]} for name, each in known.items()}
        self._cut += sum(len(each) + 1 for each in tail.split("\n")[:line])
        self._n_closed += last


def render(text: str) -> list[str]:
    """The blocks of a whole text."""
    blocks = [block.html for block in _blocks(text[:LONGEST], {})]
    return blocks + ([f'<p class="plain">{html.escape(text[LONGEST:])}</p>'] if len(text) > LONGEST else [])


def _blocks(text: str, env: dict[str, Any]) -> list[_Block]:
    found: list[_Block] = []
    tokens, begun = PARSER.parse(text, env), 0
    env.setdefault("references", {})
    for place, token in enumerate(tokens):
        if token.level == 0 and token.nesting <= 0:
            first = tokens[begun]
            kind, line = first.type, first.map[0] if first.map else 0
            written = PARSER.renderer.render(tokens[begun : place + 1], PARSER.options, env)
            found.append(_Block(written.strip(), kind, line))
            begun = place + 1
    return found


def _with_table(text: str, found: Sequence[_Block]) -> str | None:
    """The text with the rule below a table's head, if it ends with such a head and the rule has not come."""
    if not found or found[-1].kind != "paragraph_open":
        return None
    lines = text.split("\n")
    if len(lines) > 1 and _RULE.fullmatch(lines[-1]):
        lines.pop()
    head, before = lines[-1], lines[-2] if len(lines) > 1 else ""
    if not _HEAD.match(head) or before.lstrip().startswith("|"):
        return None
    n_cells = len(head.strip().strip("|").split("|"))
    return "\n".join([*lines, "|" + "---|" * n_cells])
