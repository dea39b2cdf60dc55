"""Judges files as planned: reads window after window, compares each judged token with the base's, and sums up."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mimo_gguf.core.errors import WeightsError
from mimo_gguf.core.ggml_types import ftype_name
from mimo_gguf.core.paths import command_word
from mimo_gguf.engine.drafting import HiddenState
from mimo_gguf.quality.backend import BackendReader, ReaderOptions, judged_rows, n_judged, targets_of
from mimo_gguf.quality.base import Base, OnProgress, open_base, run_blocks
from mimo_gguf.quality.divergence import (
    Figure,
    Floats,
    Ints,
    TokenScores,
    compare_rows,
    score_rows,
    share_of,
    summarize,
    top_tokens,
)
from mimo_gguf.quality.heads import Head
from mimo_gguf.quality.plan import PlannedFile, QualityPlan
from mimo_gguf.quality.report import ALL, FileQuality, QualityReport
from mimo_gguf.quality.work import ScoreFile, key_of, naming_work, work_folder
from mimo_gguf.reference.model import ReferenceModel, open_reference
from mimo_gguf.reference.products import product_threads
from mimo_gguf.reference.run import WindowStates

Reading = tuple[Floats, Sequence[Ints]]  # a window's logits, and its drafts for each way


def run_quality(
    plan: QualityPlan, work: Path, *, keep_work: bool = False, on_progress: OnProgress | None = None
) -> QualityReport:
    """Measures all files. After Ctrl-C or a kill, the same call goes on where it stopped.

    Args:
        work: the folder for what takes long to compute.
        keep_work: leave it there, for other files with the same base and text.
        on_progress: called often with what is being read, the tokens done and the tokens to do.

    Raises:
        WeightsError: predictions that are NaN or infinite.
        BackendError, GgufError, CheckpointError, HubError: a file or the base cannot be read.
        OutputError: the folder cannot be written, or another run works in it.
    """
    report = on_progress or (lambda what, done, total: None)
    base_key = "" if plan.base is None else plan.base.fingerprint
    n_threads = plan.options.n_threads or _n_cores()
    with naming_work(), product_threads(plan.options.n_threads), ExitStack() as stack:
        folder = stack.enter_context(work_folder(work, key_of(base_key, plan.texts.windows_digest), kept=keep_work))
        executor = stack.enter_context(ThreadPoolExecutor(n_threads))
        base = open_base(plan, folder, stack, report)
        judge = _Judge(plan, base, folder, executor, n_threads, report)
        files = tuple(judge.judged(file) for file in plan.files)
    return QualityReport(plan.arithmetic, _backend(plan, n_threads), plan.options.n_ctx, plan.base, plan.texts, files)


@dataclass(frozen=True, slots=True)
class _Opened:
    """What is read of a file, window by window.

    Attributes:
        since: when the reading began, after loading.
        resumed: the share of the work that an earlier run had done, from 0 to 1.
    """

    readings: Iterator[Reading]
    since: float
    resumed: float = 0.0


@dataclass(frozen=True, slots=True)
class _Judge:
    """Judges one file after the other."""

    plan: QualityPlan
    base: Base | None
    folder: Path
    executor: Executor
    n_threads: int
    on_progress: OnProgress

    def judged(self, file: PlannedFile) -> FileQuality:
        """Measures a file; what an earlier run left is not computed again."""
        path = self.folder / f"{self._key(file)}.scores"
        scores = ScoreFile(path, n_judged(self.plan.options.n_ctx), len(file.hidden))
        seconds, n_read = 0.0, 0
        if scores.n_windows < len(self.plan.windows):
            try:
                seconds, n_read = self._judge(file, scores)
            except WeightsError as error:
                hint = f"look for damage: mimo-gguf verify {command_word(file.path)}"
                raise WeightsError(f"{file.path.name}: {error.message}", hint=hint) from None
            finally:
                scores.save()
        return self._summed_up(file, scores, seconds, n_read)

    def _key(self, file: PlannedFile) -> str:
        base = self.plan.base
        where = self.plan.arithmetic, str(self.plan.n_gpu_layers), base.way if base else ""
        return key_of(file.fingerprint, *where, *file.hidden)

    def _judge(self, file: PlannedFile, scores: ScoreFile) -> tuple[float, int]:
        """Adds the scores of the windows that are left.

        Returns:
            The seconds that it took, loading not counted, and the tokens that were read in that time.
        """
        n, n_ctx, first = len(self.plan.windows), self.plan.options.n_ctx, scores.n_windows
        with ExitStack() as stack:
            opened = self._open(file, first, stack)
            self.on_progress(file.path.name, first * n_ctx, n * n_ctx)
            for index, (logits, drafts) in enumerate(opened.readings, first):
                scores.add(self._compared(index, logits), drafts)
                self.on_progress(file.path.name, (index + 1) * n_ctx, n * n_ctx)
            return time.perf_counter() - opened.since, round((n - first) * n_ctx * (1 - opened.resumed))

    def _open(self, file: PlannedFile, first: int, stack: ExitStack) -> _Opened:
        """What is read from window number `first` on; a model that has to be loaded is loaded now."""
        if self.plan.arithmetic == "float32":
            return self._blocks(file, first, stack)
        options = self.plan.options
        reading = ReaderOptions(options.n_ctx, file.hidden, options.n_threads, self.plan.n_gpu_layers)
        reader = stack.enter_context(BackendReader(file.path, reading))
        return _Opened(self._passes(reader, first, file.hidden), time.perf_counter())

    def _compared(self, index: int, logits: Floats) -> TokenScores:
        targets = targets_of(self.plan.windows[index].tokens)
        if self.base is None:
            return score_rows(logits, targets, executor=self.executor, n_threads=self.n_threads)
        base = self.base.logits(index)
        return compare_rows(base, logits, targets, executor=self.executor, n_threads=self.n_threads)

    def _passes(self, reader: BackendReader, first: int, ways: Sequence[HiddenState]) -> Iterator[Reading]:
        for window in self.plan.windows[first:]:
            logits = reader.read(window.tokens)
            yield logits, [reader.drafts(window.tokens, hidden) for hidden in ways]

    def _blocks(self, file: PlannedFile, first: int, stack: ExitStack) -> _Opened:
        """Computes with the file's weights in float32, all windows block by block, then gives window by window."""
        since, windows = time.perf_counter(), [window.tokens for window in self.plan.windows]
        model = stack.enter_context(open_reference(file.path))
        folder = self.folder / f"{file.fingerprint[:32]}-blocks"
        states = [
            run_blocks(
                model, windows, folder, file.path.name, self.on_progress,
                mtp=hidden is not None, hidden=hidden or "pre",
            )
            for hidden in file.hidden or (None,)
        ]  # fmt: skip
        return _Opened(self._from_states(model, states, first, file.hidden), since, states[0].resumed)

    def _from_states(
        self, model: ReferenceModel, states: Sequence[WindowStates], first: int, ways: Sequence[HiddenState]
    ) -> Iterator[Reading]:
        rows = judged_rows(self.plan.options.n_ctx)
        # The row of the MTP block that predicts a token is one before the trunk's.
        mtp_rows = slice(rows.start - 1, rows.stop - 1)
        head = Head(model)
        mtp_head = Head(model, mtp_block=model.n_trunk_blocks) if ways else head
        for index in range(first, len(self.plan.windows)):
            drafts = [top_tokens(mtp_head.logits(states[way].mtp[index][mtp_rows])) for way in range(len(ways))]
            yield head.logits(states[0].final[index][rows]), drafts

    def _summed_up(self, file: PlannedFile, scores: ScoreFile, seconds: float, n_read: int) -> FileQuality:
        kinds = [window.kind for window in self.plan.windows]
        parts = [scores.scores(index, has_base=self.base is not None) for index in range(len(kinds))]
        of_kind = {kind: [i for i, each in enumerate(kinds) if each == kind] for kind in dict.fromkeys(kinds)}
        of_kind[ALL] = list(range(len(kinds)))
        acceptance: dict[HiddenState, dict[str, Figure]] = {}
        for way, hidden in enumerate(file.hidden):
            hits = [scores.drafts(index)[way] == part.top for index, part in enumerate(parts)]
            acceptance[hidden] = {
                kind: share_of(np.concatenate([hits[i] for i in members])) for kind, members in of_kind.items()
            }
        number = file.header.value("general.file_type")
        return FileQuality(
            path=file.path,
            size_bytes=file.sizes.file_bytes,
            file_type=ftype_name(number) if isinstance(number, int) else "",
            fingerprint=file.fingerprint,
            by_kind={
                kind: summarize(TokenScores.joined([parts[i] for i in members])) for kind, members in of_kind.items()
            },
            acceptance=acceptance,
            seconds=seconds,
            n_read=n_read,
        )


def _n_cores() -> int:
    from mimo_gguf.llama.api import default_threads

    return default_threads()


def _backend(plan: QualityPlan, n_threads: int) -> str:
    threads = f"{n_threads} threads" if n_threads > 1 else "1 thread"
    if plan.arithmetic == "float32":
        return f"numpy, {threads}" if plan.options.n_threads else "numpy"
    return f"llama.cpp, {'GPU' if plan.n_gpu_layers else 'CPU'}, {threads}"
