"""How many conversations at a time: as many as fit, and none for which anything is given up."""

from __future__ import annotations

import pytest

from mimo_gguf.core.geometry import STEP35
from mimo_gguf.core.gguf_file import GgufFile, read_gguf
from mimo_gguf.core.units import GIB
from mimo_gguf.engine.session import SessionOptions
from mimo_gguf.fit.solver import Wishes
from mimo_gguf.hardware.devices import CPU, GPU, Device
from mimo_gguf.memory.allocator import DeviceTraits
from mimo_gguf.runtime.slots import Slots, choose_slots
from tests import full_size

HOST = Device("CPU", "host memory", CPU, "CPU", 32 * GIB, 32 * GIB)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    """MiMo-7B at Q4_K_M, without its weights."""
    return read_gguf(full_size.write_header_only(tmp_path_factory.mktemp("slots") / "full.gguf", STEP35, "Q4_K_M"))


def chosen(file: GgufFile, gib: float, window: int | None = 2048, wishes: Wishes | None = None, **how: int) -> Slots:
    free = int(gib * GIB)
    card = Device("GPU", "a card", GPU, "CUDA", free, free, DeviceTraits(128, 32, True, True))
    options = SessionOptions(n_threads=1)
    return choose_slots(file, wishes or Wishes(), options, window=window, devices=(card, HOST), **how)


def test_more_memory_means_more_conversations_and_the_rest_stays(file: GgufFile) -> None:
    found = [chosen(file, gib) for gib in (6, 8, 12, 24)]
    numbers = [slots.n_parallel for slots in found]
    assert numbers == sorted(numbers) and numbers[0] >= 1 and numbers[-1] == 64
    for slots in found:
        settings = slots.plan.settings
        assert slots.plan.fits and slots.plan.runs_mtp and settings.n_gpu_layers in {-1, slots.plan.n_layers}
        assert settings.n_seq_max == slots.n_parallel and settings.n_ctx_seq >= 2048
        assert slots.n_ctx == 2048 * slots.n_parallel
    assert chosen(file, 12, window=8192).n_parallel < chosen(file, 12).n_parallel


def test_what_is_decided_is_kept(file: GgufFile) -> None:
    assert chosen(file, 24, most=5).n_parallel == 4
    assert chosen(file, 24, wishes=Wishes(n_ctx=10_000)).n_parallel == 4
    assert chosen(file, 24, wishes=Wishes(n_ctx=1000)).n_parallel == 1
    given = chosen(file, 24, n_parallel=7)
    assert (given.n_parallel, given.n_ctx, given.plan.settings.n_seq_max) == (7, 7 * 2048, 7)
    cramped = chosen(file, 6, window=32768, n_parallel=8)
    assert cramped.n_ctx is None and cramped.plan.fits and cramped.plan.settings.n_ctx_seq < 32768


def test_a_window_that_does_not_fit_is_as_large_as_it_can_be(file: GgufFile) -> None:
    slots = chosen(file, 6, window=32768)
    assert (slots.n_parallel, slots.n_ctx) == (1, None) and slots.plan.fits
    assert slots.plan.settings.n_gpu_layers in {-1, slots.plan.n_layers}  # no layer leaves the GPU for a long window
    assert chosen(file, 24, window=1 << 20).plan.settings.n_ctx_seq == 32768
    assert chosen(file, 24, window=None).plan.settings.n_ctx_seq == 8192


def test_on_a_cpu_a_few_are_enough(file: GgufFile) -> None:
    found = choose_slots(file, Wishes(), SessionOptions(n_threads=1), window=256, devices=(HOST,))
    assert found.n_parallel == 16 and found.plan.fits
