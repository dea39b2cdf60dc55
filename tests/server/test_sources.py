"""The memory of several models: what each may use beside the others, and when another has to go for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.units import GIB, MIB
from mimo_gguf.engine.session import SessionOptions
from mimo_gguf.fit.plan import FitPlan
from mimo_gguf.hardware.devices import CPU, Device, imagined_gpu
from mimo_gguf.runtime.llm import LLM
from mimo_gguf.runtime.model import Model
from mimo_gguf.server import sources
from mimo_gguf.server.sources import FileSource, Room, is_nearly_as_good

OPTIONS = SessionOptions(n_parallel=2)
HOW: dict[str, Any] = {
    "n_ctx": 2048, "kv_type": None, "mtp": None, "n_ubatch": None, "n_gpu_layers": None, "exact": False,
}  # fmt: skip


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> list[Device]:
    """The devices of a machine; tests change them."""
    found = [Device("CPU", "host memory", CPU, "CPU", 10 * GIB, 16 * GIB)]
    monkeypatch.setattr(sources, "list_devices", lambda: tuple(found))
    return found


@pytest.fixture(scope="module")
def file(llm: LLM) -> Path:
    return llm.model.file.path


def plan_of(file: Path, devices: list[Device], **options: Any) -> FitPlan:
    return Model.plan_load(file, devices=devices, options=replace(OPTIONS, **options), **HOW)


def test_a_share_is_of_what_is_free_at_the_start(devices: list[Device], file: Path) -> None:
    room = Room.of_machine(0.5)
    assert [device.free_bytes for device in room.devices([])] == [5 * GIB]
    plan = plan_of(file, devices)
    used = plan.devices[0].memory.counted_bytes + plan.devices[0].memory.output_rows.n_bytes
    devices[0] = replace(devices[0], free_bytes=9 * GIB)
    assert [device.free_bytes for device in room.devices([plan])] == [5 * GIB - used], "all models have one share"
    assert [device.free_bytes for device in room.emptied([plan])] == [5 * GIB]
    devices[0] = replace(devices[0], free_bytes=3 * GIB)
    assert room.devices([])[0].free_bytes == 3 * GIB, "others took it"
    for wrong in (0, -1, 1.5, float("nan")):
        with pytest.raises(UsageError, match="a share of"):
            Room.of_machine(wrong)


def test_with_a_gpu_the_share_is_of_its_memory(devices: list[Device]) -> None:
    devices.insert(0, imagined_gpu(8 * GIB))
    gpu, host = Room.of_machine(0.5).devices([])
    assert (gpu.free_bytes, host.free_bytes) == (devices[0].free_bytes // 2, 10 * GIB)


def test_a_mapped_file_is_not_free(devices: list[Device], file: Path) -> None:
    plan = plan_of(file, devices)
    (device,) = Room().devices([plan])
    assert device.free_bytes == 10 * GIB - plan.devices[0].memory.weights.n_bytes


def test_a_plan_is_as_good_if_it_gives_up_only_a_long_window(devices: list[Device], file: Path) -> None:
    best = plan_of(file, devices)

    def changed(**settings: Any) -> FitPlan:
        return replace(best, settings=replace(best.settings, **settings))

    long = changed(n_ctx=65536)
    assert is_nearly_as_good(changed(n_ctx=8192), long) and is_nearly_as_good(best, best)
    assert not is_nearly_as_good(changed(n_ctx=8191), long)
    assert not is_nearly_as_good(changed(mtp=False), best)
    assert not is_nearly_as_good(changed(n_gpu_layers=1), changed(n_gpu_layers=2))


def test_another_has_to_go_if_there_is_no_room_for_both(devices: list[Device], file: Path) -> None:
    decided = {**HOW, "kv_type": "f16", "n_ubatch": 512, "mtp": True}  # nothing is left to give up
    source, held = FileSource(file, decided, OPTIONS, Room(), parked_bytes=0), plan_of(file, devices)
    assert source.fits_beside([held])
    devices[0] = replace(devices[0], free_bytes=held.devices[0].needed_bytes + MIB)
    assert source.fits_beside([]) and not source.fits_beside([held])


def test_parked_conversations_get_half_of_what_is_left(devices: list[Device], file: Path) -> None:
    spare = plan_of(file, devices).devices[0].spare_bytes
    source = FileSource(file, HOW, OPTIONS, Room())
    plans: list[FitPlan] = []
    source.load([], plans.append).close()
    assert plans[0].settings.parked_bytes == spare // 2 // MIB * MIB == plans[0].devices[0].memory.parked
    assert plans[0].fits and "for parked conversations" in plans[0].summary()[0]
    given = replace(source, parked_bytes=11 * GIB)
    assert not given.fits_beside([]), "what is asked for is part of the plan"
