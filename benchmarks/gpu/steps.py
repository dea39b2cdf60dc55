"""The measurements by name, each run in a process of its own: `python -m benchmarks.gpu.steps NAME FILE SETTINGS`.

SETTINGS is a JSON object. Rows go to stdout, one JSON document a line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu.record import Row
from benchmarks.gpu.worker import add_worker


def cell(path: Path, **settings: Any) -> Iterator[Row]:
    from benchmarks.gpu.memory import MemoryCell, measure_cell

    yield measure_cell(path, MemoryCell(**settings))


def speed(path: Path, **settings: Any) -> Iterator[Row]:
    from benchmarks.gpu.speed import measure_speed

    yield from measure_speed(path, **settings)


def exactness(path: Path, **settings: Any) -> Iterator[Row]:
    from benchmarks.gpu.exactness import measure_exactness

    yield from measure_exactness(path, **settings)


STEPS: Final[dict[str, Callable[..., Iterator[Row]]]] = {"cell": cell, "speed": speed, "exactness": exactness}


def main() -> None:
    add_worker()
    for row in STEPS[sys.argv[1]](Path(sys.argv[2]), **json.loads(sys.argv[3])):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
