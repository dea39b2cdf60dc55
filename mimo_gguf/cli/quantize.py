"""`mimo-gguf quantize`: makes files of any types in one read of a model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mimo_gguf.cli import ui
from mimo_gguf.cli.calibrating import (
    BitsPerWeight,
    CalibrationWishes,
    ForCard,
    Mix,
    MostBytes,
    run_calibrated,
)
from mimo_gguf.cli.options import (
    TEXT_TOKENS,
    Connections,
    Ctx,
    DryRun,
    Force,
    Json,
    KeepCheckpoint,
    MtpType,
    Out,
    Quiet,
    ReadAhead,
    SplitMaxSize,
    Texts,
    Threads,
    Types,
    Work,
)
from mimo_gguf.core.units import counted, format_duration, format_size, listed

if TYPE_CHECKING:
    from mimo_gguf.quantization.plan import OutputPlan
    from mimo_gguf.verbs import QuantizePreview


def command(
    src: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A GGUF file, a checkpoint folder, or a Hub id (org/name[@revision], modelscope:org/name).",
        ),
    ],
    types: Types = None,
    profile: Annotated[
        list[Path] | None, typer.Option("--profile", metavar="FILE", help="A profile of your own (TOML); repeatable.")
    ] = None,
    out: Out = None,
    mtp_type: MtpType = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option("--tensor-type", metavar="PATTERN=TYPE", help="Type of tensors whose name matches; repeatable."),
    ] = None,
    output_type: Annotated[
        str | None, typer.Option("--output-type", metavar="TYPE", help="Type of the output matrix.")
    ] = None,
    token_embedding_type: Annotated[
        str | None, typer.Option("--token-embedding-type", metavar="TYPE", help="Type of the token embedding.")
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Importance matrix made by llama-imatrix (either format).")
    ] = None,
    search: Annotated[
        str,
        typer.Option(metavar="NAME", help="How blocks are found: llama.cpp, byte for byte; or wide: smaller errors."),
    ] = "llama.cpp",
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Quantize a file again that is quantized already.")
    ] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Solve the types and encode with error feedback: a better file.")
    ] = False,
    texts: Texts = None,
    tokens: Annotated[int | None, TEXT_TOKENS] = None,
    mix: Mix = None,
    most_bytes: MostBytes = None,
    bpw: BitsPerWeight = None,
    card: ForCard = None,
    ctx: Ctx = None,
    work: Work = None,
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
    """Quantize a model: any number of file types in one read, byte for byte what llama.cpp makes.

    With --calibrate the same types and bytes hold a better file, which takes hours instead of minutes for 7 B. After a
    crash or Ctrl-C run the same command again: it goes on where it stopped.
    """
    from mimo_gguf.cli.progress import open_progress
    from mimo_gguf.verbs import plan_quantize, quantize

    shared: dict[str, Any] = {
        "types": [*(types or []), *(profile or [])],
        "out": out,
        "mtp_type": mtp_type,
        "tensor_types": tensor_type or (),
        "output_type": output_type,
        "token_embedding_type": token_embedding_type,
        "allow_requantize": allow_requantize,
        "threads": threads,
        "split_max_size": split_max_size,
        "force": force,
    }
    wishes = CalibrationWishes(texts or [], tokens, mix, most_bytes, bpw, card, ctx, work)
    wishes.check(calibrate=calibrate, imatrix=imatrix, search=search)
    with open_progress(quiet=quiet, as_json=as_json) as progress:
        if calibrate:
            run_calibrated(src, wishes, shared, progress, dry_run=dry_run, as_json=as_json)
            return
        if dry_run:
            preview = plan_quantize(src, **shared, imatrix=imatrix, search=search, progress=progress)
            ui.print_json(preview.as_json()) if as_json else _print_preview(preview)
            return
        report = quantize(
            src, **shared, imatrix=imatrix, search=search, keep_checkpoint=keep_checkpoint, read_ahead=read_ahead,
            connections=connections, progress=progress,
        )  # fmt: skip
    ui.print_json(report.as_json()) if as_json else ui.print_report(report)


def _print_preview(preview: QuantizePreview) -> None:
    plan, expected = preview.plan, preview.expected
    read_bytes = sum(tensor.info.n_bytes for tensor in plan.source.tensors)
    ui.print_field(
        "source", f"{plan.source.label}, {counted(len(plan.source.tensors), 'tensor')}, {format_size(read_bytes)}"
    )
    ui.print_table(
        ("output", "size", "bits per weight", "types"),
        [(str(path), size, bits, types) for output in plan.outputs for path, size, bits, types in _plan_rows(output)],
    )
    total = sum(output.n_bytes for output in plan.outputs)
    ui.print_field("to write", f"{format_size(total)} ({total} bytes); {format_size(preview.free_bytes)} free there")
    reading = "" if expected.reading_s is None else f", at the same time reading {format_duration(expected.reading_s)}"
    ui.print_field(
        "time",
        f"about {format_duration(expected.total_s)}: computing {format_duration(expected.computing_s)} on "
        f"{counted(expected.n_threads, 'thread')}{reading}",
    )
    ui.print_notes([(output.profile.name, output.notes) for output in plan.outputs])
    if preview.free_bytes < total:
        ui.print_warning("the disk does not have that much free")
    for path in preview.complete:
        ui.print_note(f"{path}: complete already")
    if preview.existing and not plan.options.force:
        ui.print_warning(
            f"{listed(list(map(str, preview.existing)))}: there already; a run needs --force, or another place with -o"
        )


def _plan_rows(output: OutputPlan) -> list[tuple[str, str, str, str]]:
    rows = []
    for part in output.parts:
        counts = Counter(tensor.info.ggml_type.name for tensor in output.tensors[part.first : part.last])
        types = ", ".join(f"{name} x{count}" for name, count in counts.most_common())
        rows.append((str(part.path), format_size(part.layout.n_bytes), f"{output.bits_per_weight:.2f}", types))
    return rows
