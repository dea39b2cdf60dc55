"""How far batches move logits: a text read so many rows at a time against the same text read row by row.

    python -m benchmarks.exactness MODEL.gguf [MODEL.gguf ...] [--rows 2 4 8 ...] [--tokens 512] [--threads 1]

For each file and each way to attend and to keep the cache: the largest difference of any logit at any place of the
text, and how many places have another likeliest token. `exact` is what `SessionOptions.exact` sets: batches are read,
and llama.cpp computes them one row at a time. `slots` is the same text beside three others in one buffer of cells, one
row of each in a pass. The text are the tiny model's held-out dialogues. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.measured import machine
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
    """One way against row by row; `largest` is in logits, `turned` counts places."""

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
    """Logits after each token, shape (len(tokens), n_vocab), with `rows` tokens to a pass."""
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
    """The same with a row of each of three other texts in every pass, their cells between those of this one."""
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
    """The figures of one file, weights repacked for this CPU or left as they are."""
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


def main() -> None:
    arguments = _arguments()
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
    parser.add_argument("--gpu-layers", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
