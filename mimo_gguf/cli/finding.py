"""Finds the model that a command is to run. If it is not here yet, says what making it takes, asks, and makes it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mimo_gguf.cli import ui
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.units import format_clock, format_size

if TYPE_CHECKING:
    from mimo_gguf.fit.solver import Wishes
    from mimo_gguf.hardware.devices import Device
    from mimo_gguf.store.plan import MakingPlan


def find_model(
    model: str,
    wishes: Wishes,
    *,
    yes: bool,
    models_dir: Path | None,
    devices: Sequence[Device] | None = None,
    force: bool = False,
    quiet: bool = False,
) -> Path:
    """Finds the GGUF that `model` means, as `resolve_model` does, and asks before making it.

    Args:
        yes: make it without asking.
        quiet: show no bars: stdout is read by a program.

    Raises:
        UsageError: nobody can be asked, and `yes` is False.
        MimoGgufError: as `resolve_model`.
    """
    from mimo_gguf.cli.progress import open_progress
    from mimo_gguf.store.resolve import resolve_model

    begun = False

    def on_plan(plan: MakingPlan) -> None:
        nonlocal begun
        _ask(plan, yes=yes)
        begun = True

    with open_progress(as_json=quiet) as progress:
        try:
            return resolve_model(
                model, wishes, devices=devices, folder=models_dir, force=force, on_plan=on_plan, progress=progress
            )
        except KeyboardInterrupt:
            if begun and not getattr(getattr(progress, "meter", None), "jobs", ()):  # otherwise the bars say so
                ui.print_note("stopped; the same command goes on from here")
            raise


def _ask(plan: MakingPlan, *, yes: bool) -> None:
    """Shows the plan in three lines, and asks whether to go on.

    Raises:
        typer.Exit: the answer is no.
        UsageError: nobody can be asked.
    """
    can_ask = sys.stdin.isatty() and sys.stderr.isatty()
    if not yes and not can_ask:
        what = (
            f"a download of {format_size(plan.download_bytes)}, {format_clock(plan.download_s)} at 100 Mbit/s"
            if plan.download_bytes
            else f"{format_size(plan.written_bytes)} to be written"
        )
        raise UsageError(f"{plan.name}: is not here yet: {what}", hint="add --yes to make it")
    ui.print_field("make" if plan.repository is None else "fetch", plan.title, console=ui.err)
    for label, text in plan.lines():
        ui.print_field(label, text, console=ui.err)
    for note in plan.notes:
        ui.print_warning(note)
    if not yes and not typer.confirm("go on?", default=True, err=True):
        raise typer.Exit(1)
