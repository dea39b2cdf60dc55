"""One conversation's place in a session: its evaluated tokens, what comes next, and its window.

A slot is state: it says what is to be evaluated, and notes what was evaluated and drawn. The session makes the passes
and draws. Exactness is by construction. Every token is drawn from the target's own logits by the conversation's one
sampler chain; a draft is accepted if it equals the token drawn. So drafting changes how many tokens one pass yields,
never which: greedy text is the same, and sampled text uses the same random stream. What was drafted and not drawn is
removed from both caches.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final, NamedTuple

from mimo_gguf.core.errors import BackendError, UsageError
from mimo_gguf.engine.drafting import MtpRows
from mimo_gguf.engine.stats import SessionStats
from mimo_gguf.llama.api import Floats, LlamaContext


class WindowFull(UsageError):
    """What is to be evaluated does not fit into the conversation's window."""


class ReadRows(NamedTuple):
    """A stretch of a prompt whose rows all have logits, until the next pass."""

    position: int
    first_row: int
    n: int


class Slot:
    """One of a session's sequences, which makes them. The session's methods change it; only `cancel` is for any thread.

    Attributes:
        window: how many tokens it holds.
        tokens: what stands in the target's KV cache.
        prompt: tokens that were given and are not yet evaluated.
        drawn: the token drawn last, not yet evaluated; never beside a prompt.
        row: the row of the last pass whose logits predict what follows `tokens`; None if they are gone.
        mtp_rows: what the MTP context knows of this sequence; None without one.
        wants_rows: whether every token of a prompt is to give logits, not the last alone.
        read_rows: what the last pass read of such a prompt.
        stats: counts and times since the session was made.
    """

    def __init__(self, target: LlamaContext, seq_id: int, window: int, mtp_rows: MtpRows | None, n_draft: int) -> None:
        self.seq_id = seq_id
        self.window = window
        self.tokens: list[int] = []
        self.prompt: list[int] = []
        self.drawn: int | None = None
        self.row: int | None = None
        self.mtp_rows = mtp_rows
        self.wants_rows = False
        self.read_rows: ReadRows | None = None
        self.stats = SessionStats(n_draft)
        self._target = target
        self._drafts: list[int] = []  # evaluated after self.tokens, not yet drawn
        self._in_pass: tuple[int, int] | None = None  # drafts of the pass being drawn from, and how many were right
        self._cancel = False  # set from any thread; looked at between passes

    @property
    def room(self) -> int:
        """Tokens that still fit into the window."""
        return self.window - len(self.tokens)

    @property
    def can_draw(self) -> bool:
        """Whether the last pass still has logits for the next token."""
        return self.row is not None and self.drawn is None and not self.prompt

    @property
    def can_draft(self) -> bool:
        """Whether the MTP blocks have seen all that is evaluated, so that they can propose what comes next."""
        rows = self.mtp_rows
        return rows is not None and rows.end == len(self.tokens) and rows.knows_state and self.room > 1

    def cancel(self) -> None:
        """Stops what the slot is at, or is asked for next, as soon as it can. From any thread or a signal handler."""
        self._cancel = True

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called and nobody has heard it yet."""
        return self._cancel

    def hear_cancel(self) -> bool:
        """Whether `cancel` was called; asked again it says no."""
        if not self._cancel:
            return False
        self._cancel = False
        return True

    def check_prompt(self, prompt: Sequence[int]) -> None:
        """Refuses a prompt that cannot be answered here.

        Raises:
            UsageError: it is empty.
            WindowFull: it leaves no room for a token after it.
        """
        if not prompt:
            raise UsageError("the prompt has no tokens", hint="give some text")
        if len(prompt) >= self.window:
            raise WindowFull(
                f"the prompt has {len(prompt)} tokens, and the window holds {self.window} with the answer",
                hint="give a shorter prompt or a larger window: --ctx, n_ctx=, max_model_len=",
            )

    def share(self, source: Slot, n_tokens: int) -> None:
        """Becomes the first `n_tokens` of another slot: the same cells, nothing is copied."""
        if self.mtp_rows is not None and source.mtp_rows is not None:
            self.mtp_rows.share(source.mtp_rows, n_tokens)
        self.cut(0)
        self._target.share(source.seq_id, n_tokens, self.seq_id)
        self.tokens = source.tokens[:n_tokens]

    def cut(self, n_tokens: int) -> None:
        """Forgets all but the first tokens.

        In this order an interrupt may leave too much in the cache, never too little, and `drop_unfinished` forgets what
        is beyond `tokens`.
        """
        self.row = None
        del self.tokens[n_tokens:]
        self._target.forget(n_tokens, self.seq_id)

    def insert(self, tokens: Sequence[int]) -> None:
        """Goes on as if `tokens` had been drawn: the token drawn last is to be evaluated, then these.

        Raises:
            WindowFull: they do not fit.
        """
        waiting = [*self.prompt, *([] if self.drawn is None else [self.drawn]), *tokens]
        if len(waiting) >= self.room:
            raise WindowFull("the window is full", hint="give a larger one: --ctx, n_ctx=, max_model_len=")
        self.drop_unfinished()
        self.prompt = waiting

    def prepare(self, *, shows_mtp: bool) -> None:
        """Puts back what has to be evaluated again: tokens whose logits, or whose states for the MTP rows, are gone.

        Args:
            shows_mtp: whether the MTP blocks are shown what is evaluated.

        Raises:
            BackendError: the slot was given nothing to go on from.
        """
        at = len(self.tokens)
        if not self.prompt and self.drawn is None:
            if self.row is not None:
                return
            if not self.tokens:
                raise BackendError("there is nothing to draw a token from", hint="give the session a prompt first")
            at -= 1
        rows = self.mtp_rows
        if rows is not None and at == rows.end and shows_mtp and not rows.knows_state:
            at -= 1
        if at < len(self.tokens):
            drawn = [] if self.drawn is None else [self.drawn]
            self.prompt, self.drawn = self.tokens[at:] + drawn + self.prompt, None
            self.cut(at)

    def note_evaluated(self, tokens: Sequence[int], first_row: int, seconds: float) -> None:
        """Notes a pass that evaluated `tokens`: some of the prompt, or the drawn token and drafts after it."""
        if self.prompt:
            n = len(tokens)
            self.read_rows = ReadRows(len(self.tokens), first_row, n) if self.wants_rows else None
            del self.prompt[:n]
            self.tokens += tokens
            self.row = None if self.prompt else first_row + n - 1
            self.stats.n_prompt += n
            self.stats.prompt_s += seconds
            return
        self.tokens.append(tokens[0])
        self.drawn, self._drafts, self.row = None, list(tokens[1:]), first_row
        self._in_pass = len(self._drafts), 0
        self.stats.generation_s += seconds

    @property
    def next_draft(self) -> int | None:
        """The draft that stands where the next token is drawn: if they are equal, it is evaluated already."""
        return self._drafts[0] if self._drafts else None

    def note_drawn(self, token: int, seconds: float) -> None:
        """Notes that `token` was drawn and was not the next draft: what was drafted is dropped."""
        self._finish_pass(tested=True)
        self.drawn = token
        self.stats.add_token(seconds)

    def accept_draft(self, state: Floats, seconds: float) -> None:
        """Notes that the next draft was drawn; `state`, shape (1, n_embd), is the trunk's after it."""
        assert self.row is not None
        assert self.mtp_rows is not None
        assert self._in_pass is not None
        row, self.row = self.row + 1, None  # none, while it would not agree with the tokens
        token = self._drafts.pop(0)
        self._in_pass = self._in_pass[0], self._in_pass[1] + 1
        self.mtp_rows.observe([token], len(self.tokens), state)
        self.tokens.append(token)
        self.row = row
        self.stats.add_token(seconds)

    def lose_row(self) -> None:
        """The last pass's logits are about to be written over."""
        self.read_rows = None
        if self.row is not None:
            self._finish_pass()
            self.row = None

    def reset(self) -> None:
        """Forgets everything evaluated."""
        self.drop_unfinished()
        self.cut(0)
        if self.mtp_rows is not None:
            self.mtp_rows.forget(0)

    def drop_unfinished(self) -> None:
        """Makes exactly `tokens` what is evaluated: drops drafts, the token not evaluated, the prompt not read.

        Whatever was interrupted, wherever it was (KeyboardInterrupt), the slot is whole again afterwards.
        """
        self._finish_pass()
        self.drawn, self.prompt = None, []
        self._target.forget(len(self.tokens), self.seq_id)
        if self.mtp_rows is not None:
            self.mtp_rows.forget_unknown()

    def _finish_pass(self, *, tested: bool = False) -> None:
        """Counts the drafts of the last pass and drops those not drawn; `tested`: the first of these was wrong."""
        if self._in_pass is not None:
            self.stats.add_pass(*self._in_pass, whole=tested)
            self._in_pass = None
        if self._drafts:
            self._drafts = []
            self._target.forget(len(self.tokens), self.seq_id)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of leading elements two sequences share."""
    n = min(len(a), len(b))
    a, b = list(a[:n]), list(b[:n])
    start = next((at for at in range(0, n, _CHUNK) if a[at : at + _CHUNK] != b[at : at + _CHUNK]), n)
    return start + sum(
        1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a[start:], b[start:], strict=True))
    )


_CHUNK: Final = 256  # compared as a whole: prompts of tens of thousands of tokens are common
