"""Compares `mimo-gguf imatrix` with llama-imatrix: the same figures, and the time for them, on one file and one text.

    python -m benchmarks.imatrix FILE LLAMA_IMATRIX SCRATCH [--chunks 8] [--ctx 512] [--rounds 3] [--threads 2]

The text is this repository's documentation. Commands run in turn, and the median counts; times are of whole commands,
loading included. The figures are also compared on the tiny model in float32, where nothing but summation differs. The
last line on stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.measured import Measurement, machine, measure
from mimo_gguf.core.importance_file import read_importance_sums

ROOT = Path(__file__).resolve().parents[1]
OURS = (sys.executable, "-m", "mimo_gguf")
PEER = "llama-imatrix: trunk"
TRUNK = "ours: trunk"
FULL = "ours: trunk, output matrix and MTP"


def theirs(tool: Path, file: Path, text: Path, out: Path, options: argparse.Namespace, *more: str) -> list[str]:
    """The command of llama-imatrix."""
    numbers = ["-c", options.ctx, "--chunks", options.chunks, "-t", options.threads]
    return [*map(str, [tool, "-m", file, "-f", text, "-o", out, *numbers, "--no-ppl", *more])]


def ours(file: Path, text: Path, out: Path, options: argparse.Namespace, *more: str) -> list[str]:
    """Our command for the same text."""
    numbers = ["--ctx", options.ctx, "--chunks", options.chunks, "--threads", options.threads]
    given = [file, "-f", text, "-o", out, *numbers, "--all-text", "--force", "--quiet"]
    return [*OURS, "imatrix", *map(str, given), *more]


def run(label: str, command: Sequence[str]) -> Measurement:
    """Runs a command to its end and prints a line."""
    done = measure(label, command)
    if done.returncode:
        sys.exit(f"{label} failed:\n{done.output[-2000:]}")
    print(f"{label:40}{done.wall_s:8.1f} s{done.cpu_s:8.1f} CPU s{done.peak_rss_bytes / 2**20:8.0f} MiB", flush=True)
    return done


def largest_difference(ours: Path, theirs: Path) -> tuple[float, int]:
    """The largest difference of a column's importance, relative to its own, and the number of matrices in both."""
    a, b = read_importance_sums(ours), read_importance_sums(theirs)
    both = a.sums.keys() & b.sums.keys()
    assert all(a.counts[name] == b.counts[name] for name in both)
    differences = [np.abs(a.sums[name].astype(float) / b.sums[name] - 1).max() for name in both]
    return float(max(differences)), len(both)


def compare_tiny(options: argparse.Namespace, text: Path) -> tuple[float, int]:
    """The same for the tiny model in float32, with windows as short as its context asks for."""
    file, small = options.scratch / "tiny-F32.gguf", argparse.Namespace(ctx=128, chunks=8, threads=1)
    run(
        "convert the tiny model",
        [*OURS, "convert", str(ROOT / "examples" / "mimo-tiny"), "--type", "F32", "-o", str(file), "--force", "-q"],
    )
    a, b = options.scratch / "tiny-ours.gguf", options.scratch / "tiny-theirs.gguf"
    run("llama-imatrix, tiny model", theirs(options.tool, file, text, b, small, "-b", "128", "--process-output"))
    run("ours, tiny model", ours(file, text, a, small))
    return largest_difference(a, b)


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("tool", type=Path)
    parser.add_argument("scratch", type=Path)
    for name, default in (("chunks", 8), ("ctx", 512), ("rounds", 3), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    options.scratch.mkdir(parents=True, exist_ok=True)
    text = options.scratch / "text.txt"
    text.write_text("\n".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md"))))
    tiny, _ = compare_tiny(options, text)
    out = {label: options.scratch / f"{i}.gguf" for i, label in enumerate((PEER, TRUNK, FULL))}
    commands = {
        PEER: theirs(options.tool, options.file, text, out[PEER], options),
        TRUNK: ours(options.file, text, out[TRUNK], options, "--no-mtp", "--no-output"),
        FULL: ours(options.file, text, out[FULL], options),
    }
    runs: dict[str, list[Measurement]] = {label: [] for label in commands}
    for _ in range(options.rounds):
        for label, command in commands.items():
            runs[label].append(run(label, command))
    n_tokens = options.chunks * options.ctx
    difference, n_matrices = largest_difference(out[FULL], out[PEER])
    print(f"\n| {n_tokens} tokens | tok/s | tokens per CPU second | peak memory |\n|---|---:|---:|---:|")
    for label, of_label in runs.items():
        wall, cpu = (statistics.median(getattr(each, key) for each in of_label) for key in ("wall_s", "cpu_s"))
        peak = max(each.peak_rss_bytes for each in of_label) / 2**20
        print(f"| {label} | {n_tokens / wall:.0f} | {n_tokens / cpu:.1f} | {peak:.0f} MiB |")
    document = {
        "machine": machine(),
        "file": options.file.name,
        "tokens": n_tokens,
        "largest_difference": difference,
        "matrices": n_matrices,
        "largest_difference_float32": tiny,
        "runs": {label: [each.as_json() for each in of_label] for label, of_label in runs.items()},
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
