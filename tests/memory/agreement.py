"""Analytic against asked, cell by cell of the agreement grid: as functions, and as a program for RPC devices.

    python -m tests.memory.agreement N_CELLS ENDPOINT...

compares N_CELLS cells on these workers and prints one JSON document.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from mimo_gguf.core.geometry import QWEN2, STEP35
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.model_sizes import ModelSizes
from mimo_gguf.fit.breakdown import AskedMemory, read_memory
from mimo_gguf.hardware.device_traits import cpu_traits
from mimo_gguf.hardware.devices import Device
from mimo_gguf.hardware.rpc import add_workers
from mimo_gguf.memory.parts import DeviceMemory
from mimo_gguf.memory.predict import predict_memory
from mimo_gguf.memory.run import Placement, RunSettings
from tests import full_size

F16, Q8_0, Q4_0 = GgmlType.F16, GgmlType.Q8_0, GgmlType.Q4_0
# K type, V type, flash attention; a quantized V cache without it is refused by llama.cpp and by the model.
KV_CHOICES = (
    (F16, F16, True), (Q8_0, Q8_0, True), (Q4_0, Q4_0, True), (F16, F16, False), (Q8_0, F16, False), (Q4_0, F16, False),
)  # fmt: skip
CONTEXTS = (2048, 8192, 32768, 65536)


class Cell(NamedTuple):
    layout: str
    file_type: str
    settings: RunSettings


def grid() -> list[Cell]:
    """Every cell; n_outputs_max once as this package sets it (4) and once as llama.cpp does (0: n_batch)."""
    return [
        Cell(
            layout,
            kind,
            RunSettings(
                n_ctx=n_ctx, n_ubatch=ubatch, type_k=k, type_v=v, flash_attn=flash, n_gpu_layers=layers,
                n_outputs_max=outputs,
            ),
        )
        for layout, kind, n_ctx, (k, v, flash), ubatch, layers, outputs in itertools.product(
            (STEP35, QWEN2), full_size.FILE_TYPES, CONTEXTS, KV_CHOICES, (64, 512), (0, 20, -1), (4, 0)
        )
    ]  # fmt: skip


def parallel_grid() -> list[Cell]:
    """Several conversations at once: with and without MTP, in one buffer (this package's way) or one each."""
    return [
        Cell(
            layout,
            "Q4_K_M",
            RunSettings(
                n_ctx=n_ctx, n_seq_max=n, kv_unified=unified, type_k=kind, type_v=kind, mtp=mtp, n_gpu_layers=layers,
                n_outputs_max=2 * n,
            ),
        )
        for layout, n_ctx, n, unified, kind, mtp, layers in itertools.product(
            (STEP35, QWEN2), CONTEXTS, (2, 3, 4), (True, False), (F16, Q8_0, Q4_0), (True, False), (0, 20, -1)
        )
    ]  # fmt: skip


def write_files(folder: Path) -> dict[tuple[str, str], Path]:
    return {
        (layout, kind): full_size.write_header_only(folder / f"{layout}-{kind}.gguf", layout, kind)
        for layout, kind in itertools.product((STEP35, QWEN2), full_size.FILE_TYPES)
    }


def as_asked(memory: DeviceMemory) -> AskedMemory:
    """A prediction in the terms of llama.cpp's own count."""
    return AskedMemory(memory.weights.n_bytes, memory.kv_cache, memory.compute)


def can_run(sizes: ModelSizes, settings: RunSettings, devices: tuple[Device, ...]) -> bool:
    """Whether no device has a cache that is too large for it to compute with: llama.cpp ends the process then."""
    memories = predict_memory(sizes, settings, _places(devices))
    return all(
        memory.cache_tensor <= device.traits.tensor_bytes for memory, device in zip(memories, devices, strict=False)
    )


def _places(devices: tuple[Device, ...]) -> list[Placement]:
    return [Placement(device.name, device.free_bytes, device.traits) for device in devices]


def predict(sizes: ModelSizes, settings: RunSettings, devices: tuple[Device, ...] = ()) -> tuple[AskedMemory, ...]:
    """One entry per device and the host's, which is this machine."""
    return tuple(map(as_asked, predict_memory(sizes, settings, _places(devices), Placement("host", 0, cpu_traits()))))


def compare(path: Path, sizes: ModelSizes, settings: RunSettings, devices: tuple[Device, ...]) -> str | None:
    predicted, asked = predict(sizes, settings, devices), read_memory(path, settings, devices)
    return None if predicted == asked else f"predicted {predicted}\nasked {asked}"


def main(n_cells: int, endpoints: list[str]) -> None:
    devices = add_workers(endpoints)
    assert len(devices) == len(endpoints)
    draw = random.Random(len(endpoints))
    chosen = [*draw.sample(grid(), n_cells - n_cells // 4), *draw.sample(parallel_grid(), n_cells // 4)]
    if len(devices) > 1:  # and some dealt out by number
        splits = ((30, 8), (3, 35), (0, 38), (19, 19))
        whole = [cell for cell in chosen if cell.settings.n_gpu_layers == -1][: len(splits)]
        chosen += [
            cell._replace(settings=replace(cell.settings, tensor_split=split))
            for cell, split in zip(whole, splits, strict=True)
        ]
    differences = []
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(Path(folder))
        for layout, kind, settings in chosen:
            difference = compare(files[layout, kind], full_size.sizes(layout, kind), settings, devices)
            if difference is not None:
                differences.append(f"{layout} {kind} {settings}: {difference}")
    sys.stdout.write(json.dumps({"cells": len(chosen), "differences": differences}) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
