"""Many windows through the model, block by block: only one block's weights are in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.core.digests import WINDOWS
from mimo_gguf.core.errors import UsageError
from mimo_gguf.reference.decode import Floats
from mimo_gguf.reference.forward import (
    Hidden,
    Tap,
    Tokens,
    block,
    embed,
    mtp_block,
    read_block,
    read_mtp_block,
    rms_norm,
)
from mimo_gguf.reference.model import FINAL_NORM, HEAD, ReferenceModel
from mimo_gguf.reference.states import FolderStore, MemoryStore, Store, locked, mapped

OnProgress = Callable[[int, int], None]

_VERSION: Final = 1  # of the states in a folder; raised if the arithmetic or the files change
_EMBEDDED_TOKENS: Final = 1 << 14  # 256 MiB of float32 in MiMo-7B


@dataclass(frozen=True, slots=True)
class WindowStates:
    """What the model computed for each window. In a folder, a window's rows are read when they are asked for.

    Attributes:
        before_norm: the trunk's states before the final norm, float32 [n, n_embd] for each window.
        final: the same after the final norm: what the head reads.
        mtp: rows of the first MTP block after its own final norm, [n - 1, n_embd] for each window; row p predicts the
            token at p + 2. Empty if MTP was not asked for.
        resumed: the share of the work that an earlier call had done, from 0 to 1.
    """

    before_norm: Sequence[Floats]
    final: Sequence[Floats]
    mtp: Sequence[Floats]
    resumed: float


@dataclass(frozen=True, slots=True)
class _Run:
    """A run's arguments and what it reports to."""

    model: ReferenceModel
    windows: Sequence[Tokens]
    store: Store
    tap: Tap | None
    on_block: Callable[[int], None]
    count: _Count


def run_windows(
    model: ReferenceModel,
    windows: Sequence[NDArray[np.int32]],
    *,
    folder: Path | None = None,
    purpose: str = "states",
    tap: Tap | None = None,
    mtp: bool = False,
    hidden: Hidden = "pre",
    on_block: Callable[[int], None] | None = None,
    on_progress: OnProgress | None = None,
) -> WindowStates:
    """Computes the states of all tokens of all windows. Windows do not see each other.

    With a folder, memory does not grow with the number of tokens, and a run that was killed goes on at its block:
    repeat the call. A tap is then not called again for the blocks that are done, so what it gathers must be saved by
    `on_block`.

    Args:
        windows: token ids, int32 [n] each, at positions from 0 on.
        folder: where the states are kept, by this call alone; it is made if it is missing. None keeps them in memory.
        purpose: what the tap gathers; a folder of another purpose is refused.
        tap: receives the inputs of every matrix, block by block and window by window. The head's come last, of the
            trunk alone, in every call.
        mtp: whether the MTP blocks are run as well, each on the trunk's states.
        hidden: whether they read the states before ("pre", MiMo) or after ("post") the trunk's final norm.
        on_block: called with a block's GGUF number when it is done, before its states are kept. After a kill it may be
            called for the same block again.
        on_progress: called with the tokens done and their total, both counted once for each block.

    Raises:
        UsageError: a token id that the vocabulary lacks, a window longer than the context, or no MTP block.
        CheckpointError, GgufError: the weights' data ends early.
        OutputError: the folder is of something else, another run works in it, or it cannot be written.
    """
    _check_windows(model, windows, mtp=mtp)
    n_blocks = model.geometry.block_count if mtp else model.n_trunk_blocks
    with nullcontext() if folder is None else locked(folder):
        store = (
            MemoryStore() if folder is None else _open_folder(folder, model, windows, purpose, tapped=tap is not None)
        )
        count = _Count(on_progress, n_blocks * sum(map(len, windows)))
        run = _Run(model, windows, store, tap, on_block or (lambda number: None), count)
        before_norm = _run_trunk(run)
        norm = partial(rms_norm, gains=model.vector(FINAL_NORM), epsilon=model.geometry.rms_epsilon)
        of_mtp = _run_mtp(run, hidden) if mtp else ()
        states = WindowStates(before_norm, mapped(norm, before_norm), of_mtp, count.resumed)
    if tap is not None:
        for rows in filter(len, states.final):
            tap(HEAD, rows)
    return states


def _open_folder(
    folder: Path, model: ReferenceModel, windows: Sequence[Tokens], purpose: str, *, tapped: bool
) -> FolderStore:
    identity = {
        "version": _VERSION,
        "model": model.source.fingerprint,
        "products": model.products.name,
        "text": WINDOWS.hex(*(np.ascontiguousarray(part, "<i4") for w in windows for part in ([len(w)], w))),
        "purpose": purpose if tapped else "nothing but states",
    }
    n_rows = {"block": [len(w) for w in windows], "mtp": [max(0, len(w) - 1) for w in windows]}
    return FolderStore(folder, identity, n_rows, model.geometry.embedding_length)


def _run_trunk(run: _Run) -> Sequence[Floats]:
    """Runs the blocks that are left, and returns the states after the last."""
    n_blocks, store = run.model.n_trunk_blocks, run.store
    done = next((number for number in range(n_blocks, 0, -1) if store.has(_stage(number))), 0)
    if done:
        for number in range(done):
            store.forget(_stage(number))
    elif not store.has(_stage(0)):
        store.write(_stage(0), _embedded(run.model, run.windows))
    run.count.skip(done * sum(map(len, run.windows)))
    for number in range(done, n_blocks):
        _run_block(run, number)
    return store.read(_stage(n_blocks))


def _run_block(run: _Run, number: int) -> None:
    """Passes all windows through a block of the trunk. Its weights are forgotten before those of the next are read."""
    weights = read_block(run.model, number)

    def step(i: int, x: Floats) -> Floats:
        rows = block(x, weights, tap=run.tap) if len(x) else x
        run.count.add(len(run.windows[i]))
        return rows

    run.store.advance(_stage(number), _stage(number + 1), step, keep=False, on_done=partial(run.on_block, number))


def _run_mtp(run: _Run, hidden: Hidden) -> Sequence[Floats]:
    """Runs the MTP blocks that are left on the trunk's states, and returns the rows of the first."""
    first = run.model.n_trunk_blocks
    for number in range(first, run.model.geometry.block_count):
        if run.store.has(_mtp_stage(number, hidden)):
            run.count.skip(sum(map(len, run.windows)))
        else:
            _run_mtp_block(run, number, hidden)
    return run.store.read(_mtp_stage(first, hidden))


def _run_mtp_block(run: _Run, number: int, hidden: Hidden) -> None:
    """Passes the trunk's states of all windows, and the tokens after them, through an MTP block."""
    model = run.model
    gains, epsilon = model.vector(FINAL_NORM), model.geometry.rms_epsilon
    embedded = _embedded(model, run.windows)
    weights = read_mtp_block(model, number)

    def step(i: int, x: Floats) -> Floats:
        following = next(embedded)[1:]
        x = rms_norm(x[:-1], gains, epsilon) if hidden == "post" else x[:-1]
        rows = mtp_block(x, following, weights, tap=run.tap) if len(following) else following
        run.count.add(len(run.windows[i]))
        return rows

    after = _mtp_stage(number, hidden)
    run.store.advance(_stage(model.n_trunk_blocks), after, step, keep=True, on_done=partial(run.on_block, number))


def _mtp_stage(number: int, hidden: Hidden) -> str:
    """The name of the rows of an MTP block, which depend on the states it was fed with."""
    return f"mtp-{number:03}-{hidden}"


def _stage(n_blocks: int) -> str:
    """The name of the states after so many blocks of the trunk."""
    return f"block-{n_blocks:03}"


def _embedded(model: ReferenceModel, windows: Sequence[Tokens]) -> Iterator[Floats]:
    """The embeddings of each window, computed for many windows at a time."""
    group: list[Tokens] = []
    for i, window in enumerate(windows):
        group.append(window)
        if i + 1 == len(windows) or sum(map(len, group)) + len(windows[i + 1]) > _EMBEDDED_TOKENS:
            rows = embed(model, np.concatenate(group))
            yield from np.split(rows, np.cumsum([len(member) for member in group])[:-1])
            group = []


class _Count:
    """Counts tokens and reports."""

    def __init__(self, on_progress: OnProgress | None, total: int) -> None:
        self._report: Final = on_progress
        self._total: Final = total
        self._done = self._skipped = 0

    @property
    def resumed(self) -> float:
        """The share that was skipped."""
        return self._skipped / max(self._total, 1)

    def skip(self, n_tokens: int) -> None:
        """Counts what an earlier call has done."""
        self._skipped += n_tokens
        self.add(n_tokens)

    def add(self, n_tokens: int) -> None:
        self._done += n_tokens
        if self._report is not None:
            self._report(self._done, self._total)


def _check_windows(model: ReferenceModel, windows: Sequence[Tokens], *, mtp: bool) -> None:
    geometry = model.geometry
    if mtp and not model.n_mtp_blocks:
        raise UsageError(f"{model.source.label}: has no MTP block", hint="give a file with MTP, or leave MTP out")
    for i, window in enumerate(windows):
        if len(window) > geometry.context_length:
            raise UsageError(
                f"window {i} has {len(window)} tokens, the model's context {geometry.context_length}",
                hint="use a smaller window",
            )
        if len(window) and not 0 <= window.min() <= window.max() < geometry.vocab_size:
            raise UsageError(
                f"window {i} has a token id beyond the vocabulary of {geometry.vocab_size}",
                hint="the text was tokenized with another model's vocabulary",
            )
