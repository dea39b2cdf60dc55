"""Threads of our own: results in order, the first error, and a BLAS that takes no more threads than it may."""

from __future__ import annotations

import threading
import time

import pytest
from threadpoolctl import threadpool_info

from mimo_gguf.core.threads import blas_threads, in_threads


def blas_now() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_blas_is_limited_for_a_while() -> None:
    with blas_threads(2):
        assert blas_now() == {2}
        with blas_threads(1):
            assert blas_now() == {1}
        assert blas_now() == {2}


def test_results_come_in_the_order_of_the_items() -> None:
    def late(i: int) -> int:
        time.sleep(0.02 - 0.005 * i)
        return i

    assert in_threads(3, late, iter(range(4))) == [0, 1, 2, 3]
    assert in_threads(1, late, []) == []


def test_as_many_at_a_time_as_are_asked_for() -> None:
    together = threading.Barrier(3, timeout=10)
    assert len(in_threads(3, lambda _: together.wait(), range(3))) == 3
    assert set(in_threads(1, lambda _: threading.current_thread(), range(3))) == {threading.main_thread()}


def test_the_first_error_is_raised() -> None:
    def fail(i: int) -> int:
        if i:
            raise ValueError(str(i))
        return i

    for n_threads in (1, 3):
        with pytest.raises(ValueError, match="1"):
            in_threads(n_threads, fail, range(5))
