"""Compares generation, plain and with MTP, with llama-bench and llama-server, on one file, in one run.

    python -m benchmarks.generation MiMo-7B-RL-Q4_K_M.gguf --tools DIR [--threads 2] [--tokens 64] [--rounds 3]

All use the same threads and greedy sampling without end tokens, on the texts of `mimo-gguf bench`. The candidates run
in turn, in an order that is reversed every time. Ratios are medians over pairs of the same text in the same round, so
that a slower machine slows both sides. One program is loaded at a time. With --together all are loaded and run text by
text in turn: they share the mapped weights, and only the one that is measured computes.

Ours runs plain, with one draft always, and as it comes: drafting if its own measurements show that it is faster.
Python's share is the time outside llama_decode, drawing the token included. The time to the first token is what a
caller waits for: reading the prompt and drawing one token, with nothing cached. llama-bench reads no texts and draws no
tokens; its cache is filled to the texts' median length before it measures. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.measured import machine, time_decodes
from mimo_gguf.bench.peers import PeerOptions, measure_peer, running_server, serve_once
from mimo_gguf.bench.run import PROMPTS, BenchOptions, EndlessSampler, bench_prompts, window_needed
from mimo_gguf.bench.same_text import is_same_text
from mimo_gguf.chat.template import ChatTemplate
from mimo_gguf.core.gguf_file import read_gguf
from mimo_gguf.engine.session import Session, SessionOptions
from mimo_gguf.engine.single import next_token, read_prompt
from mimo_gguf.llama.api import ModelOptions, default_threads, load_model
from mimo_gguf.llama.vocabulary import Vocabulary


@dataclass(frozen=True)
class Run:
    """The figures of one candidate with one text."""

    tokens_per_s: float
    first_token_s: float | None = None
    acceptance: float | None = None
    python_share: float | None = None
    tokens: tuple[int, ...] = ()


Measure = Callable[[str], Run]
Candidate = Callable[[], AbstractContextManager[Measure]]
PAIRS = (
    ("ours, plain", "llama-bench"),
    ("ours, plain", "llama-server, plain"),
    ("ours, MTP", "llama-server, MTP"),
    ("ours, MTP", "ours, plain"),
    ("ours, as it comes", "ours, plain"),
    ("ours, as it comes", "llama-server, MTP"),
)


@contextmanager
def ours(file: Path, options: PeerOptions, *, mtp: bool, adaptive: bool = False) -> Iterator[Measure]:
    """Opens our own engine: it drafts never, always, or (`adaptive`) if it measures that drafting is faster."""
    session_options = SessionOptions(n_ctx=options.n_ctx, n_threads=options.n_threads, mtp=mtp, adaptive=adaptive)
    model_options = ModelOptions(n_gpu_layers=options.n_gpu_layers, load_mtp=mtp)
    with load_model(file, model_options) as model, Session(model, session_options) as session:
        vocabulary, slot, native = Vocabulary(model), session.slot, time_decodes(session)
        read_prompt(session, vocabulary.tokenize("warm up"))
        end_tokens = vocabulary.end_tokens

        def measure(text: str) -> Run:
            earlier = slot.stats.copy()
            with EndlessSampler(model, end_tokens) as sampler:
                session.reset(slot)
                start = time.perf_counter()
                read_prompt(session, vocabulary.tokenize(text))
                tokens = [next_token(session, sampler)]
                first, before = time.perf_counter(), sum(timed.seconds for timed in native)
                tokens += [next_token(session, sampler) for _ in range(options.n_generate)]
                seconds = time.perf_counter() - first
                session.drop_unfinished(slot)
            decoding = sum(timed.seconds for timed in native) - before
            acceptance = slot.stats.since(earlier).acceptance
            return Run(options.n_generate / seconds, first - start, acceptance, 1 - decoding / seconds, tuple(tokens))

        yield measure


@contextmanager
def llama_bench(program: Path, file: Path, options: PeerOptions) -> Iterator[Measure]:
    yield lambda _: Run(next(measure_peer(program, file, options, {})).tokens_per_s)


@contextmanager
def llama_server(program: Path, file: Path, options: PeerOptions, n_draft: int) -> Iterator[Measure]:
    """Starts llama-server. Its own timings give the speed, this client's clock the time to the first token."""
    with running_server(program, file, options, n_draft) as address:
        serve_once(address, "warm up", 1)

        def measure(text: str) -> Run:
            start = time.perf_counter()
            serve_once(address, text, 1)
            first = time.perf_counter() - start
            timings, tokens = serve_once(address, text, options.n_generate)
            drafted = int(timings.get("draft_n", 0))
            acceptance = int(timings.get("draft_n_accepted", 0)) / drafted if drafted else None
            return Run(float(timings["predicted_per_second"]), first, acceptance, tokens=tuple(tokens))

        yield measure


def run_all(
    candidates: dict[str, Candidate], texts: list[str], n_rounds: int, *, together: bool
) -> dict[str, list[Run]]:
    """Runs every candidate; gives the runs of each, in the same order of rounds and texts."""
    runs: dict[str, list[Run]] = {name: [] for name in candidates}

    def run(name: str, measure: Measure, text: str) -> None:
        runs[name].append(measure(text))
        print(f"{name:22}{runs[name][-1].tokens_per_s:8.2f} tok/s", file=sys.stderr, flush=True)

    def order(number: int) -> list[str]:
        return list(candidates) if number % 2 == 0 else list(reversed(candidates))

    with ExitStack() as stack:
        opened = {name: stack.enter_context(candidate()) for name, candidate in candidates.items() if together}
        for number, text in enumerate(texts * n_rounds if together else []):
            for name in order(number):
                run(name, opened[name], text)
    for number in range(0 if together else n_rounds):
        for name in order(number):
            with candidates[name]() as measure:
                for text in texts:
                    run(name, measure, text)
    return runs


def main() -> None:
    """Runs the candidates, and prints the table and the document."""
    arguments = _arguments()
    file, tools = arguments.file, arguments.tools
    header = read_gguf(file)
    has_mtp = bool(header.value(f"{header.architecture}.nextn_predict_layers", 0))
    texts = list(bench_prompts(ChatTemplate.of_file(header), list(PROMPTS)).values())
    window = window_needed(BenchOptions(n_prompt=1, n_generate=arguments.tokens))
    with load_model(file, ModelOptions(vocab_only=True)) as model:
        depth = int(statistics.median(len(Vocabulary(model).tokenize(text)) for text in texts))
    options = PeerOptions(
        8, arguments.tokens, arguments.threads or default_threads(), arguments.gpu_layers, window, 1, n_depth=depth
    )
    bench, server = tools / "llama-bench", tools / "llama-server"
    candidates: dict[str, Candidate] = {
        "ours, plain": lambda: ours(file, options, mtp=False),
        "llama-bench": lambda: llama_bench(bench, file, options),
        "llama-server, plain": lambda: llama_server(server, file, options, 0),
    }
    if has_mtp:
        candidates["ours, MTP"] = lambda: ours(file, options, mtp=True)
        candidates["ours, as it comes"] = lambda: ours(file, options, mtp=True, adaptive=True)
        candidates["llama-server, MTP"] = lambda: llama_server(server, file, options, 1)
    if arguments.only:
        candidates = {name: candidate for name, candidate in candidates.items() if name in arguments.only}
    print_report(file, options, run_all(candidates, texts, arguments.rounds, together=arguments.together))


def print_report(file: Path, options: PeerOptions, runs: dict[str, list[Run]]) -> None:
    """Prints a line per candidate (median and range of its runs), the ratios, and the document."""
    print(f"{file.name}, {options.n_threads} threads, {options.n_generate} tokens of {len(PROMPTS)} texts, greedy")
    print(f"{'':22}{'tok/s':>8}{'min':>8}{'max':>8}{'first token':>14}{'drafts right':>14}{'Python':>9}")
    for name, measured in runs.items():
        speeds = [run.tokens_per_s for run in measured]
        first = _median([run.first_token_s for run in measured])
        right, python = _median([run.acceptance for run in measured]), _median([run.python_share for run in measured])
        print(
            f"{name:22}{statistics.median(speeds):8.2f}{min(speeds):8.2f}{max(speeds):8.2f}"
            f"{'-' if first is None else f'{1000 * first:.0f} ms':>14}"
            f"{'-' if right is None else f'{right:.0%}':>14}{'-' if python is None else f'{python:.2%}':>9}"
        )
    ratios = {}
    for a, b in (pair for pair in PAIRS if pair[0] in runs and pair[1] in runs):
        both = list(zip(runs[a], runs[b], strict=True))
        ratios[f"{a} / {b}"] = ratio = statistics.median(x.tokens_per_s / y.tokens_per_s for x, y in both)
        texts = [(x.tokens, y.tokens) for x, y in both if x.tokens and y.tokens]
        same = f"   same text {sum(is_same_text(*pair) for pair in texts)} of {len(texts)}" if texts else ""
        waits = _median([x.first_token_s - y.first_token_s for x, y in both if x.first_token_s and y.first_token_s])
        print(f"{f'{a} / {b}':44}{ratio:8.3f}{'' if waits is None else f'   first token {1000 * waits:+.0f} ms'}{same}")
    document = {
        "machine": machine(),
        "file": file.name,
        "options": asdict(options),
        "ratios": ratios,
        "runs": {name: [asdict(replace(run, tokens=())) for run in measured] for name, measured in runs.items()},
    }
    print(json.dumps(document))


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--tools", type=Path, required=True, help="folder of llama-bench and llama-server")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gpu-layers", type=int, default=-1)
    parser.add_argument("--only", nargs="+", metavar="NAME", help='for example --only "ours, plain" llama-bench')
    parser.add_argument("--together", action="store_true", help="all programs loaded at once, text by text in turn")
    return parser.parse_args()


if __name__ == "__main__":
    main()
