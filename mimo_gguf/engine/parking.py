"""Parks conversations in the host's memory when another needs their slot, and brings them back when they go on.

A parked conversation is a copy of its KV caches, which llama.cpp makes. What a new prompt begins with is sought in the
slots and among the parked; only equal tokens count. The least recently used go first when there is no room.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mimo_gguf.core.errors import BackendError
from mimo_gguf.engine.session import Session
from mimo_gguf.engine.slot import Slot, common_prefix
from mimo_gguf.engine.state import Caches, caches_bytes, read_caches, write_caches

WORTH: Final = 32  # tokens: fewer are read again as fast as they are copied


class Parking:
    """The parked conversations of a session. Its methods belong to the thread that steps.

    Attributes:
        most_bytes: the bytes that they may have together; 0 parks none.
        n_parked, n_returned: conversations parked and brought back so far.
    """

    def __init__(self, session: Session, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.n_parked = self.n_returned = 0
        self._session = session
        self._parked: list[Caches] = []  # the least recently used first

    def __len__(self) -> int:
        return len(self._parked)

    @property
    def n_bytes(self) -> int:
        """The bytes of all that is parked."""
        return sum(caches.n_bytes for caches in list(self._parked))

    def longest(self, prompt: Sequence[int]) -> int:
        """The most first tokens that a parked conversation has in common with a prompt."""
        return max((common_prefix(caches.tokens, prompt) for caches in self._parked), default=0)

    def make_way(self, slot: Slot, prompt: Sequence[int], *, reads_anew: bool = False) -> None:
        """Parks what a slot is about to lose to a prompt, and gives it what is parked of that prompt's beginning.

        Args:
            reads_anew: whether the prompt is read from its beginning in any case.
        """
        if not self.most_bytes:
            return
        kept = 0 if reads_anew else common_prefix(slot.tokens, prompt)
        there = max(common_prefix(each.tokens, prompt) for each in self._session.slots)
        if len(slot.tokens) - kept >= WORTH and not self._is_kept(slot):
            self._park(slot)
        if not reads_anew and self.longest(prompt) >= there + WORTH:
            self._return(slot, prompt)

    def _is_kept(self, slot: Slot) -> bool:
        """Whether another slot or a parked conversation has all tokens of this one."""
        others = [each.tokens for each in self._session.slots if each is not slot]
        others += [list(caches.tokens) for caches in self._parked]
        return any(common_prefix(tokens, slot.tokens) == len(slot.tokens) for tokens in others)

    def _park(self, slot: Slot) -> None:
        """Copies a slot's caches, if there is room for them without those that were used longer ago."""
        n_bytes = 4 * len(slot.tokens)
        try:
            n_bytes += caches_bytes(self._session, slot)
            if n_bytes > self.most_bytes:
                return
            self._parked = [
                caches
                for caches in self._parked
                if common_prefix(caches.tokens, slot.tokens) < len(caches.tokens)  # the rest is the beginning of this
            ]
            while self.n_bytes + n_bytes > self.most_bytes:
                del self._parked[0]
            self._parked.append(read_caches(self._session, slot))
            self.n_parked += 1
        except (BackendError, MemoryError):
            return  # it is read again then

    def _return(self, slot: Slot, prompt: Sequence[int]) -> None:
        """Gives a slot the parked conversation that a prompt goes on from. One that cannot be used is dropped."""
        caches = max(self._parked, key=lambda each: common_prefix(each.tokens, prompt))
        same = common_prefix(caches.tokens, prompt)
        self._parked = [each for each in self._parked if each is not caches]
        if not write_caches(self._session, slot, caches):
            return
        self.n_returned += 1
        if same < len(caches.tokens):  # another conversation with the same beginning: its own may go on later
            self._parked.append(caches)
