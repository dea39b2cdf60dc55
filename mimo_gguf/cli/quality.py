"""`mimo-gguf quality`: measures how good files are, alone or beside the model that they were made from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from mimo_gguf.cli import ui
from mimo_gguf.cli.options import (
    TEXT_TOKENS,
    AllText,
    Force,
    GpuLayers,
    Json,
    Mtp,
    Quiet,
    Texts,
    Threads,
    WindowTokens,
    Work,
)
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.units import counted, format_size

if TYPE_CHECKING:
    from mimo_gguf.quality.divergence import Figure, Summary
    from mimo_gguf.quality.plan import QualityPlan
    from mimo_gguf.quality.report import FileQuality, QualityReport

_ROW: Final = "{:<8}{:>7}{:>16}{:>18}{:>20}{:>10}"  # 79 columns
_ROW_ALONE: Final = "{:<8}{:>7}{:>16}"
_WAYS: Final = {
    "in step": "read beside the file by llama.cpp",
    "states": "read once by llama.cpp, its final states kept",
    "block by block": "its weights in float32, one block at a time",
}
_MEANINGS: Final = (
    ("perplexity", "between how many tokens the model hesitates on average: less is better, ± is the standard error"),
    ("ln ratio", "logarithm of perplexity / the base's perplexity: 0 is equal, 0.01 is one percent worse"),
    ("divergence", "of the predictions from the base's (mean Kullback-Leibler divergence in nats): 0 is equal"),
    ("same top", "share of tokens at which the most likely next token is the base's"),
)
_DRAFTS: Final = "share of tokens at which the MTP layer drafts what the trunk finds most likely"


def command(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE...", help="GGUF files to judge.", show_default=False)
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="SRC", help="What they were made from: a GGUF, a checkpoint or a Hub id."),
    ] = None,
    texts: Texts = None,
    ctx: WindowTokens = 512,
    tokens: Annotated[int, TEXT_TOKENS] = 16384,
    arithmetic: Annotated[
        str | None,
        typer.Option(
            "--arithmetic",
            metavar="WHAT",
            show_default=False,
            help="backend: what llama.cpp computes here. float32: the weights alone [default: backend if it fits].",
        ),
    ] = None,
    hidden: Annotated[
        str, typer.Option("--hidden", metavar="WHICH", help="States that the MTP layer reads: pre, post or both.")
    ] = "pre",
    mtp: Mtp = None,
    all_text: AllText = False,
    work: Work = None,
    write_text: Annotated[
        Path | None,
        typer.Option(
            "--write-text",
            metavar="OUT",
            help="Write the base's own answers to shipped prompts there, as a text for -f.",
        ),
    ] = None,
    prompts: Annotated[
        int, typer.Option("--prompts", min=1, metavar="N", help="Prompts that --write-text asks, 450 at most.")
    ] = 48,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, metavar="T", help="Of --write-text; 0 is greedy, above 0 seeded.")
    ] = 0.0,
    force: Force = False,
    threads: Threads = None,
    gpu_layers: GpuLayers = None,
    certify: Annotated[
        bool, typer.Option("--certify", help="Write the result into each file, without moving a tensor, and beside it.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Measure a certified file again, and compare with its certificate.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="OUT.svg", help="Draw size against divergence: .svg or .png.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure how good files are: perplexity, divergence from the base, and how often MTP drafts are right.

    The table is printed on stdout. After Ctrl-C the same command goes on where it stopped.
    """
    from mimo_gguf.cli.quality_answers import write_text as write_answers
    from mimo_gguf.cli.quality_certificates import check_files, print_certified
    from mimo_gguf.cli.quality_overview import check_plot, plot_report, print_overview
    from mimo_gguf.cli.quality_screen import showing
    from mimo_gguf.verbs import measure_quality

    if write_text is not None:
        write_answers(
            write_text, files or (), base, n_prompts=prompts, temperature=temperature, threads=threads, force=force,
            as_json=as_json, quiet=quiet,
        )  # fmt: skip
        return
    if not files:
        raise UsageError("missing argument 'FILE...'", hint="mimo-gguf quality FILE.gguf")
    if check:
        given = {"base": base, "texts": texts or (), "work": work, "threads": threads, "gpu_layers": gpu_layers}
        raise typer.Exit(0 if check_files(files, given, as_json=as_json, quiet=quiet) else 1)
    if plot is not None:
        check_plot(plot, base)
    with showing(quiet=quiet or as_json) as screen:
        report = measure_quality(
            files, base=base, texts=texts or (), ctx=ctx, tokens=tokens, arithmetic=arithmetic, hidden=hidden, mtp=mtp,
            all_text=all_text, work=work, threads=threads, gpu_layers=gpu_layers, certify=certify,
            on_plan=lambda plan: None if quiet or as_json else _print_plan(plan),
            on_progress=screen.update, on_certified=print_certified,
        )  # fmt: skip
    if plot is not None:
        plot_report(report, plot)
    if as_json:
        ui.print_json(report.as_json())
        return
    print_report(report)
    if len(report.files) > 1:
        ui.print_line()
        print_overview(report)


def _print_plan(plan: QualityPlan) -> None:
    for note in plan.notes:
        ui.print_note(note)


def print_report(report: QualityReport) -> None:
    """Prints what was measured, a table for each file, and what each figure means."""
    if report.base is not None:
        ui.print_field("base", f"{report.base.label}: {_WAYS[report.base.way]}")
    ui.print_field("texts", texts_line(report))
    ui.print_field("arithmetic", arithmetic_line(report))
    for file in report.files:
        ui.print_line()
        _print_file(file)
    ui.print_line()
    has_drafts = any(file.acceptance for file in report.files)
    for name, meaning in _MEANINGS if report.base is not None else _MEANINGS[:1]:
        ui.print_field(name, meaning, style="note")
    if has_drafts:
        ui.print_field("drafts", _DRAFTS, style="note")


def texts_line(report: QualityReport) -> str:
    """The texts in words: kinds, tokens, and what was left out."""
    kinds = report.texts.kinds
    n_tokens, n_judged = (sum(getattr(info, name) for info in kinds.values()) for name in ("n_tokens", "n_judged"))
    line = f"{', '.join(kinds)}: {n_tokens} tokens read in windows of {report.n_ctx}, {n_judged} judged"
    if report.texts.n_left_out:
        line += f"; {counted(report.texts.n_left_out, 'document')} for calibration left out"
    return line


def arithmetic_line(report: QualityReport) -> str:
    """The arithmetic in words."""
    what = "the weights alone" if report.arithmetic == "float32" else "what you get here"
    return f"{report.arithmetic}, {what} ({report.backend})"


def _print_file(file: FileQuality) -> None:
    speed = f", {file.tokens_per_s:.0f} tok/s" if file.n_read else ""
    ui.print_line(f"{file.path.name}: {file.file_type}, {format_size(file.size_bytes)}{speed}", style="good")
    has_base = next(iter(file.by_kind.values())).divergence is not None
    columns = ("text", "tokens", "perplexity", "ln ratio", "divergence", "same top")
    drafts = [f"{hidden} drafts" if len(file.acceptance) > 1 else "drafts" for hidden in file.acceptance]
    heading = (_ROW if has_base else _ROW_ALONE).format(*columns[: 6 if has_base else 3])
    ui.print_line(heading + "".join(f"{name:>13}" for name in drafts), style="heading")
    rows = list(file.by_kind.items())
    for kind, summary in rows[:-1] if len(rows) == 2 else rows:  # all of one kind is that kind
        line = row_of(kind, summary) + "".join(f"{_percent(each[kind]):>13}" for each in file.acceptance.values())
        ui.print_line(line, style="figure" if kind == list(file.by_kind)[-1] else "")
    _print_tails(list(file.by_kind.values())[-1])


def row_of(kind: str, summary: Summary) -> str:
    """A row of the table: a kind of text and its figures."""
    perplexity = _with_error(summary.perplexity, max(0, 4 - len(f"{summary.perplexity.value:.0f}")))
    found = summary.divergence
    if found is None:
        return _ROW_ALONE.format(kind[:8], summary.n_tokens, perplexity)
    return _ROW.format(
        kind[:8], summary.n_tokens, perplexity, _with_error(found.ln_ratio, 4), _with_error(found.kl, 5),
        _percent(found.same_top),
    )  # fmt: skip


def _print_tails(summary: Summary) -> None:
    """Prints how divergence and probabilities are spread over all tokens."""
    found = summary.divergence
    if found is None:
        return
    kl = ", ".join(f"{percent:g} % {value:.4f}" for percent, value in found.kl_percentiles.items() if percent > 50)
    ui.print_line(f"divergence of tokens: median {found.kl_percentiles[50.0]:.5f}, {kl}, largest {found.kl_max:.3f}")
    low, high = (100 * found.shift_percentiles[percent] for percent in (5.0, 95.0))
    ui.print_line(
        f"probability of the token that comes: {100 * found.shift.value:+.2f} ± {100 * found.shift.error:.2f} % on "
        f"average, rms {100 * found.shift_rms.value:.2f} %, for 90 % of the tokens {low:+.2f} to {high:+.2f} %"
    )


def _with_error(figure: Figure, places: int) -> str:
    return f"{figure.value:.{places}f} ± {figure.error:.{places}f}"


def _percent(share: Figure) -> str:
    return f"{100 * share.value:.2f} %"
