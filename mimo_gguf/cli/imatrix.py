"""`mimo-gguf imatrix`: makes importance matrices of a model, merges them, shows what they say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mimo_gguf.cli import ui
from mimo_gguf.cli.options import TEXT_TOKENS, AllText, Force, Json, Mtp, Quiet, Texts, Threads, WindowTokens
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.units import counted, format_count, format_duration, listed

if TYPE_CHECKING:
    from mimo_gguf.quality.imatrix.merging import MergeReport
    from mimo_gguf.quality.imatrix.run import ImatrixPlan, ImatrixReport
    from mimo_gguf.quality.imatrix.statistics import ImatrixStatistics, MatrixStatistics


def command(
    src: Annotated[
        list[str],
        typer.Argument(metavar="SRC", help="A GGUF file, a checkpoint folder, or a Hub id; for --merge several files."),
    ],
    texts: Texts = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE", help="File to make [default: NAME.imatrix.gguf]."),
    ] = None,
    ctx: WindowTokens = 512,
    tokens: Annotated[int | None, TEXT_TOKENS] = None,
    chunks: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Windows to read, at most, in place of --tokens.")
    ] = None,
    all_text: AllText = False,
    mtp: Mtp = None,
    output: Annotated[
        bool, typer.Option("--output/--no-output", help="With the output matrix, or without it as llama-imatrix.")
    ] = True,
    gpu_layers: Annotated[
        int | None,
        typer.Option(
            "-ngl",
            "--gpu-layers",
            min=-1,
            metavar="N",
            show_default=False,
            help="Layers of a GGUF on the GPU, -1 all [default: all].",
        ),
    ] = None,
    threads: Threads = None,
    merge: Annotated[bool, typer.Option("--merge", help="Add up importance matrices of one model.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Show what an importance matrix says, per matrix.")] = False,
    against: Annotated[
        Path | None, typer.Option("--against", metavar="FILE", help="With --show: compare it with another one.")
    ] = None,
    as_json: Json = False,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Measure how much each input column of each matrix is used, MTP layer included, for `quantize --imatrix`.

    A GGUF is run by llama.cpp; a checkpoint block by block. After a crash or Ctrl-C run the same command again: it goes
    on where it stopped.
    """
    from mimo_gguf.cli.quality_screen import showing
    from mimo_gguf.quality.imatrix.merging import merge_imatrices
    from mimo_gguf.quality.imatrix.statistics import imatrix_statistics
    from mimo_gguf.verbs import imatrix

    _check_mode(src, merge=merge, show=show, against=against)
    if show:
        statistics = imatrix_statistics(src[0], against=against)
        ui.print_json(statistics.as_json()) if as_json else _print_statistics(statistics)
        return
    if merge:
        if out is None:
            raise UsageError("--merge needs a file to make", hint="mimo-gguf imatrix --merge A B -o C")
        merged = merge_imatrices(src, out=out, force=force)
        ui.print_json(merged.as_json()) if as_json else _print_merged(merged)
        return

    def announce(plan: ImatrixPlan) -> None:
        if not as_json:
            _print_plan(plan)

    with showing(quiet=quiet or as_json) as screen:
        report = imatrix(
            src[0], texts=texts or (), out=out, ctx=ctx, tokens=tokens, chunks=chunks, all_text=all_text, mtp=mtp,
            output=output, gpu_layers=gpu_layers, threads=threads, force=force, on_plan=announce,
            on_progress=lambda done, total: screen.update(src[0], done, total),
        )  # fmt: skip
    ui.print_json(report.as_json()) if as_json else _print_report(report)


def _check_mode(src: list[str], *, merge: bool, show: bool, against: Path | None) -> None:
    """Raises UsageError if options and the number of files do not go together."""
    if merge and show:
        raise UsageError("--merge and --show are two things", hint="merge first, then show the result")
    if against is not None and not show:
        raise UsageError("--against is for --show", hint="mimo-gguf imatrix --show FILE --against OTHER")
    if not merge and len(src) > 1:
        raise UsageError(f"one source at a time, not {len(src)}", hint="to add up importance matrices: --merge")


def _print_plan(plan: ImatrixPlan) -> None:
    ui.print_field("model", f"{plan.source.label}, {_way(plan)}")
    kinds = ", ".join(f"{kind} {format_count(n)}" for kind, n in plan.kinds.items())
    ui.print_field("texts", f"{counted(len(plan.windows), 'window')} of {plan.n_ctx} tokens: {kinds}")


def _way(plan: ImatrixPlan) -> str:
    mtp = "with MTP" if plan.mtp else "without MTP"
    return f"{mtp}, through llama.cpp" if plan.through_llama else f"{mtp}, block by block in float32"


def _print_report(report: ImatrixReport) -> None:
    of_mtp = f", {report.n_of_mtp} of them of MTP layers" if report.n_of_mtp else ""
    ui.print_field(
        "written", f"{report.path}, {counted(report.n_matrices, 'matrix', 'matrices')}{of_mtp}", style="good"
    )
    resumed = f", {100 * report.resumed:.0f} % of the work by an earlier run" if report.resumed else ""
    ui.print_field("read", f"{report.n_tokens} tokens in {counted(report.n_windows, 'window')}{resumed}")
    ui.print_field("time", f"{format_duration(report.seconds)}, {report.tokens_per_s:.0f} tok/s")
    if report.without:
        ui.print_warning(f"nothing was multiplied with {listed(list(report.without))}: no importance for it")


def _print_merged(report: MergeReport) -> None:
    ui.print_field("written", f"{report.path}, {counted(report.n_matrices, 'matrix', 'matrices')}", style="good")
    ui.print_field("read", f"{report.n_chunks} chunks of {report.chunk_size} tokens")
    if report.partial:
        ui.print_warning(f"not in every file: {listed(list(report.partial))}")


def _print_statistics(found: ImatrixStatistics) -> None:
    ui.print_field("file", f"{found.path}, {counted(len(found.matrices), 'matrix', 'matrices')}")
    texts = listed([text for text in found.datasets if text]) or "unnamed"
    ui.print_field("texts", f"{found.n_chunks} chunks of {found.chunk_size} tokens: {texts}")
    compared = found.against is not None  # 80 columns have no room for both, the smallest value and the cosine
    columns = ("matrix", "sum", "mean", "max", "active", "bits", "top 1 %", "cosine" if compared else "min")
    ui.print_table(columns, [_row(matrix, compared=compared) for matrix in found.matrices])
    for names, where in ((found.only_here, found.path), (found.only_there, found.against)):
        if names:
            ui.print_warning(f"only in {where}: {listed(list(names))}")


def _row(matrix: MatrixStatistics, *, compared: bool) -> list[str]:
    cosine = "-" if matrix.cosine is None else f"{matrix.cosine:.4f}"
    return [
        matrix.matrix.removesuffix(".weight"), *(f"{x:.2g}" for x in (matrix.sum, matrix.mean, matrix.largest)),
        f"{100 * matrix.active:.0f} %", f"{matrix.entropy:.2f}", f"{100 * matrix.largest_share:.1f} %",
        cosine if compared else f"{matrix.smallest:.2g}",
    ]  # fmt: skip
