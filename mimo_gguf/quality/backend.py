"""A file's predictions as the user will get them: windows of text read through llama.cpp, one pass each.

As in llama-perplexity, the second half of a window is judged, so that every judged token has half a window before it.
The MTP block reads the same window with the text's own tokens, not with what it would have drafted itself: its most
likely token at each judged row is the draft that the trunk would have accepted or not.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mimo_gguf.core.errors import BackendError
from mimo_gguf.engine.drafting import Drafter, HiddenState, StateNorm
from mimo_gguf.llama.api import Floats, LlamaContext, load_model, open_context, open_mtp_context
from mimo_gguf.llama.batch import Batch
from mimo_gguf.llama.log import LOG
from mimo_gguf.llama.options import ContextOptions, ModelOptions
from mimo_gguf.quality.divergence import Ints, top_tokens
from mimo_gguf.quality.texts import Tokens

UBATCH: Final = 512  # llama.cpp's default, and llama-perplexity's


def judged_rows(n_ctx: int) -> slice:
    """The rows of a window that are judged: from its middle on, without the last, whose next token is not there."""
    return slice(n_ctx // 2, n_ctx - 1)


def n_judged(n_ctx: int) -> int:
    """The number of judged rows of a window."""
    return n_ctx - 1 - n_ctx // 2


def targets_of(window: Tokens) -> Ints:
    """The tokens that the judged rows should predict."""
    return window[len(window) // 2 + 1 :]


@dataclass(frozen=True, slots=True)
class ReaderOptions:
    """How windows are read.

    Attributes:
        n_ctx: tokens of a window.
        hidden: states that the MTP block is tried with, before ("pre") or after ("post") the final norm; may be empty.
        n_threads: 0 means the physical cores.
        n_gpu_layers: blocks on the GPUs, -1 for all.
        keep_states: whether the trunk's states of a window are wanted; with `hidden` they are there anyway.
    """

    n_ctx: int
    hidden: tuple[HiddenState, ...] = ()
    n_threads: int = 0
    n_gpu_layers: int = 0
    keep_states: bool = False

    def context_options(self) -> ContextOptions:
        """The options of the trunk's context."""
        return ContextOptions(
            n_ctx=self.n_ctx,
            n_batch=self.n_ctx,
            n_ubatch=min(self.n_ctx, UBATCH),
            n_outputs_max=n_judged(self.n_ctx) + 1,
            n_threads=self.n_threads,
            n_threads_batch=self.n_threads,
        )


class BackendReader:
    """A loaded file that reads windows. Close it after use.

    Attributes:
        model: llama.cpp's model, for its vocabulary.
    """

    def __init__(self, path: Path, options: ReaderOptions) -> None:
        """Loads the file.

        Raises:
            BackendError: llama.cpp refused it, or it has no MTP block although states for one are given.
            KeyboardInterrupt: Ctrl-C; nothing stays loaded.
        """
        self._options = options
        self._n_judged = n_judged(options.n_ctx)
        with ExitStack() as stack:
            load = ModelOptions(n_gpu_layers=options.n_gpu_layers, load_mtp=bool(options.hidden) or options.keep_states)
            self.model = stack.enter_context(load_model(path, load))
            self._context = stack.enter_context(open_context(self.model, options.context_options()))
            if options.keep_states:
                self._context.give_hidden(True, of_outputs_only=False)
            self._batch = Batch(options.n_ctx)
            self._mtp: LlamaContext | None = None
            self._norms: dict[HiddenState, StateNorm] = {}
            if options.hidden:
                self._mtp = stack.enter_context(
                    open_mtp_context(self._context, n_ubatch=options.n_ctx, n_outputs_max=self._n_judged)
                )
                self._mtp_batch = Batch(options.n_ctx, self.model.n_embd)
                self._norms = {hidden: Drafter(self._mtp, hidden=hidden).trunk_norm for hidden in options.hidden}
            self._close = stack.pop_all()

    def __enter__(self) -> BackendReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the model and its contexts."""
        self._close.close()

    def read(self, window: Tokens) -> Floats:
        """Reads a window. Returns the logits of the judged rows, [n_judged, n_vocab]: a view until the next call.

        Raises:
            BackendError: the pass failed.
            KeyboardInterrupt: Ctrl-C, also in the middle of a pass.
        """
        self._context.forget(0)
        self._batch.clear()
        # The last row has no next token. It is read all the same, because kernels like even numbers of rows.
        n_outputs = self._n_judged + 1
        self._batch.add(window.tolist(), 0, n_outputs=n_outputs)
        self._run(self._context, self._batch)
        return self._context.all_logits(n_outputs)[: self._n_judged]

    def states(self) -> Floats:
        """The trunk's states before the final norm of the window that was read, [n_ctx, n_embd]: a view.

        They are only there with `hidden` or `keep_states`.
        """
        return self._context.hidden(self._options.n_ctx)

    def drafts(self, window: Tokens, hidden: HiddenState) -> Ints:
        """The MTP block's most likely token at each judged row of the window that was just read.

        Raises:
            BackendError: the pass failed.
        """
        assert self._mtp is not None
        assert self._mtp_batch.hidden is not None
        # A row pairs a token with the state before it: (x[p], h[p - 1]) predicts x[p + 1], as the trunk's row p does.
        states = self._norms[hidden](self.states())[:-2]
        self._mtp.forget(0)
        self._mtp_batch.clear()
        self._mtp_batch.add(window[1:-1].tolist(), 1, n_outputs=self._n_judged)
        self._mtp_batch.hidden[: len(states)] = states
        self._run(self._mtp, self._mtp_batch)
        return top_tokens(self._mtp.all_logits(self._n_judged))

    def _run(self, context: LlamaContext, batch: Batch) -> None:
        since = LOG.mark
        # Asked between two graph nodes, so that Ctrl-C does not wait for the end of a pass of a minute.
        result = context.decode(batch.native, stop_when=lambda: False)
        if result != 0:
            raise BackendError(
                f"{self.model.path}: llama.cpp failed in a pass (llama_decode {result}): {LOG.reason(since)}",
                hint="try a smaller --ctx",
            )
