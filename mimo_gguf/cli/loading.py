"""What is shown while a model loads: the plan, and a line that tells that the program is alive."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mimo_gguf.cli import ui

if TYPE_CHECKING:
    from mimo_gguf.fit.plan import FitPlan


@contextlib.contextmanager
def loading(told: bool, alive: bool) -> Iterator[Callable[[FitPlan], None]]:
    """Gives what hears the plan: it is `told`, and from then on a line shows that the program is `alive`.

    Ctrl-C then ends the process at once: a KeyboardInterrupt would be raised, and lost, in a call back from llama.cpp.
    """
    from mimo_gguf.cli.live_rows import Clock, LiveRows

    before, tell, clock = signal.getsignal(signal.SIGINT), plan_teller(told), Clock(LiveRows(ui.err))

    def load(plan: FitPlan) -> None:
        tell(plan)
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if alive:
            clock.start("loading")

    try:
        yield load
    finally:
        clock.stop()
        signal.signal(signal.SIGINT, before)


def plan_teller(wanted: bool) -> Callable[[FitPlan], None]:
    """Prints a plan's two lines on stderr before it is loaded, where somebody is there to read them."""

    def tell(plan: FitPlan) -> None:
        if wanted:
            for line in plan.summary():
                ui.print_note(line)

    return tell


def print_advice(plan: FitPlan, gpu_layers: int | None) -> None:
    """Warns of what a plan does that was perhaps not meant; `gpu_layers` as given, None if not."""
    from mimo_gguf.fit.advice import advice

    for text in advice(plan, gpu_layers):
        ui.print_warning(text)
