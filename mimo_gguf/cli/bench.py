"""`mimo-gguf bench`: measures a model here, plain and with MTP drafts, alone or beside llama.cpp's own programs."""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.text import Text

from mimo_gguf.cli import ui
from mimo_gguf.cli.finding import find_model
from mimo_gguf.cli.options import (
    Auto,
    Ctx,
    Exact,
    GpuLayers,
    Json,
    KvType,
    ModelName,
    ModelsDir,
    Mtp,
    Rpc,
    Threads,
    Yes,
)
from mimo_gguf.cli.workers import use_workers
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.units import counted, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mimo_gguf.bench.peers import PeerFigure, PeerOptions
    from mimo_gguf.bench.run import BenchOptions, BenchReport
    from mimo_gguf.fit.plan import FitPlan

_COLUMNS: Final = ("text", "way", "tok/s", "speed-up", "drafts right", "GB/s", "of memory")
_ROW: Final = "{:<6} {:<23}{:>6}{:>10}  {:<15}{:>6}{:>11}"  # 80 columns
_TYPICAL_PROMPT: Final = 64  # tokens of the shipped prompts, about


def command(
    model_name: ModelName,
    n_prompt: Annotated[int, typer.Option("--prompt-tokens", metavar="N", help="Tokens of the timed prompt.")] = 512,
    n_generate: Annotated[int, typer.Option("--tokens", metavar="N", help="Tokens generated per text and way.")] = 128,
    drafts: Annotated[
        str, typer.Option(metavar="N,N", help="Numbers of drafts to measure; 0 is plain generation.")
    ] = "0,1,2,3",
    kinds: Annotated[str, typer.Option(metavar="KIND,KIND", help="Texts: code, prose, maths.")] = "code,prose,maths",
    repetitions: Annotated[int, typer.Option("-r", "--repetitions", metavar="N", help="The median counts.")] = 3,
    ctx: Ctx = None,
    mtp: Mtp = None,
    threads: Threads = None,
    gpu_layers: GpuLayers = None,
    kv_type: KvType = None,
    rpc: Rpc = None,
    exact: Exact = False,
    auto: Auto = True,
    against: Annotated[
        list[Path] | None,
        typer.Option(metavar="PROGRAM", help="Also measure with this llama-bench or llama-server; may be repeated."),
    ] = None,
    save: Annotated[
        bool, typer.Option("--save", help="Keep the speeds: fit, gpus and advise then show them on this machine.")
    ] = False,
    yes: Yes = False,
    models_dir: ModelsDir = None,
    as_json: Json = False,
) -> None:
    """Measure prompt reading and generation: plain, and with 1, 2 and 3 drafts on code, prose and maths.

    A table is printed on stdout, row by row, or with --json one JSON document on one line.
    """
    from mimo_gguf.bench.peers import measure_peer
    from mimo_gguf.bench.run import BenchOptions, bench_prompts, run_bench, window_needed
    from mimo_gguf.chat.template import ChatTemplate
    from mimo_gguf.cli.loading import plan_printer, print_advice
    from mimo_gguf.core.kv_cache import parse_kv_type
    from mimo_gguf.core.runnable import read_runnable
    from mimo_gguf.engine.session import SessionOptions
    from mimo_gguf.fit.refusal import check_fit
    from mimo_gguf.fit.solver import Wishes
    from mimo_gguf.llama.api import load_model
    from mimo_gguf.runtime.launch import choose_plan, model_options, session_options

    n_drafts = (0,) if mtp is False else _numbers(drafts)
    options = BenchOptions(n_prompt, n_generate, n_drafts, tuple(kinds.split(",")), repetitions)
    _check(options, against or [], threads, save=save, exact=exact)
    use_workers(rpc or [])
    wishes = Wishes(
        n_ctx=window_needed(options) if ctx is None else ctx,
        kv_type=None if kv_type is None else parse_kv_type(kv_type),
        mtp=mtp,
        n_gpu_layers=gpu_layers,
        n_outputs_max=1 + max(options.drafts),
        exact=exact,
    )
    file = find_model(model_name, wishes, yes=yes, models_dir=models_dir, quiet=as_json)
    header = read_runnable(file)
    template = ChatTemplate.of_file(header)
    plan = choose_plan(header, wishes)
    check_fit(plan)
    plan_printer(not as_json and sys.stderr.isatty())(plan)
    print_advice(plan, gpu_layers)
    with BenchScreen(quiet=as_json) as screen:
        if any(options.drafts) and not plan.runs_mtp:
            why = "the plan leaves the MTP layer out" if plan.model.has_mtp else "this file has no MTP layer"
            screen.note(f"{why}: plain generation only")
        start = time.perf_counter()
        with load_model(file, model_options(plan)) as model:
            load_s = time.perf_counter() - start
            session = session_options(plan, SessionOptions(n_threads=threads or 0, exact=exact))
            report = run_bench(
                model, template, session if ctx is not None else replace(session, n_ctx=0), options, load_s=load_s,
                on_start=screen.measuring, on_figure=screen.show, plan=plan,
            )  # fmt: skip
        peers = []
        for program in against or ():
            screen.measuring(program.name)
            prompts = bench_prompts(template, options.kinds)
            for figure in measure_peer(program, file, _as_ours(report, plan), prompts, report.texts):
                peers.append(figure)
                screen.show_peer(figure)
        screen.end(report, peers)
    if save:
        _keep(report, plan)
    if as_json:
        ui.print_json(report.as_json() | {"peers": [asdict(peer) for peer in peers]}, indent=None)


def _check(options: BenchOptions, against: Sequence[Path], threads: int | None, *, save: bool, exact: bool) -> None:
    """Raises an error for what would fail only after the measurement: a program of others, or keeping the result."""
    from mimo_gguf.bench.keeping import check_is_worth_keeping
    from mimo_gguf.bench.peers import check_peer

    for program in against:
        check_peer(program)
    if save:
        check_is_worth_keeping(options, threads, exact=exact)


def _keep(report: BenchReport, plan: FitPlan) -> None:
    from mimo_gguf.bench.keeping import keep_report

    ui.print_note(f"kept in {keep_report(report, plan)}: fit, gpus and advise show it on this machine")


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--drafts {text}: not a list of numbers", hint="--drafts 0,1,2") from None


def _as_ours(report: BenchReport, plan: FitPlan) -> PeerOptions:
    """The options of a peer's run, as ours were. llama-bench's cache is filled as far as a short prompt fills it."""
    from mimo_gguf.bench.peers import PeerOptions

    options = report.options
    return PeerOptions(
        n_prompt=options.n_prompt,
        n_generate=options.n_generate,
        n_threads=report.n_threads,
        n_gpu_layers=plan.settings.n_gpu_layers,
        n_ctx=options.n_prompt + options.n_generate + 256,
        repetitions=options.repetitions,
        n_depth=_TYPICAL_PROMPT,
        kv_type=plan.settings.type_k.name.lower(),
        drafts=tuple(sorted({figure.n_draft for figure in report.generation})),
    )


class BenchScreen:
    """Shows the table, each row as soon as it is measured.

    On a terminal a line below it says what is being measured. With `quiet` nothing is shown.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._live = not quiet and sys.stderr.isatty()
        self._turned = False

    def __enter__(self) -> BenchScreen:
        return self

    def __exit__(self, *_: object) -> None:
        self._wipe()

    def note(self, text: str) -> None:
        """Prints a note on stderr."""
        if not self._quiet:
            ui.print_note(text)

    def measuring(self, what: str) -> None:
        """Shows what is being measured."""
        if self._live:
            self._wipe()
            ui.err.print(Text(ui.harmless(f"measuring {what}"), style="note"), end="")
        else:
            self.note(f"measuring {what}")

    def show(self, report: BenchReport) -> None:
        """Prints what is new in a report: the last figure of generation, or the lines above the table."""
        if self._quiet:
            return
        self._wipe()
        if not report.generation:
            _print_opening(report)
            self._row("heading", _COLUMNS)
            return
        figure = report.generation[-1]
        self._turned |= not figure.same_text
        self._row(
            "",
            (
                figure.kind,
                figure.way + "*" * (not figure.same_text),
                _speed(figure.tokens_per_s),
                "" if (speed_up := report.speed_up(figure)) is None else f"{speed_up:.2f}",
                " ".join(map(_percent, figure.acceptance)),
                f"{figure.read_bytes_per_s / 1e9:.1f}",
                _percent(report.bandwidth_share(figure)),
            ),
        )

    def show_peer(self, peer: PeerFigure) -> None:
        """Prints the row of a peer's figure."""
        if not self._quiet:
            self._wipe()
            right = "" if peer.acceptance is None else _percent(peer.acceptance)
            way = f"{peer.program}, {peer.way}" + "*" * (peer.same_text is False)
            self._turned |= peer.same_text is False
            self._row("", (peer.kind or "-", way, _speed(peer.tokens_per_s), "", right, "", ""))

    def end(self, report: BenchReport, peers: Sequence[PeerFigure]) -> None:
        """Prints the lines below the table."""
        if self._quiet:
            return
        self._wipe()
        used = ", ".join(f"{format_size(n_bytes)} on {name}" for name, n_bytes in report.memory_bytes.items())
        ui.print_line(f"memory in use: {used}")
        if self._turned:
            ui.print_line("* another text than the first way's: near ties of logits were turned; with --exact none are")
        for line in _comparison(report, peers):
            ui.print_line(line)

    def _row(self, style: str, cells: Sequence[str]) -> None:
        ui.out.print(Text(ui.harmless(_ROW.format(*cells).rstrip()), style=style))

    def _wipe(self) -> None:
        if self._live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _print_opening(report: BenchReport) -> None:
    threads = counted(report.n_threads, "thread")
    ui.print_line(f"{report.model} ({format_size(report.size_bytes)}), {threads}")
    ui.print_line(
        f"prompt {_speed(report.prompt_tokens_per_s)} tok/s, first token of {report.options.n_prompt} after "
        f"{report.first_token_s:.2f} s, loaded in {report.load_s:.1f} s"
    )
    if report.bandwidth:
        speed = f"{report.bandwidth.bytes_per_s / 1e9:.1f} GB/s"
        ui.print_line(f"memory delivers {speed} ({report.bandwidth.source})")


def _comparison(report: BenchReport, peers: Sequence[PeerFigure]) -> Iterator[str]:
    """Compares speeds, ours divided by each program's: `ours / llama-server: plain 1.02, 1 draft 1.15`."""
    ours = {(figure.kind, figure.n_draft): figure.tokens_per_s for figure in report.generation}
    for program in dict.fromkeys(peer.program for peer in peers):
        ratios: dict[str, list[float]] = {}
        for peer in (peer for peer in peers if peer.program == program):
            for kind in [peer.kind] if peer.kind else report.options.kinds:
                if speed := ours.get((kind, peer.n_draft)):
                    ratios.setdefault(peer.way, []).append(speed / peer.tokens_per_s)
            if not peer.kind and peer.prompt_tokens_per_s:
                ratios["prompt"] = [report.prompt_tokens_per_s / peer.prompt_tokens_per_s]
        each = ", ".join(f"{way} {statistics.geometric_mean(shares):.2f}" for way, shares in ratios.items())
        if each:
            yield f"ours / {program}: {each}"


def _speed(tokens_per_s: float) -> str:
    return f"{tokens_per_s:.2f}" if tokens_per_s < 100 else f"{tokens_per_s:.0f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
