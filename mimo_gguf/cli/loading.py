"""Shows the plan while a model loads, and a line that the program is alive."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mimo_gguf.cli import ui

if TYPE_CHECKING:
    from mimo_gguf.fit.plan import FitPlan


@contextlib.contextmanager
def loading(shown: bool, alive: bool) -> Iterator[Callable[[FitPlan], None]]:
    """Gives the function to call with the plan. It prints the plan if `shown`, and starts a clock if `alive`.

    From then on Ctrl-C ends the process at once: a KeyboardInterrupt would be lost in a callback from llama.cpp.
    """
    from mimo_gguf.cli.live_rows import Clock, LiveRows

    before, print_plan, clock = signal.getsignal(signal.SIGINT), plan_printer(shown), Clock(LiveRows(ui.err))

    def on_plan(plan: FitPlan) -> None:
        print_plan(plan)
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if alive:
            clock.start("loading")

    try:
        yield on_plan
    finally:
        clock.stop()
        signal.signal(signal.SIGINT, before)


def plan_printer(wanted: bool) -> Callable[[FitPlan], None]:
    """Makes a function that prints a plan's two lines on stderr, or does nothing if they are not wanted."""

    def on_plan(plan: FitPlan) -> None:
        if wanted:
            for line in plan.summary():
                ui.print_note(line)

    return on_plan


def print_advice(plan: FitPlan, gpu_layers: int | None) -> None:
    """Warns of what a plan does that was perhaps not meant; `gpu_layers` is None if it was not given."""
    from mimo_gguf.fit.advice import advice

    for text in advice(plan, gpu_layers):
        ui.print_warning(text)


def note_damaged_speeds() -> None:
    """Says so if the speeds that `bench --save` kept cannot be read."""
    from mimo_gguf.hardware.kept_speeds import read_speeds

    if problem := read_speeds().problem:
        ui.print_note(problem)
