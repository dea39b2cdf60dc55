"""Writes the tables of docs/memory.md and BENCHMARKS.md, and the catalogue's measured shares, from cards' results.

    python -m benchmarks.gpu.documents [--check]

`--check` writes nothing and ends with 1 if a file differs; a test does the same. The results are the files of
`benchmarks/results/gpu/`, one for each card, as `python -m benchmarks.gpu` leaves them.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu.record import RESULTS, Row, is_rehearsal, read_rows
from mimo_gguf.core.units import MIB

ROOT: Final = Path(__file__).parents[2]
SHARES: Final = ROOT / "mimo_gguf" / "hardware" / "measured_shares.csv"
NOTHING: Final = "No card has been measured yet."
MEMORY_HEAD: Final = (
    "| device | layers | context | KV cache | MTP | micro-batch | counted MiB | used MiB | difference |",
    "|---|---|---:|---|---|---:|---:|---:|---:|",
)
SPEED_HEAD: Final = (
    "| device | plain tok/s | of bandwidth | 1 draft at 60 / 75 / 90 % | 2 drafts | 3 drafts | 8 together | prompt |",
    "|---|---:|---:|---|---|---|---:|---:|",
)


def results() -> list[Path]:
    """The files of cards; rehearsals are left out."""
    return [path for path in sorted(RESULTS.glob("*.jsonl")) if not is_rehearsal(path)]


def memory_table() -> str:
    """The rows of every card, those that differ most first."""
    rows = [row for path in results() for row in read_rows(path, "memory") if "used" in row]
    rows.sort(key=lambda row: -abs(row["difference"]))
    return "\n".join([*MEMORY_HEAD, *map(_memory_line, rows)]) if rows else NOTHING


def _memory_line(row: Row) -> str:
    cell = row["cell"]
    counted, used, difference = (
        f"{n_bytes / MIB:.1f}" for n_bytes in (row["counted"], row["used"]["answer"], row["difference"])
    )
    layers = "all" if cell["share"] == 1.0 else f"{cell['share']:.0%}"
    return (
        f"| {row['device']} | {layers} | {cell['n_ctx']} | {cell['kv_type']} | {'on' if cell['mtp'] else 'off'} "
        f"| {cell['n_ubatch']} | {counted} | {used} | {difference} |"
    )


def speed_table() -> str:
    """One line for each card."""
    lines = [line for path in results() for line in _speed_lines(read_rows(path, "speed"))]
    return "\n".join([*SPEED_HEAD, *lines]) if lines else NOTHING


def _speed_lines(rows: list[Row]) -> Iterator[str]:
    rows = rows[::-1]  # a step that was run again (--only) stands behind
    plain = next((row for row in rows if row.get("what") == "plain"), None)
    if plain is None:
        return

    def speed(**wanted: Any) -> str:
        found = (row["tok_s"] for row in rows if all(row.get(name) == value for name, value in wanted.items()))
        value = next(found, None)
        return "-" if value is None else f"{value:.1f}"

    drafts = [
        " / ".join(
            speed(what="generation", together=1, drafts=n, acceptance=share, as_it_comes=False)
            for share in (0.6, 0.75, 0.9)
        )
        for n in (1, 2, 3)
    ]
    together = speed(what="generation", together=8, drafts=0)
    share = f"{plain['share']:.0%}" if plain["share"] else "unknown"
    yield (
        f"| {plain['device']} | {plain['tok_s']:.1f} | {share} | {' | '.join(drafts)} | {together} "
        f"| {speed(what='prompt', n_tokens=512)} |"
    )


def shares_csv() -> str:
    """The share of its bandwidth that each card reached, as the catalogue reads it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("description", "share", "date"))
    for path in results():
        there = read_rows(path, "there")
        plain = [row for row in read_rows(path, "speed") if row.get("what") == "plain" and row["share"]]
        for row in plain[-1:]:
            writer.writerow((row["device"], f"{row['share']:.2f}", there[-1]["date"]))
    return text.getvalue()


def placed(document: str, name: str, table: str) -> str:
    """`document` with `table` between the markers of `name`."""
    begin, end = f"<!-- gpu {name}: begin -->\n", f"\n<!-- gpu {name}: end -->"
    before, rest = document.split(begin)
    return before + begin + table + end + rest.split(end)[1]


def documents() -> dict[Path, str]:
    """What each file should contain."""
    memory, benchmarks = ROOT / "docs" / "memory.md", ROOT / "BENCHMARKS.md"
    return {
        memory: placed(memory.read_text(encoding="utf-8"), "memory", memory_table()),
        benchmarks: placed(benchmarks.read_text(encoding="utf-8"), "speed", speed_table()),
        SHARES: shares_csv(),
    }


def differing() -> list[Path]:
    """The files that are not what the results say."""
    return [
        path for path, text in documents().items() if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        sys.exit("\n".join(f"{path} differs from the results" for path in differing()) or 0)
    for path, text in documents().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
