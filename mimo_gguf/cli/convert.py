"""`mimo-gguf convert`: makes GGUF files of a Hugging Face checkpoint, with its MTP layers."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from mimo_gguf.cli import ui
from mimo_gguf.cli.options import (
    LAYOUT,
    Connections,
    DryRun,
    Force,
    Json,
    KeepCheckpoint,
    Mtp,
    Out,
    Quiet,
    ReadAhead,
    SplitMaxSize,
    Threads,
    Types,
)
from mimo_gguf.core.units import counted, format_count, format_size

if TYPE_CHECKING:
    from mimo_gguf.conversion.checkpoint_source import ConversionPlan
    from mimo_gguf.quantization.plan import OutputPlan
    from mimo_gguf.verbs import ConvertPlan


def command(
    src: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="A checkpoint folder, or a Hub id: org/name or org/name@revision; modelscope:org/name."
        ),
    ],
    out: Out = None,
    types: Types = None,
    layout: Annotated[str | None, LAYOUT] = None,
    mtp: Mtp = None,
    mtp_layers: Annotated[
        str | None,
        typer.Option("--mtp-layers", metavar="DIR", help="Add the further heads of a MiMo-7B-MTPs folder or Hub id."),
    ] = None,
    threads: Threads = None,
    split_max_size: SplitMaxSize = None,
    keep_checkpoint: KeepCheckpoint = False,
    read_ahead: ReadAhead = None,
    connections: Connections = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Convert a MiMo checkpoint to GGUF, its multi-token-prediction (MTP) layers kept.

    It is lossless by default, and needs memory for a few rows only. After a crash run the same command again.
    """
    from mimo_gguf.cli.progress import open_progress
    from mimo_gguf.verbs import convert, plan_convert

    def show(plan: ConvertPlan) -> None:
        if not as_json:
            _print_plan(plan)
        if plan.rounding:
            ui.print_warning(plan.rounding)

    if dry_run:
        plan = plan_convert(
            src, out=out, types=types or (), layout=layout, mtp=mtp, mtp_layers=mtp_layers,
            split_max_size=split_max_size,
        )  # fmt: skip
        show(plan)
        if not as_json:
            ui.print_notes([(output.profile.name, output.notes) for output in plan.writing.outputs])
        if as_json:
            ui.print_json(plan.as_json())
        return
    with open_progress(quiet=quiet, as_json=as_json) as progress:
        report = convert(
            src, out=out, types=types or (), layout=layout, mtp=mtp, mtp_layers=mtp_layers, threads=threads,
            split_max_size=split_max_size, keep_checkpoint=keep_checkpoint, read_ahead=read_ahead,
            connections=connections, force=force, on_plan=show, progress=progress,
        )  # fmt: skip
    ui.print_json(report.as_json()) if as_json else ui.print_report(report.written)


def _print_plan(plan: ConvertPlan) -> None:
    conversion, outputs = plan.conversion, plan.writing.outputs
    ui.print_field("model", f"{conversion.checkpoint.model_id}, {conversion.recipe.family}")
    ui.print_field("layout", _layout_line(conversion))
    ui.print_field("tensors", _tensors_line(conversion, outputs[0].n_parameters))
    for reason, count in Counter(tensor.reason for tensor in conversion.dropped).items():
        ui.print_field("dropped", f"{counted(count, 'tensor')}: {reason}")
    for output in outputs:
        ui.print_field("output", _output_line(output))


def _output_line(output: OutputPlan) -> str:
    parts = f" in {len(output.parts)} parts" if len(output.parts) > 1 else ""
    return f"{output.parts[0].path}, {output.profile.name}, {format_size(output.n_bytes)}{parts}"


def _layout_line(conversion: ConversionPlan) -> str:
    if conversion.n_mtp:
        return f"{conversion.layout}, with {counted(conversion.n_mtp, 'MTP layer')}"
    return f"{conversion.layout}, without MTP"


def _tensors_line(conversion: ConversionPlan, n_parameters: int) -> str:
    mapped = conversion.mapping.mapped
    text = f"{len(mapped)}, {format_count(n_parameters)} parameters"
    return text + "".join(f"; {tensor.transform} on {tensor.hf}" for tensor in mapped if tensor.transform)
