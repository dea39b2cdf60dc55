"""Shows the progress of long runs: bars on a terminal, a plain line every few seconds in a log, or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress

from mimo_gguf.cli import ui
from mimo_gguf.core.progress import Job, Progress, Silence
from mimo_gguf.core.units import format_clock, format_share

_LINE_EVERY_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Pace:
    """The progress of one job. Its speed counts only what this run did, not what an earlier run had left."""

    job: Job
    done: int
    bytes_per_s: float

    @property
    def percent(self) -> float:
        """The share that is done, from 0 to 100."""
        return 100.0 * self.done / max(1, self.job.n_bytes)

    def describe(self) -> str:
        """Describes it in few columns, for a line of 80: `1.92 of 4.47 GiB  612 MB/s  1:05 left`."""
        text = format_share(self.done, self.job.n_bytes)
        if self.bytes_per_s > 0 and self.done < self.job.n_bytes:
            left = format_clock((self.job.n_bytes - self.done) / self.bytes_per_s)
            text += f"  {self.bytes_per_s / 1e6:.0f} MB/s  {left} left"
        return text


@dataclass(slots=True)
class Meter:
    """Computes the pace of each job from the bytes that are done."""

    clock: Callable[[], float] = time.monotonic
    jobs: Sequence[Job] = ()
    started: float = 0.0
    paces: tuple[Pace, ...] = ()

    def start(self, jobs: Sequence[Job]) -> None:
        """Starts the clock for these jobs."""
        self.jobs, self.started = jobs, self.clock()
        self.paces = tuple(Pace(job, 0, 0.0) for job in jobs)

    def update(self, done: Sequence[int], resumed: Sequence[int]) -> None:
        """Computes the paces from the bytes of each job that are done, and those that an earlier run had done."""
        now = self.clock()
        if sum(done) == sum(resumed):  # checking what an earlier run had left says nothing about the speed
            self.started = now
        elapsed = max(now - self.started, 1e-3)
        self.paces = tuple(
            Pace(job, there, (there - earlier) / elapsed)
            for job, there, earlier in zip(self.jobs, done, resumed, strict=True)
        )

    @property
    def files(self) -> tuple[Pace, ...]:
        """The paces of the files, without that of a download beside them."""
        return tuple(pace for pace in self.paces if not pace.job.is_download)

    @property
    def total(self) -> Pace:
        """The pace of all files together."""
        job = Job("all files", sum(pace.job.n_bytes for pace in self.files))
        return Pace(job, sum(pace.done for pace in self.files), sum(pace.bytes_per_s for pace in self.files))


@dataclass(slots=True)
class Lines:
    """Writes a plain line every few seconds, for logs."""

    meter: Meter = field(default_factory=Meter)
    write: Callable[[str], None] = ui.print_note
    _last: float = 0.0

    def start(self, jobs: Sequence[Job]) -> None:
        self.meter.start(jobs)
        self._last = self.meter.clock()

    def update(self, done: Sequence[int], resumed: Sequence[int]) -> None:
        self.meter.update(done, resumed)
        now = self.meter.clock()
        if now - self._last < _LINE_EVERY_S:
            return
        self._last = now
        total, paces = self.meter.total, self.meter.files
        each = ", ".join(pace.job.name + f" {pace.percent:.0f} %" * (len(paces) > 1) for pace in paces)
        arriving = next((pace for pace in self.meter.paces if pace.job.is_download), None)
        if arriving is None:
            self.write(f"{total.percent:3.0f} %  {total.describe()}  ({each})")
        else:  # what is left to do takes as long as what is left to download
            written = format_share(total.done, total.job.n_bytes)
            self.write(f"{arriving.percent:3.0f} %  downloaded {arriving.describe()}; written {written}  ({each})")

    def note(self, text: str) -> None:
        self.write(text)

    def finish(self) -> None: ...


@dataclass(slots=True)
class Bars:
    """Draws a bar per file on a terminal."""

    meter: Meter = field(default_factory=Meter)
    _rich: RichProgress | None = None
    _tasks: list[TaskID] = field(default_factory=list)

    def start(self, jobs: Sequence[Job]) -> None:
        self.meter.start(jobs)
        self._rich = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("{task.fields[pace]}", style="note"),
            console=ui.err,
            transient=True,
            refresh_per_second=8,
        )
        self._tasks = [self._rich.add_task(ui.harmless(job.name), total=job.n_bytes, pace="") for job in jobs]
        self._rich.start()

    def update(self, done: Sequence[int], resumed: Sequence[int]) -> None:
        self.meter.update(done, resumed)
        if self._rich is not None:
            for task, pace in zip(self._tasks, self.meter.paces, strict=True):
                self._rich.update(task, completed=pace.done, pace=pace.describe())

    def note(self, text: str) -> None:
        ui.print_note(text)

    def finish(self) -> None:
        if self._rich is not None:
            self._rich.stop()
            self._rich = None


class Notes(Silence):
    """Writes only the notes about steps that take a moment, for people who wait for `--json`."""

    def note(self, text: str) -> None:
        ui.print_note(text)


@contextmanager
def open_progress(*, quiet: bool = False, as_json: bool = False, goes_on: bool = True) -> Iterator[Progress]:
    """Opens the display that suits stderr; after Ctrl-C it shows how far the run came.

    Args:
        goes_on: whether the same command goes on from there.
    """
    if quiet or as_json:
        yield Silence() if quiet else Notes()
        return
    display: Bars | Lines = Bars() if ui.err.is_terminal else Lines()
    try:
        yield display
    except KeyboardInterrupt:
        display.finish()
        if display.meter.jobs:
            what = "the same command goes on from here" if goes_on else "the same command starts again"
            ui.print_note(f"stopped at {display.meter.total.percent:.0f} %; {what}")
        raise
