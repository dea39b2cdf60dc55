"""Answers as a terminal shows them: nothing a model wrote is lost, and all of it can be read."""

from __future__ import annotations

import io

import pytest
from rich.color import Color, ColorType
from rich.console import Console
from rich.style import Style

from mimo_gguf.chat.reasoning import Kind, Piece
from mimo_gguf.cli import ui
from mimo_gguf.cli.chat_screen import TerminalScreen
from mimo_gguf.cli.markdown import markdown_rows, split_blocks

ANSWER = """# Title

Some *text* with `code`,
a second line, <b>HTML</b> and [a link](https://example.org/x_y).

1. first

   ```python
   x = "a"  # wide
   ```

2. second
   - below

| a | b |
|---|--:|
| 1 | 2 |

\\[
a_1 * b_2 * c \\\\
- d
\\]

So \\(x_1 * y_1 * z\\) costs $5 and $6, $a_1*b_1*c$ not, 中文.
"""


def shown(text: str, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    return "\n".join("".join(segment.text for segment in row) for row in markdown_rows(text, console))


def test_what_was_written_stands_there() -> None:
    rows = shown(ANSWER).splitlines()
    for row in (
        "Title",
        "a second line, <b>HTML</b> and a link (https://example.org/x_y).",
        '      x = "a"  # wide',
        "     • below",
        "a_1 * b_2 * c \\\\",
        "- d",
        "So \\(x_1 * y_1 * z\\) costs $5 and $6, $a_1*b_1*c$ not, 中文.",
    ):
        assert row in rows, (row, rows)
    assert "Some text with code," in rows


def test_lists_are_numbered_as_they_were_written() -> None:
    text = "9. nine\n10. ten, " + "and so on " * 4 + "\n\n1) one\n2) two\n\n2024. A year."
    assert shown(text, 30).splitlines() == [
        "  9. nine",
        " 10. ten, and so on and so on",
        "     and so on and so on",
        "",
        " 1) one",
        " 2) two",
        "",
        " 2024. A year.",
    ]


@pytest.mark.parametrize("width", [20, 80, 120])
def test_rows_keep_to_the_width(width: int) -> None:
    console = Console(width=width)
    for row in markdown_rows(ANSWER, console):
        assert sum(segment.cell_length for segment in row) <= width


@pytest.mark.parametrize("n_columns", [3, 12, 60])
@pytest.mark.parametrize("width", [20, 80])
def test_nothing_of_a_wide_table_is_lost(n_columns: int, width: int) -> None:
    cells = [f"cell_{i}_of_some_length" for i in range(n_columns)]
    table = "\n".join(f"|{'|'.join(row)}|" for row in ([f"h{i}" for i in range(n_columns)], ["--"] * n_columns, cells))
    rows = shown(table, width).splitlines()
    assert all(len(row) <= width for row in rows)
    heads = [f"h{i}" for i in range(n_columns)]
    assert sorted("".join(rows).translate(dict.fromkeys(map(ord, " ─:")))) == sorted("".join(heads + cells))


def test_images_and_addresses_are_shown_once() -> None:
    assert shown("![a *cat*](http://x/y) <https://x.org/> [z](w)") == "a *cat* (http://x/y) https://x.org/ z (w)"


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("one\n\ntwo", "one\n\n"), ("one\ntwo", ""), ("```\na\n\nb", ""),
        ("```\na\n\nb\n```\n\nc", "```\na\n\nb\n```\n\n"),
        ("````\n```\n\n````\n\nc", "````\n```\n\n````\n\n"),
        ("~~~\n```\n\nc", ""), ("```\n```py\n\nc", ""),
        ("", ""), ("- a\n- b\n\n", ""), ("- a\n\n  more\n\nb", "- a\n\n  more\n\n"),
    ],
)  # fmt: skip
def test_blocks_are_cut_where_they_end(text: str, whole: str) -> None:
    assert split_blocks(text) == (whole, text[len(whole) :])


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_streamed_as_whole(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces of any size the same rows stand in a log in the end (where nothing is redrawn)."""
    console = Console(file=io.StringIO(), width=80, theme=ui._THEME, soft_wrap=True)
    monkeypatch.setattr(ui, "out", console)
    screen = TerminalScreen()
    for kind, text in ((Kind.REASONING, "Let me think.\nDone."), (Kind.ANSWER, ANSWER)):
        for at in range(0, len(text), size):
            screen.show(Piece(kind, text[at : at + size]), 1)
    screen.warn("x")
    printed = [line for line in console.file.getvalue().splitlines() if line.strip()]  # type: ignore[attr-defined]
    expected = ["Let me think.", "Done.", *(line for line in shown(ANSWER).splitlines() if line.strip())]
    assert [line.rstrip() for line in printed] == [line.rstrip() for line in expected]


def test_a_model_moves_no_cursor() -> None:
    assert ui.visible("a\x1b[2J\x07\n\tb\x9b") == "a\u241b[2J\u2407\n\tb\ufffd"


def luminance(colour: Color) -> float:
    """WCAG 2's relative luminance."""
    parts = [value / 255 for value in colour.get_truecolor()]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("name", ui.TONES)
def test_colours_can_be_read_on_black_and_on_white(name: str) -> None:
    """3:1 is what WCAG 2 asks for on a screen's parts and large text."""
    light = luminance(Color.parse(ui.TONES[name]))
    assert (1.05) / (light + 0.05) >= 3 and (light + 0.05) / 0.05 >= 3


def test_no_colour_of_the_terminals_own_palette_is_used() -> None:
    """Its yellow, cyan and blue are unreadable on one background or the other."""
    console = Console(width=60, force_terminal=True, color_system="256")
    styles = [segment.style or Style() for row in markdown_rows(ANSWER, console) for segment in row]
    colours = {style.color for style in styles if style.color}
    assert colours and all(colour.type is ColorType.EIGHT_BIT for colour in colours)
    assert not any(style.bgcolor for style in styles)
