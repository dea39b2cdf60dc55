"""Weights on which quantisers go wrong. N(0, 0.02) alone shows almost nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Make = Callable[[np.random.Generator, int, int], NDArray[np.floating]]


def _random_bits(rng: np.random.Generator, n_rows: int, n_columns: int) -> F32:
    bits = rng.integers(0, 1 << 32, (n_rows, n_columns), dtype=np.uint32)
    special = (bits & 0x7F800000) == 0x7F800000
    return np.where(special, bits & 0xBF7FFFFF, bits).astype(np.uint32).view(np.float32)


def _outliers(rng: np.random.Generator, n_rows: int, n_columns: int) -> NDArray[np.floating]:
    x = rng.standard_normal((n_rows, n_columns)) * 0.01
    return np.where(rng.random(x.shape) < 0.01, x * 5000, x)


def _patches(rng: np.random.Generator, n_rows: int, n_columns: int) -> NDArray[np.floating]:
    """Runs of 16 that are zero, constant, one-sided or ordinary: every mix of neighbouring sub-blocks."""
    x = rng.standard_normal((n_rows, n_columns)) * 0.02
    kind = np.repeat(rng.integers(0, 5, (n_rows, n_columns // 16)), 16, axis=1)
    return np.select([kind == 0, kind == 1, kind == 2, kind == 3], [0 * x, 0 * x - 0.25, np.abs(x), -np.abs(x)], x)


def _single(rng: np.random.Generator, n_rows: int, n_columns: int) -> NDArray[np.floating]:
    """One weight in each 32 is not zero."""
    x = np.zeros((n_rows, n_columns // 32, 32))
    at = rng.integers(0, 32, (n_rows, n_columns // 32, 1))
    np.put_along_axis(x, at, rng.standard_normal(at.shape), axis=2)
    return x.reshape(n_rows, n_columns)


def _almost_halves(rng: np.random.Generator, n_rows: int, n_columns: int) -> NDArray[np.floating]:
    """The floats next to every half, in blocks whose Q8_0 scale is exactly 1."""
    half = (rng.integers(-126, 126, (n_rows, n_columns)) + 0.5).astype(np.float32)
    half[:, 1::4] = 0.5
    x = np.nextafter(half, np.where(rng.random(half.shape) < 0.5, np.float32(0), np.float32(200)))
    x[:, ::32] = 127.0
    return x


def _around_group_eps(rng: np.random.Generator, n_rows: int, n_columns: int) -> NDArray[np.floating]:
    """Magnitudes on both sides of ggml's 1e-15, by runs of 16 and by super-blocks of 256."""
    fine = np.repeat(10 ** rng.uniform(-1.5, 0, (n_rows, n_columns // 16)), 16, axis=1)
    coarse = np.repeat(10 ** rng.uniform(-15, -12.5, (n_rows, n_columns // 256)), 256, axis=1)
    return rng.standard_normal((n_rows, n_columns)) * fine * coarse


def _normal(scale: float, shift: float = 0.0) -> Make:
    return lambda rng, r, c: rng.standard_normal((r, c)) * scale + shift


def _tie_grid(step: float) -> Make:
    return lambda rng, r, c: rng.integers(-64, 65, (r, c)) * step


DATA_SETS: dict[str, Make] = {
    "normal": _normal(0.02),
    "laplace": lambda rng, r, c: rng.laplace(0, 0.02, (r, c)),
    "uniform": lambda rng, r, c: rng.uniform(-1, 1, (r, c)),
    "student_t_1": lambda rng, r, c: rng.standard_t(1, (r, c)),
    "student_t_2": lambda rng, r, c: rng.standard_t(2, (r, c)) * 0.02,
    "outliers": _outliers,
    "tie_grid_halves": _tie_grid(0.5),
    "tie_grid_thirtyseconds": _tie_grid(1 / 32),
    "almost_halves": _almost_halves,
    "subnormal": _normal(1e-40),
    "barely_normal": _normal(1e-37),
    "around_group_eps": _around_group_eps,
    "below_group_eps": _normal(1e-16),
    "subnormal_f16_scales": _normal(1e-6),
    "tiny": _normal(1e-20),
    "infinite_f16_scales": _normal(1e7),
    "large": _normal(1e15),
    "overflowing_sums": _normal(1e30),
    "enormous": _normal(1e37),
    "zeros": lambda rng, r, c: np.zeros((r, c)),
    "negative_zeros": lambda rng, r, c: -np.zeros((r, c)),
    "constants": lambda rng, r, c: np.repeat(rng.standard_normal((r, c // 256)), 256, axis=1),
    "alternating_signs": lambda rng, r, c: np.where(np.arange(c) % 2, -1.0, 1.0) * rng.choice([1.0, 0.1], (r, 1)),
    "all_positive": _normal(0.01, 1.0),
    "all_negative": _normal(0.01, -1.0),
    "patches": _patches,
    "single": _single,
    "random_bits": _random_bits,
}


def weights(name: str, n_rows: int, n_columns: int, seed: int = 0) -> F32:
    """A finite f32 matrix of the data set `name`."""
    made = DATA_SETS[name](np.random.default_rng(seed), n_rows, n_columns)
    limit = np.finfo(np.float32).max
    return np.ascontiguousarray(np.clip(made, -limit, limit).astype(np.float32))
