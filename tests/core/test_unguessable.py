"""Names and numbers that nobody can guess: all different, also in a forked process."""

from __future__ import annotations

import os
import sys

import pytest

from mimo_gguf.core.unguessable import unguessable_below, unguessable_name


def test_names() -> None:
    names = {unguessable_name("req_", 8) for _ in range(1000)}
    assert len(names) == 1000
    assert all(name.startswith("req_") and len(name) == 20 and int(name[4:], 16) >= 0 for name in names)


def test_numbers_are_spread_evenly() -> None:
    n = [0] * 7
    for _ in range(7000):
        n[unguessable_below(7)] += 1
    assert min(n) > 850 and max(n) < 1150  # 1000 each; 29 is the standard deviation


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is forked there")
def test_a_forked_process_has_others() -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, unguessable_name().encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 100).decode() != unguessable_name()
