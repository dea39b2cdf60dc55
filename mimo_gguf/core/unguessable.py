"""Numbers and names that nobody can guess, without asking the system for random bytes each time.

A call of the system lets go of Python's lock. While another thread steps a model, getting it back took 0.7 ms, and a
request needs three of these.
"""

from __future__ import annotations

import os
import secrets
from collections import deque
from typing import Final

_BLOCK: Final = 16  # bytes that one name or number is made of
_N_BLOCKS: Final = 256  # that are fetched together
_stock: Final[deque[bytes]] = deque()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_stock.clear)  # its parent gives these


def unguessable_name(prefix: str = "", n_bytes: int = 12) -> str:
    """A name that nobody else has: the prefix, and twice as many hexadecimal digits as bytes, of which 16 are most."""
    return prefix + _take()[:n_bytes].hex()


def unguessable_below(most: int) -> int:
    """A number from 0 to `most` - 1. Each is as likely as another, as long as `most` is far below 2**128."""
    return int.from_bytes(_take()) % most


def _take() -> bytes:
    """A block of random bytes that no other call gets."""
    while True:
        try:
            return _stock.pop()
        except IndexError:
            fetched = secrets.token_bytes(_BLOCK * _N_BLOCKS)
            _stock.extend(fetched[place : place + _BLOCK] for place in range(0, len(fetched), _BLOCK))
