"""Speeds that were measured here: kept whole, used only where they were measured, and never a reason to fail."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mimo_gguf.core.errors import OutputError
from mimo_gguf.core.geometry import STEP35
from mimo_gguf.core.units import GIB
from mimo_gguf.hardware import kept_speeds
from mimo_gguf.hardware.devices import imagined_gpu
from mimo_gguf.hardware.kept_speeds import (
    ALL_LAYERS,
    KeptSpeed,
    KeptSpeeds,
    Place,
    keep_speed,
    place_of,
    read_speeds,
    shapes_of,
    speeds_file,
)
from tests import full_size
from tests.hardware.fake_nvml import fake_nvml

SPEED = KeptSpeed(
    place=Place(("NVIDIA GeForce RTX 4060, 8188 MiB",), "NVIDIA 580.1", ALL_LAYERS),
    model="MiMo-7B-RL-Q4_K_M.gguf",
    file_type="Q4_K_M",
    shapes="0" * 32,
    tps=41.5,
    tps_mtp=60.25,
    n_draft=1,
    read_bytes=4_500_000_000,
    date="2026-11-28",
    llama_cpp="0c1e57098",
)


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path / "mimo-gguf"


def test_what_is_kept_is_read_and_a_newer_one_replaces_it(data: Path) -> None:
    assert read_speeds() == KeptSpeeds()
    other_file, other_card = replace(SPEED, shapes="1" * 32), replace(SPEED, place=replace(SPEED.place, devices=("A",)))
    for speed in (SPEED, other_file, other_card, newer := replace(SPEED, tps=50.0, date="2026-12-01")):
        assert keep_speed(speed) == speeds_file() == data / "speeds.json"
    assert read_speeds() == KeptSpeeds((other_file, other_card, newer))
    assert [path.name for path in data.iterdir()] == ["speeds.json"]


def test_only_the_newest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_speeds, "_MOST", 3)
    for number in range(5):
        keep_speed(replace(SPEED, shapes=f"{number:032d}"))
    assert [int(speed.shapes) for speed in read_speeds().speeds] == [2, 3, 4]


def without(name: str, **changes: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "place": {"devices": ["A"], "driver": "", "n_gpu_layers": 0}, "model": "m", "file_type": "Q8_0", "shapes": "0",
        "tps": 1.0, "tps_mtp": 0.0, "n_draft": 0, "read_bytes": 1, "date": "2026-11-28", "llama_cpp": "0",
    }  # fmt: skip
    entry |= changes
    entry.pop(name, None)
    return {"version": 1, "speeds": [entry]}


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff\xfe", b"[]", b"{", b'{"version": 1}', b'{"version": 2, "speeds": []}', b"[" * 5000, b"9" * 5000,
        *(json.dumps(without(name)).encode() for name in ("tps", "place", "date", "read_bytes")),
        *(
            json.dumps(without("", **change)).encode()
            for change in ({"tps": 0}, {"tps": "fast"}, {"tps": -1}, {"place": 7}, {"model": 7}, {"read_bytes": 0})
        ),
        json.dumps(without("", tps=float("nan"))).encode(),
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_line_and_put_aside_by_the_next_speed(data: Path, content: bytes) -> None:
    data.mkdir()
    speeds_file().write_bytes(content)
    kept = read_speeds()
    assert kept.speeds == () and str(speeds_file()) in kept.problem and "\n" not in kept.problem
    keep_speed(SPEED)
    assert read_speeds() == KeptSpeeds((SPEED,))
    assert (data / "speeds.json.damaged").read_bytes() == content


def test_a_sound_entry_is_read(data: Path) -> None:
    """So that what the test above leaves out is what is wrong with it."""
    data.mkdir()
    speeds_file().write_text(json.dumps(without("")))
    assert len(read_speeds().speeds) == 1 and not read_speeds().problem


def test_a_folder_that_cannot_be_written_is_told(data: Path) -> None:
    data.write_text("a file")
    with pytest.raises(OutputError):
        keep_speed(SPEED)
    data.unlink()
    speeds_file().mkdir(parents=True)
    assert "not a file" in read_speeds().problem


def test_a_place_is_the_card_its_memory_and_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    card = imagined_gpu(8 * GIB, description="NVIDIA GeForce RTX 4060")
    nvml = fake_nvml("0000:01:00.0", [])
    nvml.nvmlSystemGetDriverVersion = lambda: "580.1"
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    place = place_of([card], ALL_LAYERS)
    assert place == Place(("NVIDIA GeForce RTX 4060, 8192 MiB",), "NVIDIA 580.1", ALL_LAYERS)
    assert place_of([imagined_gpu(12 * GIB, description="NVIDIA GeForce RTX 4060")], ALL_LAYERS) != place
    nvml.nvmlSystemGetDriverVersion = lambda: "590.2"
    assert place_of([card], ALL_LAYERS).driver == "NVIDIA 590.2"


def test_files_are_alike_in_their_tensors_not_in_their_names() -> None:
    model = full_size.sizes(STEP35, "Q4_K_M")
    assert shapes_of(model) == shapes_of(replace(model, label="other", tensors=model.tensors[::-1]))
    assert shapes_of(model) != shapes_of(full_size.sizes(STEP35, "Q8_0"))
    assert shapes_of(model) != shapes_of(full_size.sizes("qwen2", "Q4_K_M"))
