"""The line that shows how far a measurement is."""

from __future__ import annotations

import pytest

from mimo_gguf.cli.quality_screen import QualityScreen, showing


def test_speed_and_time_left_count_only_this_run(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    screen = QualityScreen(quiet=False, clock=lambda: now[0])
    screen.update("a.gguf", 1000, 5000)
    now[0] = 1.0
    screen.update("a.gguf", 1100, 5000)  # too soon for another line
    now[0] = 10.0
    screen.update("a.gguf", 2000, 5000)
    screen.update("answers", 3, 8, "conversations")
    assert capsys.readouterr().err.splitlines() == [
        "a.gguf: 1000 of 5000 tokens",
        "a.gguf: 2000 of 5000 tokens, 100 tok/s, 30 s left",
        "answers: 3 of 8 conversations",
    ]


def test_ctrl_c_says_that_it_goes_on_and_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), showing(quiet=True) as screen:
        screen.update("a.gguf", 1, 2)
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "stopped; the same command goes on from here\n"
