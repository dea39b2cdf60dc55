"""Measures what drawing a token costs with a model's own vocabulary: greedy, sampled, and within a JSON schema.

    python -m benchmarks.sampling MODEL.gguf

The model writes a fixed JSON text: before each draw the logit of the wanted token is raised well above the others. In
the last two rows nothing is raised, so that the grammar refuses almost every token drawn. Figures are medians over the
text's tokens. The last line is one JSON document.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

from benchmarks.measured import machine
from mimo_gguf.engine.sampling import Sampler, SamplingOptions, grammar_of_schema
from mimo_gguf.engine.session import Session, SessionOptions
from mimo_gguf.engine.single import read_prompt
from mimo_gguf.llama.api import ModelOptions, load_model
from mimo_gguf.llama.vocabulary import Vocabulary

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"}, "age": {"type": "integer"}, "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "age", "tags"],
}  # fmt: skip
TEXT = '{"name": "Ada Lovelace, mathematician", "age": 36, "tags": ["computing", "poetry", "engines and analysis"]}'
RAISED = 15.0


def measure(session: Session, options: SamplingOptions, wanted: list[int], *, raised: bool, first: bool) -> float:
    """Measures the milliseconds per token; with `first`, those of applying the grammar to the whole vocabulary."""
    slot, seconds = session.slot, []
    read_prompt(session, wanted[:3])
    assert slot.row is not None
    logits = session.target.logits(slot.row)
    before = logits.copy()
    with Sampler(session.model, options) as sampler:
        for token in wanted:
            logits[:] = before
            if raised:
                logits[token] = before.max() + RAISED
            started = time.perf_counter()
            if first:
                sampler._apply(sampler._grammar, sampler._candidates.of(logits))
                seconds.append(time.perf_counter() - started)
            drawn = sampler.sample(session.target, slot.row)
            if not first:
                seconds.append(time.perf_counter() - started)
            assert not raised or drawn == token
    logits[:] = before
    return 1000 * statistics.median(seconds)


def main() -> None:
    file = Path(sys.argv[1])
    grammar = grammar_of_schema(json.dumps(SCHEMA))
    ways = {
        "greedy": (SamplingOptions(temperature=0), True, False),
        "temperature 0.6, top-p 0.95": (SamplingOptions(seed=1), True, False),
        "greedy, JSON schema": (SamplingOptions(temperature=0, grammar=grammar), True, False),
        "sampled, JSON schema": (SamplingOptions(seed=1, grammar=grammar), True, False),
        "the schema over the whole vocabulary alone": (SamplingOptions(temperature=0, grammar=grammar), True, True),
        "sampled, nothing raised": (SamplingOptions(seed=1), False, False),
        "sampled, nothing raised, JSON schema": (SamplingOptions(seed=1, grammar=grammar), False, False),
    }
    with (
        load_model(file, ModelOptions(n_gpu_layers=0, load_mtp=False)) as model,
        Session(model, SessionOptions(n_ctx=256, mtp=False)) as session,
    ):
        wanted = Vocabulary(model).tokenize(TEXT)
        figures = {
            name: measure(session, options, wanted, raised=raised, first=first)
            for name, (options, raised, first) in ways.items()
        }
        print(f"{file.name}, {model.n_vocab} tokens")
        for name, figure in figures.items():
            print(f"{name:44}{figure:8.3f} ms per token")
        print(json.dumps({"machine": machine(), "n_vocab": model.n_vocab, "ms_per_token": figures}))


if __name__ == "__main__":
    main()
