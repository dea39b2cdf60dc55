"""A table of numbers in 16 bytes an entry, or 32 in the worst case: which of millions of rows are known."""

from __future__ import annotations

from array import array
from typing import Final

_FIRST: Final = 1 << 10
_FULLEST: Final = 0.66
_WORD: Final = (1 << 64) - 1


class IdTable:
    """Maps numbers of 64 bits to numbers of 64 bits, in two plain arrays. The keys must be digests: evenly spread."""

    def __init__(self) -> None:
        """Makes an empty table."""
        self._make(_FIRST)

    def __len__(self) -> int:
        return self._n

    def get(self, key: int) -> int | None:
        """The value of a key; None if it is not in the table."""
        place = self._place(key or 1)
        return self._values[place] if self._keys[place] else None

    def put(self, key: int, value: int) -> int | None:
        """Enters a key that is new. Returns the value of one that is there already, which stays; None for a new one."""
        place = self._place(key or 1)
        if self._keys[place]:
            return self._values[place]
        self._keys[place], self._values[place] = key or 1, value & _WORD
        self._n += 1
        if self._n > _FULLEST * len(self._keys):
            self._grow()
        return None

    def _place(self, key: int) -> int:
        """Where a key stands, or would stand. 0 marks a free place, so the key 0 is another name of 1."""
        keys, place = self._keys, key & self._mask
        while keys[place] and keys[place] != key:
            place = (place + 1) & self._mask
        return place

    def _grow(self) -> None:
        keys, values = self._keys, self._values
        self._make(2 * len(keys))
        for key, value in zip(keys, values, strict=True):
            if key:
                place = self._place(key)
                self._keys[place], self._values[place] = key, value
                self._n += 1

    def _make(self, n: int) -> None:
        self._keys, self._values = array("Q", bytes(8 * n)), array("Q", bytes(8 * n))
        self._mask, self._n = n - 1, 0
