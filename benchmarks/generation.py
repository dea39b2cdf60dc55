"""Generation side by side: ours (plain, MTP) with llama-bench and llama-server (plain, MTP), on one file, in one run.

    python -m benchmarks.generation MiMo-7B-RL-Q4_K_M.gguf --tools DIR [--threads 2] [--tokens 64] [--rounds 3]

All with the same threads and greedy sampling; the texts are the ones `mimo-gguf bench` ships with. Rounds alternate
between the candidates, in an order that turns round every time, so that a machine that slows down slows all of them;
the median of the rounds counts. Ours is run plain, with one draft always, and as it comes: drafting where its own
measurements say that it pays. Python's share is what is left of the time without that inside llama_decode; choosing the
token is in it. Only one program is loaded at a time. Time to first token is what a caller waits for: reading the prompt
and drawing one token, no cache reused. llama-bench measures neither texts nor first tokens and draws no token; its
cache is filled to the texts' median length before it counts. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.measured import machine, time_decodes
from mimo_gguf.core.gguf_file import read_gguf
from mimo_gguf.runtime.bench import PROMPTS, BenchOptions, window_needed
from mimo_gguf.runtime.bench_peers import PeerOptions, measure_peer, running_server, serve_once
from mimo_gguf.runtime.chat_template import ChatTemplate
from mimo_gguf.runtime.llama_api import ModelOptions, default_threads, load_model
from mimo_gguf.runtime.sampling import Sampler, SamplingOptions
from mimo_gguf.runtime.session import Session, SessionOptions
from mimo_gguf.runtime.vocabulary import Vocabulary


@dataclass(frozen=True)
class Round:
    """What one candidate did in one round; medians over the texts."""

    tokens_per_s: float
    first_token_s: float | None = None
    acceptance: float | None = None
    python_share: float | None = None


def run_ours(file: Path, options: PeerOptions, texts: list[str], *, mtp: bool, adaptive: bool = False) -> Round:
    """Our own engine, drafting never, always, or (`adaptive`) where it pays by its own measure, as it comes."""
    speeds, firsts, shares = [], [], []
    session_options = SessionOptions(n_ctx=options.n_ctx, n_threads=options.n_threads, mtp=mtp, adaptive=adaptive)
    model_options = ModelOptions(n_gpu_layers=options.n_gpu_layers, load_mtp=mtp)
    with load_model(file, model_options) as model, Session(model, session_options) as session:
        vocabulary, slot, native = Vocabulary(model), session.slot, time_decodes(session)
        slot.feed(vocabulary.tokenize("warm up"))
        for text in texts:
            with Sampler(model, SamplingOptions(temperature=0)) as sampler:
                slot.reset()
                start = time.perf_counter()
                slot.feed(vocabulary.tokenize(text))
                slot.next_token(sampler)
                first, before = time.perf_counter(), sum(timed.seconds for timed in native)
                for _ in range(options.n_generate):
                    slot.next_token(sampler)
                seconds = time.perf_counter() - first
                speeds.append(options.n_generate / seconds)
                firsts.append(first - start)
                shares.append(1 - (sum(timed.seconds for timed in native) - before) / seconds)
        acceptance = session.stats.acceptance
    return Round(statistics.median(speeds), statistics.median(firsts), acceptance, statistics.median(shares))


def run_llama_bench(program: Path, file: Path, options: PeerOptions) -> Round:
    return Round(next(measure_peer(program, file, options, {})).tokens_per_s)


def run_server(program: Path, file: Path, options: PeerOptions, texts: list[str], n_draft: int) -> Round:
    """llama-server, asked as a client asks; its own timings count for speed, the client's clock for the first token."""
    speeds, firsts, drafted, accepted = [], [], 0, 0
    with running_server(program, file, options, n_draft) as address:
        serve_once(address, "warm up", 1)
        for text in texts:
            start = time.perf_counter()
            serve_once(address, text, 1)
            firsts.append(time.perf_counter() - start)
            timings = serve_once(address, text, options.n_generate)
            speeds.append(float(timings["predicted_per_second"]))
            drafted += int(timings.get("draft_n", 0))
            accepted += int(timings.get("draft_n_accepted", 0))
    return Round(statistics.median(speeds), statistics.median(firsts), accepted / drafted if drafted else None)


def main() -> None:
    """Runs the rounds, prints the table and the document."""
    arguments = _arguments()
    file, tools = arguments.file, arguments.tools
    header = read_gguf(file)
    has_mtp = bool(header.value(f"{header.architecture}.nextn_predict_layers", 0))
    template = ChatTemplate.of_file(header)
    texts = [
        template.render([{"role": "system", "content": ""}, {"role": "user", "content": text}])
        for text in PROMPTS.values()
    ]
    window = window_needed(BenchOptions(n_prompt=1, n_generate=arguments.tokens))
    with load_model(file, ModelOptions(vocab_only=True)) as model:
        depth = int(statistics.median(len(Vocabulary(model).tokenize(text)) for text in texts))
    options = PeerOptions(
        8, arguments.tokens, arguments.threads or default_threads(), arguments.gpu_layers, window, 1, n_depth=depth
    )
    candidates: dict[str, Callable[[], Round]] = {
        "ours, plain": lambda: run_ours(file, options, texts, mtp=False),
        "llama-bench": lambda: run_llama_bench(tools / "llama-bench", file, options),
        "llama-server, plain": lambda: run_server(tools / "llama-server", file, options, texts, 0),
    }
    if has_mtp:
        candidates["ours, MTP"] = lambda: run_ours(file, options, texts, mtp=True)
        candidates["ours, as it comes"] = lambda: run_ours(file, options, texts, mtp=True, adaptive=True)
        candidates["llama-server, MTP"] = lambda: run_server(tools / "llama-server", file, options, texts, 1)
    rounds: dict[str, list[Round]] = {name: [] for name in candidates}
    for number in range(arguments.rounds):
        for name in list(candidates) if number % 2 == 0 else list(reversed(candidates)):
            print(f"round {number + 1}: {name}", file=sys.stderr, flush=True)
            rounds[name].append(candidates[name]())
    print_report(file, options, rounds)


def print_report(file: Path, options: PeerOptions, rounds: dict[str, list[Round]]) -> None:
    """A line per candidate (median, and the range of its rounds), ratios, and the document."""
    print(f"{file.name}, {options.n_threads} threads, {options.n_generate} tokens of {len(PROMPTS)} texts, greedy")
    print(f"{'':22}{'tok/s':>8}{'min':>8}{'max':>8}{'first token':>14}{'drafts right':>14}{'Python':>9}")
    speed = {}
    for name, measured in rounds.items():
        speeds = [entry.tokens_per_s for entry in measured]
        speed[name] = statistics.median(speeds)
        firsts = [entry.first_token_s for entry in measured if entry.first_token_s is not None]
        shares = [entry.acceptance for entry in measured if entry.acceptance is not None]
        first = f"{1000 * statistics.median(firsts):.0f} ms" if firsts else "-"
        share = f"{statistics.median(shares):.0%}" if shares else "-"
        python = [entry.python_share for entry in measured if entry.python_share is not None]
        of_python = f"{statistics.median(python):.2%}" if python else "-"
        print(f"{name:22}{speed[name]:8.2f}{min(speeds):8.2f}{max(speeds):8.2f}{first:>14}{share:>14}{of_python:>9}")
    pairs = (
        ("ours, plain", "llama-bench"),
        ("ours, plain", "llama-server, plain"),
        ("ours, MTP", "llama-server, MTP"),
        ("ours, MTP", "ours, plain"),
        ("ours, as it comes", "ours, plain"),
        ("ours, as it comes", "llama-server, MTP"),
    )
    ratios = {f"{a} / {b}": speed[a] / speed[b] for a, b in pairs if a in speed and b in speed}
    for name, ratio in ratios.items():
        print(f"{name:44}{ratio:8.3f}")
    document = {
        "machine": machine(),
        "file": file.name,
        "options": asdict(options),
        "ratios": ratios,
        "rounds": {name: [asdict(entry) for entry in measured] for name, measured in rounds.items()},
    }
    print(json.dumps(document))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--tools", type=Path, required=True, help="folder of llama-bench and llama-server")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gpu-layers", type=int, default=-1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
