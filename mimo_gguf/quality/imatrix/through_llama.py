"""Runs windows through llama.cpp, on any of its backends, and shows what the matrices of trunk and MTP blocks read.

The head's product is not computed: it reads the trunk's states after the final norm, which are known without it. Only
the qwen2 layout does not give out states, so there the head is computed and watched like any other matrix.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.core.errors import BackendError
from mimo_gguf.core.geometry import STEP35
from mimo_gguf.llama.api import (
    ContextOptions,
    Floats,
    LlamaContext,
    ModelOptions,
    load_model,
    open_context,
    open_mtp_context,
)
from mimo_gguf.llama.batch import Batch
from mimo_gguf.llama.log import LOG
from mimo_gguf.quality.imatrix.gathering import first_reader
from mimo_gguf.reference.forward import Tap, rms_norm
from mimo_gguf.reference.model import FINAL_NORM, HEAD, ReferenceModel

_MOST_ROWS: Final = 512  # of a pass, as in llama-imatrix
_F32, _F16 = 0, 1  # ggml's numbers of types


@dataclass(frozen=True, slots=True)
class LlamaOptions:
    """How a model is run.

    Attributes:
        n_ctx: tokens of a window.
        mtp: whether the MTP blocks are run, too.
        output: whether the head is watched.
        n_gpu_layers: number of blocks on the GPUs, -1 for all.
        devices: ggml_backend_dev_t pointers of the devices to use; None means all GPUs that llama.cpp sees.
        n_threads: CPU threads; 0 means the physical cores.
        exact: keep the cache in float32 and do without flash attention. llama-imatrix does not, and it differs by a
            thousandth of a column's importance.
    """

    n_ctx: int
    mtp: bool = True
    output: bool = True
    n_gpu_layers: int = -1
    devices: tuple[int, ...] | None = None
    n_threads: int = 0
    exact: bool = False


@dataclass(slots=True)
class _Watch:
    """Sees what the blocks' matrices read, each input once, and shows it to the tap of the window."""

    heads: frozenset[str]
    tap: Tap | None = None

    def wants(self, matrix: str) -> bool:
        return matrix in self.heads or (matrix.startswith("blk.") and first_reader(matrix) == matrix)

    def see(self, matrix: str, rows: Floats) -> None:
        if self.tap is not None:
            self.tap(matrix, rows)


class LlamaRun:
    """A loaded model with its contexts. Close it after use.

    Args:
        path: a GGUF file.
        model: the same model, for what llama.cpp does not give out: the final norm.

    Raises:
        BackendError: llama.cpp refused the model or a context.
    """

    def __init__(self, path: Path, model: ReferenceModel, options: LlamaOptions) -> None:
        self._epsilon = model.geometry.rms_epsilon
        self._gains = model.vector(FINAL_NORM)
        self._has_states = model.geometry.architecture == STEP35
        self._n_mtp = model.n_mtp_blocks if options.mtp else 0
        own_heads = any(model.has(f"blk.{i}.nextn.shared_head_head.weight") for i in range(model.geometry.block_count))
        self._watches_head = options.output and model.has(HEAD)
        n_rows = min(options.n_ctx, _MOST_ROWS)
        self._n_outputs = 1 if self._has_states else n_rows  # without logits qwen2 drops rows in its last block
        self._n_mtp_outputs = n_rows if own_heads else 1
        self._watch = _Watch(frozenset({HEAD} if self._watches_head and not self._has_states else ()))
        with ExitStack() as stack:
            native = ModelOptions(n_gpu_layers=options.n_gpu_layers, devices=options.devices, load_mtp=self._n_mtp > 0)
            loaded = stack.enter_context(load_model(path, native))
            self._target = stack.enter_context(
                open_context(
                    loaded,
                    ContextOptions(
                        n_ctx=options.n_ctx,
                        n_batch=n_rows,
                        n_ubatch=n_rows,
                        n_outputs_max=self._n_outputs,
                        n_threads=options.n_threads,
                        type_k=_F32 if options.exact else _F16,
                        type_v=_F32 if options.exact else _F16,
                        flash_attn=False if options.exact else None,
                        observer=self._watch,
                    ),
                )
            )
            self._batch = Batch(n_rows)
            self._mtp: LlamaContext | None = None
            if self._n_mtp:
                self._mtp = stack.enter_context(
                    open_mtp_context(self._target, n_ubatch=n_rows, n_outputs_max=self._n_mtp_outputs)
                )
                self._mtp_batch = Batch(n_rows, loaded.n_embd)
            elif self._has_states:
                self._target.give_hidden(True, of_outputs_only=False)
            self._close = stack.pop_all()

    def __enter__(self) -> LlamaRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the contexts and the model."""
        self._close.close()

    def run(self, tokens: NDArray[np.int32], tap: Tap) -> None:
        """Evaluates a window, int32 [n], from an empty cache on.

        Args:
            tap: receives what the matrices read.

        Raises:
            BackendError: llama.cpp failed.
            KeyboardInterrupt: Ctrl-C; whatever the tap raises is raised here, too.
        """
        self._watch.tap = tap
        self._target.forget(0)
        if self._mtp is not None:
            self._mtp.forget(0)
        before: Floats | None = None
        for first in range(0, len(tokens), self._batch.capacity):
            part = tokens[first : first + self._batch.capacity]
            n_outputs = min(self._n_outputs, len(part))
            _decode(self._target, self._batch, part, first, n_outputs)
            if not self._has_states:
                continue
            states = self._target.hidden(len(part))
            if self._watches_head:
                tap(HEAD, rms_norm(states, self._gains, self._epsilon))
            if self._mtp is not None:
                self._run_mtp(self._mtp, part, first, states, before)
                before = states[-1].copy()

    def _run_mtp(
        self, context: LlamaContext, tokens: NDArray[np.int32], position: int, states: Floats, before: Floats | None
    ) -> None:
        """Evaluates the MTP rows of a part of a window with every block: each token with the state before it."""
        if before is None:  # the first token of the window has no state before it
            tokens, position, rows = tokens[1:], position + 1, states[:-1]
        else:
            rows = np.concatenate([before[None], states[:-1]])
        if not len(tokens):
            return
        assert self._mtp_batch.hidden is not None
        self._mtp_batch.hidden[: len(tokens)] = rows
        for block in range(self._n_mtp):
            if self._n_mtp > 1:
                context.select_mtp_block(block)
            if block:
                context.forget(position)
            _decode(context, self._mtp_batch, tokens, position, min(self._n_mtp_outputs, len(tokens)))


def _decode(context: LlamaContext, batch: Batch, tokens: NDArray[np.int32], position: int, n_outputs: int) -> None:
    since = LOG.mark
    result = context.decode(batch.fill(tokens.tolist(), position, n_outputs=n_outputs))
    if result != 0:
        raise BackendError(
            f"llama.cpp failed at position {position} (llama_decode {result}): {LOG.reason(since)}",
            hint="run again with --verbose for its log",
        )
