"""Compares `mimo-gguf quantize`, from a checkpoint and from a GGUF, with convert_hf_to_gguf.py and llama-quantize.

    python -m benchmarks.quantize CHECKPOINT LLAMA_CPP_SOURCE LLAMA_QUANTIZE SCRATCH [--threads 2] [--rounds 2] [--warm]

All commands run in turn, and caches are emptied before each, unless --warm is given. Ours are short: they run as often
before llama-quantize as after it, and the median counts. SCRATCH, an empty folder, needs 40 GB for the full model. The
peers get the trunk as Qwen2 (see peer_convert.py), 2.7 % fewer weights. At the end every tensor of ours is compared
with llama-quantize's. The last line on stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from gguf import GGUFReader

from benchmarks.measured import Measurement, drop_page_cache, machine, measure

FOUR = ("Q4_K_M", "Q6_K", "Q8_0", "F16")
CHECKPOINT_TO_ONE = "ours: checkpoint -> Q4_K_M"
CHECKPOINT_TO_FOUR = "ours: checkpoint -> Q4_K_M Q6_K Q8_0 F16"
GGUF_TO_ONE = "ours: BF16 -> Q4_K_M"
PEER_CONVERT = "convert_hf_to_gguf.py: checkpoint -> BF16"
PEER_QUANTIZE = "llama-quantize: BF16 -> Q4_K_M"
OURS = (sys.executable, "-m", "mimo_gguf", "quantize")


class Bench:
    """Runs commands one after another, each from cold unless `warm`, and keeps their measurements."""

    def __init__(self, scratch: Path, threads: int, *, warm: bool) -> None:
        self.scratch = scratch
        self.threads = threads
        self.warm = warm
        self.runs: dict[str, list[Measurement]] = {}

    def run(self, label: str, command: Sequence[str | Path]) -> None:
        if not self.warm:
            drop_page_cache()
        run = measure(label, command)
        if run.returncode:
            sys.exit(f"{label} failed:\n{run.output[-2000:]}")
        self.runs.setdefault(label, []).append(run)
        print(
            f"{label:44}{run.wall_s:8.1f} s{run.cpu_s:8.1f} CPU s"
            f"{run.peak_anon_bytes / 2**20:8.0f} MiB anon{run.peak_rss_bytes / 2**20:8.0f} MiB RSS",
            flush=True,
        )

    def ours(self, label: str, source: Path, types: Sequence[str], out: Path) -> None:
        wanted = [argument for ftype in types for argument in ("--type", ftype)]
        self.run(label, [*OURS, source, *wanted, "-o", out, "--threads", str(self.threads), "--json", "--force"])

    def seconds(self, *labels: str) -> float:
        return sum(statistics.median(run.wall_s for run in self.runs[label]) for label in labels)


def count_differences(ours: Path, theirs: Path) -> tuple[int, int]:
    """Counts (tensors compared, tensors that differ in type or bytes)."""
    left = {tensor.name: tensor for tensor in GGUFReader(ours).tensors}
    right = {tensor.name: tensor for tensor in GGUFReader(theirs).tensors}
    if left.keys() != right.keys():
        sys.exit("the two files hold different tensors")
    wrong = [
        name
        for name in left
        if left[name].tensor_type != right[name].tensor_type
        or not np.array_equal(left[name].data.view(np.uint8), right[name].data.view(np.uint8))
    ]
    return len(left), len(wrong)


def remove(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("checkpoint", "llama_cpp", "llama_quantize", "scratch"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2, help="how often ours run, before llama-quantize and after it")
    parser.add_argument("--warm", action="store_true")
    arguments = parser.parse_args()
    if any(arguments.scratch.iterdir()):
        sys.exit(f"{arguments.scratch} is not empty: an interrupted run in it would be resumed")
    bench = Bench(arguments.scratch, arguments.threads, warm=arguments.warm)
    scratch, checkpoint = arguments.scratch, arguments.checkpoint

    bf16, theirs, ours = (scratch / name for name in ("bf16.gguf", "theirs.gguf", "ours.gguf"))

    def ours_in_turn() -> None:
        for _ in range(arguments.rounds):
            for label, source in ((CHECKPOINT_TO_ONE, checkpoint), (GGUF_TO_ONE, bf16)):
                remove(scratch, "ours.gguf*")  # replacing a large file takes seconds
                bench.ours(label, source, ["Q4_K_M"], ours)

    bench.run(PEER_CONVERT, (sys.executable, "-m", "benchmarks.peer_convert", arguments.llama_cpp, checkpoint, bf16))
    ours_in_turn()
    bench.run(PEER_QUANTIZE, [arguments.llama_quantize, bf16, theirs, "Q4_K_M", str(arguments.threads)])
    ours_in_turn()
    bench.ours(CHECKPOINT_TO_FOUR, checkpoint, FOUR, scratch)
    remove(scratch, f"{checkpoint.resolve().name}-*.gguf*")
    compared, wrong = count_differences(ours, theirs)

    one = bench.seconds(CHECKPOINT_TO_ONE)
    ratios = {
        "checkpoint -> Q4_K_M against both peers": bench.seconds(PEER_CONVERT, PEER_QUANTIZE) / one,
        "GGUF -> Q4_K_M against llama-quantize": bench.seconds(PEER_QUANTIZE) / bench.seconds(GGUF_TO_ONE),
        "four types against Q4_K_M alone": bench.seconds(CHECKPOINT_TO_FOUR) / one,
    }
    for label, ratio in ratios.items():
        print(f"{label:44}{ratio:8.2f} x")
    print(f"tensors compared with llama-quantize's: {compared}, different: {wrong}")
    document = {
        "machine": machine(),
        "threads": arguments.threads,
        "warm": arguments.warm,
        "ratios": ratios,
        "tensors_compared": compared,
        "tensors_different": wrong,
        "runs": [run.as_json() for runs in bench.runs.values() for run in runs],
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
