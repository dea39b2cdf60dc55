"""A slot: one conversation's place in a session, with its evaluated tokens, what comes next, and its window.

A slot is state: it knows what has to be evaluated, and notes what was evaluated and drawn. The session makes the passes
and draws. Every token is drawn from the target's own logits by the conversation's one sampler chain, and a draft is
accepted if it equals the drawn token. So drafting changes how many tokens a pass gives, never which: a greedy text is
the same, and a sampled text uses the same random stream. Drafts that were not drawn are removed from both KV caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from mimo_gguf.core.errors import BackendError, UsageError
from mimo_gguf.engine.draft_gate import RecentDrafts
from mimo_gguf.engine.drafting import MtpRows
from mimo_gguf.engine.stats import SessionStats
from mimo_gguf.llama.api import Floats, LlamaContext


class WindowFull(UsageError):
    """The tokens do not fit into the conversation's window."""


def window_is_full() -> WindowFull:
    """The error for an answer that has used up its window."""
    return WindowFull("the window is full", hint="give a larger one: --ctx, n_ctx=, max_model_len=")


class ReadRows(NamedTuple):
    """Part of a prompt whose rows all have logits until the next pass: `n` tokens from `position` on."""

    position: int
    first_row: int
    n: int


class Slot:
    """One sequence of a session, which makes and changes it. Only `cancel` may be called from any thread.

    Attributes:
        window: the number of tokens that fit into it.
        tokens: the tokens in the target's KV cache.
        prompt: tokens that were given and are not yet evaluated.
        drawn: the token drawn last, if it is not yet evaluated; always None if there is a prompt.
        row: the row of the last pass whose logits predict the token after `tokens`; None if they are lost.
        mtp_rows: the sequence's rows in the MTP context; None without one.
        wants_rows: whether every token of the prompt gives logits, not the last one only.
        read_rows: what the last pass read of such a prompt.
        n_left_out: passes since the last one that read a part of the prompt.
        draft_limit: tokens drafted at a time for this conversation, at most; 0 for none.
        recent: what came of this answer's drafts, and whether it is left out of drafting now.
        priority: prompts of a higher one are read first.
        stats: counts and times since the session was made.
        is_cancelled: whether `cancel` was called and not yet cleared.
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
        self.n_left_out = 0
        self.draft_limit = n_draft
        self.recent = RecentDrafts(n_draft)
        self.priority = 0
        self.stats = SessionStats(n_draft)
        self._target = target
        self._drafts: list[int] = []  # evaluated after self.tokens, not yet drawn
        self._in_pass: tuple[int, int] | None = None  # drafts of the pass being drawn from, and how many were right
        self.is_cancelled = False  # set from any thread, read between passes

    @property
    def room(self) -> int:
        """The number of tokens that still fit into the window."""
        return self.window - len(self.tokens)

    @property
    def can_draw(self) -> bool:
        """Whether the last pass still has logits for the next token."""
        return self.row is not None and self.drawn is None and not self.prompt

    @property
    def only_draws(self) -> bool:
        """Whether its next pass evaluates the token drawn last, if nothing is drafted."""
        return self.drawn is not None and not self.is_cancelled and self.room > 0

    @property
    def can_draft(self) -> bool:
        """Whether drafts are wanted and pay, and the MTP blocks have seen all tokens before them."""
        rows = self.mtp_rows
        if rows is None or not self.draft_limit or not self.recent.drafts:
            return False
        return rows.end == len(self.tokens) and rows.knows_state and self.room > 1

    def cancel(self) -> None:
        """Ends the slot's work, present or next, as soon as possible. From any thread or a signal handler."""
        self.is_cancelled = True

    def clear_cancel(self) -> bool:
        """Clears a call of `cancel`. Returns whether there was one."""
        if not self.is_cancelled:
            return False
        self.is_cancelled = False
        return True

    def check_prompt(self, prompt: Sequence[int]) -> None:
        """Refuses a prompt that cannot be answered in this window.

        Raises:
            UsageError: the prompt is empty.
            WindowFull: the prompt leaves no room for a token after it.
        """
        if not prompt:
            raise UsageError("the prompt has no tokens", hint="give some text")
        if len(prompt) >= self.window:
            raise WindowFull(
                f"the prompt has {len(prompt)} tokens, and the window holds {self.window} with the answer",
                hint="give a shorter prompt or a larger window: --ctx, n_ctx=, max_model_len=",
            )

    def share(self, source: Slot, n_tokens: int) -> None:
        """Replaces the slot's tokens by the first `n_tokens` of another slot, whose cells are shared."""
        if self.mtp_rows is not None and source.mtp_rows is not None:
            self.mtp_rows.share(source.mtp_rows, n_tokens)
        self.cut(0)
        self._target.share(source.seq_id, n_tokens, self.seq_id)
        self.tokens = source.tokens[:n_tokens]

    def cut(self, n_tokens: int) -> None:
        """Removes all but the first `n_tokens`.

        In this order an interrupt may leave too much in the KV cache, never too little; `drop_unfinished` removes what
        is left after `tokens`.
        """
        self.row = None
        del self.tokens[n_tokens:]
        self._target.forget(n_tokens, self.seq_id)

    def insert(self, tokens: Sequence[int]) -> None:
        """Inserts `tokens` as if they had been drawn: the token drawn last is evaluated next, then these.

        Raises:
            WindowFull: the tokens do not fit.
        """
        waiting = [*self.prompt, *([] if self.drawn is None else [self.drawn]), *tokens]
        if len(waiting) >= self.room:
            raise window_is_full()
        self.drop_unfinished()
        self.prompt = waiting

    def prepare(self, *, shows_mtp: bool) -> None:
        """Puts back into the prompt what must be evaluated again: tokens whose logits or hidden states are lost.

        Args:
            shows_mtp: whether the MTP blocks see what is evaluated, so that they need the states.

        Raises:
            BackendError: the slot has neither tokens nor a prompt.
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
        """Notes a pass that evaluated `tokens`: part of the prompt, or the drawn token and its drafts."""
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
        """The draft in the place of the next token. If the token drawn equals it, that token is evaluated already."""
        return self._drafts[0] if self._drafts else None

    def note_drawn(self, token: int, seconds: float) -> None:
        """Notes that `token` was drawn and differs from the next draft, so that all drafts are dropped."""
        self._finish_pass(tested=True)
        self.drawn = token
        self.stats.add_token(seconds)

    def accept_draft(self, state: Floats, seconds: float) -> None:
        """Notes that the next draft was drawn. `state`, shape (1, n_embd), is the trunk's hidden state of its row."""
        assert self.row is not None
        assert self.mtp_rows is not None
        assert self._in_pass is not None
        row, self.row = self.row + 1, None  # None while it would not agree with the tokens
        token = self._drafts.pop(0)
        self._in_pass = self._in_pass[0], self._in_pass[1] + 1
        self.mtp_rows.observe([token], len(self.tokens), state)
        self.tokens.append(token)
        self.row = row
        self.stats.add_token(seconds)

    def lose_row(self) -> None:
        """Notes that the next pass is about to overwrite the logits of the last one."""
        self.read_rows = None
        if self.row is not None:
            if self._in_pass is not None or self._drafts:
                self._finish_pass()
            self.row = None

    def reset(self) -> None:
        """Removes all tokens."""
        self.drop_unfinished()
        self.cut(0)
        if self.mtp_rows is not None:
            self.mtp_rows.forget(0)

    def drop_unfinished(self) -> None:
        """Drops drafts, a token that is not evaluated, and the rest of the prompt: both KV caches hold `tokens` only.

        The slot is consistent again afterwards, wherever a KeyboardInterrupt struck.
        """
        self._finish_pass()
        self.drawn, self.prompt = None, []
        self._target.forget(len(self.tokens), self.seq_id)
        if self.mtp_rows is not None:
            self.mtp_rows.forget_unknown()

    def _finish_pass(self, *, tested: bool = False) -> None:
        """Counts the drafts of the last pass and drops those not drawn; `tested` says that the first was wrong."""
        if self._in_pass is not None:
            self.stats.add_pass(*self._in_pass, whole=tested)
            self._in_pass = None
        if self._drafts:
            self._drafts = []
            self._target.forget(len(self.tokens), self.seq_id)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """The number of leading elements that two sequences have in common."""
    n = min(len(a), len(b))
    for at in range(0, n, _CHUNK):
        ours, theirs = list(a[at : min(at + _CHUNK, n)]), list(b[at : min(at + _CHUNK, n)])
        if ours != theirs:
            return at + next(i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
    return n


_CHUNK: Final = 256  # elements compared at once: prompts of tens of thousands of tokens are common
