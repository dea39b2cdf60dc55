"""Measures what Python does in a step of the scheduler, outside llama_decode, in microseconds.

    python -m benchmarks.steps MODEL.gguf [--rows 1 8] [--tokens 900]

Each row is a greedy answer. Only the first pass of all rows is computed; the later ones are skipped, and the same
logits are drawn from. So the caches of the processor hold what Python needs, which they do not after a real pass. The
tenth percentile of all steps is printed, because other programs only add time. "At once" tells of every token,
"stream" every 16 ms as the server does, and "whole" of the whole answer, as `batch` does.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

from mimo_gguf.chat.answer import AnswerOptions
from mimo_gguf.engine.sampling import SamplingOptions
from mimo_gguf.engine.session import SessionOptions
from mimo_gguf.runtime.model import Model
from mimo_gguf.runtime.scheduler import Request

WAYS = {"at once": 0.0, "stream": 0.016, "whole": math.inf}


class Skipped:
    """llama_decode, but a pass is skipped if the one before had as many rows, all with logits."""

    def __init__(self, decode: Any) -> None:
        self.seconds = 0.0
        self._decode, self._last = decode, 0

    def __call__(self, context: Any, batch: Any) -> int:
        """Computes the pass, or claims that it was."""
        if batch.n_tokens == batch.n_outputs == self._last:
            return 0
        self._last = batch.n_tokens
        began = time.perf_counter()
        result = int(self._decode(context, batch))
        self.seconds += time.perf_counter() - began
        return result


def measure(model: Model, n_rows: int, n_tokens: int, every_s: float) -> float:
    """The tenth percentile of the seconds of a step with `n_rows` answers."""
    context, driver = model.session.target, model.driver
    skipped = context._decode = Skipped(getattr(context._decode, "_decode", context._decode))
    options = AnswerOptions(max_tokens=n_tokens, ignore_eos=True)
    prompts = [(40 + number, *range(40, 60)) for number in range(n_rows)]
    ticket = driver.submit(
        [Request(prompt, SamplingOptions(temperature=0), options, every_s=every_s) for prompt in prompts]
    )
    found = []
    while not ticket.is_done:
        began, before = time.perf_counter(), skipped.seconds
        driver.wait(ticket.ids, ticket._note, goes_on=lambda: False)
        found.append(time.perf_counter() - began - (skipped.seconds - before))
    return sorted(found)[len(found) // 10]


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=900)
    given = parser.parse_args()
    most = max(given.rows)
    options = SessionOptions(n_ctx=most * (given.tokens + 128), n_parallel=most, n_threads=1, mtp=False)
    with Model.open(given.model, options) as model:
        for n_rows in given.rows:
            for way, every_s in WAYS.items():
                print(f"{n_rows:3} rows, {way:8} {1e6 * measure(model, n_rows, given.tokens, every_s):8.1f} us")


if __name__ == "__main__":
    main()
