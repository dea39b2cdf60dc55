"""What one sees while a model loads or reads, and what Ctrl-C does at every moment."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rich.theme import Theme

from mimo_gguf.cli import chat_asking, chat_loop
from mimo_gguf.cli.chat_loop import ChatLoop
from mimo_gguf.cli.live_rows import Clock, LiveRows
from mimo_gguf.cli.loading import loading

CTRL_C = signal.SIGINT


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def console(out: io.StringIO, term: str = "xterm", *, is_terminal: bool = True) -> Console:
    theme = Theme({"note": "dim"})
    return Console(file=out, force_terminal=is_terminal, width=80, theme=theme, _environ={"TERM": term})


def test_a_clock_ticks_and_leaves_nothing() -> None:
    out = io.StringIO()
    clock = Clock(LiveRows(console(out)), tick_s=0.01)
    clock.start("loading")
    until(lambda: "loading, 0 s" in out.getvalue())
    clock.text = "reading 512 of 700 tokens"
    until(lambda: "reading 512 of 700 tokens, 0 s" in out.getvalue())
    clock.stop()
    shown = out.getvalue()
    assert shown.endswith("\r\x1b[2K")
    clock.stop()
    assert out.getvalue() == shown


@pytest.mark.parametrize(("term", "is_terminal"), [("dumb", True), ("xterm", False)])
def test_nothing_ticks_elsewhere(term: str, is_terminal: bool) -> None:
    out = io.StringIO()
    clock = Clock(LiveRows(console(out, term, is_terminal=is_terminal)), tick_s=0.001)
    clock.start("loading")
    time.sleep(0.05)
    clock.stop()
    assert out.getvalue() == ""


def test_a_prompt_being_read_is_told(loop: ChatLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    loop.talk.screen._clock = Clock(LiveRows(console(out)), tick_s=0.01)
    step = loop.talk.model.session.step

    def slowly(samplers: Any) -> Any:
        loop.talk.model.session.step = step  # type: ignore[method-assign]
        until(lambda: "reading the prompt, 0 s" in out.getvalue())
        return step(samplers)

    monkeypatch.setattr(loop.talk.model.session, "step", slowly)
    loop.run_line("Who are you?")
    assert out.getvalue().endswith("\r\x1b[2K")


def test_ctrl_c_while_loading_ends_the_program() -> None:
    """Even inside llama.cpp's calls back, where ctypes would swallow a KeyboardInterrupt and print its traceback."""
    program = """
import ctypes, signal
from mimo_gguf.cli.loading import loading
signal.signal(signal.SIGINT, signal.default_int_handler)
with loading(shown=False, alive=False) as tell:
    tell(None)
    ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal(signal.SIGINT))()
    print("went on")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-CTRL_C, "", "")


def test_ctrl_c_is_as_before_when_loaded() -> None:
    before = signal.getsignal(CTRL_C)
    with loading(shown=False, alive=False) as tell:
        tell(None)  # type: ignore[arg-type]
    assert signal.getsignal(CTRL_C) is before


def test_ctrl_c_pressed_again_at_once_means_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[bool] = []
    model: Any = SimpleNamespace(cancel=lambda: stopped.append(True))
    with chat_asking.interruptible(model):
        for _ in range(3):
            signal.raise_signal(CTRL_C)
    assert stopped == [True, True, True]
    monkeypatch.setattr(chat_asking, "_PATIENCE_S", -1.0)
    with pytest.raises(KeyboardInterrupt), chat_asking.interruptible(model):
        signal.raise_signal(CTRL_C)


class Editor:
    """Types the lines given, then Ctrl-D."""

    def __init__(self, *lines: str) -> None:
        self.lines = list(lines)

    def prompt(self, *_: object, **__: object) -> str:
        if not self.lines:
            raise EOFError
        return self.lines.pop(0)


@pytest.mark.parametrize("loop", [True, False], indirect=True, ids=["MTP", "plain"])
@pytest.mark.parametrize(("at", "call"), [("show", 3), ("_decode", 1), ("_decode", 3)])
def test_an_interrupt_costs_neither_conversation_nor_exactness(
    loop: ChatLoop, at: str, call: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loop.run_line("Who are you?")
    loop.run_line("What is 1 + 1?")
    expected = loop.talk.conversation.turns.pop()
    owner: Any = loop.talk.screen if at == "show" else loop.talk.model.session
    really = getattr(owner, at)
    calls: list[object] = []

    def interrupted(*arguments: Any) -> Any:
        result = really(*arguments)
        calls.append(None)
        if len(calls) == call:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(owner, at, interrupted)
    monkeypatch.setattr(chat_loop, "line_editor", lambda _: Editor("What is 1 + 1?", "What is 1 + 1?"))
    loop.run()
    assert len(calls) > call and "interrupted" in capsys.readouterr().err
    assert loop.talk.conversation.turns[1:] == [expected]
