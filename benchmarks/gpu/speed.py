"""Speed: prompts, plain generation, and drafts at acceptances that random weights do not have by themselves.

A draft of random weights is never right. So an agreeing sampler does all the work of drawing, and then takes the draft
with a probability that is given. What a right draft saves and a wrong one costs is then real; only the text is not.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from benchmarks.gpu.memory import MemoryCell, plan_of
from benchmarks.gpu.record import Row
from benchmarks.measured import serve_together
from mimo_gguf.bench.bandwidth import find_bandwidth, weight_reads
from mimo_gguf.core.gguf_file import read_gguf
from mimo_gguf.engine.sampling import Sampler, SamplingOptions
from mimo_gguf.engine.session import Session, SessionOptions
from mimo_gguf.engine.single import read_prompt
from mimo_gguf.engine.slot import Slot
from mimo_gguf.llama.api import LlamaContext, LlamaModel, load_model
from mimo_gguf.runtime.launch import model_options

ACCEPTANCES: Final = (0.0, 0.6, 0.75, 0.9)
DRAFTS: Final = (0, 1, 2, 3)
TOGETHER: Final = (1, 2, 4, 8)
PROMPTS: Final = (128, 512, 2048)
WINDOW: Final = 1024


class AgreeingSampler(Sampler):
    """A greedy sampler that takes a slot's next draft with the given probability, after drawing as usual."""

    def __init__(self, model: LlamaModel, slot: Slot, acceptance: float) -> None:
        super().__init__(model, SamplingOptions(temperature=0))
        self._slot, self._acceptance = slot, acceptance
        self._random = random.Random(slot.seq_id)

    def sample(self, context: LlamaContext, row: int) -> int:
        """Draws a token; a wrong draft stays wrong even if it is what was drawn."""
        token, draft = super().sample(context, row), self._slot.next_draft
        if draft is None:
            return token
        if self._random.random() < self._acceptance:
            return draft
        return token if token != draft else (token + 1) % 1000


def prompt_of(n_tokens: int, number: int = 0) -> list[int]:
    """A prompt of tokens that every vocabulary has, another for each number."""
    return [5 + (17 * place + 101 * number) % 900 for place in range(n_tokens)]


def generate(session: Session, n_tokens: int, acceptance: float) -> tuple[float, int]:
    """Lets every slot draw `n_tokens`. Returns the tokens per second of all together, and the passes it took."""
    samplers = {slot: AgreeingSampler(session.model, slot, acceptance) for slot in session.slots}
    served = serve_together(session, samplers, (prompt_of(64, number) for number in itertools.count()), n_tokens)
    return n_tokens * len(samplers) / served.seconds, served.passes


def measure_prompts(model: LlamaModel, lengths: Iterable[int], n_threads: int) -> Iterator[Row]:
    for n in lengths:
        with Session(model, SessionOptions(n_ctx=4096, mtp=False, n_threads=n_threads)) as session:
            times = []
            for number in range(3):
                session.reset(session.slot)
                started = time.perf_counter()
                read_prompt(session, prompt_of(n, number))
                times.append(time.perf_counter() - started)
        yield {"what": "prompt", "n_tokens": n, "tok_s": n / statistics.median(times)}


def measure_generation(model: LlamaModel, n_tokens: int, n_threads: int) -> Iterator[Row]:
    """One conversation with every number of drafts and acceptance; then several together, plain and with one draft."""
    ways = [
        (1, drafts, acceptance, False)
        for drafts, acceptance in itertools.product(DRAFTS, ACCEPTANCES)
        if drafts or not acceptance
    ]
    ways += [(1, 1, acceptance, True) for acceptance in ACCEPTANCES]
    ways += [(n, drafts, 0.75 * drafts, False) for n, drafts in itertools.product(TOGETHER[1:], (0, 1))]
    for together, drafts, acceptance, adaptive in ways:
        if drafts and not model.n_mtp:
            continue
        options = SessionOptions(
            n_ctx=WINDOW * together,
            n_parallel=together,
            n_threads=n_threads,
            mtp=drafts > 0,
            n_draft=max(drafts, 1),
            adaptive=adaptive,
        )
        with Session(model, options) as session:
            generate(session, 8, acceptance)  # the first passes of a context compile and allocate
            tok_s, n_passes = generate(session, n_tokens, acceptance)
        yield {
            "what": "generation",
            "together": together,
            "drafts": drafts,
            "acceptance": acceptance,
            "as_it_comes": adaptive,
            "tok_s": tok_s,
            "passes": n_passes,
        }


def judge_drafts(rows: Sequence[Row]) -> Iterator[Row]:
    """Says from how many right drafts on drafting pays, and how much slower it is at worst if it may stop by itself.

    The break-even lies between two measured acceptances, on a straight line; None means that none of them paid.
    """
    alone = [row for row in rows if row["together"] == 1]
    plain = next((row["tok_s"] for row in alone if not row["drafts"]), None)
    if plain is None:
        return
    for drafts in DRAFTS[1:]:
        points = [
            (row["acceptance"], row["tok_s"]) for row in alone if row["drafts"] == drafts and not row["as_it_comes"]
        ]
        if points:
            yield {"what": "break-even", "drafts": drafts, "acceptance": crossing(points, plain)}
    free = [row["tok_s"] / plain for row in alone if row["as_it_comes"]]
    if free:
        yield {"what": "worst beside plain, as it comes", "share": min(free)}


def crossing(points: Sequence[tuple[float, float]], level: float) -> float | None:
    """The first place at which a line through `points` (places, values) reaches `level`; None if it does not."""
    if points[0][1] >= level:
        return points[0][0]
    for (left, low), (right, high) in itertools.pairwise(points):
        if high >= level:
            return left + (right - left) * (level - low) / (high - low)
    return None


def measure_speed(
    path: Path, n_tokens: int = 96, prompts: Iterable[int] = PROMPTS, n_threads: int = 0
) -> Iterator[Row]:
    """All rows of one file, the device and the share of its bandwidth first."""
    plan = plan_of(path, MemoryCell(WINDOW * max(TOGETHER)))
    with load_model(path, replace(model_options(plan), load_mtp=plan.model.has_mtp)) as model:
        plain, reads = plain_speed(model, n_tokens, n_threads), weight_reads(read_gguf(path)).per_pass
        bandwidth = find_bandwidth([plan.devices[0].device], n_threads or 1)
        stated = bandwidth.bytes_per_s if bandwidth else None
        yield {
            "what": "plain",
            "device": plan.devices[0].device.description,
            "tok_s": plain,
            "bytes_per_token": reads,
            "bandwidth": stated,
            "share": plain * reads / stated if stated else None,
        }
        yield from measure_prompts(model, prompts, n_threads)
        rows = []
        for row in measure_generation(model, n_tokens, n_threads):
            rows.append(row)
            yield row
        yield from judge_drafts(rows)


def plain_speed(model: LlamaModel, n_tokens: int, n_threads: int) -> float:
    """The tokens per second of one conversation without drafts, the best of three."""
    with Session(model, SessionOptions(n_ctx=WINDOW, mtp=False, n_threads=n_threads)) as session:
        generate(session, 8, 0.0)
        return max(generate(session, n_tokens, 0.0)[0] for _ in range(3))
