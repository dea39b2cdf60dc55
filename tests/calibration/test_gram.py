"""Gram matrices against their definition, in whatever pieces the rows arrive."""

from __future__ import annotations

import numpy as np
import pytest

from mimo_gguf.calibration import gram
from mimo_gguf.calibration.gram import Gram, GramCollector, input_of


def collected(rows: np.ndarray, cuts: list[int]) -> GramCollector:
    collector = GramCollector()
    for piece in np.split(rows, cuts):
        collector.tap("x", piece)
    return collector


def test_mean_of_outer_products_however_the_rows_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "PRODUCT_ROWS", 16)
    rows = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    found = collected(rows, [7, 7, 30]).take("x").used
    assert found.n_tokens == 50
    assert np.allclose(found.matrix, rows.T @ rows / 50, atol=1e-6)
    assert np.allclose(found.diagonal, np.mean(rows**2, axis=0), atol=1e-6)
    assert found.digest() == collected(rows, [1, 2, 3, 49]).take("x").used.digest()
    assert found.digest() != collected(rows[::-1], []).take("x").used.digest()


def test_tiles_are_one_matrix_for_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "_TILE", 4)
    rows = np.random.default_rng(3).standard_normal((30, 10)).astype(np.float32)
    found = []
    for n_threads in (1, 3):
        collector = GramCollector(n_threads)
        collector.tap("x", rows)
        found.append(collector.take("x").used)
    assert np.allclose(found[0].matrix, rows.T @ rows / 30, atol=1e-6)
    assert np.array_equal(found[0].matrix, found[0].matrix.T)
    assert found[0].digest() == found[1].digest()


def test_held_out_rows_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(1).standard_normal((8, 3)).astype(np.float32)
    collector = GramCollector()
    collector.tap("x", rows[:5])
    collector.collect("held_out")
    collector.tap("x", rows[5:])
    statistics = collector.take("x")
    assert (statistics.used.n_tokens, statistics.held_out.n_tokens) == (5, 3)
    assert np.allclose(statistics.held_out.matrix, rows[5:].T @ rows[5:] / 3, atol=1e-6)
    alone = collected(rows, []).take("x")
    assert alone.held_out is alone.used


def test_error_is_that_of_the_outputs() -> None:
    rng = np.random.default_rng(2)
    x, difference = rng.standard_normal((40, 5)).astype(np.float32), rng.standard_normal((3, 5)).astype(np.float32)
    found = Gram(x.T @ x / np.float32(len(x)), len(x)).error(difference)
    assert np.allclose(found, np.mean((x @ difference.T) ** 2, axis=0), rtol=1e-5)


def test_matrices_that_share_an_input() -> None:
    assert input_of("blk.3.attn_v.weight") == input_of("blk.3.attn_k.weight") == "blk.3.attn_q.weight"
    assert input_of("blk.3.ffn_up.weight") == "blk.3.ffn_gate.weight"
    for alone in ("blk.3.ffn_down.weight", "blk.36.nextn.eh_proj.weight", "output.weight"):
        assert input_of(alone) == alone
