"""Plans: what fits and what does not, at every boundary, and that every way out is one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mimo_gguf.core.errors import DoesNotFit, GgufError, UsageError
from mimo_gguf.core.geometry import QWEN2, STEP35
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.units import GIB, MIB
from mimo_gguf.fit.layer_split import deal, most_layers
from mimo_gguf.fit.plan import FitPlan
from mimo_gguf.fit.refusal import check_fit, plan_json
from mimo_gguf.fit.ways_out import find_ways_out
from mimo_gguf.fit.weigh import largest_context, plan_fit, plan_model
from mimo_gguf.hardware.devices import CPU, GPU, IGPU, Device, imagined_gpu
from mimo_gguf.memory import compute as memory_compute
from mimo_gguf.memory.allocator import DeviceTraits
from mimo_gguf.memory.predict import predict_memory
from mimo_gguf.memory.run import Placement, RunSettings
from tests import full_size


def host(free: int = 64 * GIB) -> Device:
    return Device("CPU", "host memory", CPU, "CPU", free, 64 * GIB)


def gpu(free: int, name: str = "GPU") -> Device:
    return Device(name, "a card", GPU, "CUDA", free, free, DeviceTraits(128, 32, True, True))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return full_size.write_header_only(tmp_path_factory.mktemp("fit") / "MiMo-7B-Q4_K_M.gguf", STEP35, "Q4_K_M")


def test_one_byte_less_does_not_fit(file: Path) -> None:
    """The boundary is exact for every device of the plan."""
    roomy = plan_fit(file, n_ctx=8192, n_gpu_layers=20, devices=(gpu(48 * GIB), host()))
    assert roomy.fits
    needs = roomy.needed_bytes
    exact = plan_fit(file, n_ctx=8192, n_gpu_layers=20, devices=(gpu(needs["GPU"]), host(needs["CPU"])))
    assert exact.fits
    for short in ((gpu(needs["GPU"] - 1), host(needs["CPU"])), (gpu(needs["GPU"]), host(needs["CPU"] - 1))):
        plan = plan_fit(file, n_ctx=8192, n_gpu_layers=20, devices=short)
        assert not plan.fits
        with pytest.raises(DoesNotFit) as caught:
            check_fit(plan)
        assert caught.value.exit_code == 3
        assert "GiB" in caught.value.message and caught.value.hint


def test_the_largest_context_is_the_largest(file: Path) -> None:
    for free in (5 * GIB, 6 * GIB, 8 * GIB):
        plan = plan_fit(file, n_ctx=65536, n_gpu_layers=-1, devices=(gpu(free), host()))
        n_ctx = largest_context(plan, 65536)
        assert plan_fit(file, n_ctx=n_ctx, n_gpu_layers=-1, devices=(gpu(free), host())).fits
        assert not plan_fit(file, n_ctx=n_ctx + 1, n_gpu_layers=-1, devices=(gpu(free), host())).fits


def test_as_many_layers_as_fit_go_to_the_gpu(file: Path) -> None:
    counts = []
    for free in (1 * GIB, 3 * GIB, 5 * GIB, 6 * GIB, 9 * GIB):
        plan = plan_fit(file, n_ctx=8192, devices=(gpu(free), host()))
        assert plan.fits
        counts.append(plan.settings.n_gpu_layers)
        more = plan_fit(file, n_ctx=8192, n_gpu_layers=counts[-1] + 1, devices=(gpu(free), host()))
        assert counts[-1] == 38 or not more.fits
    assert counts == sorted(counts) and counts[-1] == 38 and counts[1] > counts[0]


@pytest.mark.parametrize("gibs", [(0.5,), (1.3,), (4,), (5,), (1.3, 0.65), (5, 2.5), (5, 1), (2, 3.4), (1.5, 0.7, 1)])
def test_the_quick_search_finds_what_trying_everything_finds(gibs: tuple[float, ...]) -> None:
    sizes = full_size.sizes(STEP35, "Q4_K_M")
    for settings in (RunSettings(8192), RunSettings(30000, type_k=GgmlType.Q8_0)):
        devices = (*(gpu(int(gib * GIB), f"GPU{i}") for i, gib in enumerate(gibs)), host())
        memory_compute._replay.cache_clear()
        plan = plan_model(sizes, settings, devices)
        asked = memory_compute._replay.cache_info().misses
        assert asked <= 2 * 7, "a search that costs more than 50 ms"
        counts = [n for n in range(39) if plan_model(sizes, settings, devices, n).fits]
        assert plan.fits == bool(counts) and (not counts or plan.settings.n_gpu_layers == counts[-1])


@pytest.mark.parametrize(
    ("gibs", "by_free_memory"), [((5, 1.3), 24), ((3.2, 3.2), 37), ((4, 2.2), 33), ((2.2, 2.2, 2.2), 35)]
)
def test_layers_are_dealt_by_what_fits_where_shares_of_free_memory_do_not(
    gibs: tuple[float, ...], by_free_memory: int
) -> None:
    """llama.cpp's own split would keep layers on the CPU; the plan names the number of each card's layers."""
    sizes = full_size.sizes(STEP35, "Q4_K_M")
    devices = (*(gpu(int(gib * GIB), f"GPU{i}") for i, gib in enumerate(gibs)), host())
    plan = plan_model(sizes, RunSettings(8192), devices)
    s = plan.settings
    assert plan.fits and s.n_gpu_layers == 38 == sum(s.tensor_split)
    assert f"({' + '.join(map(str, s.tensor_split))})" in plan.summary()[0]
    places = [Placement(device.name, device.free_bytes, device.traits) for device in devices[:-1]]

    def fits_by_free_memory(count: int) -> bool:
        trees = predict_memory(sizes, RunSettings(8192, n_gpu_layers=count), places)
        return all(t.n_bytes + 224 * MIB <= place.free_bytes for t, place in zip(trees[:-1], places, strict=True))

    assert max(filter(fits_by_free_memory, range(39))) == by_free_memory


def test_layers_are_dealt_so_that_the_fullest_device_keeps_most() -> None:
    assert deal([[4, 4, 4, 9]] * 2, (20, 20)) == (3, 1)
    assert deal([[4, 4, 4, 9], [5, 5, 5, 5]], (9, 30)) == (0, 4)
    assert deal([[4, 4, 4, 9]] * 3, (3, 30, 3)) == (0, 4, 0)
    assert deal([[4, 4, 4, 9]] * 2, (12, 8)) is None and deal([[4]] * 2, (-1, -1)) is None
    assert most_layers([[4, 4, 4, 9]] * 2, (12, 8)) == 1 and most_layers([[4, 4, 4, 9]] * 2, (8, 9)) == 3


def test_a_gpu_without_room_for_anything_is_left_out(file: Path) -> None:
    """Occupied by other programs, say: the plan does without it rather than refuse."""
    for mib in (10, 300, 400, 450, 500):  # room for buffers, but not for copies of weights, is none either
        assert plan_fit(file, n_ctx=8192, devices=(gpu(mib * MIB), host())).fits, mib
    busy = gpu(200 * MIB, "GPU1")
    alone = plan_fit(file, n_ctx=8192, devices=(busy, host()))
    assert alone.fits and [fit.device.name for fit in alone.devices] == ["CPU"] and alone.left_out == (busy,)
    assert "GPU1 left out: only 200.0 MiB free" in alone.summary()[1]
    two = plan_fit(file, n_ctx=8192, devices=(gpu(5 * GIB), busy, host()))
    assert two.fits and two.settings.n_gpu_layers == 33 and two.left_out == (busy,)
    assert json.loads(json.dumps(plan_json(two)))["left_out"] == [{"name": "GPU1", "free_bytes": 200 * MIB}]
    assert plan_fit(file, n_ctx=8192, n_gpu_layers=0, devices=(busy, host())).left_out == (busy,)
    wanted = plan_fit(file, n_ctx=8192, n_gpu_layers=38, devices=(busy, host()))
    assert not wanted.fits and wanted.left_out == ()  # asked for, it is not done without


@pytest.mark.parametrize("layout", [STEP35, QWEN2])
@pytest.mark.parametrize("gib", [4.5, 5, 5.6, 7])
def test_every_way_out_fits(layout: str, gib: float) -> None:
    sizes = full_size.sizes(layout, "Q6_K")
    devices = (gpu(int(gib * GIB)), host())
    plan = plan_model(sizes, RunSettings(n_ctx=32768), devices, -1)
    assert not plan.fits
    assert len(find_ways_out(plan)) >= 3 - (gib < 5)
    for way in find_ways_out(plan):
        assert way.needed_bytes <= devices[0].free_bytes
        if way.options and "file" not in way.text:
            assert plan_model(sizes, way.settings, devices, way.settings.n_gpu_layers).fits, way.text


def test_a_way_out_may_do_without_the_device_that_was_too_small() -> None:
    devices = (gpu(200 * MIB, "GPU0"), gpu(200 * MIB, "GPU1"), host(8 * GIB))
    plan = plan_model(full_size.sizes(STEP35, "Q6_K"), RunSettings(8192), devices, -1)
    assert [(way.text, way.needed_bytes) for way in find_ways_out(plan)] == [("--gpu-layers 0", 0)]


def test_ways_out_on_a_machine_without_a_gpu(file: Path) -> None:
    plan = plan_fit(file, n_ctx=32768, devices=(host(7 * GIB),))
    assert not plan.fits
    assert {"--ctx", "--kv-type"} <= {option for way in find_ways_out(plan) for option in way.options}


def test_a_cache_that_the_device_cannot_compute_with_is_refused(file: Path) -> None:
    """llama.cpp would end the process; a block's K of 32768 tokens has 64 MiB."""
    limited = replace(gpu(48 * GIB), traits=DeviceTraits(16, 32, True, tensor_bytes=64 * MIB))
    fits, too_long = (
        plan_fit(file, n_ctx=n_ctx, n_gpu_layers=-1, devices=(limited, host())) for n_ctx in (32768, 33024)
    )
    assert fits.fits and not too_long.fits and largest_context(too_long, 65536) == 32768
    with pytest.raises(DoesNotFit, match=r"cache of 64\.5 MiB in each block, and GPU computes with 64\.0 MiB at most"):
        check_fit(too_long)
    assert plan_fit(file, n_ctx=33024, devices=(limited, host())).settings.n_gpu_layers <= 1  # the output layer


def test_a_smaller_file_is_a_way_out_when_nothing_else_is() -> None:
    plan = plan_model(full_size.sizes(STEP35, "F16"), RunSettings(n_ctx=2048), (gpu(6 * GIB), host(4 * GIB)), -1)
    assert [way.text for way in find_ways_out(plan)] == ["the file as Q4_K_M"]


def test_nothing_helps_and_it_says_so() -> None:
    plan = plan_model(full_size.sizes(STEP35, "F16"), RunSettings(n_ctx=2048), (host(1 * GIB),))
    assert find_ways_out(plan) == ()
    with pytest.raises(DoesNotFit, match="needs") as caught:
        check_fit(plan)
    assert "nothing" in str(caught.value.hint)


def test_memory_of_an_integrated_gpu_is_counted_against_the_host_too(file: Path) -> None:
    integrated = Device("iGPU", "", IGPU, "Vulkan", 16 * GIB, 16 * GIB)
    plan = plan_fit(file, n_ctx=8192, n_gpu_layers=-1, devices=(integrated, host(6 * GIB)))
    assert plan.needed_bytes["CPU"] > plan.needed_bytes["iGPU"]
    assert not plan.fits


def test_mtp_is_planned_only_where_the_file_has_it() -> None:
    plans: dict[str, FitPlan] = {
        layout: plan_model(full_size.sizes(layout, "Q8_0"), RunSettings(n_ctx=2048), (host(),))
        for layout in (STEP35, QWEN2)
    }
    assert plans[STEP35].runs_mtp and not plans[QWEN2].runs_mtp
    assert "not in this file" in plans[QWEN2].summary()[0]
    memory = plans[QWEN2].devices[0].memory
    assert memory.weights.mtp == memory.kv_cache.mtp == memory.compute.mtp == memory.output_rows.mtp == 0


def test_the_json_is_the_tree(file: Path) -> None:
    plan = plan_fit(file, n_ctx=0, devices=(gpu(2 * GIB), host()), n_gpu_layers=-1)
    document = json.loads(json.dumps(plan_json(plan)))
    assert document["settings"]["n_ctx"] == 32768
    assert document["fits"] is False and document["ways_out"]
    for device in document["devices"]:
        assert device["needed_bytes"] == sum(part["bytes"] for part in device["tree"]["parts"])


def test_bad_requests(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no KV cache of type"):
        plan_fit(file, n_ctx=2048, type_k="q8", devices=(host(),))
    with pytest.raises(UsageError, match="KV cache"):
        plan_fit(file, n_ctx=2048, type_k="q6_k", devices=(host(),))
    with pytest.raises(UsageError, match="flash attention"):
        plan_fit(file, n_ctx=2048, type_v="q8_0", flash_attn=False, devices=(host(),))
    with pytest.raises(UsageError, match="end with the host"):
        plan_fit(file, n_ctx=2048, devices=(gpu(GIB),))
    with pytest.raises(UsageError, match="graphics card"):
        imagined_gpu(3)
    (tmp_path / "no.gguf").write_bytes(b"no")
    with pytest.raises(GgufError):
        plan_fit(tmp_path / "no.gguf", n_ctx=2048, devices=(host(),))


def test_an_imagined_card_keeps_the_drivers_part() -> None:
    card = imagined_gpu(8 * GIB)
    assert card.total_bytes == 8 * GIB
    assert 7 * GIB < card.free_bytes < 8 * GIB - 256 * MIB
    assert not card.pointer
    assert replace(card, kind=CPU).is_gpu is False
