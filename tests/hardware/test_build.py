"""What the installed llama.cpp is, seen from another process; and why no GPU is used."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mimo_gguf.hardware import build as building
from mimo_gguf.hardware.build import Build, SeenDevice, graphics_adapters, look_at_build, read_build, why_no_gpu
from tests.hardware.fake_nvml import fake_nvml

GIB = 1 << 30
CPU = SeenDevice("CPU", "a CPU", "cpu", "CPU", GIB, GIB)
CARD = SeenDevice("CUDA0", "RTX 4060", "gpu", "CUDA", GIB, 8 * GIB)
WORKER = SeenDevice("RPC0", "127.0.0.1:1", "gpu", "RPC", GIB, GIB)
PLAIN = Build(ggml_version="0.1 (abc)", backends=("CPU", "RPC"), devices=(CPU,))
CUDA = replace(PLAIN, backends=("CUDA", "CPU"), said=("ggml_cuda_init: failed to initialize CUDA: no driver",))


def test_another_process_says_what_this_one_sees() -> None:
    found = look_at_build()
    assert not found.problem and "CPU" in found.backends and found.ggml_version[0].isdigit()
    here = read_build()
    assert (found.backends, found.ggml_version) == (here.backends, here.ggml_version)
    assert [device.name for device in found.devices] == [device.name for device in here.devices if device.kind == "cpu"]


def fake_llama_cpp(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "llama_cpp").mkdir()
    (folder / "llama_cpp" / "__init__.py").write_text(code)
    monkeypatch.syspath_prepend(folder)


@pytest.mark.parametrize(
    ("code", "problem", "hint"),
    [
        (
            "raise RuntimeError('Failed to load shared library: libcuda.so.1: cannot open shared object file')",
            "libcuda.so.1",
            "driver",
        ),
        ("import os; os.abort()", "SIGABRT", "reinstall"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV", "reinstall"),
        ("import time; time.sleep(60)", "no answer within", "reinstall"),
    ],
)
def test_a_build_that_cannot_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, problem: str, hint: str
) -> None:
    fake_llama_cpp(tmp_path, code, monkeypatch)
    monkeypatch.setattr(building, "_TIMEOUT_S", 3 if "sleep" in code else 60)
    found = look_at_build()
    assert problem in found.problem and hint in found.hint and not found.devices
    assert why_no_gpu(found, ()) == ""  # the problem says it


@pytest.mark.parametrize(
    ("build", "adapters", "said"),
    [
        (replace(PLAIN, devices=(CARD, CPU)), ("NVIDIA RTX 4060",), ()),
        (PLAIN, (), ("no backend for GPUs", "no graphics card was found")),
        (replace(PLAIN, devices=(WORKER, CPU)), (), ("no backend for GPUs",)),
        (PLAIN, ("NVIDIA GeForce RTX 4060",), ("RTX 4060 is in this machine", "without a backend", "CUDA")),
        (PLAIN, ("a graphics card of AMD",), ("AMD", "Vulkan or ROCm")),
        (CUDA, ("a graphics card of NVIDIA",), ("built with CUDA", "failed to initialize CUDA", "NVIDIA is in this")),
        (CUDA, (), ("built with CUDA", "no graphics card was found")),
    ],
)
def test_why_no_gpu_is_used(build: Build, adapters: tuple[str, ...], said: tuple[str, ...]) -> None:
    why = why_no_gpu(build, adapters)
    assert bool(why) == bool(said)
    for words in said:
        assert words in why


def pci_device(root: Path, slot: str, vendor: str, kind: str) -> None:
    folder = root / "sys/bus/pci/devices" / slot
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(vendor + "\n")
    (folder / "class").write_text(kind + "\n")


def test_cards_are_found_without_their_drivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert graphics_adapters(tmp_path) == ()
    pci_device(tmp_path, "0000:01:00.0", "0x10de", "0x030000")
    pci_device(tmp_path, "0000:01:00.1", "0x10de", "0x040300")  # its sound
    pci_device(tmp_path, "0000:02:00.0", "0x1002", "0x038000")
    pci_device(tmp_path, "0000:03:00.0", "0x1234", "0x030000")  # an emulator's
    assert graphics_adapters(tmp_path) == ("a graphics card of NVIDIA", "a graphics card of AMD")
    driver = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0"
    driver.mkdir(parents=True)
    (driver / "information").write_text("Model: \t\t NVIDIA GeForce RTX 4060\nIRQ: 1\n")
    assert graphics_adapters(tmp_path) == ("NVIDIA GeForce RTX 4060", "a graphics card of AMD")
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml("0000:01:00.0", []))
    assert graphics_adapters(tmp_path) == ("NVIDIA GeForce RTX 4060", "a graphics card of AMD")
