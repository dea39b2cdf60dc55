"""`mimo-gguf bench`: how fast a model is here, plain and with MTP drafts, alone or beside llama.cpp's own programs."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mimo_gguf.cli import ui
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.units import format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mimo_gguf.runtime.bench import BenchReport
    from mimo_gguf.runtime.bench_peers import PeerFigure


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A GGUF file.")],
    n_prompt: Annotated[int, typer.Option("--prompt-tokens", metavar="N", help="Tokens of the timed prompt.")] = 512,
    n_generate: Annotated[int, typer.Option("--tokens", metavar="N", help="Tokens made per text and way.")] = 128,
    drafts: Annotated[
        str, typer.Option(metavar="N,N", help="Numbers of drafts to measure; 0 is plain generation.")
    ] = "0,1,2,3",
    kinds: Annotated[str, typer.Option(metavar="KIND,KIND", help="Texts: code, prose, maths.")] = "code,prose,maths",
    repetitions: Annotated[int, typer.Option("-r", "--repetitions", metavar="N", help="The median counts.")] = 3,
    ctx: Annotated[
        int, typer.Option(metavar="N", show_default=False, help="Context window [default: what is needed].")
    ] = 0,
    threads: Annotated[
        int, typer.Option(metavar="N", show_default=False, help="CPU threads [default: the physical cores].")
    ] = 0,
    gpu_layers: Annotated[
        int | None,
        typer.Option("--gpu-layers", "-ngl", metavar="N", help="Layers on the GPU, -1 all [default: what fits]."),
    ] = None,
    kv_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="KV cache: f16, q8_0 or q4_0 [default: f16 if that fits].")
    ] = None,
    rpc: Annotated[
        list[str] | None, typer.Option(metavar="HOST:PORT", help="Also use this worker; may be repeated.")
    ] = None,
    auto: Annotated[
        bool,
        typer.Option("--auto", show_default=False, help="Choose for the free memory what is not given; the default."),
    ] = True,
    against: Annotated[
        list[Path] | None,
        typer.Option(metavar="PROGRAM", help="Also measure with this llama-bench or llama-server; may be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Only the JSON document.")] = False,
) -> None:
    """Measure prompt reading and generation: plain, and with 1, 2 and 3 drafts on code, prose and maths.

    A table for people on stdout; its last line is one JSON document.
    """
    from mimo_gguf.cli.chat import plan_teller
    from mimo_gguf.core.ggml_types import parse_ggml_type
    from mimo_gguf.core.gguf_file import read_gguf
    from mimo_gguf.runtime.bench import PROMPTS, BenchOptions, run_bench, window_needed
    from mimo_gguf.runtime.bench_peers import PeerOptions, measure_peer
    from mimo_gguf.runtime.chat_template import ChatTemplate
    from mimo_gguf.runtime.devices import add_workers
    from mimo_gguf.runtime.launch import choose_plan, model_options, session_options
    from mimo_gguf.runtime.llama_api import load_model
    from mimo_gguf.runtime.session import SessionOptions
    from mimo_gguf.runtime.solver import Wishes

    options = BenchOptions(n_prompt, n_generate, _numbers(drafts), tuple(kinds.split(",")), repetitions)
    header = read_gguf(file)
    template = ChatTemplate.of_file(header)
    if rpc:
        add_workers(rpc)
    plan = choose_plan(
        header,
        Wishes(
            n_ctx=ctx or window_needed(options),
            kv_type=parse_ggml_type(kv_type) if kv_type else None,
            n_gpu_layers=gpu_layers,
            n_outputs_max=1 + max(options.drafts),
        ),
    )
    plan.require()
    plan_teller(not as_json and sys.stderr.isatty())(plan)
    start = time.perf_counter()
    with load_model(file, model_options(plan)) as model:
        load_s = time.perf_counter() - start
        session = replace(session_options(plan, SessionOptions(n_threads=threads)), n_ctx=ctx)
        report = run_bench(model, template, session, options, load_s=load_s, tell=_tell(as_json), plan=plan)
    prompts = [template.render([{"role": "system", "content": ""}, _user(PROMPTS[kind])]) for kind in options.kinds]
    window = n_prompt + n_generate + 256
    peer_options = PeerOptions(n_prompt, n_generate, report.n_threads, plan.settings.n_gpu_layers, window, repetitions)
    peers = [figure for program in against or () for figure in measure_peer(program, file, peer_options, prompts)]
    if not as_json:
        _print_report(report, peers)
    print(json.dumps(report.as_json() | {"peers": [_peer_json(peer) for peer in peers]}, ensure_ascii=False))


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--drafts {text}: not a list of numbers", hint="--drafts 0,1,2") from None


def _tell(as_json: bool) -> Any:
    return (lambda _: None) if as_json else (lambda text: ui.print_note(f"measuring {text}"))


def _print_report(report: BenchReport, peers: Sequence[PeerFigure]) -> None:
    ui.out.print(
        f"{report.model} ({format_size(report.size_bytes)}), {report.n_threads} threads: prompt "
        f"{report.prompt_tokens_per_s:.1f} tok/s, first token after {report.first_token_s:.2f} s, "
        f"loaded in {report.load_s:.1f} s",
        markup=False,
    )
    used = ", ".join(f"{format_size(n_bytes)} on {name}" for name, n_bytes in report.memory_bytes.items())
    reads = "bandwidth not known"
    if report.bandwidth:
        reads = f"memory delivers {report.bandwidth.bytes_per_s / 1e9:.1f} GB/s ({report.bandwidth.source})"
    ui.out.print(f"in use: {used}; {reads}", markup=False)
    rows = []
    for figure in report.generation:
        speed_up = report.speed_up(figure)
        rows.append(
            (
                figure.kind,
                f"{figure.n_draft} drafts" if figure.n_draft else "plain",
                f"{figure.tokens_per_s:.1f}",
                "-" if speed_up is None else f"{speed_up:.2f}",
                " ".join("-" if share is None else f"{share:.0%}" for share in figure.acceptance) or "-",
                f"{report.read_bytes_per_s(figure) / 1e9:.1f}",
                "-" if (share := report.bandwidth_share(figure)) is None else f"{share:.0%}",
                "" if figure.same_text else "near ties turned",
            )
        )
    for peer in peers:
        how = f"{peer.n_draft} drafts" if peer.n_draft else "plain"
        right = "-" if peer.acceptance is None else f"{peer.acceptance:.0%}"
        rows.append((peer.program, how, f"{peer.tokens_per_s:.1f}", "-", right, "-", "-", ""))
    ui.print_table(("text", "way", "tok/s", "speed-up", "drafts right", "GB/s of weights", "of memory", ""), rows)


def _peer_json(peer: PeerFigure) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(peer)
