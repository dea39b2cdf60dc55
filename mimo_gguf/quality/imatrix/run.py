"""Measures the importance of every matrix column of a model, MTP blocks and head included, on texts.

A GGUF runs through llama.cpp, window by window. A checkpoint runs block by block in float32, so that it needs neither
a GGUF nor the memory for one. Both give llama-imatrix's figures. An interrupted run goes on when it is repeated, and
gives the same file, byte for byte.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from mimo_gguf.chat.template import ChatTemplate
from mimo_gguf.conversion.open_model import is_gguf, open_model
from mimo_gguf.core.digests import GATHERED
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.geometry import block_number
from mimo_gguf.core.importance_file import write_importance_sums
from mimo_gguf.core.model_source import Metadata, ModelSource, TensorInfo, string
from mimo_gguf.core.output_file import check_output
from mimo_gguf.llama.checkpoint_vocabulary import vocabulary_of
from mimo_gguf.quality.imatrix.gathering import Gathering
from mimo_gguf.quality.imatrix.kept import as_importance, find_kept, keep, keeping, states_folder
from mimo_gguf.quality.imatrix.through_llama import LlamaOptions, LlamaRun
from mimo_gguf.quality.text_sources import ALWAYS_THERE, read_texts
from mimo_gguf.quality.texts import Document, Part, Tokens, Window, digest_of, tokenizer_of, windows_of
from mimo_gguf.reference.model import EMBEDDING, HEAD, ReferenceModel
from mimo_gguf.reference.products import product_threads
from mimo_gguf.reference.run import run_windows

OnProgress = Callable[[int, int], None]  # tokens done, of how many

DEFAULT_TOKENS: Final = 50_000
_KEEP_EVERY_S: Final = 10.0
_FORM: Final = 1  # raised if the same run would give other sums


@dataclass(frozen=True, slots=True)
class ImatrixPlan:
    """What will be measured.

    Attributes:
        source: the model, open.
        windows: the texts as the model reads them.
        n_ctx: tokens of a window.
        mtp: whether the MTP blocks are measured.
        output: whether the head is.
        through_llama: whether llama.cpp runs the model; otherwise it is run block by block.
        datasets: what the texts are called.
        texts: digest of the texts.
        out: the file that is made.
    """

    source: ModelSource = field(repr=False)
    windows: tuple[Window, ...] = field(repr=False)
    n_ctx: int
    mtp: bool
    output: bool
    through_llama: bool
    datasets: tuple[str, ...]
    texts: str
    out: Path

    @property
    def tokens(self) -> list[Tokens]:
        """The tokens of each window."""
        return [window.tokens for window in self.windows]

    @property
    def n_tokens(self) -> int:
        """The number of tokens of all windows."""
        return sum(map(len, self.tokens))

    @property
    def kinds(self) -> dict[str, int]:
        """The number of tokens of each kind of text."""
        return {kind: n * self.n_ctx for kind, n in Counter(window.kind for window in self.windows).items()}

    @property
    def run(self) -> str:
        """The digest of everything that decides the file."""
        options = f"{_FORM} {self.source.fingerprint} {self.through_llama} {self.mtp} {self.output} {self.datasets}"
        return GATHERED.hex(options.encode(), *(np.ascontiguousarray(tokens, "<i4") for tokens in self.tokens))


@dataclass(frozen=True, slots=True)
class ImatrixReport:
    """A finished importance matrix.

    Attributes:
        path: the file.
        n_matrices: number of matrices in it, and of those of MTP blocks.
        n_windows, n_ctx, n_tokens: what was read.
        resumed: the share of the work that an earlier run had done, from 0 to 1.
        seconds: time of this run.
        without: matrices that were to be measured, and that nothing was multiplied with.
    """

    path: Path
    n_matrices: int
    n_of_mtp: int
    n_windows: int
    n_ctx: int
    n_tokens: int
    resumed: float
    seconds: float
    without: tuple[str, ...]

    @property
    def tokens_per_s(self) -> float:
        """The speed of what this run has read."""
        return (1 - self.resumed) * self.n_tokens / max(self.seconds, 1e-9)

    def as_json(self) -> dict[str, Any]:
        """The report as a JSON document."""
        return {
            "path": str(self.path),
            "matrices": self.n_matrices,
            "matrices_of_mtp": self.n_of_mtp,
            "windows": self.n_windows,
            "ctx": self.n_ctx,
            "tokens": self.n_tokens,
            "resumed": round(self.resumed, 4),
            "seconds": round(self.seconds, 3),
            "tokens_per_s": round(self.tokens_per_s, 1),
            "without": list(self.without),
        }


def imatrix(
    src: str | Path,
    *,
    out: str | Path | None = None,
    texts: str | Sequence[str] = (),
    ctx: int = 512,
    tokens: int | None = None,
    chunks: int | None = None,
    all_text: bool = False,
    mtp: bool | None = None,
    output: bool = True,
    gpu_layers: int | None = None,
    threads: int | None = None,
    force: bool = False,
    on_plan: Callable[[ImatrixPlan], None] | None = None,
    on_progress: OnProgress | None = None,
) -> ImatrixReport:
    """Makes an importance matrix of a model, MTP layers and output matrix included, in llama-imatrix's GGUF form.

    An interrupted call can be repeated: it goes on where it stopped.

    Args:
        src: a GGUF file, which llama.cpp runs; a checkpoint folder or Hub id, which is run block by block.
        out: the file to make; None means NAME.imatrix.gguf beside a GGUF, or in the current folder.
        texts: names of texts, files, folders and JSONL files of conversations; none means texts that every machine has.
        ctx: tokens of a window.
        tokens: tokens of all windows, at most; None means 50,000, and 0 all there are.
        chunks: number of windows, at most, in place of `tokens`.
        all_text: whether to take all documents, long ones from their first token on, as llama-imatrix does. Otherwise
            one document in four is left out, for judging.
        mtp: False leaves the MTP layers out; True refuses a model without them; None takes those there are.
        output: whether the output matrix is measured, which llama-imatrix leaves out by default.
        gpu_layers: number of blocks on the GPUs, for a GGUF; None means all.
        threads: CPU threads; None means one per core.
        force: whether an existing file is replaced.
        on_plan: called with the plan before anything is run.
        on_progress: called with the tokens that are done, and their total.

    Raises:
        UsageError: arguments that contradict each other or the model, or too little text.
        GgufError, CheckpointError, HubError, BackendError: no such model, or one that cannot be read or run.
        OutputError: the file exists already or cannot be written.
        WeightsError: the model gives values that are not finite.
    """
    names, limit = (texts,) if isinstance(texts, str) else tuple(texts), _limit(ctx, tokens, chunks)
    if out is not None:  # before 15 GB are downloaded
        check_output(Path(out), force=force)
    documents = read_texts(names, whole=all_text)
    with open_model(str(src)) as source:
        model = ReferenceModel(source)
        path = _default_out(source, str(src)) if out is None else Path(out)
        check_output(path, force=force)
        windows = _windows(model, documents, ctx, limit, None if all_text else "calibration")
        wants_mtp, through_llama, datasets = _wants_mtp(model, mtp), is_gguf(str(src)), names or ALWAYS_THERE
        plan = ImatrixPlan(source, windows, ctx, wants_mtp, output, through_llama, datasets, digest_of(documents), path)
        (on_plan or (lambda plan: None))(plan)
        n_gpu_layers = -1 if gpu_layers is None else gpu_layers
        llama = LlamaOptions(ctx, wants_mtp, output, n_gpu_layers=n_gpu_layers, n_threads=threads or 0)
        return run_imatrix(plan, model, llama, on_progress or (lambda done, total: None))


def _default_out(source: ModelSource, src: str) -> Path:
    """Where the file goes if nobody says it: beside a GGUF, else in the current folder."""
    return (Path(src).parent if is_gguf(src) else Path()) / f"{source.name}.imatrix.gguf"


def _limit(ctx: int, tokens: int | None, chunks: int | None) -> int | None:
    """The number of tokens to read, at most; None for all there are.

    Raises:
        UsageError: it is given twice, or is no number of tokens.
    """
    if tokens is not None and chunks is not None:
        raise UsageError("both --tokens and --chunks limit the text", hint="leave one out")
    if (tokens or 0) < 0 or (chunks is not None and chunks < 1):
        raise UsageError("less than one token of text", hint=f"--tokens {DEFAULT_TOKENS}")
    if chunks is not None:
        return chunks * ctx
    return None if tokens == 0 else tokens or DEFAULT_TOKENS


def _wants_mtp(model: ReferenceModel, mtp: bool | None) -> bool:
    if mtp and not model.n_mtp_blocks:
        raise UsageError(f"{model.source.label}: has no MTP layer", hint="leave --mtp out")
    return mtp is not False and model.n_mtp_blocks > 0


def _windows(
    model: ReferenceModel, documents: Sequence[Document], n_ctx: int, limit: int | None, part: Part | None
) -> tuple[Window, ...]:
    """The windows of the texts, tokenized with the model's own vocabulary.

    Raises:
        UsageError: too little text, or windows longer than the model's context.
    """
    source, n_most = model.source, model.geometry.context_length
    if n_ctx > n_most:
        raise UsageError(f"--ctx {n_ctx}: the model's context has {n_most} tokens", hint=f"--ctx {min(n_most, 512)}")
    tokenize = tokenizer_of(vocabulary_of(source), ChatTemplate.of_metadata(source.metadata))
    return tuple(windows_of(documents, tokenize, n_ctx, limit, part))


def run_imatrix(
    plan: ImatrixPlan, model: ReferenceModel, llama: LlamaOptions, on_progress: OnProgress
) -> ImatrixReport:
    """Runs the plan and writes its file.

    Args:
        model: the plan's source.
        llama: how llama.cpp runs it, if it does; the number of threads holds in both ways.

    Raises:
        MimoGgufError: as `imatrix`.
    """
    started = time.perf_counter()
    infos = [tensor.info for tensor in plan.source.tensors]
    with keeping(plan.out):
        gathered, resumed = _gather(plan, model, llama, on_progress)
        plan.source.check_unchanged()
        if not plan.output:
            gathered.sums.pop(HEAD, None)
        sums = gathered.of_matrices(infos)
        file = as_importance(sums, plan.datasets, len(plan.windows), plan.n_ctx)
        write_importance_sums(plan.out, replace(file, metadata=_own_metadata(plan)))
    return ImatrixReport(
        path=plan.out,
        n_matrices=len(sums),
        n_of_mtp=sum((block_number(name) or 0) >= model.n_trunk_blocks for name in sums),
        n_windows=len(plan.windows),
        n_ctx=plan.n_ctx,
        n_tokens=plan.n_tokens,
        resumed=resumed,
        seconds=time.perf_counter() - started,
        without=tuple(sorted(_wanted_matrices(plan, model, infos) - sums.keys())),
    )


def _wanted_matrices(plan: ImatrixPlan, model: ReferenceModel, infos: Sequence[TensorInfo]) -> set[str]:
    """The matrices that the plan measures. The embedding is looked up, not multiplied."""
    left_out = {EMBEDDING} if plan.output else {EMBEDDING, HEAD}
    names = {info.name for info in infos if len(info.shape) > 1} - left_out
    return {name for name in names if plan.mtp or (block_number(name) or 0) < model.n_trunk_blocks}


def _gather(
    plan: ImatrixPlan, model: ReferenceModel, llama: LlamaOptions, on_progress: OnProgress
) -> tuple[Gathering, float]:
    """Gathers the sums, and tells which share of the work an earlier run had done."""
    if plan.through_llama:
        gathered, n_resumed = find_kept(plan.out, plan.run)
        _through_llama(plan, model, llama, gathered, n_resumed, on_progress)
        return gathered, n_resumed / len(plan.windows)
    run = f"{plan.run} {model.products.name}"
    gathered, _ = find_kept(plan.out, run)
    with product_threads(llama.n_threads):
        return gathered, _block_by_block(plan, run, model, gathered, on_progress)


def _own_metadata(plan: ImatrixPlan) -> Metadata:
    arithmetic = "llama.cpp" if plan.through_llama else "float32"
    return {
        "mimo_gguf.imatrix.model": string(plan.source.name),
        "mimo_gguf.imatrix.texts": string(plan.texts),
        "mimo_gguf.imatrix.arithmetic": string(arithmetic),
    }


def _through_llama(
    plan: ImatrixPlan,
    model: ReferenceModel,
    options: LlamaOptions,
    gathered: Gathering,
    n_done: int,
    on_progress: OnProgress,
) -> None:
    """Adds the windows that are left to what was gathered. What is kept is always of whole windows."""
    if n_done == len(plan.windows):
        return
    kept_at, n_kept = time.perf_counter(), n_done
    with LlamaRun(plan.source.files[0].path, model, options) as llama:
        try:
            for window in plan.tokens[n_done:]:
                of_window = Gathering()
                llama.run(window, of_window.tap)
                gathered.add(of_window)
                n_done += 1
                if time.perf_counter() - kept_at >= _KEEP_EVERY_S:
                    keep(plan.out, plan.run, gathered, n_done, plan.n_ctx)
                    kept_at, n_kept = time.perf_counter(), n_done
                on_progress(n_done * plan.n_ctx, plan.n_tokens)
        finally:
            if n_done > n_kept:
                keep(plan.out, plan.run, gathered, n_done, plan.n_ctx)


def _block_by_block(
    plan: ImatrixPlan, run: str, model: ReferenceModel, gathered: Gathering, on_progress: OnProgress
) -> float:
    """Gathers all blocks, and tells which share of them an earlier run had done.

    Blocks that are done keep their sums; one that was only begun is done again.
    """
    folder = states_folder(plan.out)
    if not gathered.sums:  # states without their sums are of no use
        shutil.rmtree(folder, ignore_errors=True)
    gathered.stale = set(gathered.sums)

    def keep_block(_number: int) -> None:
        keep(plan.out, run, gathered, len(plan.windows), plan.n_ctx)

    with np.errstate(over="ignore", invalid="ignore"):  # the gathering finds it
        states = run_windows(
            model, plan.tokens, folder=folder, purpose=f"imatrix {run}", tap=gathered.tap, mtp=plan.mtp,
            on_block=keep_block, on_progress=on_progress,
        )  # fmt: skip
    own_head = model.head_name(model.n_trunk_blocks)
    if plan.mtp and own_head not in (HEAD, EMBEDDING):
        for rows in states.mtp:
            gathered.tap(own_head, rows)
    return states.resumed
