"""Compares `mimo-gguf convert` with llama.cpp's convert_hf_to_gguf.py: a checkpoint to BF16, in the same run.

    python -m benchmarks.convert CHECKPOINT LLAMA_CPP_SOURCE SCRATCH [--rounds 2]

The peer cannot convert MiMo. It gets the trunk as Qwen2 (see peer_convert.py) and so writes 2.7 % less. The last line
on stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.measured import Measurement, drop_page_cache, machine, measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("llama_cpp", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    out = arguments.scratch / "out.gguf"
    python = sys.executable
    commands = {
        "mimo-gguf convert": [python, "-m", "mimo_gguf", "convert", arguments.checkpoint, "-o", out, "--json"],
        "convert_hf_to_gguf.py": [
            python, "-m", "benchmarks.peer_convert", arguments.llama_cpp, arguments.checkpoint, out,
        ],
    }  # fmt: skip
    results: dict[str, list[Measurement]] = {label: [] for label in commands}
    for _ in range(arguments.rounds):
        for label, command in commands.items():
            cold = drop_page_cache()
            results[label].append(measure(label, command))
            if results[label][-1].returncode:
                sys.exit(f"{label} failed")
            for path in arguments.scratch.glob("out.gguf*"):
                path.unlink()
    print(f"{'':24}{'best s':>8}{'CPU s':>8}{'peak anon MiB':>15}{'peak RSS MiB':>14}")
    for label, runs in results.items():
        best = min(runs, key=lambda run: run.wall_s)
        memory = f"{best.peak_anon_bytes / 2**20:15.0f}{best.peak_rss_bytes / 2**20:14.0f}"
        print(f"{label:24}{best.wall_s:8.1f}{best.cpu_s:8.1f}{memory}")
    document = {
        "machine": machine(),
        "cold_cache": cold,
        "runs": {label: [run.as_json() for run in runs] for label, runs in results.items()},
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
