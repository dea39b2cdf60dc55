"""Measuring a model's speed: reading prompts, plain generation, generation with drafts of several lengths.

Every figure is a median of repetitions on the same greedy text, so that ways differ only in how tokens are made. End
tokens are ignored: each run makes as many tokens as asked.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from mimo_gguf.core.errors import UsageError
from mimo_gguf.runtime.bandwidth import Bandwidth, find_bandwidth
from mimo_gguf.runtime.chat_template import ChatTemplate
from mimo_gguf.runtime.devices import Device, host_device, list_devices
from mimo_gguf.runtime.fit import FitPlan
from mimo_gguf.runtime.llama_api import LlamaModel, default_threads
from mimo_gguf.runtime.sampling import Sampler, SamplingOptions
from mimo_gguf.runtime.session import Session, SessionOptions
from mimo_gguf.runtime.slot import Slot
from mimo_gguf.runtime.vocabulary import Vocabulary

PROMPTS: Final[dict[str, str]] = {
    "code": (
        "Write a Python class LruCache with get, put and a capacity, backed by a doubly linked list and a dict, "
        "with type hints and docstrings, then a pytest test for each method, then explain its complexity."
    ),
    "prose": (
        "Tell the story of a lighthouse keeper who finds a letter in a bottle, in five paragraphs, with dialogue, "
        "a turn in the third paragraph, and an ending that leaves a question open."
    ),
    "maths": (
        "Let a, b and c be positive real numbers with a + b + c = 3. Prove that 1/a + 1/b + 1/c >= 3, step by step, "
        "then find all cases of equality, then check the result with a = 1/2, b = 1, c = 3/2."
    ),
}
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What is measured.

    Attributes:
        n_prompt: tokens of the prompt whose reading is timed.
        n_generate: tokens made per prompt and way.
        drafts: numbers of drafts to try; 0 is plain.
        kinds: which of PROMPTS.
        repetitions: runs of each; the median counts.
    """

    n_prompt: int = 512
    n_generate: int = 128
    drafts: tuple[int, ...] = (0, 1, 2, 3)
    kinds: tuple[str, ...] = tuple(PROMPTS)
    repetitions: int = 3

    def __post_init__(self) -> None:
        """Raises UsageError for what cannot be measured."""
        if unknown := set(self.kinds) - PROMPTS.keys():
            raise UsageError(f"no prompts of kind {', '.join(sorted(unknown))}", hint=f"one of: {', '.join(PROMPTS)}")
        if min(self.n_prompt, self.n_generate, self.repetitions) < 1 or not set(self.drafts) <= set(range(9)):
            raise UsageError("a benchmark needs at least one token, one repetition and 0 to 8 drafts", hint="--help")


@dataclass(frozen=True, slots=True)
class GenerationFigure:
    """Generation of one kind of text in one way.

    `acceptance[i]` is the share of drafts at place i that were right; `same_text` tells whether the text equals the
    first way's, token for token (it may not where a backend rounds batches of other sizes otherwise).
    """

    kind: str
    n_draft: int
    tokens_per_s: float
    tokens_per_pass: float
    acceptance: tuple[float | None, ...]
    same_text: bool


@dataclass(frozen=True, slots=True)
class BenchReport:
    """All figures of one model on this machine.

    Attributes:
        memory_bytes: device name -> most that was in use; for the host what this process had resident.
        bandwidth: of the memory that holds the weights.
    """

    model: str
    size_bytes: int
    n_threads: int
    load_s: float
    prompt_tokens_per_s: float
    first_token_s: float
    generation: tuple[GenerationFigure, ...]
    memory_bytes: dict[str, int]
    bandwidth: Bandwidth | None

    def plain(self, kind: str) -> float | None:
        """tok/s without drafts for one kind of text."""
        return next((g.tokens_per_s for g in self.generation if g.kind == kind and not g.n_draft), None)

    def speed_up(self, figure: GenerationFigure) -> float | None:
        plain = self.plain(figure.kind)
        return figure.tokens_per_s / plain if plain and figure.n_draft else None

    def read_bytes_per_s(self, figure: GenerationFigure) -> float:
        """Weights read per second, every pass reading all of them: what the memory has to deliver at least."""
        return self.size_bytes * figure.tokens_per_s / figure.tokens_per_pass

    def bandwidth_share(self, figure: GenerationFigure) -> float | None:
        """`read_bytes_per_s` as a share of what the memory delivers; beyond 1 where weights fit into a cache."""
        return self.read_bytes_per_s(figure) / self.bandwidth.bytes_per_s if self.bandwidth else None

    def as_json(self) -> dict[str, Any]:
        document = asdict(self)
        for figure, entry in zip(self.generation, document["generation"], strict=True):
            entry["speed_up"] = self.speed_up(figure)
            entry["read_bytes_per_s"] = self.read_bytes_per_s(figure)
            entry["bandwidth_share"] = self.bandwidth_share(figure)
        return document


def run_bench(
    model: LlamaModel,
    template: ChatTemplate,
    session_options: SessionOptions,
    options: BenchOptions,
    *,
    load_s: float,
    tell: Tell = lambda _: None,
    plan: FitPlan | None = None,
) -> BenchReport:
    """Measures `model`. `tell` hears what is being measured; `plan` says where the model lies (None: on the host).

    Raises:
        UsageError: the window is too small for prompt and answer.
        BackendError: llama.cpp failed.
    """
    vocabulary = Vocabulary(model)
    prompts = {
        kind: vocabulary.tokenize(
            template.render([{"role": "system", "content": ""}, {"role": "user", "content": PROMPTS[kind]}])
        )
        for kind in options.kinds
    }
    longest = max(options.n_prompt, max(map(len, prompts.values())) + options.n_generate) + 10
    if session_options.n_ctx and longest > session_options.n_ctx:
        raise UsageError(f"{longest} tokens do not fit into a window of {session_options.n_ctx}", hint="a larger --ctx")
    session_options = replace(session_options, n_ctx=session_options.n_ctx or longest, adaptive=False)
    tell("reading a prompt")
    prompt_speed, first_token_s = _measure_prompt(model, session_options, vocabulary, options)
    used: dict[str, int] = {}
    figures = tuple(_measure_generation(model, session_options, prompts, options, tell, plan, used))
    n_threads = session_options.n_threads or default_threads()
    return BenchReport(
        model=model.path.name,
        size_bytes=model.size_bytes,
        n_threads=n_threads,
        load_s=load_s,
        prompt_tokens_per_s=prompt_speed,
        first_token_s=first_token_s,
        generation=figures,
        memory_bytes=used,
        bandwidth=find_bandwidth(_weight_devices(plan), n_threads),
    )


def window_needed(options: BenchOptions) -> int:
    """Tokens of context that `options` need at most; the texts' prompts are shorter than 256 tokens."""
    return max(options.n_prompt, 256 + options.n_generate) + 10


def _weight_devices(plan: FitPlan | None) -> list[Device]:
    """Where the layers lie."""
    if plan is None or len(plan.devices) == 1 or not plan.settings.n_gpu_layers:
        return [plan.devices[-1].device if plan else host_device()]
    gpus = [fit.device for fit in plan.devices[:-1]]
    whole = plan.settings.n_gpu_layers == plan.n_layers
    return gpus if whole else [*gpus, plan.devices[-1].device]


def _note_memory(plan: FitPlan | None, used: dict[str, int]) -> None:
    """Raises the entries of `used` to what is in use now."""
    import psutil

    now = {"CPU": int(psutil.Process().memory_info().rss)}
    if plan is not None and len(plan.devices) > 1:
        free = {device.name: device.free_bytes for device in list_devices()}
        for fit in plan.devices[:-1]:
            now[fit.device.name] = max(fit.free_bytes - free.get(fit.device.name, fit.free_bytes), 0)
    for name, n_bytes in now.items():
        used[name] = max(used.get(name, 0), n_bytes)


def _measure_prompt(
    model: LlamaModel, session_options: SessionOptions, vocabulary: Vocabulary, options: BenchOptions
) -> tuple[float, float]:
    """(tokens per second, seconds to the first token) of a prompt of n_prompt tokens, MTP rows included."""
    text = vocabulary.tokenize("\n\n".join(PROMPTS.values()) * (1 + options.n_prompt // 60))
    prompt = (text * (1 + options.n_prompt // len(text)))[: options.n_prompt]
    speeds, firsts = [], []
    with Session(model, session_options) as session, Sampler(model, SamplingOptions(temperature=0)) as sampler:
        slot = session.slot
        slot.feed(prompt[:8])  # the first decode of a context allocates
        for repetition in range(options.repetitions):
            start = time.perf_counter()
            slot.feed([prompt[-1 - repetition], *prompt[1:]])
            read = time.perf_counter()
            slot.next_token(sampler)
            firsts.append(time.perf_counter() - start)
            speeds.append(len(prompt) / (read - start))
    return statistics.median(speeds), statistics.median(firsts)


def _measure_generation(
    model: LlamaModel,
    session_options: SessionOptions,
    prompts: dict[str, list[int]],
    options: BenchOptions,
    tell: Tell,
    plan: FitPlan | None,
    used: dict[str, int],
) -> Iterator[GenerationFigure]:
    texts: dict[str, list[int]] = {}
    ways = [n for n in options.drafts if n == 0 or (model.n_mtp and session_options.mtp)]
    for n_draft in sorted(ways):
        one_way = replace(session_options, mtp=n_draft > 0, n_draft=max(n_draft, 1))
        with Session(model, one_way) as session:
            for kind, prompt in prompts.items():
                tell(f"{kind}, {f'{n_draft} drafts' if n_draft else 'plain'}")
                yield _measure_text(session.slot, kind, prompt, n_draft, options, texts)
            _note_memory(plan, used)


def _measure_text(
    slot: Slot, kind: str, prompt: Sequence[int], n_draft: int, options: BenchOptions, texts: dict[str, list[int]]
) -> GenerationFigure:
    speeds = []
    before = slot.stats.copy()
    same_text = True
    for repetition in range(options.repetitions):
        slot.feed(prompt)
        with Sampler(slot.session.model, SamplingOptions(temperature=0)) as sampler:
            tokens = [slot.next_token(sampler)]  # from the prompt's logits: not yet generation
            start = time.perf_counter()
            tokens += [slot.next_token(sampler) for _ in range(options.n_generate)]
            speeds.append(options.n_generate / (time.perf_counter() - start))
        slot.settle()
        if repetition == 0:  # later ones reuse the prompt, and batches of other sizes round otherwise
            same_text = texts.setdefault(kind, tokens) == tokens
    stats = slot.stats.since(before)
    return GenerationFigure(
        kind=kind,
        n_draft=n_draft,
        tokens_per_s=statistics.median(speeds),
        tokens_per_pass=(stats.n_generated - options.repetitions) / max(stats.n_passes, 1),
        acceptance=tuple(stats.acceptance_by_place) if n_draft else (),
        same_text=same_text,
    )
