"""Threads for arithmetic: as many as are asked for, and the same bits for any number of them.

BLAS cuts a product otherwise for another number of threads, and then the last places of sums may differ. So work that
must give equal bytes is cut into pieces that do not depend on the number of threads. Each piece is computed by one
thread (`in_threads`) with a BLAS of one thread (`blas_threads`), and sums are added in the order of the pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def blas_threads(n_threads: int) -> Iterator[None]:
    """Lets each matrix product of numpy's take at most `n_threads` threads, in the whole process, for a while."""
    import numpy  # noqa: F401  # a BLAS that is not loaded yet would not be found
    from threadpoolctl import threadpool_limits

    with threadpool_limits(n_threads, user_api="blas"):
        yield


def in_threads(n_threads: int, call: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Calls a function for each item, in up to `n_threads` threads at a time; gives the results in the items' order.

    The first error of a call is raised, after the calls that had begun.
    """
    waiting = list(items)
    if n_threads == 1 or len(waiting) < 2:
        return [call(item) for item in waiting]
    with ThreadPoolExecutor(min(n_threads, len(waiting))) as pool:
        return list(pool.map(call, waiting))
