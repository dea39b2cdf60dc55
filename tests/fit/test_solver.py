"""The solver: it takes what a reasoning user would, stays within the memory to the byte, and says what it gave up."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from mimo_gguf.core.errors import DoesNotFit, UsageError
from mimo_gguf.core.geometry import QWEN2, STEP35
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.units import GIB
from mimo_gguf.fit.refusal import check_fit
from mimo_gguf.fit.solver import Candidate, Solution, Wishes, solve
from mimo_gguf.hardware.devices import CPU, GPU, Device
from mimo_gguf.memory.allocator import DeviceTraits
from tests import full_size

TYPES = ("Q4_K_M", "Q6_K", "Q8_0")
HOST = Device("CPU", "host memory", CPU, "CPU", 32 * GIB, 32 * GIB)


def card(free: int) -> Device:
    return Device("GPU", "a card", GPU, "CUDA", free, free, DeviceTraits(128, 32, True, True))


def candidates(*types: str, layout: str = STEP35) -> list[Candidate]:
    return [Candidate(name, full_size.sizes(layout, name)) for name in types or TYPES]


def solved(gib: float, wishes: Wishes | None = None, *types: str) -> Solution:
    return solve(candidates(*types), (card(int(gib * GIB)), HOST), wishes or Wishes())


def test_more_memory_is_never_worse() -> None:
    def worth(solution: Solution) -> tuple[float, ...]:
        s = solution.plan.settings
        return (s.n_gpu_layers, min(s.n_ctx, 8192), solution.plan.runs_mtp, TYPES.index(solution.file_type))

    worths = [worth(solved(gib)) for gib in (3, 5.5, 6, 8, 12)]
    assert worths == sorted(worths)
    assert worths[0][0] < 38 and worths[-1] == (38, 8192, True, 2)


def test_every_solution_fits_and_a_pinned_choice_is_kept() -> None:
    pins: tuple[dict[str, Any], ...] = (
        {"n_ctx": 12288},
        {"kv_type": GgmlType.Q4_0},
        {"kv_type": GgmlType.F32},  # whose number is 0
        {"mtp": False},
        {"n_ubatch": 64},
        {"n_gpu_layers": 10},
    )
    for gib, pin in itertools.product((4, 7), pins):
        solution = solved(gib, Wishes(**pin), "Q4_K_M")
        s = solution.plan.settings
        assert solution.plan.fits, (gib, pin)
        chosen = {
            "n_ctx": s.n_ctx, "kv_type": s.type_k, "mtp": s.mtp, "n_ubatch": s.n_ubatch, "n_gpu_layers": s.n_gpu_layers
        }  # fmt: skip
        assert chosen | pin == chosen, (gib, pin)


def test_four_bit_caches_are_never_chosen() -> None:
    for gib in (4, 5.5):
        assert solved(gib, None, "Q4_K_M").plan.settings.type_k in (GgmlType.F16, GgmlType.Q8_0)


def test_one_byte_less_changes_the_choice() -> None:
    """The context chosen is the largest: with exactly its need it stays, with one byte less it shrinks."""
    roomy = solved(6, None, "Q4_K_M")
    assert 8192 <= roomy.plan.settings.n_ctx < 32768
    need = roomy.plan.needed_bytes["GPU"]
    exact = solve(candidates("Q4_K_M"), (card(need), HOST))
    short = solve(candidates("Q4_K_M"), (card(need - 1), HOST))
    assert exact.plan.settings == roomy.plan.settings
    assert short.plan.settings.n_ctx == roomy.plan.settings.n_ctx - 256


def test_contexts_are_counted_for_each_conversation() -> None:
    several = solved(9, Wishes(n_seq_max=4), "Q4_K_M").plan.settings
    assert 4 * 4096 <= several.n_ctx < 4 * 32768 and several.n_ctx_seq == several.n_ctx // 4
    roomy = solved(60, Wishes(n_seq_max=4), "Q4_K_M")
    assert roomy.plan.settings.n_ctx == 4 * 32768 and roomy.gave_up == ()


def test_it_says_what_was_given_up_and_what_comes_next() -> None:
    tight = solved(5.6)
    assert any("q8_0" in text for text in tight.gave_up)
    assert any(text.startswith("context") for text in tight.gave_up)
    assert tight.next_steps[0].startswith("Q6_K instead of Q4_K_M: 1.5")
    partial = solved(8, None, "F16")
    assert partial.next_steps[1] == "the file as Q6_K: all layers on the GPU"
    assert not any("the file as" in text for text in solved(4).next_steps)  # nothing smaller is usual
    roomy = solved(40)
    assert roomy.gave_up == () and roomy.next_steps == ()


def test_a_busy_gpu_is_no_reason_to_refuse() -> None:
    solution = solved(0.2, None, "Q4_K_M")
    assert solution.plan.fits and solution.plan.settings.n_gpu_layers == 0
    assert solution.gave_up[0] == "GPU left out: only 204.8 MiB free"


def test_a_machine_without_a_gpu_and_a_file_without_mtp() -> None:
    solution = solve(candidates("Q4_K_M", layout=QWEN2), (HOST,))
    assert solution.plan.fits and not solution.plan.runs_mtp
    assert solution.plan.settings.n_gpu_layers == 0
    assert solution.plan.settings.n_ctx == 16384  # more fits, but clearing it takes seconds and filling it an hour
    assert solution.gave_up == ("context 16384 of the 32768 it was trained for",)
    assert solution.next_steps == ("context 32768: --ctx 32768 fits too",)


def test_where_nothing_fits_the_nearest_plan_refuses() -> None:
    poor = replace(HOST, free_bytes=GIB)
    solution = solve(candidates(), (poor,))
    assert solution.file_type == "Q4_K_M" and not solution.plan.fits
    with pytest.raises(DoesNotFit):
        check_fit(solution.plan)
    with pytest.raises(UsageError):
        solve([], (HOST,))
