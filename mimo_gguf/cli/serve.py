"""`mimo-gguf serve`: answers over HTTP with OpenAI's API."""

from __future__ import annotations

import logging
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mimo_gguf.cli import ui
from mimo_gguf.cli.finding import find_model
from mimo_gguf.cli.llama_log import copied_log
from mimo_gguf.cli.loading import loading, print_advice
from mimo_gguf.cli.options import (
    Alias,
    AlwaysDraft,
    Auto,
    Ctx,
    Draft,
    Exact,
    Force,
    GpuLayers,
    Host,
    KvType,
    LogFile,
    ModelsDir,
    Mtp,
    Parallel,
    Port,
    Rpc,
    Threads,
    Ubatch,
    Verbose,
    Yes,
)
from mimo_gguf.cli.workers import use_workers
from mimo_gguf.core.errors import UsageError

if TYPE_CHECKING:
    from mimo_gguf.fit.plan import FitPlan
    from mimo_gguf.server.settings import Settings


def command(
    file: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A GGUF, a checkpoint folder, or a Hub id.", show_default=False),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME=FILE", help="A model loaded at its first request; may be repeated."),
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = 8080,
    alias: Alias = None,
    ctx: Ctx = None,
    parallel: Parallel = 4,
    mem_fraction: Annotated[
        float | None,
        typer.Option("--mem-fraction", metavar="X", help="Share of the free memory that may be used [default: all]."),
    ] = None,
    cache_ram: Annotated[
        str | None,
        typer.Option(
            "--cache-ram",
            metavar="SIZE",
            show_default=False,
            help="Host memory for idle conversations whose slot is needed, 0 none [default: half of what is left].",
        ),
    ] = None,
    max_pause: Annotated[
        float,
        typer.Option("--max-pause", metavar="S", help="Seconds that a prompt may hold up others' tokens, 0 any."),
    ] = 0.5,
    queue: Annotated[
        int, typer.Option("--queue", min=0, metavar="N", help="Answers that may wait; past that clients get a 429.")
    ] = 64,
    time_limit: Annotated[
        float | None, typer.Option("--time-limit", metavar="S", help="Seconds after which a request is cut off.")
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
    auto: Auto = True,
    api_key: Annotated[
        list[str] | None,
        typer.Option("--api-key", metavar="KEY", help="Ask clients for this key; seen in lists of processes."),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", metavar="FILE", help="The same, one key in a line.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Let others ask without a key.")] = False,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option("--cors-origin", metavar="URL", help="Let pages of this origin ask, * all; may be repeated."),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option("--tls-cert", metavar="FILE", help="Certificate for HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="Its private key.")] = None,
    files_dir: Annotated[
        Path | None, typer.Option("--files-dir", metavar="DIR", help="Keep files and answer batches, in this folder.")
    ] = None,
    verbose: Verbose = False,
    log_file: LogFile = None,
    yes: Yes = False,
    models_dir: ModelsDir = None,
    force: Force = False,
) -> None:
    """Answer over HTTP with OpenAI's API, many conversations at a time, with MTP drafting.

    Ctrl-C ends it as soon as every answer has ended; a second one at once.
    """
    from mimo_gguf.server.start import serve

    named = _named(model or [])
    use_workers(rpc or [])
    with copied_log(log_file, verbose), loading(shown=True, alive=False) as show_plan:
        plans: list[FitPlan] = []

        def on_plan(plan: FitPlan) -> None:
            plans.append(plan)
            show_plan(plan)

        def on_ready(settings: Settings) -> None:
            for plan in plans:
                print_advice(plan, gpu_layers)
            _show_log()
            names = dict.fromkeys((settings.names[0], *named))
            ui.print_note(f"listening on {settings.url}/v1 as {', '.join(names)}; a page to chat: {settings.url}/")

        everything = serve(
            file, model=named or None, host=host, port=port, alias=alias or (), ctx=ctx, parallel=parallel,
            mem_fraction=mem_fraction, cache_ram=cache_ram, max_pause=max_pause, queue=queue, time_limit=time_limit,
            mtp=mtp, draft=draft, always_draft=always_draft, threads=threads, gpu_layers=gpu_layers, kv_type=kv_type,
            ubatch=ubatch, exact=exact, api_key=api_key or (), api_key_file=api_key_file, insecure=insecure,
            cors_origin=cors_origin or (), tls_cert=tls_cert, tls_key=tls_key, files_dir=files_dir,
            force=force, on_plan=on_plan, on_ready=on_ready, find=partial(find_model, yes=yes, models_dir=models_dir),
        )  # fmt: skip
    raise typer.Exit(0 if everything else 130)


def _named(given: list[str]) -> dict[str, str | Path]:
    """The files of `--model NAME=FILE` by name."""
    found: dict[str, str | Path] = {}
    for each in given:
        name, equals, file = each.partition("=")
        if not equals or not name or not file:
            raise UsageError(f"--model {each}: not NAME=FILE", hint="for example --model small=MiMo-7B-RL-Q4_K_M.gguf")
        if name in found:
            raise UsageError(f"two models are called {name}", hint="choose another name")
        found[name] = Path(file)
    return found


def _show_log() -> None:
    """Shows the package's log on stderr: a line for each request."""
    handler = logging.StreamHandler(ui.HarmlessLines(sys.stderr))
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("mimo_gguf")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
