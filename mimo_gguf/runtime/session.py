"""One conversation's evaluated tokens: prefill with prefix reuse, then token after token, drafted or plain.

Exactness is by construction. Every token is drawn from the target's own logits by the one sampler chain; a draft is
accepted if it equals the token drawn. So drafting changes how many tokens one pass yields, never which: greedy text is
the same, and sampled text uses the same random stream. What was drafted and not drawn is removed from both caches.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from mimo_gguf.core.errors import BackendError, UsageError
from mimo_gguf.runtime.draft_control import DraftControl
from mimo_gguf.runtime.drafting import Drafter, HiddenState
from mimo_gguf.runtime.llama_api import (
    LOG,
    Batch,
    ContextOptions,
    LlamaContext,
    LlamaModel,
    open_context,
    open_mtp_context,
)
from mimo_gguf.runtime.sampling import Sampler
from mimo_gguf.runtime.session_stats import SessionStats

Progress = Callable[[int, int], None]  # tokens evaluated, tokens to evaluate
# Gap of two logits below which another batch size's rounding might order them otherwise. Measured on a CPU: batches of
# 1 and 2 agree to the bit for quantized weights, to 0.016 for BF16 (whose activations are rounded), to 3e-6 for F32.
NEAR_TIE: Final = 0.05


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How a session is set up.

    Attributes:
        n_ctx: the window in tokens; 0 takes what the model was trained with.
        mtp: draft with the MTP blocks, where the model was loaded with them.
        n_draft: tokens drafted at a time.
        p_min: least probability the MTP block must give a token to propose it.
        hidden: which trunk state the MTP block is fed: before the final norm (MiMo) or after it.
        adaptive: stop drafting while it is slower than not drafting.
        n_ubatch_mtp: micro-batch of the MTP context; it decides the size of its compute buffer.
        kv_type: "f16", "q8_0", "q4_0", ...: ggml's name of the type of the KV cache.
        n_threads: 0 takes the physical cores.
    """

    n_ctx: int = 4096
    n_batch: int = 512
    n_threads: int = 0
    kv_type: str = "f16"
    flash_attn: bool | None = None
    mtp: bool = True
    n_draft: int = 1
    p_min: float = 0.0
    hidden: HiddenState = "pre"
    adaptive: bool = True
    n_ubatch_mtp: int = 64

    def __post_init__(self) -> None:
        """Raises UsageError for values that make no sense."""
        if not 1 <= self.n_draft <= 8:
            raise UsageError(f"{self.n_draft} drafts at a time", hint="choose 1, 2 or 3: --draft 1")
        if not 0.0 <= self.p_min <= 1.0:
            raise UsageError(f"a probability of {self.p_min}", hint="choose a draft probability between 0 and 1")
        if self.n_ctx < 0 or self.n_batch < 1:
            raise UsageError(f"a context of {self.n_ctx} tokens", hint="give a positive number: --ctx 4096")

    def for_context(self) -> ContextOptions:
        """The target context's options."""
        kv_type = ggml_type_number(self.kv_type)
        n_batch = min(self.n_batch, self.n_ctx) if self.n_ctx else self.n_batch
        return ContextOptions(
            n_ctx=self.n_ctx,
            n_batch=n_batch,
            n_ubatch=n_batch,
            n_outputs_max=1 + self.n_draft,
            n_threads=self.n_threads,
            type_k=kv_type,
            type_v=kv_type,
            flash_attn=self.flash_attn,
        )


def ggml_type_number(name: str) -> int:
    """`q8_0` -> 8. Raises UsageError where ggml knows no such type."""
    from mimo_gguf.core.ggml_types import parse_ggml_type

    return int(parse_ggml_type(name))


class Cancelled(Exception):
    """`Session.cancel` was called while the session was working. Its state is whole: what was evaluated stays."""


class WindowFull(Exception):
    """The next token does not fit into the context window."""


class Session:
    """The target context and the MTP context of one conversation. Not for two threads at once, but for `cancel`.

    `tokens` is what stands in the target's KV cache. After `feed`, `next_token` gives one token after the other; a
    token is evaluated when the next one is asked for, so one can stop anywhere.
    """

    def __init__(self, model: LlamaModel, options: SessionOptions | None = None) -> None:
        """Raises BackendError where llama.cpp cannot make the contexts."""
        self.model = model
        self.options = options or SessionOptions()
        if self.options.n_ctx == 0:
            self.options = replace(self.options, n_ctx=model.n_ctx_train)
        self.tokens: list[int] = []
        self.stats = SessionStats(self.options.n_draft)
        self.control = DraftControl(adaptive=self.options.adaptive)
        self.drafting_allowed = True
        self.target: LlamaContext = open_context(model, self.options.for_context())
        self.drafter: Drafter | None = None
        try:
            if self.options.mtp and model.n_mtp:
                self.drafter = self._open_drafter()
            self._batch = Batch(self.target.options.n_batch)
        except BaseException:
            self.close()
            raise
        self._cancel = threading.Event()
        self._pending: int | None = None  # drawn, not evaluated
        self._drafts: list[int] = []  # evaluated after self.tokens, not yet drawn
        self._row: int | None = None  # row of the last decode that predicts what follows self.tokens
        self._cycle = _Cycle()

    def _open_drafter(self) -> Drafter:
        context = open_mtp_context(self.target, n_ubatch=min(self.options.n_ubatch_mtp, self.target.options.n_batch))
        options = self.options
        return Drafter(context, n_draft=options.n_draft, p_min=options.p_min, hidden=options.hidden)

    @property
    def n_ctx(self) -> int:
        """Tokens the window holds."""
        return self.target.n_ctx

    def close(self) -> None:
        """Frees both contexts. The model is not the session's."""
        if self.drafter is not None:
            self.drafter.close()
        self.target.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def cancel(self) -> None:
        """Stops `feed` or `next_token`, the one at work or the next, as soon as it can.

        From any thread or a signal handler.
        """
        self._cancel.set()

    def forget_cancel(self) -> None:
        """Takes back a `cancel` that came when nothing was left to stop."""
        self._cancel.clear()

    def _check_cancel(self) -> None:
        if self._cancel.is_set():
            self._cancel.clear()
            raise Cancelled

    def feed(self, prompt: Sequence[int], progress: Progress | None = None) -> int:
        """Makes `prompt` the evaluated tokens and readies the logits after it; the number of tokens reused.

        Raises:
            WindowFull: the prompt leaves no room for a token after it.
            Cancelled: as far as it came stays evaluated.
            UsageError: the prompt is empty.
        """
        if not prompt:
            raise UsageError("the prompt has no tokens", hint="give some text")
        if len(prompt) >= self.n_ctx:
            raise WindowFull
        self._check_cancel()
        start = time.perf_counter()
        prompt = list(prompt)  # it may be self.tokens
        reused = self._reuse(prompt)
        rest = prompt[reused:]
        self.target.abort_when(self._cancel.is_set)
        try:
            for first in range(0, len(rest), self._batch.capacity):
                self._check_cancel()
                self._prefill(
                    rest[first : first + self._batch.capacity], last=first + self._batch.capacity >= len(rest)
                )
                if progress is not None:
                    progress(min(first + self._batch.capacity, len(rest)), len(rest))
        finally:
            self.target.abort_when(None)
        self.stats.add_prompt(len(rest), reused, time.perf_counter() - start)
        return reused

    def _reuse(self, prompt: Sequence[int]) -> int:
        """Drops what differs from `prompt`; how many of its tokens need not be evaluated again."""
        self.settle()
        same = common_prefix(self.tokens, prompt)
        if same == len(prompt) and (same < len(self.tokens) or self._row is None):
            same -= 1  # its logits are gone
        if self.drafter is not None:
            self.drafter.forget(same)
            if same and same < len(prompt) and not (self.drafter.knows_state and self.drafter.end == same):
                same = min(same, self.drafter.end) - 1  # its state before the norm is gone
        if same < len(self.tokens):
            self.target.forget(same)
            del self.tokens[same:]
            self._row = None
        return same

    def _prefill(self, tokens: Sequence[int], *, last: bool) -> None:
        first = len(self.tokens)
        self._decode(tokens, n_outputs=int(last))
        self._row = len(tokens) - 1 if last else None
        self.tokens += tokens
        if self.drafter is not None:
            self.drafter.follow(tokens, first, self.target.hidden(len(tokens)))

    def _decode(self, tokens: Sequence[int], *, n_outputs: int) -> None:
        since = LOG.mark
        self._row = None
        result = self.target.decode(self._batch.fill(tokens, len(self.tokens), n_outputs=n_outputs))
        if result == 0:
            return
        self.target.forget(len(self.tokens))
        if result == 2:
            self._cancel.clear()
            raise Cancelled
        if result == 1:
            raise WindowFull
        raise BackendError(
            f"llama.cpp failed at position {len(self.tokens)} (llama_decode {result}): {LOG.reason(since)}",
            hint="run again with --verbose for its log",
        )

    def next_token(self, sampler: Sampler) -> int:
        """Draws the token that follows.

        Raises:
            WindowFull: no room is left to evaluate the token drawn before.
            Cancelled: `cancel` was called.
        """
        started = time.perf_counter()
        self._check_cancel()
        if self._pending is not None:
            self._finish_cycle()
            self._evaluate(self._pending)
        if self._row is None:
            raise BackendError("there is nothing to draw a token from", hint="call feed first")
        token = sampler.sample(self.target, self._row)
        if sampler.options.greedy and self._cycle.n_drafted:
            self._count_near_tie(self._row)
        if self._drafts and token == self._drafts[0]:
            self._accept(token)
        else:
            self._drop_drafts()
            self._pending = token
        seconds = time.perf_counter() - started
        self._cycle.seconds += seconds
        self._cycle.n_tokens += 1
        self.stats.add_token(seconds)
        return token

    def insert(self, tokens: Sequence[int], sampler: Sampler) -> None:
        """Goes on as if `tokens` had been drawn: the token drawn last is evaluated, then these.

        Raises:
            WindowFull: they do not fit.
        """
        drawn = [] if self._pending is None else [self._pending]
        self._finish_cycle()
        self._drop_drafts()
        self._pending = None
        if len(self.tokens) + len(drawn) + len(tokens) >= self.n_ctx:
            raise WindowFull
        self._prefill([*drawn, *tokens], last=True)
        for token in tokens:
            sampler.note(token)

    def _evaluate(self, token: int) -> None:
        """One pass of the target over `token` and what the MTP block proposes after it."""
        room = self.n_ctx - len(self.tokens)
        if room < 1:
            raise WindowFull
        drafts: list[int] = []
        if self.drafter is not None and self.drafting_allowed and room > 1 and self.control.wants_draft():
            drafts = self.drafter.draft(token, room - 1)
            self._cycle.tried = True
        self._cycle.running, self._cycle.n_drafted = True, len(drafts)
        self._decode([token, *drafts], n_outputs=1 + len(drafts))
        position = len(self.tokens)
        self.tokens.append(token)
        self._pending, self._drafts, self._row = None, drafts, 0
        if self.drafter is not None:
            self._states = self.target.hidden(1 + len(drafts))
            self.drafter.follow([token], position, self._states[:1])

    def _accept(self, token: int) -> None:
        assert self._row is not None
        assert self.drafter is not None
        del self._drafts[0]
        self._row += 1
        self._cycle.n_accepted += 1
        self.drafter.follow([token], len(self.tokens), self._states[self._row : self._row + 1])
        self.tokens.append(token)

    def _drop_drafts(self) -> None:
        if self._drafts:
            self._drafts = []
            self.target.forget(len(self.tokens))

    def reset(self) -> None:
        """Forgets everything evaluated."""
        self.settle()
        self.target.forget(0)
        self.tokens, self._row = [], None
        if self.drafter is not None:
            self.drafter.forget(0)

    def settle(self) -> None:
        """Puts the session into the state where exactly `tokens` is evaluated: drops drafts and the undrawn."""
        self._finish_cycle()
        self._drop_drafts()
        self._pending = None

    def _finish_cycle(self) -> None:
        """Books the pass that just ended, when it was a whole one: all it yields was drawn."""
        cycle, self._cycle = self._cycle, _Cycle()
        if not cycle.running:
            return
        self.stats.add_pass(cycle.n_drafted, cycle.n_accepted, whole=not self._drafts)
        if self.drafter is not None and not self._drafts:
            self.control.record(drafted=cycle.tried, seconds=cycle.seconds, n_tokens=cycle.n_tokens)

    def _count_near_tie(self, row: int) -> None:
        """Greedy choices so close that another batch size's rounding might turn them are counted, not hidden."""
        logits = self.target.logits(row)
        best = int(logits.argmax())
        if np.count_nonzero(logits > logits[best] - NEAR_TIE) > 1:
            self.stats.n_near_ties += 1


@dataclass(slots=True)
class _Cycle:
    """One pass of the target and the tokens drawn from it."""

    running: bool = False
    tried: bool = False  # a draft was asked for, whether or not the MTP block was sure enough to give one
    n_drafted: int = 0
    n_accepted: int = 0
    n_tokens: int = 0
    seconds: float = 0.0


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of leading elements two sequences share."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
