"""How much of its sums the tiny model loses with each file type: `mimo-gguf evaluate`, paired with F16.

    python -m benchmarks.evaluation [--types Q4_K_M Q3_K_M Q2_K] [--limit N] [--exact]

It needs no download. The last line on stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import mimo_gguf

MODEL = Path(__file__).parents[1] / "examples" / "mimo-tiny"


def main() -> None:
    arguments = argparse.ArgumentParser(description="Evaluate the tiny model's sums in several file types.")
    arguments.add_argument("--types", nargs="+", default=["Q8_0", "Q4_K_M", "Q3_K_M", "Q2_K"])
    arguments.add_argument("--limit", type=int, default=500)
    arguments.add_argument("--exact", action="store_true")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mimo_gguf.quantize(MODEL, types=["F16", *options.types], out=folder)
        how: dict[str, Any] = {"task": "sums", "limit": options.limit, "out": folder, "max_tokens": 256}
        how |= {"ctx": 8192, "parallel": 16, "exact": options.exact}
        figures = [measure(folder / f"mimo-tiny-{ftype}.gguf", folder / "mimo-tiny-F16", how) for ftype in
                   ("F16", *options.types)]  # fmt: skip
    print(json.dumps(figures))


def measure(file: Path, base: Path, how: dict[str, Any]) -> dict[str, Any]:
    """Evaluates a file, beside the base if that has been evaluated."""
    began, cpu = time.monotonic(), time.process_time()
    found = mimo_gguf.evaluate(file, base=base if base.is_dir() else None, **how).model.tasks["sums"]
    seconds, cpu_s = time.monotonic() - began, time.process_time() - cpu
    score, comparison = found.score, found.comparison
    assert score.score is not None and score.error is not None
    line = f"{file.stem:<20}{100 * score.score:6.1f} ± {100 * score.error:.1f}{score.n_cut:5} cut off"
    line += f"{score.tokens:8.1f} tokens{seconds:8.1f} s{cpu_s:8.1f} s of CPU"
    if comparison is not None:
        points = [100 * each for each in (comparison.difference, comparison.low, comparison.high)]
        line += "   {:+.1f} ({:+.1f} to {:+.1f})".format(*points)
        line += f"  better {comparison.n_better}, worse {comparison.n_worse}, p = {comparison.p:.2g}"
    print(line, flush=True)
    beside = comparison.as_json() if comparison else None
    return {"file": file.stem, **score.as_json(), "comparison": beside, "wall_s": seconds, "cpu_s": cpu_s}


if __name__ == "__main__":
    main()
