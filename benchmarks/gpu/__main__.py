"""Measures what a GPU really needs and does, in twelve minutes, the most valuable rows first.

    python -m benchmarks.gpu [--minutes N] [-o FILE] [--small] [--rpc HOST:PORT] [--peers FOLDER] [--only STEP ...]

It needs no network and asks nothing. Every row is a JSON document, printed and written to FILE at once; stopped at any
moment, it has said what it knows. FILE is `benchmarks/results/gpu/<card>.jsonl` if not given. The model is MiMo-7B's
full geometry with random weights, made here in a minute (5 GB in --folder). Of several GPUs the first is measured.
`--peers` is a folder with llama-bench and llama-server of the same build. `python -m benchmarks.gpu.documents` then
writes the figures into the documents.

`--small` uses the tiny model of this repository instead. That is a rehearsal, and so is every run on a software GPU, on
a worker (`--rpc`) or without a GPU. Its rows say so, go to `build/gpu/rehearsal.jsonl`, and never get into a document.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu.child import rows_of_child
from benchmarks.gpu.exactness import N_ANSWER, N_TOKENS
from benchmarks.gpu.marked_tests import run_tests
from benchmarks.gpu.memory import CELLS, devices_measured, is_software, measure_boundary
from benchmarks.gpu.model_file import write_random_model
from benchmarks.gpu.quantizing import measure_quantizing
from benchmarks.gpu.record import Recorder, Row, card_file
from benchmarks.gpu.speed import PROMPTS
from benchmarks.gpu.worker import ENDPOINT, add_worker
from benchmarks.measured import machine
from mimo_gguf.bench.peers import PeerOptions, measure_peer
from mimo_gguf.core.errors import MimoGgufError
from mimo_gguf.core.units import MIB
from mimo_gguf.core.version import LLAMA_CPP_COMMIT, LLAMA_CPP_PYTHON, __version__
from mimo_gguf.hardware.devices import list_devices
from mimo_gguf.hardware.nvml import nvidia_cards

TINY: Final = Path(__file__).parents[2] / "examples" / "mimo-tiny"
REHEARSAL: Final = Path("build/gpu/rehearsal.jsonl")
MINUTES, REHEARSAL_MINUTES = 12.0, 60.0  # a software GPU compiles its kernels for minutes
SHARE: Final = 1 / 3  # of all the time, for one measurement at most
TINY_TYPES: Final = ("F16", "Q8_0", "Q4_K_M")
QUANTIZED_BLOCKS: Final = 4  # of the float file that is quantized: 2.9 GB, so that all of it stays in the cache
Step = Callable[[], Iterator[Row]]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured. A rehearsal has every kind of row, but a software GPU takes 10 ms for a row of a prompt.

    Attributes:
        shorter: the contexts of the memory cells are divided by it.
        n_boundary, room_bytes: the context that just fits at the boundary, and what is left beside it.
        n_tokens, prompts: of the speeds.
        n_exact, n_answer: tokens of the text whose logits are compared, and of an answer.
    """

    shorter: int = 1
    n_boundary: int = 16384
    room_bytes: int = 64 * MIB
    n_tokens: int = 96
    prompts: tuple[int, ...] = PROMPTS
    n_exact: int = N_TOKENS
    n_answer: int = N_ANSWER


SMALL: Final = Sizes(
    shorter=32, n_boundary=512, room_bytes=MIB // 4, n_tokens=16, prompts=(64, 256), n_exact=64, n_answer=12
)


def what_is_there(folder: Path, *, rehearsal: bool) -> Row:
    """Devices as ggml and NVML report them, the driver, versions, the machine."""
    devices = [asdict(device) | {"pointer": 0} for device in list_devices()]
    return {
        "rehearsal": rehearsal,
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "mimo_gguf": __version__,
        "llama_cpp": f"{LLAMA_CPP_PYTHON} ({LLAMA_CPP_COMMIT})",
        "devices": devices,
        "nvml": [asdict(card) for card in nvidia_cards()],
        "driver": driver(),
        "free_disk": shutil.disk_usage(folder).free,
    }


def driver() -> str:
    """The versions of NVIDIA's driver and of CUDA, as nvidia-smi tells them; empty without one."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version,name,memory.total", "--format=csv,noheader"],
            capture_output=True, text=True, check=True, timeout=30,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def tiny_files(folder: Path) -> dict[str, Path]:
    """The tiny trained model of this repository, by type."""
    files = {kind: folder / f"tiny-{kind}.gguf" for kind in TINY_TYPES}
    for kind, file in files.items():
        quantize = ["quantize", TINY, "-o", file, "--type", kind, "--force", "--quiet"]
        command = [sys.executable, "-m", "mimo_gguf", *quantize]
        subprocess.run([str(word) for word in command], check=True, capture_output=True)
    return files


class Plan:
    """The steps in their order, over one file for memory and speed and the tiny model for exactness.

    Args:
        seconds: for all steps together.
    """

    def __init__(self, options: argparse.Namespace, folder: Path, seconds: float) -> None:
        self.options, self.folder = options, folder
        self.sizes = SMALL if options.small else Sizes()
        self.deadline, self.most_s = time.monotonic() + seconds, SHARE * seconds
        self.tiny = tiny_files(folder)
        blocks = {"n_trunk": options.blocks} if options.blocks else {}
        self.file = self.tiny["Q4_K_M"] if options.small else write_random_model(folder / "full-Q4_K_M.gguf", **blocks)

    def steps(self) -> Iterator[tuple[str, Step]]:
        sizes = self.sizes
        yield "memory", lambda: self.memory(slice(0, 3))
        yield "boundary", lambda: iter([measure_boundary(self.file, sizes.n_boundary, sizes.room_bytes)])
        yield "speed", lambda: self.child("speed", self.file, n_tokens=sizes.n_tokens, prompts=sizes.prompts)
        yield "memory", lambda: self.memory(slice(3, None))
        yield "exactness", self.exactness
        yield "peers", self.peers
        yield "quantizing", self.quantizing
        yield "tests", lambda: run_tests(self.seconds_left())

    def child(self, name: str, path: Path, **settings: Any) -> Iterator[Row]:
        yield from rows_of_child(name, path, settings, min(self.seconds_left(), self.most_s))

    def seconds_left(self) -> float:
        return max(self.deadline - time.monotonic(), 30.0)

    def memory(self, part: slice) -> Iterator[Row]:
        for each in CELLS[part]:
            settings = asdict(replace(each, n_ctx=each.n_ctx // self.sizes.shorter))
            for row in self.child("cell", self.file, **settings):
                yield {"cell": settings} | row

    def exactness(self) -> Iterator[Row]:
        for kind, file in self.tiny.items():
            for row in self.child("exactness", file, n_tokens=self.sizes.n_exact, n_answer=self.sizes.n_answer):
                yield {"type": kind} | row

    def peers(self) -> Iterator[Row]:
        for name in ("llama-bench", "llama-server"):
            program = (self.options.peers or Path()) / name
            if not program.is_file():
                continue
            n_threads = min(8, os.cpu_count() or 1)
            settings = PeerOptions(self.sizes.prompts[1], self.sizes.n_tokens, n_threads, -1, 4096, 3)
            for figure in measure_peer(program, self.file, settings, {"sums": "1 2 3 4 5 6 7 8 9 10 11 12"}):
                yield asdict(figure)

    def quantizing(self) -> Iterator[Row]:
        source = self.tiny["F16"]
        if not self.options.small:
            source = write_random_model(self.folder / "blocks-F16.gguf", "F16", QUANTIZED_BLOCKS)
        yield from measure_quantizing(source)


def main() -> None:
    options = _arguments()
    os.environ |= {ENDPOINT: options.rpc} if options.rpc else {}
    try:
        add_worker()
    except MimoGgufError as error:
        raise SystemExit(f"{error.message}; {error.hint}") from None
    gpu = devices_measured()[0]
    rehearsal = options.small or not gpu.is_gpu or is_software(gpu)
    out = options.output or (REHEARSAL if rehearsal else card_file(gpu.description))
    recorder = Recorder.beginning(out, keep=bool(options.only))
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as made:
        folder = options.folder or Path(made)
        recorder.write({"step": "there"} | what_is_there(folder, rehearsal=rehearsal))
        minutes = options.minutes or (REHEARSAL_MINUTES if rehearsal else MINUTES)
        with kept_going(recorder, "files"):
            plan = Plan(options, folder, 60 * minutes)
            for name, step in plan.steps():
                if options.only and name not in options.only:
                    continue
                if time.monotonic() > plan.deadline:
                    recorder.write({"step": name, "left_out": "no time was left"})
                    continue
                with kept_going(recorder, name):
                    for row in step():
                        recorder.write({"step": name} | row)
    print(f"written: {out}", file=sys.stderr)


@contextmanager
def kept_going(recorder: Recorder, step: str) -> Iterator[None]:
    """Writes a row about an error instead of raising it: a step that fails must not cost the others."""
    try:
        yield
    except Exception as error:
        recorder.write({"step": step, "failed": f"{type(error).__name__}: {error}"[:500]})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="12, or 60 for a rehearsal")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--folder", type=Path, help="where the files are made, and kept; otherwise they are removed")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--blocks", type=int, default=0, help="blocks of the trunk, for a smaller file")
    parser.add_argument("--rpc", metavar="HOST:PORT", help="a worker that takes the place of a GPU")
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--only", nargs="+", metavar="STEP", help="only these steps; rows that are there are kept")
    return parser.parse_args()


if __name__ == "__main__":
    main()
