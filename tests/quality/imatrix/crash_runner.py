"""Measures an importance matrix again and again, killing it with SIGKILL, until it is finished (needs os.fork).

    python -m tests.quality.imatrix.crash_runner MODELS FOLDER

MODELS holds a model as `model.gguf` and as the checkpoint `hf`. FOLDER/whole-<source> is what a run makes that nobody
kills. FOLDER/killed-<source> is made by runs that die before their second, sixth, tenth, ... call that changes a
file, until one gets through. It prints the number of kills of each.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from unittest import mock

from mimo_gguf.quality.imatrix import run
from tests.quality.imatrix.runs import measure, random_windows
from tests.quantization.crash_runner import die_before_call, in_child

WINDOWS = random_windows(3, 24)


def measure_and_die(src: Path, out: Path, n_calls: int) -> None:
    die_before_call(n_calls)
    with mock.patch.object(run, "_KEEP_EVERY_S", 0.0):
        measure(src, WINDOWS, out)


def count_kills(src: Path, out: Path) -> int:
    """Each kill comes later than the one before, so that the run comes to its end."""
    kills = 0
    while not in_child(partial(measure_and_die, src, out, 2 + 4 * kills)):
        kills += 1
    return kills


def main(models: str, folder: str) -> None:
    kills = []
    for name in ("model.gguf", "hf"):
        src = Path(models) / name
        in_child(partial(measure_and_die, src, Path(folder) / f"whole-{name}", 1 << 30))
        kills.append(count_kills(src, Path(folder) / f"killed-{name}"))
    sys.stdout.write(" ".join(map(str, kills)))


if __name__ == "__main__":
    main(*sys.argv[1:])
