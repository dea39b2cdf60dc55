"""`mimo-gguf evaluate`: benchmarks under the rules of MiMo's report, alone or beside the model a file was made from."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from mimo_gguf.cli.batch import check_machines, nothing_on_stdout
from mimo_gguf.cli.finding import find_model
from mimo_gguf.cli.llama_log import copied_log
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


def command(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL...",
            help="A model as for batch; with --url its name; with --show folders.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="TASK", help="A task of --list, or a TOML file; may be repeated."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base", metavar="SRC", help="A model that is asked the same with the same seeds, or its results' folder."
        ),
    ] = None,
    url: Annotated[
        str | None, typer.Option("--url", metavar="URL", help="Ask a server with OpenAI's API instead of a file.")
    ] = None,
    out: Annotated[
        str, typer.Option("-o", "--out", metavar="DIR", help="Folder with a folder for each model.")
    ] = "evaluation",
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="Problems per task, the same for every model.")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option("--repeats", min=1, metavar="N", help="Answers per problem [default: the task's].")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0.0, metavar="T", help="Of answers [default: the task's, 0.6].")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, metavar="N", help="Of an answer [default: the task's].")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="TASK=FILE", help="Read a task's problems from this file; may be repeated."),
    ] = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Run the programs that the model writes: locked in, without network.")
    ] = False,
    so_far: Annotated[
        bool, typer.Option("--so-far", help="Grade the answers that are there, and ask for none.")
    ] = False,
    ctx: Ctx = None,
    parallel: Annotated[
        int | None, typer.Option("--parallel", min=1, metavar="N", help="Answers at a time [default: what fits].")
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
    list_tasks: Annotated[bool, typer.Option("--list", help="Show the tasks.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Compare the results in the given folders.")] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="OUT.svg", help="Draw the scores: .svg or .png.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be asked; ask nothing.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log_file: LogFile = None,
    yes: Yes = False,
    models_dir: ModelsDir = None,
) -> None:
    """Ask a model the problems of benchmarks, grade its answers, and compare with what was published.

    The same command goes on after any interruption.
    """
    from mimo_gguf.cli.evaluate_screen import EvaluationScreen, print_evaluation, print_plan, print_tasks, show_folders
    from mimo_gguf.verbs import evaluate

    if list_tasks:
        print_tasks(as_json=as_json)
        return
    if plot is not None:
        from mimo_gguf.cli.evaluate_plot import check_plot

        check_plot(plot)
    if show:
        show_folders([Path(each) for each in models or ()], plot, as_json=as_json)
        return
    if len(models or ()) > 1:
        raise UsageError("more than one MODEL", hint="evaluate them one by one, and compare with --show")
    asked: dict[str, Any] = {
        "task": task or (), "limit": limit, "repeats": repeats, "temperature": temperature, "max_tokens": max_tokens,
        "data": data or (), "allow_code": allow_code,
    }  # fmt: skip
    if dry_run:
        print_plan(asked, as_json=as_json)
        return
    check_machines(ray, rpc)
    use_workers(rpc or [])
    screen = EvaluationScreen(quiet=quiet, gpu_layers=gpu_layers)
    with copied_log(log_file, verbose), nothing_on_stdout(ray), screen:
        found = evaluate(
            models[0] if models else None, **asked, base=base, url=url, out=out, so_far=so_far, ctx=ctx,
            parallel=parallel, mtp=mtp, draft=draft, always_draft=always_draft, threads=threads, gpu_layers=gpu_layers,
            kv_type=kv_type, ubatch=ubatch, exact=exact, retry_errors=retry_errors, force=force, ray=ray,
            workers=workers, cpus_per_worker=cpus_per_worker, gpus_per_worker=gpus_per_worker,
            on_task=screen.begin_task, on_plan=screen.load, on_pool=screen.show_pool, on_start=screen.begin,
            on_progress=screen.show, on_graded=screen.show_graded,
            find=partial(find_model, yes=yes, models_dir=models_dir, quiet=quiet or as_json),
        )  # fmt: skip
    print_evaluation(found, plot, as_json=as_json)
