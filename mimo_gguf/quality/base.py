"""A base's predictions, window by window: read beside the file, or from final states that were computed before.

Keeping all logits of MiMo's vocabulary would need 303 KB for each token that is judged. The final states need 16 KB,
and the base's head gives the same logits from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from mimo_gguf.quality.backend import BackendReader, ReaderOptions, judged_rows, n_judged
from mimo_gguf.quality.divergence import Floats
from mimo_gguf.quality.heads import Head
from mimo_gguf.quality.plan import QualityPlan
from mimo_gguf.quality.texts import Tokens
from mimo_gguf.quality.work import StatesLog
from mimo_gguf.reference.forward import Hidden, final_norm
from mimo_gguf.reference.model import ReferenceModel, open_reference
from mimo_gguf.reference.run import WindowStates, run_windows

OnProgress = Callable[[str, int, int], None]  # what is being done, tokens done, tokens to do


class Base(Protocol):
    """The base's predictions."""

    def logits(self, index: int) -> Floats:
        """The logits of a window's judged rows, [n_judged, n_vocab], valid until the next call."""


class BaseInStep:
    """A base in memory beside the file; it reads each window just before the file does."""

    def __init__(self, reader: BackendReader, windows: Sequence[Tokens]) -> None:
        self._reader = reader
        self._windows = windows

    def logits(self, index: int) -> Floats:
        return self._reader.read(self._windows[index])


class BaseOfStates:
    """A base whose final states are kept."""

    def __init__(self, states: Callable[[int], Floats], head: Head) -> None:
        self._states = states
        self._head = head

    def logits(self, index: int) -> Floats:
        return self._head.logits(self._states(index))


def open_base(plan: QualityPlan, folder: Path, stack: ExitStack, on_progress: OnProgress) -> Base | None:
    """Prepares the base's predictions; what takes long is kept in `folder` and is not computed twice.

    Raises:
        BackendError, GgufError, CheckpointError, HubError: it cannot be read.
        OutputError: the folder cannot be written.
        KeyboardInterrupt: Ctrl-C; the next call goes on.
    """
    if plan.base is None:
        return None
    windows = [window.tokens for window in plan.windows]
    if plan.base.way == "in step":
        return BaseInStep(stack.enter_context(_reader(plan)), windows)
    model = stack.enter_context(open_reference(plan.base.label))
    if plan.base.way == "states":
        log = StatesLog(
            folder / "base.states", n_judged(plan.options.n_ctx), model.geometry.embedding_length, len(windows)
        )
        stack.callback(log.close)
        _compute_states(plan, model, log, on_progress)
        return BaseOfStates(log.rows, Head(model))
    states = run_blocks(model, windows, folder / "base", "base", on_progress)
    rows = judged_rows(plan.options.n_ctx)
    return BaseOfStates(lambda index: states.final[index][rows], Head(model))


def _reader(plan: QualityPlan, *, keep_states: bool = False) -> BackendReader:
    assert plan.base is not None
    options = ReaderOptions(plan.options.n_ctx, (), plan.options.n_threads, plan.n_gpu_layers, keep_states=keep_states)
    return BackendReader(Path(plan.base.label), options)


def _compute_states(plan: QualityPlan, model: ReferenceModel, log: StatesLog, on_progress: OnProgress) -> None:
    """Reads the windows that are left through llama.cpp, and keeps the states that the head will read."""
    n, n_ctx = len(plan.windows), plan.options.n_ctx
    if log.n_windows == n:
        return
    with _reader(plan, keep_states=True) as reader:
        for index in range(log.n_windows, n):
            on_progress("base", index * n_ctx, n * n_ctx)
            reader.read(plan.windows[index].tokens)
            log.add(final_norm(model, reader.states()[judged_rows(n_ctx)]))


def run_blocks(
    model: ReferenceModel,
    windows: Sequence[Tokens],
    folder: Path,
    name: str,
    on_progress: OnProgress,
    *,
    mtp: bool = False,
    hidden: Hidden = "pre",
) -> WindowStates:
    """Runs all windows through a model block by block, in float32; a repeated call goes on at its block."""
    total = sum(map(len, windows))

    def on_blocks(done: int, of_all: int) -> None:
        on_progress(name, done * total // max(of_all, 1), total)

    return run_windows(model, windows, folder=folder, mtp=mtp, hidden=hidden, on_progress=on_blocks)
