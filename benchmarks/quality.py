"""Measures quality beside llama-perplexity: the same files, text and windows; figures and tokens per second.

    python -m benchmarks.quality BASE.gguf FILE.gguf TEXT.txt --tool .../llama-perplexity [--chunks 16] [--threads 2]

llama-perplexity writes the base's logits to a file and compares the other file with them; here both are read in step.
Speeds are of reading a file for its perplexity, and of base and file together for the divergence, without loading.
Tokens per second of CPU time are of whole runs, with loading: they say more while other programs are busy. The programs
take turns. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measured import machine

N_CTX = 512
NUMBER = r"(-?\d+\.\d+)"
LN_RATIO = r"Mean ln\(PPL\(Q\)/PPL\(base\)\)\s*:\s*"
# name -> pattern of llama-perplexity's summary, and the place of the same figure in our document
FIGURES: dict[str, tuple[str, tuple[str, ...]]] = {
    "perplexity": (rf"Mean PPL\(Q\)\s*:\s*{NUMBER}", ("perplexity", "value")),
    "error of perplexity": (rf"Mean PPL\(Q\)\s*:\s*{NUMBER} ±\s*{NUMBER}", ("perplexity", "error")),
    "perplexity of the base": (rf"Mean PPL\(base\)\s*:\s*{NUMBER}", ("divergence", "base_perplexity", "value")),
    "ln ratio": (rf"{LN_RATIO}{NUMBER}", ("divergence", "ln_ratio", "value")),
    "error of ln ratio": (rf"{LN_RATIO}{NUMBER} ±\s*{NUMBER}", ("divergence", "ln_ratio", "error")),
    "divergence": (rf"Mean\s+KLD:\s*{NUMBER}", ("divergence", "kl", "value")),
    "error of divergence": (rf"Mean\s+KLD:\s*{NUMBER} ±\s*{NUMBER}", ("divergence", "kl", "error")),
    "largest divergence": (rf"Maximum KLD:\s*{NUMBER}", ("divergence", "kl_max")),
    "99.9 % divergence": (rf"99\.9%\s+KLD:\s*{NUMBER}", ("divergence", "kl_percentiles", "99.9")),
    "99 % divergence": (rf"99\.0%\s+KLD:\s*{NUMBER}", ("divergence", "kl_percentiles", "99.0")),
    "95 % divergence": (rf"95\.0%\s+KLD:\s*{NUMBER}", ("divergence", "kl_percentiles", "95.0")),
    "90 % divergence": (rf"90\.0%\s+KLD:\s*{NUMBER}", ("divergence", "kl_percentiles", "90.0")),
    "median divergence": (rf"Median\s+KLD:\s*{NUMBER}", ("divergence", "kl_percentiles", "50.0")),
    "shift, %": (rf"Mean\s+Δp:\s*{NUMBER}", ("divergence", "shift", "value")),
    "rms shift, %": (rf"RMS Δp\s*:\s*{NUMBER}", ("divergence", "shift_rms", "value")),
    "error of rms shift, %": (rf"RMS Δp\s*:\s*{NUMBER} ±\s*{NUMBER}", ("divergence", "shift_rms", "error")),
    "same top, %": (rf"Same top p:\s*{NUMBER}", ("divergence", "same_top", "value")),
    "error of same top, %": (rf"Same top p:\s*{NUMBER} ±\s*{NUMBER}", ("divergence", "same_top", "error")),
}  # fmt: skip


def run_tool(command: Sequence[str | Path]) -> tuple[str, float, float]:
    """Runs llama-perplexity; its output, seconds after loading, CPU seconds. Stops with the output if it fails."""
    started, before, lines = time.perf_counter(), cpu_seconds(), []
    with subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if "system_info" in line:  # what it prints when the model is loaded
                started = time.perf_counter()
    seconds, output = time.perf_counter() - started, "".join(lines)
    if process.returncode:
        sys.exit(f"{command[0]} failed:\n{output[-2000:]}")
    return output, seconds, cpu_seconds() - before


def cpu_seconds() -> float:
    """The CPU seconds of all programs that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Ours:
    """`mimo-gguf quality` on the chosen text."""

    def __init__(self, text: Path, n_chunks: int, n_threads: int) -> None:
        self.rest = [
            "-f", f"text={text}", "--all-text", "-c", str(N_CTX), "-n", str(n_chunks * N_CTX), "-t", str(n_threads),
            "-ngl", "0", "--no-mtp", "--arithmetic", "backend", "--json",
        ]  # fmt: skip

    def __call__(self, file: Path, *base: str | Path) -> tuple[dict[str, Any], float]:
        """Its document, and its CPU seconds."""
        before = cpu_seconds()
        with tempfile.TemporaryDirectory() as work:
            command = [sys.executable, "-m", "mimo_gguf", "quality", file, *base, "--work", work, *self.rest]
            done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout), cpu_seconds() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "file", "text"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--tool", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    ours, n_tokens = Ours(given.text, given.chunks, given.threads), given.chunks * N_CTX
    tool = [
        given.tool, "-f", given.text, "-c", str(N_CTX), "--chunks", str(given.chunks), "-t", str(given.threads),
        "-ngl", "0",
    ]  # fmt: skip
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in ("tool", "ours", "tool, both", "ours, both")}
    with tempfile.TemporaryDirectory() as folder:
        logits = Path(folder) / "base.kld"
        for _ in range(given.rounds):
            _, seconds, cpu_s = run_tool([*tool, "-m", given.file])
            speeds["tool"].append((n_tokens / seconds, n_tokens / cpu_s))
            document, cpu_s = ours(given.file)
            speeds["ours"].append((document["files"][0]["tokens_per_s"], n_tokens / cpu_s))
            _, first_s, first_cpu_s = run_tool([*tool, "-m", given.base, "--kl-divergence-base", logits])
            output, second_s, second_cpu_s = run_tool(
                [given.tool, "-m", given.file, "--kl-divergence-base", logits, "--kl-divergence",
                 "-t", str(given.threads), "-ngl", "0"]
            )  # fmt: skip
            speeds["tool, both"].append((n_tokens / (first_s + second_s), n_tokens / (first_cpu_s + second_cpu_s)))
            document, cpu_s = ours(given.file, "--base", given.base)
            speeds["ours, both"].append((document["files"][0]["tokens_per_s"], n_tokens / cpu_s))
    report(document, output, speeds)


def report(document: dict[str, Any], output: str, speeds: dict[str, list[tuple[float, float]]]) -> None:
    """Prints the figures of both programs, and their speeds."""
    found = document["files"][0]["kinds"]["all"]
    figures = {}
    print(f"{'figure':<24}{'llama-perplexity':>18}{'mimo-gguf':>14}")
    for name, (pattern, place) in FIGURES.items():
        match = re.search(pattern, output)
        assert match, name
        mine: Any = found
        for key in place:
            mine = mine[key]
        figures[name] = (float(match[match.lastindex or 1]), 100 * mine if name.endswith("%") else mine)
        print(f"{name:<24}{figures[name][0]:>18.6f}{figures[name][1]:>14.6f}")
    for way, note in (("", "perplexity of the file"), (", both", "divergence, base and file read")):
        for which, unit in enumerate(("tok/s", "tok per second of CPU time")):
            theirs, mine = (
                statistics.median(each[which] for each in speeds[f"{who}{way}"]) for who in ("tool", "ours")
            )
            print(f"{note}: {theirs:.1f} and {mine:.1f} {unit}, {mine / theirs:.3f} x")
    print(json.dumps({"machine": machine(), "figures": figures, "speeds": speeds}))


if __name__ == "__main__":
    main()
