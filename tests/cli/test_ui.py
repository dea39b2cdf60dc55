"""Lines for people: broken where they can be read, in one piece where they are to be copied."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mimo_gguf.cli import ui
from mimo_gguf.core.errors import UsageError


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Both consoles as one terminal of 40 columns."""
    out = io.StringIO()
    for name in ("out", "err"):
        console = Console(
            file=out, theme=ui._THEME, force_terminal=True, no_color=True, color_system=None, width=40, soft_wrap=True
        )
        monkeypatch.setattr(ui, name, console)
    return out


def test_errors_and_hints_are_broken_between_words(screen: io.StringIO) -> None:
    ui.print_error(
        UsageError("no setting 'speed' among those there are", hint="one of: temp, repeat_penalty, seed, dry")
    )
    ui.print_warning("the window is nearly full of words that somebody said")
    assert screen.getvalue().splitlines() == [
        "error: no setting 'speed' among those",
        "there are",
        "hint: one of: temp, repeat_penalty,",
        "seed, dry",
        "warning: the window is nearly full of",
        "words that somebody said",
    ]


def test_commands_are_not_broken(screen: io.StringIO) -> None:
    hint = "look at the file: mimo-gguf inspect a/rather/long/path/to/a/model.gguf --tensors"
    ui.print_error(UsageError("x", hint=hint))
    assert screen.getvalue() == f"error: x\nhint: {hint}\n"


def test_lines_for_a_pipe_are_not_broken(capsys: pytest.CaptureFixture[str]) -> None:
    ui.print_error(UsageError("word " * 50 + "end", hint="word " * 50 + "end"))
    ui.print_joined(["12 'a'"] * 100, "  ")
    shown = capsys.readouterr()
    assert (shown.err.count("\n"), shown.out.count("\n")) == (2, 1)


def test_joined_parts_stay_whole(screen: io.StringIO) -> None:
    ui.print_joined(["1 ' and so'", "2 ' it'", "3 '中文中文'", "4 ' on'"], "  ")
    assert screen.getvalue().splitlines() == ["1 ' and so'  2 ' it'  3 '中文中文'", "4 ' on'"]
