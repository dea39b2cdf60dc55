"""Memory: what the plan predicts on a device, against what the driver says is gone.

Free memory is read before anything is loaded, behind the load, the contexts, a long prompt and some answers. NVML's
figure for this process stands beside it, if there is one. Another process's ballast makes a large card small.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu.child import rows_of_child
from benchmarks.gpu.record import Row
from mimo_gguf.core.errors import DoesNotFit
from mimo_gguf.core.gguf_file import read_gguf
from mimo_gguf.core.kv_cache import CONTEXT_STEP, parse_kv_type
from mimo_gguf.core.model_sizes import model_sizes
from mimo_gguf.core.units import MIB
from mimo_gguf.engine.sampling import Sampler, SamplingOptions
from mimo_gguf.engine.session import Session, SessionOptions
from mimo_gguf.engine.single import next_token, read_prompt
from mimo_gguf.fit.plan import FitPlan
from mimo_gguf.fit.refusal import check_fit
from mimo_gguf.fit.solver import Wishes
from mimo_gguf.fit.weigh import largest_context
from mimo_gguf.hardware.devices import Device, list_devices
from mimo_gguf.llama.api import load_model
from mimo_gguf.runtime.launch import choose_plan, model_options, session_options

N_ANSWER: Final = 32
_SOFTWARE: Final = ("llvmpipe", "swiftshader")  # what software GPUs call themselves


@dataclass(frozen=True, slots=True)
class MemoryCell:
    """One way of running a file; `share` of its layers are on the GPU."""

    n_ctx: int
    kv_type: str = "f16"
    mtp: bool = True
    n_ubatch: int = 512
    share: float = 1.0


CELLS: Final[tuple[MemoryCell, ...]] = (
    MemoryCell(8192),
    MemoryCell(32768),
    MemoryCell(8192, mtp=False),
    MemoryCell(32768, kv_type="q8_0"),
    MemoryCell(32768, kv_type="q4_0"),
    MemoryCell(8192, n_ubatch=128),
    MemoryCell(8192, n_ubatch=2048),
    MemoryCell(8192, share=0.5),
    MemoryCell(8192, share=0.5, kv_type="q8_0", mtp=False),
)


def occupied_bytes() -> int | None:
    """The bytes that this process occupies on all NVIDIA cards by the driver's own count; None if it does not tell."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    total = 0
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.pid == os.getpid():
                total += int(process.usedGpuMemory or 0)
    nvml.nvmlShutdown()
    return total or None


def devices_measured() -> tuple[Device, ...]:
    """The first GPU and the host; only the host if there is no GPU. Others of the machine must not take layers."""
    found = list_devices()
    return (found[0], found[-1]) if found[0].is_gpu else found


def free_bytes() -> int:
    return devices_measured()[0].free_bytes


def plan_of(path: Path, cell: MemoryCell) -> FitPlan:
    """The plan that a chat with these settings makes; the number of layers on the GPU is given, not chosen."""
    file = read_gguf(path)
    wishes = Wishes(
        n_ctx=cell.n_ctx,
        kv_type=parse_kv_type(cell.kv_type),
        mtp=cell.mtp,
        n_ubatch=cell.n_ubatch,
        n_gpu_layers=int((model_sizes(file).geometry.block_count + 1) * cell.share),
    )
    return choose_plan(file, wishes, devices_measured())


def measure_cell(path: Path, cell: MemoryCell) -> Row:
    """Loads, reads and answers as the cell says, in this process, which must not have used the device before."""
    before = free_bytes()
    plan = plan_of(path, cell)
    fit = plan.devices[0]
    parts = {"/".join(name): n_bytes for name, n_bytes in fit.memory.rows().items() if n_bytes}
    used: dict[str, int] = {}
    held: dict[str, int | None] = {}

    def note(stage: str) -> None:
        used[stage], held[stage] = before - free_bytes(), occupied_bytes()

    n_prompt = min(cell.n_ctx // 2, 4096)
    with load_model(path, model_options(plan)) as model:
        note("loaded")
        with Session(model, session_options(plan, SessionOptions())) as session:
            note("contexts")
            read_prompt(session, [7 + 11 * place % 1000 for place in range(n_prompt)])
            note("prompt")
            with Sampler(model, SamplingOptions(temperature=0)) as sampler:
                for _ in range(N_ANSWER):
                    next_token(session, sampler)
            note("answer")
        note("closed")
    return {
        "device": fit.device.description or fit.device.name,
        "cell": {name: getattr(cell, name) for name in cell.__slots__},
        "free_before": before,
        "counted": fit.memory.counted_bytes,
        "planned": fit.memory.n_bytes,
        "parts": parts,
        "used": used,
        "nvml": held,
        "difference": used["answer"] - fit.memory.counted_bytes,
    }


@contextlib.contextmanager
def ballast(n_bytes: int, *, leave: bool = False) -> Iterator[None]:
    """Holds so many bytes of the first GPU in another process, as another program would, or all but so many."""
    command = [sys.executable, "-m", "benchmarks.gpu.ballast", str(n_bytes), *["leave"] * leave]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "held":
            raise RuntimeError(f"a ballast of {n_bytes} bytes could not be taken")
        yield
    finally:
        process.kill()
        process.wait()


def is_software(gpu: Device) -> bool:
    """Whether a GPU is a program on the CPU, as a worker may be."""
    return gpu.backend == "RPC" or any(name in gpu.description.lower() for name in _SOFTWARE)


def counts_others(gpu: Device) -> bool:
    """Whether the driver counts what other programs use; Mesa's software GPU says that all of it is free.

    A worker serves one program at a time.
    """
    if gpu.backend == "RPC":
        return False
    with ballast(256 * MIB):
        return devices_measured()[0].free_bytes < gpu.free_bytes - 128 * MIB


def measure_boundary(path: Path, n_ctx: int, room_bytes: int = 64 * MIB) -> Row:
    """A card on which just `n_ctx` tokens fit: so many must load and answer, and one step more must be refused.

    The ballast leaves what the plan needs at `n_ctx`, and `room_bytes` for what the driver rounds. If the model's own
    limit fits, too, no step more is there.
    """
    gpu = devices_measured()[0]
    if not gpu.is_gpu:
        return {"device": gpu.description or gpu.name, "left_out": "another program can only take a GPU's memory"}
    if not counts_others(gpu):
        return {"device": gpu.description, "left_out": "the driver does not count what another program takes"}
    needed = plan_of(path, MemoryCell(n_ctx)).devices[0].needed_bytes
    with ballast(needed + room_bytes, leave=True):
        plan = plan_of(path, MemoryCell(n_ctx))
        most = largest_context(plan, plan.model.geometry.context_length)
        row: Row = {
            "device": gpu.description or gpu.name, "wanted": n_ctx, "left_free": plan.devices[0].free_bytes,
            "largest": most, "is_the_models": most >= plan.model.geometry.context_length,
        }  # fmt: skip
        if not most:
            return row | {"failed": "no context fits beside the ballast"}
        *_, last = rows_of_child("cell", path, {"n_ctx": most})
        row |= {"loads_and_answers": "failed" not in last, "said": last.get("said", "")}
        if row["is_the_models"]:
            return row
        try:
            check_fit(plan_of(path, MemoryCell(most + CONTEXT_STEP)))
        except DoesNotFit as error:
            return row | {"more_is_refused": True, "refusal": error.message}
        return row | {"more_is_refused": False}
