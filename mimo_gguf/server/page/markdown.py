"""Renders Markdown, as models write it, to HTML that is safe to show: no HTML of the text, no picture, few links.

Maths (`\\(x\\)`, `$x$`, `\\[x\\]`, `$$x$$`) becomes MathML. A text that still grows is completed as it will probably go
on: an open formula stays as it is written, an open table is one, and open marks are closed.
"""

from __future__ import annotations

import html
import re
from collections.abc import MutableMapping, Sequence
from typing import Any, Final

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markdown_it.utils import OptionsDict

from mimo_gguf.server.page.code import coloured
from mimo_gguf.server.page.maths import to_mathml

Env = MutableMapping[str, Any]
GROWING: Final = "growing"  # the key of an environment whose text is not at its end
_LINK: Final = re.compile(r"(?:https?://|mailto:)[^\s]", re.IGNORECASE)
_PRE: Final = {"dir": "ltr", "tabindex": "0"}
_LINES: Final = 200  # of a formula
_MARKS: Final = re.compile(r"[\[\]*_`$\\~<&!]")
_MOST_MARKS: Final = 1500  # in one paragraph; the time that finding their ends takes grows with the square
_ENDS: Final = {"\\(": "\\)", "\\[": "\\]", "$$": "$$", "$": "$"}
# A dollar opens maths before what is no space, and closes it after what is no space and before what is no digit.
_DOLLARS: Final = re.compile(r"\$(?![\s$])((?:\\.|[^$\\\n])+?)(?<!\s)\$(?!\d)")
_HALF_LINK: Final = re.compile(r"!?\[([^\[\]]*)\](?:\([^()\s]*)?$")
_TICKS: Final = re.compile(r"(?<!\\)`+")


class _Parser(MarkdownIt):
    def validateLink(self, url: str) -> bool:  # noqa: N802
        """Whether an address may be a link: the web's and mail's alone."""
        return bool(_LINK.match(url))


# ---- reading


def _inline_maths(state: StateInline, silent: bool) -> bool:
    found = _formula(state.src, state.pos, state.posMax, growing=GROWING in state.env)
    if found is None:
        return False
    tex, end, display = found
    if not silent:
        token = state.push("maths" if end <= state.posMax else "half_maths", "math", 0)
        token.content, token.meta = tex, {"display": display}
    state.pos = min(end, state.posMax)
    return True


def _formula(text: str, at: int, most: int, *, growing: bool) -> tuple[str, int, bool] | None:
    """The formula that begins at a place: its LaTeX, the place after it, and whether it is displayed.

    The place is beyond `most` if the formula has no end yet.
    """
    if text[at] not in "$\\":
        return None
    mark = text[at : at + 2]
    if mark not in _ENDS:
        found = _DOLLARS.match(text, at, most)
        return None if found is None else (found[1], found.end(), False)
    end = text.find(_ENDS[mark], at + 2, most)
    if end >= 0:
        tex = text[at + 2 : end].strip()
        return None if not tex else (tex, end + 2, mark != "\\(")
    return (text[at:most], most + 1, mark != "\\(") if growing and mark != "$$" else None


def _block_maths(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A formula that begins a line and ends one, whatever its lines begin with."""
    begin = state.bMarks[start] + state.tShift[start]
    mark = state.src[begin : begin + 2]
    if mark not in {"\\[", "$$"} or state.is_code_block(start):
        return False
    last = _last_line(state, start, end, begin, _ENDS[mark])
    if last is None and (GROWING not in state.env or end - start > _LINES):
        return False
    if silent:
        return True
    state.line = end if last is None else last + 1
    lines = state.getLines(start, state.line, state.blkIndent, False).strip()
    token = state.push("half_maths" if last is None else "maths", "math", 0)
    token.content, token.block, token.map = lines if last is None else lines[2:-2].strip(), True, [start, state.line]
    token.meta = {"display": True}
    return True


def _last_line(state: StateBlock, start: int, end: int, begin: int, closing: str) -> int | None:
    """The line that ends with the closing mark of a formula; None if there is none before the paragraph's end."""
    end = min(end, start + _LINES)
    if state.src.find(closing, begin + 2, state.eMarks[end - 1]) < 0:
        return None
    for line in range(start, end):
        first = begin + 2 if line == start else state.bMarks[line] + state.tShift[line]
        text = state.src[first : state.eMarks[line]].rstrip()
        if text.endswith(closing):
            return line
        if closing in text or (closing == "$$" and line > start and not text):
            return None
    return None


def _complete(state: StateCore) -> None:
    """Closes the marks that the last line of a growing text has open. Paragraphs of marks alone become plain."""
    for token in state.tokens:
        if token.type == "inline" and len(_MARKS.findall(token.content)) > _MOST_MARKS:
            token.type = "plain"
    if GROWING in state.env and state.tokens:
        inline = next((token for token in reversed(state.tokens) if token.type == "inline"), None)
        last = state.tokens[-1]
        if inline is not None and last.nesting == -1:
            inline.content = completed(inline.content)


def completed(text: str) -> str:
    """A paragraph whose end has not come, with its open marks closed, and without a mark that has only begun."""
    text = text.rstrip("\\$")
    if text.rfind("\\(") > text.rfind("\\)") or text.rfind("\\[") > text.rfind("\\]"):
        return text  # within a formula marks mean something else
    marks = _TICKS.findall(text)
    opened = ""
    for mark in marks:
        opened = "" if mark == opened else opened or mark
    if opened:
        return text.rstrip("`") if text.endswith(opened) else text + opened
    text = _HALF_LINK.sub(r"\1", text)
    if text.count("**") % 2:
        text = text.removesuffix("**").rstrip() if text.endswith("**") else f"{text.rstrip().rstrip('*')}**"
    return text


def _parser() -> _Parser:
    parser = _Parser("commonmark", {"html": False, "breaks": True, "maxNesting": 20})
    parser.enable(["strikethrough", "table"]).disable(["html_block", "html_inline"])
    parser.inline.ruler.before("escape", "maths", _inline_maths)
    parser.block.ruler.before("fence", "maths", _block_maths, {"alt": ["paragraph", "blockquote", "list"]})
    parser.core.ruler.before("inline", "complete", _complete)
    for name, rule in _RULES.items():
        parser.add_render_rule(name, rule)
    return parser


# ---- writing

Options = OptionsDict
Tokens = Sequence[Token]


def _maths(self: RendererHTML, tokens: Tokens, index: int, options: Options, env: Env) -> str:
    token = tokens[index]
    display = bool(token.meta["display"])
    made = to_mathml(token.content, display=display)
    if made is None:
        return _half_maths(self, tokens, index, options, env)
    return f'<div class="formula" tabindex="0">{made}</div>' if token.block else made


def _half_maths(self: RendererHTML, tokens: Tokens, index: int, options: Options, env: Env) -> str:
    token = tokens[index]
    name = "div" if token.block else "span"
    return f'<{name} class="tex" dir="ltr">{html.escape(token.content)}</{name}>'


def _plain(self: RendererHTML, tokens: Tokens, index: int, options: Options, env: Env) -> str:
    return html.escape(tokens[index].content)


def _code(self: RendererHTML, tokens: Tokens, index: int, options: Options, env: Env) -> str:
    token = tokens[index]
    language = token.info.split()[0][:30] if token.info.split() else ""
    shown = html.escape(language) or "text"
    return (
        f'<figure class="code"><figcaption><span>{shown}</span><button type="button" data-copy>Copy</button>'
        f'</figcaption><pre dir="ltr" tabindex="0"><code>{coloured(token.content, language)}</code></pre></figure>'
    )


def _link(self: RendererHTML, tokens: Tokens, index: int, options: Options, env: Env) -> str:
    token = tokens[index]
    token.attrs = {"href": token.attrs["href"], "target": "_blank", "rel": "noopener noreferrer nofollow"}
    return self.renderToken(tokens, index, options, env)


def _image(self: RendererHTML, tokens: Tokens, index: int, options: Options, env: Env) -> str:
    """A picture is not fetched: its description leads to it."""
    token = tokens[index]
    shown = html.escape(token.content or "picture")
    address = html.escape(str(token.attrs["src"]))
    return f'<a href="{address}" target="_blank" rel="noopener noreferrer nofollow">{shown}</a>'


def _own_direction(self: RendererHTML, tokens: Tokens, index: int, options: Options, env: Env) -> str:
    """Each paragraph, item and cell has the direction of its own text."""
    token = tokens[index]
    align = str(token.attrs.pop("style", "")).rpartition(":")[2]
    token.attrs["dir"] = "auto"
    if align:
        token.attrs["class"] = f"at-{align}"
    return self.renderToken(tokens, index, options, env)


def _heading(self: RendererHTML, tokens: Tokens, index: int, options: Options, env: Env) -> str:
    """A heading below those of the page."""
    token = tokens[index]
    token.tag = f"h{min(int(token.tag[1:]) + 2, 6)}"
    if token.nesting == 1:
        token.attrs["dir"] = "auto"
    return self.renderToken(tokens, index, options, env)


def _table_open(self: RendererHTML, tokens: Tokens, index: int, options: Options, env: Env) -> str:
    return '<div class="table" role="region" aria-label="Table" tabindex="0"><table>'


def _table_close(self: RendererHTML, tokens: Tokens, index: int, options: Options, env: Env) -> str:
    return "</table></div>"


_RULES: Final = {
    "maths": _maths, "half_maths": _half_maths, "plain": _plain,
    "fence": _code, "code_block": _code, "link_open": _link,
    "image": _image, "paragraph_open": _own_direction, "list_item_open": _own_direction, "th_open": _own_direction,
    "td_open": _own_direction, "heading_open": _heading, "heading_close": _heading, "table_open": _table_open,
    "table_close": _table_close,
}  # fmt: skip
PARSER: Final = _parser()
