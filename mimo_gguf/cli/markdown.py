"""Shows Markdown, as models write it, in a terminal.

Maths (`\\( x_1 \\)`, `$x$`, `\\[ ... \\]`) and HTML are shown as they were written, and line ends are kept. Links show
their addresses. The colours can be read on light and on dark backgrounds.
"""

from __future__ import annotations

import re
from typing import Final

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.markdown import CodeBlock, Heading, ListItem, Markdown, TableDataElement, TableElement
from rich.padding import Padding
from rich.segment import Segment
from rich.style import Style
from rich.syntax import ANSI_LIGHT, ANSISyntaxTheme, Syntax
from rich.text import Text
from rich.theme import Theme

from mimo_gguf.cli.ui import TONES

_THEME: Final = Theme(
    {
        "markdown.h1": "bold underline", "markdown.h2": "bold underline", "markdown.h3": "bold",
        "markdown.h4": "bold", "markdown.h5": "italic", "markdown.h6": "italic",
        "markdown.code": f"bold {TONES['cyan']}", "markdown.code_block": "none",
        "markdown.item.bullet": "bold", "markdown.item.number": "bold",
        "markdown.block_quote": "italic", "markdown.hr": "dim",
        "markdown.link": "underline", "markdown.link_url": TONES["cyan"],
        "markdown.table.header": "bold", "markdown.table.border": "dim",
    }
)  # fmt: skip


def _toned(style: Style) -> Style:
    """Replaces the colour of `style` by the tone of that name."""
    name = style.color.name.removeprefix("bright_") if style.color else ""
    return style + Style.parse(TONES[name]) if name in TONES else style.without_color


_CODE_THEME: Final = ANSISyntaxTheme({token: _toned(style) for token, style in ANSI_LIGHT.items()})


def markdown_rows(text: str, console: Console) -> list[list[Segment]]:
    """Renders `text` in rows for `console`, without blank rows at either end."""
    with console.use_theme(_THEME):
        rows = [_without_end(row) for row in console.render_lines(_Document(text), pad=False)]
    shown = [i for i, row in enumerate(rows) if row]
    return rows[shown[0] : shown[-1] + 1] if shown else []


def _without_end(row: list[Segment]) -> list[Segment]:
    """Removes the spaces that only fill a row."""
    while row and not row[-1].text.strip():
        row = row[:-1]
    return [*row[:-1], Segment(row[-1].text.rstrip(), row[-1].style)] if row else []


def split_blocks(text: str) -> tuple[str, str]:
    """Splits text into (complete Markdown blocks, the unfinished rest).

    It cuts at the last blank line outside a code fence before a line without indent: an indented line would still
    belong to the list item above.
    """
    cut, at, blank, fence = 0, 0, False, ""
    for line in text.splitlines(keepends=True):
        if blank and not fence and line.strip() and not line[0].isspace():
            cut = at
        at += len(line)
        marks = _FENCE.match(line)
        if marks and not fence:
            fence = marks[1]
        elif marks and marks[1].startswith(fence) and not marks[2].strip():
            fence = ""
        blank = not line.strip()
    return text[:cut], text[cut:]


_FENCE: Final = re.compile(r"\s*(`{3,}|~{3,})(.*)")


# ---- reading: CommonMark with tables, without HTML, with maths

_MATHS: Final = re.compile(r"\\\(.+?\\\)|\\\[.+?\\\]|\$\$.+?\$\$|\$(?!\s)[^$\n]+(?<!\s)\$(?!\d)", re.DOTALL)
_MATHS_END: Final = {"\\[": "\\]", "$$": "$$"}


def _inline_maths(state: StateInline, silent: bool) -> bool:
    found = _MATHS.match(state.src, state.pos)
    if found is None:
        return False
    if not silent:
        state.push("text", "", 0).content = found.group()
    state.pos = found.end()
    return True


def _block_maths(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Makes one paragraph of the lines from an opening mark to its closing one, whatever they begin with."""
    begin = state.bMarks[start] + state.tShift[start]
    closing = _MATHS_END.get(state.src[begin : begin + 2])
    at = state.src.find(closing, begin + 2, state.eMarks[end - 1]) if closing else -1
    if at < 0:
        return False
    if not silent:
        state.line = next(line for line in range(start, end) if state.eMarks[line] > at) + 1
        state.push("paragraph_open", "p", 1)
        inline = state.push("inline", "", 0)
        inline.content, inline.children = state.getLines(start, state.line, state.blkIndent, False).strip(), []
        state.push("paragraph_close", "p", -1)
    return True


def _parser() -> MarkdownIt:
    parser = MarkdownIt().enable(["strikethrough", "table"]).disable(["html_block", "html_inline"])
    parser.inline.ruler.before("escape", "maths", _inline_maths)
    parser.block.ruler.before("fence", "maths", _block_maths, {"alt": ["paragraph", "blockquote", "list"]})
    return parser


_PARSER: Final = _parser()


# ---- showing: rich's Markdown, with plainer headings and code, and lists as they were numbered


class _Heading(Heading):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.text


class _Code(CodeBlock):
    """A code block: indented by two columns, long lines wrapped, without a background."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = Syntax(str(self.text).rstrip(), self.lexer_name, theme=_CODE_THEME, word_wrap=True)
        yield Padding(code, (0, 0, 0, 2))


class _Item(ListItem):
    """A list item whose number is shown as it was written: `1.` or `1)`."""

    def __init__(self, mark: str) -> None:
        super().__init__()
        self.mark = mark

    @classmethod
    def create(cls, markdown: Markdown, token: Token) -> _Item:
        return cls(token.markup)

    def render_number(self, console: Console, options: ConsoleOptions, number: int, last_number: int) -> RenderResult:
        width = len(f" {last_number - 1}{self.mark} ")  # rich counts one too many
        numeral = Segment(f"{number}{self.mark} ".rjust(width), console.get_style("markdown.item.number"))
        rows = console.render_lines(self.elements, options.update(width=options.max_width - width), style=self.style)
        for i, row in enumerate(rows):
            yield Segment(" " * width) if i else numeral
            yield from row
            yield Segment.line()


class _Cell(TableDataElement):
    """A cell whose words are broken, not cut, if the column is narrow."""

    def __init__(self, justify: JustifyMethod) -> None:
        super().__init__(justify)
        self.content.overflow = "fold"


class _Table(TableElement):
    """A table. If it is too wide to be readable, each row is shown as a list of its cells."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        head = [cell.content for cell in self.header.row.cells] if self.header and self.header.row else []
        rows = [[cell.content for cell in row.cells] for row in self.body.rows] if self.body else []
        widths = [max(cell.cell_len for cell in column) for column in zip(head, *rows, strict=True)]
        if sum(min(width, _NARROW) + 2 for width in widths) <= options.max_width:
            yield from super().__rich_console__(console, options)
            return
        for name in head:
            name.stylize("markdown.table.header")
        for row in rows or [[Text()] * len(head)]:
            yield from (Text.assemble(name, ": ", cell) for name, cell in zip(head, row, strict=True))
            yield Text()


_NARROW: Final = 10  # columns of a cell that can still be read


class _Document(Markdown):
    elements = {  # noqa: RUF012
        **Markdown.elements, "heading_open": _Heading, "fence": _Code, "code_block": _Code,
        "list_item_open": _Item, "table_open": _Table, "th_open": _Cell, "td_open": _Cell,
    }  # fmt: skip

    def __init__(self, text: str) -> None:
        super().__init__("", hyperlinks=False)
        self.parsed = _PARSER.parse(text)
        for token in self.parsed:
            token.children = [_plainer(child) for child in token.children or () if child.info != "auto"]


def _plainer(token: Token) -> Token:
    """Keeps line ends, and turns an image into its description and address."""
    if token.type == "image":
        return Token("text", "", 0, content=f"{token.content} ({token.attrs['src']})")
    if token.type == "softbreak":
        token.type = "hardbreak"
    return token
