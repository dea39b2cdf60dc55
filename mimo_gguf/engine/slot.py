"""One conversation's place in a session: its evaluated tokens, what comes next, and its window.

Exactness is by construction. Every token is drawn from the target's own logits by the conversation's one sampler chain;
a draft is accepted if it equals the token drawn. So drafting changes how many tokens one pass yields, never which:
greedy text is the same, and sampled text uses the same random stream. What was drafted and not drawn is removed from
both caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from mimo_gguf.core.errors import BackendError, UsageError
from mimo_gguf.engine.drafting import MtpRows
from mimo_gguf.engine.sampling import Sampler
from mimo_gguf.engine.stats import SessionStats

if TYPE_CHECKING:
    from mimo_gguf.engine.session import Part, Session

Progress = Callable[[int, int], None]  # tokens evaluated, tokens to evaluate
# Gap of two logits below which another batch size's rounding might order them otherwise. Measured on a CPU: batches of
# 1 and 2 agree to the bit for quantized weights, to 0.016 for BF16 (whose activations are rounded), to 3e-6 for F32. An
# F16 cache whose cells lie in another order, as those of several conversations do, moves a logit by up to 0.01.
NEAR_TIE: Final = 0.05


class Cancelled(Exception):
    """`Slot.cancel` was called while the slot was at work. Its state is whole: what was evaluated stays."""


class WindowFull(Exception):
    """The next token does not fit into the conversation's window."""


class Slot:
    """One of a session's sequences. `Session` makes them; a conversation takes one with `begin` or `feed`.

    `tokens` is what stands in the target's KV cache. After `feed`, `next_token` gives one token after the other; a
    token is evaluated when the next one is asked for, so one can stop anywhere. Several conversations are served by
    `begin` and `Session.step`, which does the same for all of them at a time. Not for two threads at once, but for
    `cancel`.
    """

    def __init__(self, session: Session, seq_id: int) -> None:
        self.session = session
        self.seq_id = seq_id
        self.n_ctx = session.n_ctx  # tokens the window holds
        self.tokens: list[int] = []
        self.stats = SessionStats(session.options.n_draft)
        self.rows = None if session.drafter is None else MtpRows(session.drafter, seq_id)
        self.prompt: list[int] = []  # given, not evaluated
        self.drawn: int | None = None  # drawn, not evaluated; never beside a prompt
        self._drafts: list[int] = []  # evaluated after self.tokens, not yet drawn
        self._row: int | None = None  # row of the last decode that predicts what follows self.tokens
        self._in_pass: tuple[int, int] | None = None  # drafts of the pass being drawn from, and how many were right
        self._cancel = False  # set from any thread; looked at between passes

    @property
    def room(self) -> int:
        """Tokens that still fit into the window."""
        return self.n_ctx - len(self.tokens)

    def cancel(self) -> None:
        """Stops what the slot is at, or is asked for next, as soon as it can. From any thread or a signal handler."""
        self._cancel = True

    def forget_cancel(self) -> None:
        """Takes back a `cancel` that came when nothing was left to stop."""
        self._cancel = False

    def is_cancelled(self) -> bool:
        return self._cancel

    def take_cancel(self) -> bool:
        """Whether `cancel` was called; asked again it says no."""
        if not self._cancel:
            return False
        self._cancel = False
        return True

    def begin(self, prompt: Sequence[int]) -> int:
        """Makes `prompt` what is to stand in the cache; the number of its tokens that do already.

        They are this slot's own or another's, whose cells it then shares. The rest is evaluated by `Session.step`.

        Raises:
            WindowFull: the prompt leaves no room for a token after it.
            UsageError: the prompt is empty.
        """
        if not prompt:
            raise UsageError("the prompt has no tokens", hint="give some text")
        if len(prompt) >= self.n_ctx:
            raise WindowFull
        prompt = list(prompt)  # it may be self.tokens
        self.settle()
        same = self._reuse(prompt)
        self.prompt = prompt[same:]
        self.prepare()
        self.stats.n_reused += len(self.tokens)
        return len(self.tokens)

    def _reuse(self, prompt: Sequence[int]) -> int:
        """Drops what differs from `prompt`, or takes over what more of it another slot has; how much is there then."""
        same = common_prefix(self.tokens, prompt)
        others = {slot: common_prefix(slot.tokens, prompt) for slot in self.session.slots if slot is not self}
        source = max(others, key=others.__getitem__, default=self)
        if others.get(source, 0) > same:
            self._share(source, same := others[source])
        elif same < len(self.tokens):
            self._cut(same)
        if self.rows is not None:
            self.rows.forget(same)
        return same

    def _share(self, source: Slot, n_tokens: int) -> None:
        if self.rows is not None and source.rows is not None:
            self.rows.share(source.rows, n_tokens)
        self._cut(0)
        self.session.target.share(source.seq_id, n_tokens, self.seq_id)
        self.tokens = source.tokens[:n_tokens]

    def _cut(self, n_tokens: int) -> None:
        """Forgets all but the first tokens.

        In this order an interrupt may leave too much in the cache, never too little, and `settle` drops what is beyond
        `tokens`.
        """
        self._row = None
        del self.tokens[n_tokens:]
        self.session.target.forget(n_tokens, self.seq_id)

    def feed(self, prompt: Sequence[int], progress: Progress | None = None) -> int:
        """`begin`, and evaluates the rest, so that the logits after it are there; the number of tokens reused.

        Raises:
            WindowFull, UsageError: as `begin`.
            Cancelled: as far as it came stays evaluated.
        """
        if self.take_cancel():
            raise Cancelled
        reused = self.begin(prompt)
        n = len(self.prompt)
        while self.prompt:
            ended = self.session.evaluate([self])
            if ended or self.take_cancel():
                raise Cancelled
            if progress is not None:
                progress(n - len(self.prompt), n)
        return reused

    def next_token(self, sampler: Sampler) -> int:
        """Draws the token that follows, by steps of the session for this slot alone.

        Raises:
            WindowFull: no room is left to evaluate the token drawn before.
            Cancelled: `cancel` was called.
        """
        request = {self: sampler}
        while True:
            outcome = self.session.step(request).get(self)
            if isinstance(outcome, Exception):
                raise outcome
            if outcome is not None:
                return outcome

    def insert(self, tokens: Sequence[int], sampler: Sampler) -> None:
        """Goes on as if `tokens` had been drawn: the token drawn last is to be evaluated, then these.

        Raises:
            WindowFull: they do not fit.
        """
        waiting = [*self.prompt, *([] if self.drawn is None else [self.drawn]), *tokens]
        if len(waiting) >= self.room:
            raise WindowFull
        self.settle()
        self.prompt = waiting
        self.prepare()
        for token in tokens:
            sampler.note(token)

    def prepare(self) -> None:
        """Puts back what has to be evaluated again: tokens whose logits, or whose states for the MTP rows, are gone.

        Raises:
            BackendError: the slot was given nothing to go on from.
        """
        at = len(self.tokens)
        if not self.prompt and self.drawn is None:
            if self._row is not None:
                return
            if not self.tokens:
                raise BackendError("there is nothing to draw a token from", hint="call begin or feed first")
            at -= 1
        if self.rows is not None and at == self.rows.end and self.session.follows and not self.rows.knows_state:
            at -= 1
        if at < len(self.tokens):
            drawn = [] if self.drawn is None else [self.drawn]
            self.prompt, self.drawn = self.tokens[at:] + drawn + self.prompt, None
            self._cut(at)

    @property
    def is_followed(self) -> bool:
        """Whether the MTP blocks have seen all that is evaluated, so that they can draft what comes next."""
        return self.rows is not None and self.rows.end == len(self.tokens) and self.rows.knows_state

    @property
    def can_draw(self) -> bool:
        """Whether the last pass still has logits for the next token."""
        return self._row is not None and self.drawn is None and not self.prompt

    def took(self, part: Part, first_row: int, seconds: float) -> None:
        """Takes note of a pass that evaluated `part` of what was waiting here."""
        if self.prompt:
            n = len(part.tokens)
            del self.prompt[:n]
            self.tokens += part.tokens
            self._row = None if self.prompt else first_row + n - 1
            self.stats.n_prompt += n
            self.stats.prompt_s += seconds
            return
        self.tokens.append(part.tokens[0])
        self.drawn, self._drafts, self._row = None, list(part.tokens[1:]), first_row
        self._in_pass = len(self._drafts), 0
        self.stats.generation_s += seconds

    def draw(self, sampler: Sampler) -> int:
        """Draws the next token from the last pass's logits (see `can_draw`)."""
        row = self._row
        assert row is not None
        started = time.perf_counter()
        token = sampler.sample(self.session.target, row)
        if sampler.greedy and (self.session.n_rows > 1 or len(self.session.slots) > 1):
            self._count_near_tie(row)
        drained = not self._drafts or token != self._drafts[0]
        if drained:
            self._finish_pass(tested=True)
            self.drawn = token
        else:
            self._accept(token)
        seconds = time.perf_counter() - started
        self.stats.add_token(seconds)
        self.session.note_drawn(seconds, drained=drained)
        return token

    def _accept(self, token: int) -> None:
        assert self._row is not None
        assert self.rows is not None
        assert self._in_pass is not None
        row, self._row = self._row + 1, None  # none, while it would not agree with the tokens
        del self._drafts[0]
        self._in_pass = self._in_pass[0], self._in_pass[1] + 1
        self.rows.follow([token], len(self.tokens), self.session.states(row, 1))
        self.tokens.append(token)
        self._row = row

    def _finish_pass(self, *, tested: bool = False) -> None:
        """Books the drafts of the last pass and drops those not drawn; `tested`: the first of these was wrong."""
        if self._in_pass is not None:
            self.stats.add_pass(*self._in_pass, whole=tested)
            self._in_pass = None
        if self._drafts:
            self._drafts = []
            self.session.target.forget(len(self.tokens), self.seq_id)

    def lose_row(self) -> None:
        """The last pass's logits are about to be written over."""
        if self._row is not None:
            self._finish_pass()
            self._row = None

    def reset(self) -> None:
        """Forgets everything evaluated."""
        self.settle()
        self._cut(0)
        if self.rows is not None:
            self.rows.forget(0)

    def settle(self) -> None:
        """Puts the slot into the state where exactly `tokens` is evaluated: drops drafts, the undrawn, the unread.

        Whatever was interrupted, wherever it was (KeyboardInterrupt), the slot is whole again afterwards.
        """
        self._finish_pass()
        self.drawn, self.prompt = None, []
        self.session.target.forget(len(self.tokens), self.seq_id)
        if self.rows is not None:
            self.rows.settle()

    def _count_near_tie(self, row: int) -> None:
        """Greedy choices so close that another batch size's rounding might turn them are counted, not hidden."""
        logits = self.session.target.logits(row)
        best = logits.argmax()
        largest = logits[best]
        logits[best] = -np.inf  # for a moment: a second search costs less than comparing all
        self.stats.n_near_ties += bool(logits[logits.argmax()] > largest - NEAR_TIE)
        logits[best] = largest


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of leading elements two sequences share."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
