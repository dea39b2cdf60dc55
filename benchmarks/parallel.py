"""Measures 1, 2 and 4 conversations at a time: tokens per second, and the time of a step spent in Python.

    python -m benchmarks.parallel MODEL.gguf [--threads 2] [--tokens 128] [--rounds 5] [--parallel 1 2 4]

Every conversation is greedy on one of the texts of `mimo-gguf bench`, and all begin together; end tokens are ignored.
Rounds alternate between the numbers, plain and with MTP, each in a session of its own. The best round counts, because
other work of the machine only adds time. Python's share is a step's time without that inside llama.cpp. The last line
is one JSON document.
"""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.measured import machine, serve_together
from mimo_gguf.bench.run import PROMPTS
from mimo_gguf.chat.template import ChatTemplate
from mimo_gguf.core.gguf_file import read_gguf
from mimo_gguf.engine.sampling import Sampler, SamplingOptions
from mimo_gguf.engine.session import Session, SessionOptions
from mimo_gguf.llama.api import LlamaModel, ModelOptions, default_threads, load_model
from mimo_gguf.llama.vocabulary import Vocabulary


@dataclass(frozen=True)
class Figure:
    """The figures of one way of serving, in its best round."""

    n_parallel: int
    mtp: bool
    tokens_per_s: float
    python_us_per_step: float
    acceptance: float | None


def measure(model: LlamaModel, prompts: list[list[int]], n_tokens: int, options: SessionOptions) -> Figure:
    """Serves `n_parallel` conversations side by side until each has `n_tokens` after the first token."""
    n = options.n_parallel
    with Session(model, options) as session:
        samplers = {slot: Sampler(model, SamplingOptions(temperature=0)) for slot in session.slots}
        served = serve_together(session, samplers, itertools.cycle(prompts), n_tokens)
        python = (served.seconds - served.native_s) / served.steps
        return Figure(n, options.mtp, n * n_tokens / served.seconds, 1e6 * python, session.stats.acceptance)


def main() -> None:
    arguments = _arguments()
    file = read_gguf(arguments.file)
    has_mtp = bool(file.value(f"{file.architecture}.nextn_predict_layers", 0))
    template = ChatTemplate.of_file(file)
    best: dict[tuple[int, bool], Figure] = {}
    with load_model(arguments.file, ModelOptions(n_gpu_layers=arguments.gpu_layers, load_mtp=has_mtp)) as model:
        vocabulary = Vocabulary(model)
        prompts = [
            vocabulary.tokenize(template.render([{"role": "user", "content": text}])) for text in PROMPTS.values()
        ]
        window = max(map(len, prompts)) + arguments.tokens + 16
        ways = list(itertools.product(arguments.parallel, (False, True) if has_mtp else (False,)))
        for number in range(arguments.rounds):
            for n, mtp in ways if number % 2 == 0 else reversed(ways):
                options = SessionOptions(
                    n_ctx=n * window, n_parallel=n, n_threads=arguments.threads, mtp=mtp, adaptive=False
                )
                figure = measure(model, prompts, arguments.tokens, options)
                if (n, mtp) not in best or figure.tokens_per_s > best[n, mtp].tokens_per_s:
                    best[n, mtp] = figure
    print_report(arguments, best)


def print_report(arguments: argparse.Namespace, best: dict[tuple[int, bool], Figure]) -> None:
    print(f"{arguments.file.name}, {arguments.threads} threads, {arguments.tokens} tokens for each, greedy")
    print(f"{'at a time':>10}{'':>8}{'tok/s in all':>14}{'tok/s each':>12}{'to one':>8}{'Python/step':>13}{'right':>7}")
    for (n, mtp), figure in sorted(best.items(), key=lambda item: (item[0][1], item[0][0])):
        alone = best.get((1, mtp))
        ratio = f"{figure.tokens_per_s / alone.tokens_per_s:.2f}" if alone else "-"
        share = f"{figure.acceptance:.0%}" if figure.acceptance is not None else "-"
        print(
            f"{n:10}{'MTP' if mtp else 'plain':>8}{figure.tokens_per_s:14.1f}{figure.tokens_per_s / n:12.1f}{ratio:>8}"
            f"{figure.python_us_per_step:10.1f} us{share:>7}"
        )
    print(
        json.dumps({"machine": machine(), "file": arguments.file.name, "figures": [asdict(f) for f in best.values()]})
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parallel", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--gpu-layers", type=int, default=-1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
