"""The rows of a run as JSON lines, each written out as it comes, and what the documents read back from them."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path(__file__).parents[1] / "results" / "gpu"
Row = dict[str, Any]


@dataclass(slots=True)
class Recorder:
    """Appends rows to a file; a run that is stopped at any moment has left every row that it measured."""

    path: Path
    started: float

    @classmethod
    def beginning(cls, path: Path, *, keep: bool = False) -> Recorder:
        """A recorder that begins a new file; or, with `keep`, goes on behind the whole rows that are there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8") if keep and path.is_file() else ""
        path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
        return cls(path, time.monotonic())

    def write(self, row: Row) -> None:
        """Appends one row with the seconds since the run began, and makes sure that it is on the disk."""
        row = row | {"at_s": round(time.monotonic() - self.started, 1)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(json.dumps(row), flush=True)


def is_rehearsal(path: Path) -> bool:
    """Whether the rows are no card's: of the tiny model, of a software GPU, or of no GPU at all."""
    return any(row.get("rehearsal") for row in read_rows(path, "there"))


def read_rows(path: Path, step: str) -> list[Row]:
    """The rows of one step; a last line that was cut off is left out."""
    return [row for row in _rows(path) if row.get("step") == step]


def _rows(path: Path) -> Iterator[Row]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return


def card_file(description: str) -> Path:
    """The place of a card's results: `benchmarks/results/gpu/nvidia-h100-80gb-hbm3.jsonl`."""
    return RESULTS / (re.sub(r"[^a-z0-9]+", "-", description.lower()).strip("-") + ".jsonl")
