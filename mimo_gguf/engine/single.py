"""Drives a session with one conversation: reads a prompt to its end, then draws one token after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mimo_gguf.engine.sampling import Sampler
from mimo_gguf.engine.session import Drawn, Ended, Session
from mimo_gguf.engine.slot import Slot, window_is_full

OnRead = Callable[[int, int], None]  # tokens evaluated, tokens to evaluate


class Cancelled(Exception):
    """`Slot.cancel` was called while the slot was at work. What was evaluated stays, and the slot can go on."""


def read_prompt(
    session: Session, prompt: Sequence[int], slot: Slot | None = None, on_read: OnRead | None = None
) -> int:
    """Evaluates `prompt`, so that its next token can be drawn. Returns the number of tokens that were in the cache.

    Raises:
        WindowFull, UsageError: as `Session.begin`.
        Cancelled: the slot was cancelled; what was evaluated stays.
    """
    slot = slot or session.slot
    if slot.clear_cancel():
        raise Cancelled
    reused = session.begin(slot, prompt)
    n = len(slot.prompt)
    while slot.prompt:
        ended = session.evaluate([slot])
        if ended or slot.clear_cancel():
            raise Cancelled
        if on_read is not None:
            on_read(n - len(slot.prompt), n)
    return reused


def next_token(session: Session, sampler: Sampler, slot: Slot | None = None) -> int:
    """Draws the next token, with steps of the session for this slot alone.

    Raises:
        WindowFull: the window has no room for the token drawn before.
        Cancelled: the slot was cancelled.
        BackendError, UsageError: llama.cpp failed, or the sampler can draw no token.
    """
    slot = slot or session.slot
    request = {slot: sampler}
    while True:
        match session.step(request).get(slot):
            case Drawn(token, _):
                return token
            case Ended("window"):
                raise window_is_full()
            case Ended(_, error):
                raise error or Cancelled
