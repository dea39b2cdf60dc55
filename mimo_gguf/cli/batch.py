"""`mimo-gguf batch`: answers a file of rows in OpenAI's batch form."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, ExitStack, nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mimo_gguf.cli import ui
from mimo_gguf.cli.finding import find_model
from mimo_gguf.cli.llama_log import copied_log
from mimo_gguf.cli.loading import loading, print_advice
from mimo_gguf.cli.options import (
    Alias,
    AlwaysDraft,
    Ctx,
    Draft,
    Exact,
    Force,
    GpuLayers,
    Json,
    KvType,
    LogFile,
    ModelOption,
    ModelsDir,
    Mtp,
    Quiet,
    Ray,
    RayCpus,
    RayGpus,
    RayWorkers,
    RetryErrors,
    Rpc,
    Threads,
    Ubatch,
    Verbose,
    Yes,
)
from mimo_gguf.cli.workers import use_workers
from mimo_gguf.core.errors import UsageError

if TYPE_CHECKING:
    from mimo_gguf.batch.progress import BatchProgress
    from mimo_gguf.fit.plan import FitPlan
    from mimo_gguf.server.ray_cluster import Pool


def command(
    rows: Annotated[Path, typer.Argument(metavar="FILE", help="Rows, one JSON object a line; - for stdin.")],
    model: ModelOption,
    out: Annotated[
        str, typer.Option("-o", "--out", metavar="FILE", help="Answers, one JSON object a line; - for stdout.")
    ] = "-",
    alias: Alias = None,
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
    ray: Ray = None,
    workers: RayWorkers = None,
    cpus_per_worker: RayCpus = None,
    gpus_per_worker: RayGpus = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the rows and show the plan; answer none.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log_file: LogFile = None,
    yes: Yes = False,
    models_dir: ModelsDir = None,
) -> None:
    """Answer a file of rows in OpenAI's batch form, many at a time. The same command goes on after any interruption."""
    from mimo_gguf.cli.batch_screen import BatchScreen, print_end, print_plan
    from mimo_gguf.server.offline import batch, plan_batch

    check_machines(ray, rpc, dry_run=dry_run)
    use_workers(rpc or [])
    given: dict[str, Any] = {
        "model": model, "out": out, "alias": alias or (), "ctx": ctx, "parallel": parallel, "mtp": mtp, "draft": draft,
        "always_draft": always_draft, "threads": threads, "gpu_layers": gpu_layers, "kv_type": kv_type,
        "ubatch": ubatch, "exact": exact, "retry_errors": retry_errors, "force": force,
        "find": partial(find_model, yes=yes, models_dir=models_dir, quiet=quiet or as_json),
    }  # fmt: skip
    if dry_run:
        plan = plan_batch(rows, **given)
        if as_json:
            ui.print_json(plan.as_json())
        else:
            print_plan(plan)
        return
    with (
        copied_log(log_file, verbose),
        BatchScreen(quiet=quiet) as screen,
        ExitStack() as stack,
        nothing_on_stdout(ray),
    ):
        show_plan = stack.enter_context(loading(shown=not quiet, alive=not quiet))

        def on_plan(fit: FitPlan) -> None:
            show_plan(fit)
            print_advice(fit, gpu_layers)

        def on_pool(pool: Pool) -> None:
            if not quiet:
                ui.print_note(str(pool))

        def on_start(progress: BatchProgress) -> None:
            stack.close()
            screen.begin(progress)

        done = batch(
            rows, **given, ray=ray, workers=workers, cpus_per_worker=cpus_per_worker, gpus_per_worker=gpus_per_worker,
            on_plan=on_plan, on_pool=on_pool, on_start=on_start, on_progress=screen.show,
        )  # fmt: skip
    print_end(done, out, as_json=as_json)


def check_machines(ray: str | None, rpc: list[str] | None, *, dry_run: bool = False) -> None:
    """Refuses options that are about this machine together with a cluster."""
    if ray is not None and rpc:
        raise UsageError("--ray and --rpc: an engine on a Ray cluster uses its own machine", hint="leave --rpc out")
    if ray is not None and dry_run:
        raise UsageError("--dry-run plans for this machine alone", hint="leave --ray out")


def nothing_on_stdout(ray: str | None) -> AbstractContextManager[object]:
    """Lets Ray, which prints on stdout that a machine has died, print on stderr. Answers go to stdout past Python's."""
    return nullcontext() if ray is None else redirect_stdout(sys.stderr)
