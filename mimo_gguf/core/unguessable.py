"""Numbers and names that nobody can guess, made without asking the system for random bytes each time.

A call of the system lets go of Python's lock. While another thread steps a model, getting it back took 0.7 ms, and a
request needs three of these.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import secrets
from collections.abc import Iterator


class _Source:
    """Keyed hashes of 0, 1, 2, ..., which look random without the key."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Takes another key: in a forked process, whose parent goes on with the old one."""
        self._key = secrets.token_bytes(32)
        self._numbers: Iterator[int] = itertools.count()

    def take(self, n_bytes: int) -> bytes:
        return hashlib.blake2b(next(self._numbers).to_bytes(8), key=self._key, digest_size=n_bytes).digest()


_SOURCE = _Source()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_SOURCE.renew)


def unguessable_name(prefix: str = "", n_bytes: int = 12) -> str:
    """A name that was never given before: the prefix, and twice as many hexadecimal digits as bytes (up to 64)."""
    return prefix + _SOURCE.take(n_bytes).hex()


def unguessable_below(most: int) -> int:
    """A number from 0 to `most` - 1, where `most` is far below 2**128. Every number is as likely as another."""
    return int.from_bytes(_SOURCE.take(16)) % most
