"""One conversation in a session: its prompt read to the end, then one token after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mimo_gguf.engine.sampling import Sampler
from mimo_gguf.engine.session import Drawn, Ended, Session
from mimo_gguf.engine.slot import Slot, WindowFull

OnRead = Callable[[int, int], None]  # tokens evaluated, tokens to evaluate


class Cancelled(Exception):
    """`Slot.cancel` was called while the slot was at work. Its state is whole: what was evaluated stays."""


def read_prompt(
    session: Session, prompt: Sequence[int], slot: Slot | None = None, on_read: OnRead | None = None
) -> int:
    """Evaluates `prompt`, so that the logits after it are there; the number of tokens that were there already.

    Raises:
        WindowFull, UsageError: as `Session.begin`.
        Cancelled: as far as it came stays evaluated.
    """
    slot = slot or session.slot
    if slot.hear_cancel():
        raise Cancelled
    reused = session.begin(slot, prompt)
    n = len(slot.prompt)
    while slot.prompt:
        ended = session.evaluate([slot])
        if ended or slot.hear_cancel():
            raise Cancelled
        if on_read is not None:
            on_read(n - len(slot.prompt), n)
    return reused


def next_token(session: Session, sampler: Sampler, slot: Slot | None = None) -> int:
    """Draws the token that follows, by steps of the session for this slot alone.

    Raises:
        WindowFull: no room is left to evaluate the token drawn before.
        Cancelled: `cancel` was called.
        BackendError, UsageError: the sampler can draw nothing.
    """
    slot = slot or session.slot
    request = {slot: sampler}
    while True:
        match session.step(request).get(slot):
            case Drawn(token, _):
                return token
            case Ended("window"):
                raise WindowFull("the window is full", hint="give a larger one: --ctx, n_ctx=, max_model_len=")
            case Ended(_, error):
                raise error or Cancelled
