"""The largest logits of a pass, found for all rows together, are those of each row alone."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mimo_gguf.llama.api import ContextOptions, LlamaModel, open_context
from mimo_gguf.llama.batch import Batch
from mimo_gguf.llama.best import Best, lead, likeliest

TOKENS = [5, 90, 33, 7, 7, 26, 41, 18, 3, 77]


class Rows:
    """A context whose last decode gave these logits, in every row of it or in the last row only."""

    def __init__(self, rows: NDArray[np.float32], *, all_rows: bool) -> None:
        self._rows = rows
        self.best = Best(len(rows) if all_rows else 0)

    def logits(self, row: int) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self._rows[row]
        return found

    def all_logits(self, n_rows: int) -> NDArray[np.float32]:
        return self._rows[:n_rows]


@pytest.mark.parametrize("all_rows", [False, True])
def test_they_are_those_of_a_sorted_row(all_rows: bool) -> None:
    rows = np.random.default_rng(3).normal(size=(6, 300)).astype(np.float32)
    rows[2, [40, 7, 90]] = 9.0  # equal ones: the first counts
    rows[3] = -np.inf
    rows[3, 5] = 1.0
    kept = rows.copy()
    context = Rows(rows, all_rows=all_rows)
    for row, values in enumerate(kept):
        ordered = np.sort(values)
        assert likeliest(context, row) == list(values).index(ordered[-1])
        assert lead(context, row) == ordered[-1] - ordered[-2]
    assert np.array_equal(rows, kept), "the logits stay as they were"


def test_the_rows_of_a_decode(tiny: LlamaModel) -> None:
    """Also if only some rows have logits, and if sequences do not come in their order."""
    options = ContextOptions(n_ctx=256, n_outputs_max=16, n_seq_max=4, n_threads=1)
    batch = Batch(16)
    with open_context(tiny, options) as context:
        for n_outputs in (1, 3):
            batch.clear()
            last = [batch.add(TOKENS[i : i + 3], 0, n_outputs=n_outputs, seq_id=i) + 2 for i in (2, 0, 3, 1)]
            for seq_id in range(4):
                context.forget(0, seq_id)
            assert context.decode(batch.native) == 0
            assert context.best.n_rows == (12 if n_outputs == 3 else 0)
            for row in last if n_outputs == 1 else range(12):
                ordered = np.sort(context.logits(row))
                assert context.logits(row)[likeliest(context, row)] == ordered[-1]
                assert lead(context, row) == ordered[-1] - ordered[-2]
