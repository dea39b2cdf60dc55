"""The compact table, beside a dict."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from mimo_gguf.batch.ids import IdTable

WORDS = st.integers(0, (1 << 64) - 1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(WORDS | st.integers(1, 5), WORDS)))
def test_it_is_a_dict_that_keeps_the_first(entries: list[tuple[int, int]]) -> None:
    table, known = IdTable(), dict[int, int]()
    for key, value in entries:
        key = key or 1
        assert table.put(key, value) == known.get(key)
        known.setdefault(key, value)
    assert len(table) == len(known)
    assert all(table.get(key) == value for key, value in known.items())
    assert table.get(6) == known.get(6)


def test_a_million_rows_fit_into_48_megabytes() -> None:
    table, draw = IdTable(), random.Random(1)
    keys = [draw.getrandbits(64) for _ in range(50_000)]
    for key in keys:
        table.put(key, key)
    assert all(table.get(key) == key for key in keys[::97])
    n_bytes = 8 * (len(table._keys) + len(table._values))
    assert n_bytes / len(table) <= 48
