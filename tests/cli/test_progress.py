"""Progress as it is drawn: in 80 columns, in a log, and after a resume."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mimo_gguf.cli import ui
from mimo_gguf.cli.progress import Bars, Lines, Meter, open_progress
from mimo_gguf.core.progress import Job
from mimo_gguf.core.units import GIB, MIB

JOBS = (Job("MiMo-7B-RL-0530-Q4_K_M.gguf", 15 * GIB), Job("MiMo-7B-RL-0530-Q6_K.gguf", 6 * GIB))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_an_earlier_run_left_is_done_but_no_speed() -> None:
    clock = Clock()
    meter = Meter(clock)
    meter.start([Job("a.gguf", 1000 * MIB)])
    clock.now += 30  # spent in checking it
    meter.update([400 * MIB], [400 * MIB])
    assert meter.total.describe() == "400.0 of 1000.0 MiB"
    clock.now += 10
    meter.update([600 * MIB], [400 * MIB])
    (pace,) = meter.paces
    assert (pace.percent, pace.bytes_per_s) == (60, 20 * MIB)
    assert pace.describe() == "600.0 of 1000.0 MiB  21 MB/s  20 s left"
    meter.update([1000 * MIB], [400 * MIB])
    assert meter.total.describe() == "1000.0 of 1000.0 MiB"


@pytest.mark.parametrize("width", [80, 120])
def test_a_bar_per_file_keeps_percentage_speed_and_time_left_in_80_columns(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(ui, "err", Console(file=screen, width=width, force_terminal=True, no_color=True))
    clock = Clock()
    bars = Bars(Meter(clock))
    bars.start(JOBS)
    clock.now += 10
    bars.update([11 * GIB, 2 * GIB], [0, 0])
    assert bars._rich is not None
    shown = io.StringIO()
    Console(file=shown, width=width).print(bars._rich.get_renderable())
    bars.finish()
    lines = shown.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(JOBS[0].name) and " 73 % " in lines[0]
    assert lines[0].rstrip().endswith("11.00 of 15.00 GiB  1181 MB/s  4 s left")
    assert lines[1].rstrip().endswith("2.00 of 6.00 GiB  215 MB/s  20 s left")


def test_a_log_gets_a_line_every_five_seconds() -> None:
    clock, lines = Clock(), list[str]()
    log = Lines(Meter(clock), lines.append)
    log.start(JOBS)
    for second in range(12):
        clock.now = 100.0 + second
        log.update([second * GIB, second * GIB // 4], [0, 0])
    log.finish()
    assert lines == [
        " 30 %  6.25 of 21.00 GiB  1342 MB/s  12 s left  "
        "(MiMo-7B-RL-0530-Q4_K_M.gguf 33 %, MiMo-7B-RL-0530-Q6_K.gguf 21 %)",
        " 60 %  12.50 of 21.00 GiB  1342 MB/s  7 s left  "
        "(MiMo-7B-RL-0530-Q4_K_M.gguf 67 %, MiMo-7B-RL-0530-Q6_K.gguf 42 %)",
    ]


@pytest.mark.parametrize("goes_on", [True, False])
def test_after_an_interrupt_it_says_whether_the_same_command_goes_on(
    goes_on: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt), open_progress(goes_on=goes_on) as progress:
        progress.start(JOBS)
        raise KeyboardInterrupt
    assert ("goes on from here" in capsys.readouterr().err) is goes_on


def test_a_log_tells_what_is_downloaded_and_what_is_written() -> None:
    clock, written = Clock(), list[str]()
    lines = Lines(Meter(clock), written.append)
    lines.start([Job("download", 15 * GIB, is_download=True), Job("a.gguf", 4 * GIB)])
    clock.now += 10
    lines.update([3 * GIB, GIB], [0, 0])
    assert written == [" 20 %  downloaded 3.00 of 15.00 GiB  322 MB/s  40 s left; written 1.00 of 4.00 GiB  (a.gguf)"]
