"""What the driver of NVIDIA cards adds: other programs, and cards the installed llama.cpp cannot use."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import psutil
import pytest

from mimo_gguf.hardware.devices import CPU, GPU, Device
from mimo_gguf.hardware.memory_watch import other_programs
from mimo_gguf.hardware.nvml import nvidia_cards, other_uses, unused_cards
from tests.hardware.fake_nvml import NVMLError, fake_nvml

HOST = Device("CPU", "", CPU, "CPU", 1 << 30, 1 << 30)
CARD = Device("CUDA0", "", GPU, "CUDA", 1 << 30, 8 << 30, pointer=1, pci_id="0000:0A:00.0")


def test_other_programs_on_a_card_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once, however the driver lists it, the largest first; this process is not another."""
    parent = psutil.Process(os.getppid())
    compute = [(os.getpid(), 3 << 30), (parent.pid, 5 << 20), (2**30, None)]
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(b"00000000:0A:00.0", compute, [(parent.pid, 7 << 20)]))
    (card,) = cards = nvidia_cards()
    assert (card.name, card.free_bytes, card.total_bytes) == ("NVIDIA GeForce RTX 4060", 3 << 30, 8 << 30)
    assert [(use.pid, use.program, use.n_bytes) for use in other_uses(CARD, cards)] == [
        (parent.pid, parent.name(), 7 << 20),
        (2**30, "?", 0),
    ]
    assert str(card.uses[0]) == f"{parent.name()} ({parent.pid}) 7.0 MiB" and str(card.uses[1]) == f"? ({2**30})"
    assert other_uses(HOST, cards) == other_uses(replace(CARD, pci_id="0000:0b:00.0"), cards) == ()
    assert other_programs(CARD) == f"{parent.name()}, ?" and other_programs(HOST) == "other programs"


def test_cards_that_llama_cpp_cannot_use_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml("0000:0a:00.0", []))
    cards = nvidia_cards()
    assert unused_cards([HOST], cards) == cards and unused_cards([CARD, HOST], cards) == ()


def test_without_the_package_or_a_driver_there_is_nothing_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> None:
        raise NVMLError

    fake = fake_nvml("0000:0a:00.0", [])
    fake.nvmlInit = no_driver
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    assert nvidia_cards() == ()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvidia_cards() == ()
