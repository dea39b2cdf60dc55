"""A compute buffer in chunks, on small numbers worked out by hand from ggml's rules."""

from __future__ import annotations

from mimo_gguf.memory.arena import UNBOUNDED, Address, Arena


def test_one_chunk_takes_the_best_fit_among_freed_blocks() -> None:
    arena = Arena(alignment=8)
    a, b, c, d = (arena.allocate(size) for size in (32, 8, 16, 8))
    assert [each.offset for each in (a, b, c, d)] == [0, 32, 40, 56]
    arena.release(a, 32)
    arena.release(c, 16)
    assert arena.allocate(9) == c  # 16 bytes fit better than 32
    assert arena.allocate(24) == a
    assert arena.n_bytes == 64


def test_a_tensor_that_fits_into_no_chunk_gets_a_new_one() -> None:
    arena = Arena(alignment=1, chunk_bytes=100)
    assert [arena.allocate(size) for size in (60, 50, 40)] == [Address(0, 0), Address(1, 0), Address(0, 60)]
    assert arena.allocate(250) == Address(2, 0)  # larger than any chunk may be
    assert arena.n_bytes == 100 + 50 + 250


def test_the_end_that_grows_its_chunk_least_is_taken() -> None:
    arena = Arena(alignment=1, chunk_bytes=100)
    first, second = arena.allocate(80), arena.allocate(30)
    arena.release(first, 80)
    assert arena.allocate(70) == Address(0, 0)  # 80 bytes were there before: nothing grows
    assert arena.allocate(10) == Address(0, 70)  # exactly what is left of them
    assert arena.allocate(5) == Address(0, 80)  # both chunks would grow by 5: the first
    assert second == Address(1, 0) and arena.n_bytes == 85 + 30


def test_the_last_of_sixteen_chunks_has_no_end() -> None:
    arena = Arena(alignment=1, chunk_bytes=10)
    places = [arena.allocate(10) for _ in range(20)]
    assert [place.chunk for place in places] == [*range(16), 15, 15, 15, 15]
    assert arena.chunks[15].top == 50 and arena.chunks[15].free == [[50, UNBOUNDED - 50]]
