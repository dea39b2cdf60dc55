"""What the renderer makes of texts: the right elements, and never one that the page does not expect."""

from __future__ import annotations

import re
import time
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mimo_gguf.server.page import growing, maths
from mimo_gguf.server.page.growing import GrowingText, render
from mimo_gguf.server.page.maths import to_mathml

KNOWN = """
p h3 h4 h5 h6 ul ol li blockquote hr br strong em s code pre figure figcaption span div button table thead tbody tr th
td a math mrow mi mn mo mtext mspace ms mfrac msqrt mroot mstyle merror mpadded mphantom msub msup msubsup munder
mover munderover mmultiscripts mprescripts mtable mtr mtd
"""
ELEMENTS = frozenset(KNOWN.split())
ATTRIBUTES = {
    "dir", "class", "href", "target", "rel", "tabindex", "role", "aria-label", "type", "data-copy", "start", "title",
    *maths._WORDS, *maths._SIZES,
}  # fmt: skip


class Checked(HTMLParser):
    """Reads HTML, and checks that every element is closed, known, and has known attributes."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.said: list[str] = []
        self.links: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ELEMENTS, tag
        for name, value in attrs:
            assert name in ATTRIBUTES, name
            if name == "href":
                assert value is not None and re.match(r"(?i)https?://|mailto:", value), value
                self.links.append(value)
        if tag not in {"br", "hr"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in {"br", "hr", "mspace"}
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    def handle_decl(self, decl: str) -> None:
        raise AssertionError(decl)

    def handle_pi(self, data: str) -> None:
        raise AssertionError(data)

    def unknown_decl(self, data: str) -> None:
        raise AssertionError(data)


def shown(text: str) -> str:
    html = "".join(render(text))
    Checked(html)
    return html


PARTS = st.sampled_from(
    [
        "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[a](javascript:alert(1))",
        "![p](data:text/html,x)",
        "<https://a.example/>", "[b](https://b.example/ \"t'><b>\")", "[x]: vbscript:x\n", "[x]", "\n\n", "\n", "    ",
        "```html\n<b>\n```\n", "```\"><svg onload=x>\n", "~~~", "`", "**", "*", "~~", "# ", "> ", "- ", "1. ", "---\n",
        "| a | b |\n|---|:-:|\n| c | <i> |\n", "|", "\\(", "\\)", "\\[", "\\]", "$$", "$", "\\frac{1}{2}",
        "\\text{<b>}", "\\href{javascript:x}{y}", "\\style{color:red}{z}", "\\class{a\" onclick=\"b}{c}",
        "\\unicode{x3c}script>",
        "\\text{&#x3c;script&#x3e;}", "&lt;b&gt;", "&#0;", "\\begin{matrix} a & b \\\\ c \\end{matrix}", "\\left( x",
        "\\color{red\" onload=\"x}{y}", "\\hspace{1em\" x=\"}", "שלום", "\u202e", "\x00", "\ud7ff", "word ",
        "5 < 6 & 7",
    ]
)  # fmt: skip
TEXTS = st.lists(st.one_of(PARTS, st.text(max_size=8)), max_size=12).map("".join)


@settings(max_examples=80, deadline=None)
@given(TEXTS)
@example("[a]( javascript:alert(1))\n\n[b](JaVaScRiPt:x) [c](&#106;avascript:x) [d](\x01javascript:x) <javascript:x>")
@example("$\\text{<img src=x onerror=alert(1)>}$ \\(\\mbox{&lt;script&gt;}\\)")
def test_nothing_of_a_text_becomes_markup(text: str) -> None:
    shown(text)


@settings(max_examples=40, deadline=None)
@given(TEXTS, st.lists(st.integers(1, 30), min_size=1, max_size=20))
@example("| a | b |\n|---|---|\n| 1 | 2 |\n\nend", [3, 1])
@example("a\n-\n- b\n\n  c\n\n\\[\nx\n\\]\n[k]: https://k.example/pa\n\n[k]", [1])
def test_a_text_that_grew_is_shown_as_if_it_had_not(text: str, steps: list[int]) -> None:
    kept, page, at = GrowingText(), [""] * 0, 0
    text = text.replace("\r", "")
    while at < len(text):
        step = steps[at % len(steps)]
        kept.add(text[at : at + step])
        at += step
        page = patched(page, kept.change())
        Checked("".join(page))
    assert patched(page, kept.change(ended=True)) == render(text) == kept.blocks


def patched(page: list[str], change: growing.Change | None) -> list[str]:
    """What the browser shows after a change."""
    if change is None:
        return page
    assert change.start <= len(page)
    return [*page[: change.start], *change.blocks]


def test_only_the_last_blocks_are_rendered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[int] = []
    real = growing._blocks
    monkeypatch.setattr(growing, "_blocks", lambda text, env: rendered.append(len(text)) or real(text, env))
    kept = GrowingText()
    paragraph = "Some words about something, which make a paragraph.\n\n"
    for place in range(200):
        kept.add(paragraph)
        change = kept.change()
        assert change is not None and change.start >= place - 1
    assert max(rendered) < 3 * len(paragraph)
    assert kept.change(ended=True) is None, "and the whole looks the same"


def growing_html(text: str) -> str:
    kept = GrowingText()
    kept.add(text)
    kept.change()
    html = "".join(kept.blocks)
    Checked(html)
    return html


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("the root \\(\\sqrt{2", ['<span class="tex" dir="ltr">\\(\\sqrt{2</span>']),
        ("\\[\nx = \\frac{1}", ['<div class="tex" dir="ltr">\\[\nx = \\frac{1}</div>']),
        ("$$\nx", ['<div class="tex"']),
        ("it costs $5 and", ["it costs $5 and"]),
        ("**bold", ["<strong>bold</strong>"]),
        ("**bold**", ["<strong>bold</strong>"]),
        ("a **", ["<p dir=\"auto\">a</p>"]),
        ("`code", ["<code>code</code>"]),
        ("see [this](https://exam", ["see this"]),
        ("```python\nprint(1", ["<figure", 'class="c-nb">print</span>']),
        ("| a | b |", ["<table>", "<th"]),
        ("Text:\n| a | b |\n|--", ["<table>", "Text:"]),
        ("| a | b |\n|---|---|\n| 1", ["<td", "1"]),
    ],
)  # fmt: skip
def test_an_open_end_looks_as_it_will(text: str, parts: list[str]) -> None:
    html = growing_html(text)
    for part in parts:
        assert part in html
    assert "**" not in html and "`" not in html


@pytest.mark.parametrize("tex", ["x^2 + y^2", "\\frac{a}{b}", "\\begin{aligned}a &= b\\\\ c &= d\\end{aligned}"])
def test_an_open_formula_does_not_flicker(tex: str) -> None:
    """While it comes it is shown as it was written, and becomes maths once."""
    kept = GrowingText()
    looks = []
    for mark in f"so \\({tex}\\) holds":
        kept.add(mark)
        if kept.change() is not None:
            looks.append("math" if "<math" in kept.blocks[0] else "tex" if 'class="tex"' in kept.blocks[0] else "words")
    changes = [look for place, look in enumerate(looks) if place == 0 or looks[place - 1] != look]
    assert changes == ["words", "tex", "math"]


@pytest.mark.parametrize(
    ("tex", "part"),
    [
        ("\\frac{1}{2}", "<mfrac>"),
        ("x_1^2", "<msubsup>"),
        ("\\boxed{42}", 'class="in-box"'),
        ("\\begin{aligned} a &= b \\\\ &= c \\end{aligned}", 'class="at-right"'),
        ("\\begin{cases} 1 & x > 0 \\\\ 0 & x \\le 0 \\end{cases}", "<mtable>"),
        ("\\begin{equation*} x \\end{equation*}", "<mi>x</mi>"),
        ("a < b", "<mo>&lt;</mo>"),
        ("\\text{<b>}", "&lt;b&gt;"),
    ],
)
def test_maths(tex: str, part: str) -> None:
    made = to_mathml(tex, display=True)
    assert made is not None and part in made
    ElementTree.fromstring(made)


@pytest.mark.parametrize(
    "tex",
    [
        "\\newcommand{\\a}{\\a\\a}\\a", "\\def\\x{y}\\x", "\\frac{1}", "{" * 5000, "x^" * 900, "\\sqrt" * 500,
        "x" * 5000,
        "\\begin{matrix}", "\\left(", "}", "\\frac", "a^b^c^d", "_", "&&&", "\\\\", "\\begin{a}" * 300,
    ],
)  # fmt: skip
def test_maths_that_is_none_is_refused_or_safe(tex: str) -> None:
    made = to_mathml(tex, display=False)
    if made is not None:
        Checked(made)
    html = shown(f"\\({tex}\\)")
    assert made is not None or 'class="tex"' in html or "math" not in html


@pytest.mark.parametrize(
    "text",
    [
        "[" * 20_000, "*a " * 20_000, "> " * 3_000, "- " * 3_000, "`" * 20_000 + "a", "$" * 20_000, "\\(" * 20_000,
        "| a " * 999 + "|\n" + "|---" * 999 + "|\n" + "| b " * 999, "<" * 20_000, "![" * 10_000, "[a](" * 5_000,
        "\\[\n" * 3_000, "$$\n\n" * 2_000, "$a " * 10_000, "```" + "a" * 20_000, "**a" * 10_000, "a\n|" * 2_000,
    ],
    ids=lambda text: text[:6],
)  # fmt: skip
def test_hostile_texts_take_no_long_time(text: str) -> None:
    began = time.process_time()
    shown(text)
    growing_html(text)
    assert time.process_time() - began < 4


def test_what_is_too_long_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "LONGEST", 9)
    first, rest = render("**a** <b> **c**<i>")
    assert first == '<p dir="auto"><strong>a</strong> &lt;b&gt;</p>' and rest == '<p class="plain"> **c**&lt;i&gt;</p>'


def test_links_pictures_headings_and_directions() -> None:
    html = shown("# Title\n\n[a](https://a.example) ![cat](https://c.example/cat.png) [m](mailto:a@b.example)\n\nשלום")
    assert "<h3" in html and "<img" not in html and ">cat</a>" in html
    assert html.count('rel="noopener noreferrer nofollow"') == 3 and html.count('dir="auto"') == 3
    aligned = shown("| a |\n|--:|\n| 1 |")
    assert 'class="at-right"' in aligned and "style" not in aligned


def test_unknown_languages_are_plain() -> None:
    assert "<span class" not in shown("```nosuchlanguage\nprint(1)\n```").replace("<span>", "")
    assert 'class="c-' in shown("```Python\nprint(1)\n```")
