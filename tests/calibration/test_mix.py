"""The solver against brute force."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from mimo_gguf.calibration.mix import Mix, Option, mix_of, mixed_types, options_of, solve_mix
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.model_source import TensorInfo

Q3, X4, Q4, Q5, Q6 = GgmlType.Q3_K, GgmlType.IQ4_XS, GgmlType.Q4_K, GgmlType.Q5_K, GgmlType.Q6_K
MIXED = mixed_types(512)


def random_options(n: int, seed: int) -> dict[str, list[Option]]:
    """Costs that fall with the bytes, but not always: a matrix with huge activations may be worse in more bits."""
    rng = np.random.default_rng(seed)
    table = {}
    for i in range(n):
        size, scale = int(rng.integers(1, 20)), float(10.0 ** rng.uniform(-4, 0))
        costs = scale * np.array([1.0, 0.4, 0.3, 0.1, 0.03]) * rng.uniform(0.5, 1.6, 5)
        bytes_of = [size * unit for unit in (110, 136, 144, 176, 210)]
        kinds = zip((Q3, X4, Q4, Q5, Q6), bytes_of, costs, strict=True)
        table[f"m{i}"] = [Option(kind, n_bytes, float(cost)) for kind, n_bytes, cost in kinds]
    return table


def best_by_trying(options: Mapping[str, Sequence[Option]], budget: int) -> float:
    return min(
        sum(option.cost for option in row)
        for row in itertools.product(*options.values())
        if sum(option.n_bytes for option in row) <= budget
    )


@pytest.mark.parametrize("seed", range(8))
def test_solution_is_within_the_bytes_and_close_to_the_best_there_is(seed: int) -> None:
    options = random_options(6, seed)
    smallest = sum(min(option.n_bytes for option in row) for row in options.values())
    largest = sum(max(option.n_bytes for option in row) for row in options.values())
    for share in (0.0, 0.2, 0.5, 0.9, 1.0):
        budget = int(smallest + share * (largest - smallest))
        mix = solve_mix(options, budget)
        best = best_by_trying(options, budget)
        assert mix.n_bytes <= budget
        assert best - 1e-12 <= mix.predicted <= 1.1 * best, share
        again = mix_of(options, mix.types)
        assert (again.n_bytes, again.predicted) == (mix.n_bytes, mix.predicted)


def test_plenty_of_bytes_give_each_matrix_its_cheapest_type_even_if_it_is_not_the_largest() -> None:
    options = {
        "odd": [Option(Q5, 176, 0.1), Option(Q6, 210, 0.2)],
        "usual": [Option(Q5, 176, 0.1), Option(Q6, 210, 0.05)],
    }
    assert solve_mix(options, 10**9).types == {"odd": Q5, "usual": Q6}


def test_too_few_bytes_and_nothing_to_solve() -> None:
    with pytest.raises(UsageError, match="the smallest types need 110 B"):
        solve_mix({"a": [Option(Q3, 110, 1.0), Option(Q6, 210, 0.0)]}, 109)
    assert solve_mix({}, 0) == Mix({}, 0, 0.0, {})


def test_options_leave_out_types_that_the_width_or_the_costs_forbid() -> None:
    costs = {Q3: 1.0, Q6: 0.1}
    assert [o.ggml_type for o in options_of(TensorInfo("a", (4, 512), Q4), costs, MIXED)] == [Q3, Q6]
    assert options_of(TensorInfo("a", (4, 96), Q4), costs, MIXED) == ()
