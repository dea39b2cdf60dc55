"""Measures a model's speed: reading prompts, plain generation, and generation with several numbers of drafts.

Every figure is a median of repetitions on the same greedy text, so that only the way of generating differs. End tokens
are forbidden, so that each run makes as many tokens as asked.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from mimo_gguf.bench.bandwidth import Bandwidth, WeightReads, find_bandwidth, weight_reads
from mimo_gguf.bench.peers import way_text
from mimo_gguf.bench.same_text import is_same_text
from mimo_gguf.chat.template import ChatTemplate
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.gguf_file import read_gguf
from mimo_gguf.core.near_matches import name_hint
from mimo_gguf.core.version import __version__
from mimo_gguf.engine.sampling import Sampler, SamplingOptions
from mimo_gguf.engine.session import Session, SessionOptions
from mimo_gguf.engine.single import next_token, read_prompt
from mimo_gguf.fit.plan import FitPlan
from mimo_gguf.fit.speeds import weight_devices
from mimo_gguf.hardware.devices import host_device, list_devices
from mimo_gguf.llama.api import LlamaContext, LlamaModel, api, default_threads
from mimo_gguf.llama.vocabulary import Vocabulary

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
OnStart = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """The options of a benchmark.

    Attributes:
        n_prompt: tokens of the prompt whose reading is timed.
        n_generate: tokens generated per prompt and way.
        drafts: numbers of drafts to measure; 0 is plain generation.
        kinds: kinds of text, keys of PROMPTS.
        repetitions: runs of each text in each way; the median counts.
    """

    n_prompt: int = 512
    n_generate: int = 128
    drafts: tuple[int, ...] = (0, 1, 2, 3)
    kinds: tuple[str, ...] = tuple(PROMPTS)
    repetitions: int = 3

    def __post_init__(self) -> None:
        """Raises UsageError for what cannot be measured."""
        if unknown := set(self.kinds) - PROMPTS.keys():
            raise UsageError(f"no prompts of kind {', '.join(sorted(unknown))}", hint=name_hint(min(unknown), PROMPTS))
        if min(self.n_prompt, self.n_generate, self.repetitions) < 1 or not set(self.drafts) <= set(range(9)):
            text = "a benchmark needs at least one token, one repetition and 0 to 8 drafts"
            raise UsageError(text, hint="see: mimo-gguf bench --help")


@dataclass(frozen=True, slots=True)
class GenerationFigure:
    """Generation of one kind of text in one way.

    Attributes:
        acceptance: for each place, the share of its drafts that were right, given that those before them were.
        same_text: whether each repetition's text is the first way's, token for token. A backend may round passes of
            more rows differently, which may turn near ties of logits; not in an exact session.
        read_bytes_per_token: weights read for a token. Every pass reads the trunk and the output matrix, every draft
            an MTP block and the output matrix.
    """

    kind: str
    n_draft: int
    tokens_per_s: float
    tokens_per_pass: float
    acceptance: tuple[float | None, ...]
    same_text: bool
    read_bytes_per_token: float

    @property
    def way(self) -> str:
        """The way of generating: `plain`, `1 draft`, `2 drafts`."""
        return way_text(self.n_draft)

    @property
    def read_bytes_per_s(self) -> float:
        """The bytes per second of weights that the memory delivers."""
        return self.read_bytes_per_token * self.tokens_per_s


@dataclass(frozen=True, slots=True)
class BenchReport:
    """All figures of one model on this machine, or those measured so far.

    Attributes:
        devices: the devices that hold the layers.
        memory_bytes: device name -> the most that was in use; for the host, the resident memory of this process.
        bandwidth: of the memory that holds the weights; None if there is no single figure.
        texts: kind of text -> the first way's tokens.
    """

    model: str
    size_bytes: int
    devices: tuple[str, ...]
    n_threads: int
    options: BenchOptions
    load_s: float
    prompt_tokens_per_s: float
    first_token_s: float
    generation: tuple[GenerationFigure, ...]
    memory_bytes: dict[str, int]
    bandwidth: Bandwidth | None
    texts: dict[str, list[int]] = field(default_factory=dict)

    def plain(self, kind: str) -> float | None:
        """The tokens per second without drafts for one kind of text; None if not measured."""
        return next((g.tokens_per_s for g in self.generation if g.kind == kind and not g.n_draft), None)

    def speed_up(self, figure: GenerationFigure) -> float | None:
        """The speed of a way with drafts divided by that without; None if either is missing."""
        plain = self.plain(figure.kind)
        return figure.tokens_per_s / plain if plain and figure.n_draft else None

    def bandwidth_share(self, figure: GenerationFigure) -> float | None:
        """The weights read per second as a share of the memory's bandwidth; above 1 if they fit into a cache."""
        return figure.read_bytes_per_s / self.bandwidth.bytes_per_s if self.bandwidth else None

    def as_json(self) -> dict[str, Any]:
        """The report as a JSON document, without the texts."""
        document = asdict(self) | {"mimo_gguf": __version__, "llama_cpp": api().llama_version().decode()}
        del document["texts"]
        for figure, entry in zip(self.generation, document["generation"], strict=True):
            entry["speed_up"] = self.speed_up(figure)
            entry["read_bytes_per_s"] = figure.read_bytes_per_s
            entry["bandwidth_share"] = self.bandwidth_share(figure)
        return document


class EndlessSampler(Sampler):
    """A greedy sampler that never draws end tokens, so that it makes the text of llama-server's `ignore_eos`.

    If they were drawn and ignored, the text would be another one, in which more or fewer drafts are right.
    """

    def __init__(self, model: LlamaModel, end_tokens: Collection[int]) -> None:
        super().__init__(model, SamplingOptions(temperature=0))
        self._end_tokens = tuple(end_tokens)

    def sample(self, context: LlamaContext, row: int) -> int:
        """Draws the likeliest token of a row that is not an end token; it overwrites the end tokens' logits."""
        logits = context.logits(row)
        for token in self._end_tokens:  # a few: quicker one by one than as an index
            logits[token] = -math.inf
        return int(logits.argmax())


def bench_prompts(template: ChatTemplate, kinds: Sequence[str]) -> dict[str, str]:
    """Renders the prompts as the model reads them, by kind of text."""
    return {
        kind: template.render([{"role": "system", "content": ""}, {"role": "user", "content": PROMPTS[kind]}])
        for kind in kinds
    }


def run_bench(
    model: LlamaModel,
    template: ChatTemplate,
    session_options: SessionOptions,
    options: BenchOptions,
    *,
    load_s: float,
    on_start: OnStart = lambda _: None,
    on_figure: Callable[[BenchReport], None] = lambda _: None,
    plan: FitPlan | None = None,
) -> BenchReport:
    """Measures `model`.

    Args:
        on_start: called with what is about to be measured.
        on_figure: called with the report so far, first without and then with one more figure of generation each time.
        plan: the devices that hold the model; None means the host.

    Raises:
        UsageError: the window is too small for prompt and answer, or no draft can be made and nothing else is asked.
        BackendError: llama.cpp failed.
    """
    can_draft = bool(model.n_mtp) and session_options.mtp
    if not can_draft and 0 not in options.drafts:
        raise UsageError(f"{model.path.name}: no MTP layer is loaded, so nothing drafts", hint="--drafts 0")
    vocabulary = Vocabulary(model)
    prompts = {kind: vocabulary.tokenize(text) for kind, text in bench_prompts(template, options.kinds).items()}
    longest = max(options.n_prompt, max(map(len, prompts.values())) + options.n_generate) + 10
    if session_options.n_ctx and longest > session_options.n_ctx:
        raise UsageError(f"{longest} tokens do not fit into a window of {session_options.n_ctx}", hint="a larger --ctx")
    session_options = replace(session_options, n_ctx=session_options.n_ctx or longest, adaptive=False)
    n_threads = session_options.n_threads or default_threads()
    on = weight_devices(plan) if plan else [host_device()]
    on_start("how fast the memory is")
    bandwidth = find_bandwidth(on, n_threads)
    on_start("reading a prompt")
    prompt_speed, first_token_s = _measure_prompt(model, session_options, vocabulary, options)
    report = BenchReport(
        model=model.path.name,
        size_bytes=model.size_bytes,
        devices=tuple(device.description or device.name for device in on),
        n_threads=n_threads,
        options=options,
        load_s=load_s,
        prompt_tokens_per_s=prompt_speed,
        first_token_s=first_token_s,
        generation=(),
        memory_bytes={},
        bandwidth=bandwidth,
    )
    on_figure(report)
    ways = [n for n in sorted(options.drafts) if n == 0 or can_draft]
    used: dict[str, int] = {}
    texts: dict[str, list[int]] = {}
    for figure in _measure_generation(model, session_options, prompts, options, ways, on_start, plan, used, texts):
        report = replace(report, generation=(*report.generation, figure), memory_bytes=dict(used), texts=dict(texts))
        on_figure(report)
    return report


def window_needed(options: BenchOptions) -> int:
    """The largest window in tokens that `options` need; the texts' prompts are shorter than 256 tokens."""
    return max(options.n_prompt, 256 + options.n_generate) + 10


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
    """Measures (tokens per second, seconds to the first token) for n_prompt tokens, MTP rows included."""
    text = vocabulary.tokenize("\n\n".join(PROMPTS.values()) * (1 + options.n_prompt // 60))
    prompt = (text * (1 + options.n_prompt // len(text)))[: options.n_prompt]
    speeds, firsts = [], []
    with Session(model, session_options) as session, Sampler(model, SamplingOptions(temperature=0)) as sampler:
        read_prompt(session, prompt[:8])  # the first decode of a context allocates
        for repetition in range(options.repetitions):
            start = time.perf_counter()
            read_prompt(session, [prompt[-1 - repetition], *prompt[1:]])
            read = time.perf_counter()
            next_token(session, sampler)
            firsts.append(time.perf_counter() - start)
            speeds.append(len(prompt) / (read - start))
    return statistics.median(speeds), statistics.median(firsts)


def _measure_generation(
    model: LlamaModel,
    session_options: SessionOptions,
    prompts: dict[str, list[int]],
    options: BenchOptions,
    ways: Sequence[int],
    on_start: OnStart,
    plan: FitPlan | None,
    used: dict[str, int],
    texts: dict[str, list[int]],
) -> Iterator[GenerationFigure]:
    end_tokens = Vocabulary(model).end_tokens
    reads = weight_reads(read_gguf(model.path))
    number, of = 0, len(ways) * len(prompts)
    for n_draft in ways:
        one_way = replace(session_options, mtp=n_draft > 0, n_draft=max(n_draft, 1))
        with Session(model, one_way) as session:
            for kind, prompt in prompts.items():
                number += 1
                on_start(f"{kind}, {way_text(n_draft)} ({number} of {of})")
                figure = _measure_text(session, kind, prompt, n_draft, options, texts, reads, end_tokens)
                _note_memory(plan, used)
                yield figure


def _measure_text(
    session: Session,
    kind: str,
    prompt: Sequence[int],
    n_draft: int,
    options: BenchOptions,
    texts: dict[str, list[int]],
    reads: WeightReads,
    end_tokens: Collection[int],
) -> GenerationFigure:
    speeds = []
    before = session.stats
    same_text = True
    for _ in range(options.repetitions):
        session.reset(session.slot)  # a reused prefix would be read in other passes
        read_prompt(session, prompt)
        with EndlessSampler(session.model, end_tokens) as sampler:
            tokens = [next_token(session, sampler)]  # from the prompt's logits, before generation
            start = time.perf_counter()
            tokens += [next_token(session, sampler) for _ in range(options.n_generate)]
            speeds.append(options.n_generate / (time.perf_counter() - start))
        session.drop_unfinished(session.slot)
        same_text = same_text and is_same_text(tokens, texts.setdefault(kind, tokens))
    stats = session.stats.since(before)
    tokens_per_pass = (stats.n_generated - options.repetitions) / max(stats.n_passes, 1)
    return GenerationFigure(
        kind=kind,
        n_draft=n_draft,
        tokens_per_s=statistics.median(speeds),
        tokens_per_pass=tokens_per_pass,
        acceptance=tuple(stats.acceptance_by_place) if n_draft else (),
        same_text=same_text,
        read_bytes_per_token=(reads.per_pass + n_draft * reads.per_draft) / tokens_per_pass,
    )
