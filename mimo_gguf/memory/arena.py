"""One device's compute buffer, by the rules of ggml's allocator: where each tensor goes, and how large the buffer gets.

A device that allocates only so much at a time (`get_max_size`) has its buffer in several chunks.
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/src/ggml-alloc.c (ggml_dyn_tallocr_alloc, _free_bytes).
"""

from __future__ import annotations

from typing import Final, NamedTuple

UNBOUNDED: Final = 1 << 62
_MOST_CHUNKS: Final = 16  # GGML_VBUFFER_MAX_CHUNKS; the last one has no end


class Address(NamedTuple):
    """The place of a tensor in an arena."""

    chunk: int
    offset: int


class _Chunk:
    """One allocation of the device.

    Attributes:
        free: [offset, size] of each free block, sorted by offset.
        top: bytes that were in use at most.
    """

    __slots__ = ("free", "top")

    def __init__(self, size: int) -> None:
        self.free: list[list[int]] = [[0, size]]
        self.top = 0

    def take(self, index: int, size: int) -> int:
        """Cuts `size` bytes off the start of a free block. Returns their offset."""
        block = self.free[index]
        offset = block[0]
        block[0] += size
        block[1] -= size
        if block[1] == 0:
            del self.free[index]
        self.top = max(self.top, offset + size)
        return offset

    def give_back(self, offset: int, size: int) -> None:
        """Frees bytes; freed neighbours become one block."""
        free = self.free
        at = 0
        while at < len(free) and free[at][0] < offset:
            at += 1
        joins_next = at < len(free) and offset + size == free[at][0]
        joins_previous = at > 0 and free[at - 1][0] + free[at - 1][1] == offset
        if joins_previous and joins_next:
            free[at - 1][1] += size + free[at][1]
            del free[at]
        elif joins_previous:
            free[at - 1][1] += size
        elif joins_next:
            free[at][0] = offset
            free[at][1] += size
        else:
            free.insert(at, [offset, size])


class Arena:
    """A compute buffer as it fills and empties.

    Args:
        alignment: bytes; every tensor is padded to a multiple of it.
        chunk_bytes: the most that the device allocates at a time.
    """

    def __init__(self, alignment: int, chunk_bytes: int = UNBOUNDED) -> None:
        self.alignment = alignment
        self.chunk_bytes = chunk_bytes
        self.chunks: list[_Chunk] = []

    @property
    def n_bytes(self) -> int:
        """The bytes of the buffer: what each chunk held at most."""
        return sum(chunk.top for chunk in self.chunks)

    def allocate(self, n_bytes: int) -> Address:
        """Finds a place: the best fit among freed blocks, else the end of a chunk, else a new chunk."""
        size = self._padded(n_bytes)
        found = self._best_freed(size) or self._best_end(size)
        if found is None:
            is_last = len(self.chunks) == _MOST_CHUNKS - 1
            self.chunks.append(_Chunk(UNBOUNDED if is_last else max(size, self.chunk_bytes)))
            found = len(self.chunks) - 1, 0
        number, index = found
        return Address(number, self.chunks[number].take(index, size))

    def release(self, address: Address, n_bytes: int) -> None:
        self.chunks[address.chunk].give_back(address.offset, self._padded(n_bytes))

    def _padded(self, n_bytes: int) -> int:
        return -(-n_bytes // self.alignment) * self.alignment

    def _best_freed(self, size: int) -> tuple[int, int] | None:
        """The chunk and index of the smallest block that fits, not counting the last of a chunk; a later chunk wins."""
        found = None
        for number, chunk in enumerate(self.chunks):
            best = UNBOUNDED
            for index, (_, available) in enumerate(chunk.free[:-1]):
                if size <= available <= best:
                    found, best = (number, index), available
        return found

    def _best_end(self, size: int) -> tuple[int, int] | None:
        """The chunk and index of the last block that makes its chunk grow least, or wastes least of what it has."""
        found, best = None, -UNBOUNDED
        for number, chunk in enumerate(self.chunks):
            if not chunk.free or chunk.free[-1][1] < size:
                continue
            left = chunk.top - chunk.free[-1][0] - size  # below zero: the chunk grows by so much
            if (best < 0 and left > best) or 0 <= left < best:
                found, best = (number, len(chunk.free) - 1), left
        return found
