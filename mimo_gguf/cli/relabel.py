"""`mimo-gguf relabel`: writes a GGUF in another layout, its tensors byte for byte the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mimo_gguf.cli import ui
from mimo_gguf.cli.options import LAYOUT, DryRun, Force, Json, Out, Quiet, SplitMaxSize, Threads
from mimo_gguf.core.units import counted, format_size

if TYPE_CHECKING:
    from mimo_gguf.relabelled import RelabelPlan


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A GGUF file, or any part of a split one.")],
    layout: Annotated[str, LAYOUT] = "qwen2",
    out: Out = None,
    threads: Threads = None,
    split_max_size: SplitMaxSize = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Write a GGUF in the qwen2 layout, without its MTP layer, for programs that do not know step35.

    The checkpoint is not needed. Tensors are copied byte for byte. After a crash run the same command again.
    """
    from mimo_gguf.cli.progress import open_progress
    from mimo_gguf.relabelled import plan_relabel, relabel

    if dry_run:
        plan = plan_relabel(file, layout=layout, out=out, split_max_size=split_max_size)
        ui.print_json(plan.as_json()) if as_json else _print_plan(plan)
        return
    with open_progress(quiet=quiet, as_json=as_json) as progress:
        report = relabel(
            file, layout=layout, out=out, threads=threads, split_max_size=split_max_size, force=force,
            on_plan=None if as_json else _print_plan, progress=progress,
        )  # fmt: skip
    ui.print_json(report.as_json()) if as_json else ui.print_report(report.written)


def _print_plan(plan: RelabelPlan) -> None:
    found, (output,) = plan.relabelling, plan.writing.outputs
    ui.print_field("layout", f"{plan.layout}, before {found.before}")
    if found.dropped:
        n_bytes = sum(tensor.info.n_bytes for tensor in output.tensors)
        ui.print_field("left out", f"{counted(len(found.dropped), 'tensor')} of MTP layers: no more drafting with them")
        ui.print_field("kept", f"{counted(len(output.tensors), 'tensor')}, {format_size(n_bytes)}, byte for byte")
    ui.print_field("output", f"{output.parts[0].path}, {output.profile.name}, {format_size(output.n_bytes)}")
