"""`mimo-gguf batch`: answers a file of rows in OpenAI's batch form."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mimo_gguf.cli import ui
from mimo_gguf.cli.llama_log import copied_log
from mimo_gguf.cli.loading import loading, print_advice
from mimo_gguf.cli.options import (
    AlwaysDraft,
    Ctx,
    Draft,
    Exact,
    Force,
    GpuLayers,
    Json,
    KvType,
    LogFile,
    Mtp,
    Quiet,
    RetryErrors,
    Rpc,
    Threads,
    Ubatch,
    Verbose,
)
from mimo_gguf.cli.workers import use_workers

if TYPE_CHECKING:
    from mimo_gguf.batch.progress import BatchProgress
    from mimo_gguf.fit.plan import FitPlan


def command(
    rows: Annotated[Path, typer.Argument(metavar="FILE", help="Rows, one JSON object a line; - for stdin.")],
    model: Annotated[Path, typer.Option("--model", metavar="FILE", help="A GGUF made by convert or quantize.")],
    out: Annotated[
        str, typer.Option("-o", "--out", metavar="FILE", help="Answers, one JSON object a line; - for stdout.")
    ] = "-",
    alias: Annotated[
        list[str] | None, typer.Option("--alias", metavar="NAME", help="A further name of the model; may be repeated.")
    ] = None,
    ctx: Ctx = None,
    parallel: Annotated[
        int | None,
        typer.Option(
            "--parallel", min=1, metavar="N", help="Rows answered at a time, sharing --ctx [default: what fits]."
        ),
    ] = None,
    mtp: Mtp = None,
    draft: Draft = 1,
    always_draft: AlwaysDraft = False,
    threads: Threads = None,
    gpu_layers: GpuLayers = None,
    rpc: Rpc = None,
    kv_type: KvType = None,
    ubatch: Ubatch = None,
    exact: Exact = False,
    retry_errors: RetryErrors = False,
    force: Force = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the rows and show the plan; answer none.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log_file: LogFile = None,
) -> None:
    """Answer a file of rows in OpenAI's batch form, many at a time. The same command goes on after any interruption."""
    from mimo_gguf.cli.batch_screen import BatchScreen, print_end, print_plan
    from mimo_gguf.server.offline import batch, plan_batch

    use_workers(rpc or [])
    given: dict[str, Any] = {
        "model": model, "out": out, "alias": alias or (), "ctx": ctx, "parallel": parallel, "mtp": mtp, "draft": draft,
        "always_draft": always_draft, "threads": threads, "gpu_layers": gpu_layers, "kv_type": kv_type,
        "ubatch": ubatch, "exact": exact, "retry_errors": retry_errors, "force": force,
    }  # fmt: skip
    if dry_run:
        plan = plan_batch(rows, **given)
        if as_json:
            ui.print_json(plan.as_json())
        else:
            print_plan(plan)
        return
    with copied_log(log_file, verbose), BatchScreen(quiet=quiet) as screen, ExitStack() as stack:
        show_plan = stack.enter_context(loading(shown=not quiet, alive=not quiet))

        def on_plan(fit: FitPlan) -> None:
            show_plan(fit)
            print_advice(fit, gpu_layers)

        def on_start(progress: BatchProgress) -> None:
            stack.close()
            screen.begin(progress)

        done = batch(rows, **given, on_plan=on_plan, on_start=on_start, on_progress=screen.show)
    print_end(done, out, as_json=as_json)
