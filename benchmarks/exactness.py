"""Measures how far batches move logits: a text read several rows at a time, compared with the same text row by row.

    python -m benchmarks.exactness MODEL.gguf [MODEL.gguf ...] [--rows 2 4 8 ...] [--tokens 512] [--threads 1]

For each file, attention and type of cache it shows the largest difference of any logit at any place of the text. It
also counts the places with another likeliest token. `exact` is what `SessionOptions.exact` sets: batches are read, but
llama.cpp computes them one row at a time. `slots` is the same text beside three others in one buffer of cells, one row
of each in a pass. The text is the tiny model's held-out dialogues. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.measured import machine
from mimo_gguf.engine.sampling import Sampler, SamplingOptions
from mimo_gguf.engine.session import Session, SessionOptions
from mimo_gguf.llama.api import ContextOptions, Floats, LlamaModel, ModelOptions, load_model, open_context
from mimo_gguf.llama.batch import Batch
from mimo_gguf.llama.vocabulary import Vocabulary

HELDOUT: Final = Path(__file__).parents[1] / "examples/mimo-tiny-heldout.jsonl"
F32, F16, Q8_0 = 0, 1, 8  # ggml's numbers
WAYS: Final[dict[str, ContextOptions]] = {
    "flash attention, f16": ContextOptions(n_ctx=0, flash_attn=True),
    "none, f16": ContextOptions(n_ctx=0, flash_attn=False),
    "none, f32": ContextOptions(n_ctx=0, flash_attn=False, type_k=F32, type_v=F32),
    "flash attention, q8_0": ContextOptions(n_ctx=0, flash_attn=True, type_k=Q8_0, type_v=Q8_0),
}
N_OTHERS: Final = 3


@dataclass(frozen=True)
class Figure:
    """One way compared with row by row.

    Attributes:
        largest: the largest difference of any logit.
        turned: places with another likeliest token.
    """

    file: str
    way: str
    repacked: bool
    rows: str
    largest: float
    turned: int


def heldout_text() -> str:
    """The held-out dialogues, one message after the other."""
    lines = HELDOUT.read_text(encoding="utf-8").splitlines()
    return "\n".join(message["content"] for line in lines for message in json.loads(line)["messages"])


def read(model: LlamaModel, tokens: list[int], rows: int, options: ContextOptions) -> Floats:
    """Computes the logits after each token, shape (len(tokens), n_vocab), with `rows` tokens in a pass."""
    logits = np.empty((len(tokens), model.n_vocab), np.float32)
    batch = Batch(rows)
    with open_context(model, replace(options, n_batch=rows, n_outputs_max=rows)) as context:
        for first in range(0, len(tokens), rows):
            part = tokens[first : first + rows]
            assert context.decode(batch.fill(part, first, n_outputs=len(part))) == 0
            for row in range(len(part)):
                logits[first + row] = context.logits(row)
    return logits


def read_beside_others(model: LlamaModel, tokens: list[int], options: ContextOptions) -> Floats:
    """Computes the same logits with a row of each of three other texts in every pass, all in one buffer of cells."""
    n = 1 + N_OTHERS
    logits = np.empty((len(tokens), model.n_vocab), np.float32)
    batch = Batch(n)
    shared = replace(
        options, n_ctx=n * options.n_ctx, n_batch=n, n_ubatch=n, n_outputs_max=n, n_seq_max=n, kv_unified=True
    )
    with open_context(model, shared) as context:
        for at in range(len(tokens)):
            batch.clear()
            for seq_id in range(n):
                batch.add([tokens[(at + 37 * seq_id) % len(tokens)]], at, n_outputs=1, seq_id=seq_id)
            assert context.decode(batch.native) == 0
            logits[at] = context.logits(0)
    return logits


def measure(path: Path, arguments: argparse.Namespace, *, repacked: bool) -> Iterator[Figure]:
    """Measures one file, its weights repacked for this CPU or left as they are."""
    with load_model(path, ModelOptions(n_gpu_layers=arguments.gpu_layers, repack=repacked)) as model:
        tokens = Vocabulary(model).tokenize(heldout_text())[: arguments.tokens]
        for way, options in WAYS.items():
            options = replace(options, n_ctx=len(tokens), n_threads=arguments.threads)
            one = read(model, tokens, 1, replace(options, n_ubatch=1))

            def figure(rows: str, logits: Floats, one: Floats = one, way: str = way) -> Figure:
                turned = int((logits.argmax(1) != one.argmax(1)).sum())
                return Figure(path.stem, way, repacked, rows, float(np.abs(logits - one).max()), turned)

            for rows in arguments.rows:
                yield figure(str(rows), read(model, tokens, rows, replace(options, n_ubatch=rows)))
            yield figure("slots", read_beside_others(model, tokens, options))
            yield figure("exact", read(model, tokens, max(arguments.rows), replace(options, n_ubatch=1)))


@dataclass(frozen=True)
class Cost:
    """Exact sessions' processor time, a usual one's being 1."""

    file: str
    reading: float
    one: float
    four: float


def measure_cost(path: Path, arguments: argparse.Namespace, *, n_rounds: int = 5, n_steps: int = 32) -> Cost:
    """Sessions of both kinds by turns. Time of this process, which other programs do not add to as they do to time."""
    options = SessionOptions(n_ctx=2048, n_parallel=4, n_threads=arguments.threads, mtp=False)
    best: dict[tuple[bool, str], float] = {}

    def note(exact: bool, what: str, since: float) -> None:
        best[exact, what] = min(time.process_time() - since, best.get((exact, what), math.inf))

    with load_model(path, ModelOptions(n_gpu_layers=arguments.gpu_layers)) as model:
        tokens = Vocabulary(model).tokenize(heldout_text())[:256]
        sessions = {exact: Session(model, replace(options, exact=exact)) for exact in (False, True)}
        for _, (exact, session) in itertools.product(range(n_rounds), sessions.items()):
            for n in (1, 4):
                slots = session.slots[:n]
                samplers = {slot: Sampler(model, SamplingOptions(temperature=0)) for slot in slots}
                for number, slot in enumerate(slots):
                    session.reset(slot)
                    session.begin(slot, tokens if n == 1 else tokens[number : number + 8])
                started = time.process_time()
                session.evaluate(slots)
                if n == 1:
                    note(exact, "reading", started)
                session.step(samplers)
                started = time.process_time()
                for _ in range(n_steps):
                    session.step(samplers)
                note(exact, str(n), started)
                for slot, sampler in samplers.items():
                    sampler.close()
                    session.drop_unfinished(slot)
        for session in sessions.values():
            session.close()
    return Cost(path.stem, *(best[True, what] / best[False, what] for what in ("reading", "1", "4")))


def main() -> None:
    arguments = _arguments()
    if arguments.cost:
        costs = [measure_cost(path, arguments) for path in arguments.files]
        for cost in costs:
            print(f"{cost.file:24}reading {cost.reading:5.2f}   one {cost.one:5.2f}   four {cost.four:5.2f}")
        print(json.dumps({"machine": machine(), "costs": [asdict(cost) for cost in costs]}))
        return
    columns = [*map(str, arguments.rows), "slots", "exact"]
    print(f"{'':44}" + "".join(f"{name:>9}" for name in columns))
    figures: list[Figure] = []
    for path in arguments.files:
        for repacked in (True, False):
            row: list[Figure] = []
            for figure in measure(path, arguments, repacked=repacked):
                row.append(figure)
                if len(row) == len(columns):
                    name = f"{path.stem[-12:]}, {figure.way}{'' if repacked else ', not repacked'}"
                    print(f"{name:44}" + "".join(f"{each.largest:9.2g}" for each in row), flush=True)
                    figures += row
                    row = []
    print(json.dumps({"machine": machine(), "figures": [asdict(figure) for figure in figures]}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 512])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cost", action="store_true", help="processor time of exact sessions instead")
    parser.add_argument("--gpu-layers", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
