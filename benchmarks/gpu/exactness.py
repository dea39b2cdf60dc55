"""Exactness: how far rows of a batch move logits on this device, and whether greedy texts stay the same.

The tiny trained model of this repository is used, whose likeliest tokens mean something; random weights tie too often.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.exactness import heldout_text, read
from benchmarks.gpu.memory import devices_measured
from benchmarks.gpu.record import Row
from benchmarks.gpu.speed import TOGETHER
from mimo_gguf.engine.sampling import Sampler, SamplingOptions
from mimo_gguf.engine.session import Session, SessionOptions
from mimo_gguf.llama.api import ContextOptions, Floats, LlamaModel, ModelOptions, load_model
from mimo_gguf.llama.vocabulary import Vocabulary

ROWS: Final = (2, 4, 8, 64, 512)
N_TOKENS: Final = 512
N_ANSWER: Final = 64


def measure_exactness(
    path: Path, n_tokens: int = N_TOKENS, n_answer: int = N_ANSWER, n_gpu_layers: int = -1, n_threads: int = 0
) -> Iterator[Row]:
    """One row for each number of rows in a pass, and one for each way of answering."""
    with load_model(path, ModelOptions(n_gpu_layers=0)) as model:
        text = Vocabulary(model).tokenize(heldout_text())
        tokens = text[:n_tokens]
        here = ContextOptions(n_ctx=len(tokens), n_threads=n_threads, n_ubatch=1)
        on_cpu = read(model, tokens, 1, here)
    first = tuple(device.pointer for device in devices_measured() if device.is_gpu)
    with load_model(path, ModelOptions(n_gpu_layers=n_gpu_layers, devices=first, load_mtp=True)) as model:
        one = read(model, tokens, 1, here)
        yield {"what": "beside the CPU", "rows": 1, **difference(one, on_cpu)}
        for rows in (rows for rows in ROWS if rows <= n_tokens):
            several = read(model, tokens, rows, replace(here, n_ubatch=rows))
            yield {"what": "beside one row at a time", "rows": rows, **difference(several, one)}
        yield from measure_texts(model, text, n_answer, n_threads)


def difference(logits: Floats, others: Floats) -> Row:
    """The largest difference of any logit, and the places with another likeliest token."""
    turned = int((logits.argmax(1) != others.argmax(1)).sum())
    return {"largest": float(np.abs(logits - others).max()), "turned": turned, "places": len(logits)}


def measure_texts(model: LlamaModel, text: list[int], n_answer: int, n_threads: int) -> Iterator[Row]:
    """Greedy answers in every way, compared with those of one conversation at a time without drafts."""
    prompts = [text[24 * number : 24 * number + 48] for number in range(max(TOGETHER))]
    one = SessionOptions(mtp=False, n_threads=n_threads)
    alone = [answers(model, [prompt], n_answer, one)[0][0] for prompt in prompts]
    for together in TOGETHER:
        for drafts in (0, 1, 2):
            options = SessionOptions(
                n_parallel=together, mtp=drafts > 0, n_draft=max(drafts, 1), adaptive=False, n_threads=n_threads
            )
            texts, ties = answers(model, prompts[:together], n_answer, options)
            same = sum(text == other for text, other in zip(texts, alone, strict=False))
            yield {
                "what": "greedy",
                "together": together,
                "drafts": drafts,
                "texts": together,
                "same": same,
                "near_ties": ties,
            }


def answers(
    model: LlamaModel, prompts: list[list[int]], n_answer: int, options: SessionOptions
) -> tuple[list[list[int]], int]:
    """The greedy answer to each prompt, side by side, and how many tokens were near ties."""
    options = replace(options, n_ctx=512 * len(prompts))
    with Session(model, options) as session:
        samplers = {slot: Sampler(model, SamplingOptions(temperature=0)) for slot in session.slots}
        texts: dict[int, list[int]] = {}
        for slot, prompt in zip(session.slots, prompts, strict=True):
            texts[slot.seq_id] = []
            session.begin(slot, prompt)
        while samplers:
            for slot, outcome in session.step(samplers).items():
                texts[slot.seq_id].append(getattr(outcome, "token", -1))
                if len(texts[slot.seq_id]) == n_answer:
                    samplers.pop(slot).close()
        return list(texts.values()), session.stats.n_near_ties
