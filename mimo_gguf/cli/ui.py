"""How things look in the terminal: the only module that knows rich. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.theme import Theme

from mimo_gguf.core.errors import MimoGgufError
from mimo_gguf.core.units import format_duration, format_size

if TYPE_CHECKING:
    from mimo_gguf.quantization.report import QuantizeReport

# Names of meanings, so that one place decides colours; all readable on light and dark backgrounds.
_THEME = Theme(
    {
        "error": "bold red",
        "hint": "cyan",
        "note": "dim",
        "good": "green",
        "warning": "yellow",
        "heading": "bold",
        "figure": "bold cyan",
    }
)
out = Console(theme=_THEME, highlight=False, soft_wrap=True)
err = Console(theme=_THEME, highlight=False, soft_wrap=True, stderr=True)


def print_error(error: MimoGgufError) -> None:
    """`error: what and where`, then `hint: what to do`, on stderr."""
    _print_labelled("error", error.message)
    if error.hint:
        _print_labelled("hint", error.hint)


def print_warning(text: str) -> None:
    _print_labelled("warning", text)


def _print_labelled(label: str, text: str) -> None:
    err.print(Text.assemble((f"{label}:", label), " ", harmless(text)))


def print_note(text: str) -> None:
    """A line about what is going on, on stderr."""
    err.print(Text(harmless(text), style="note"))


def harmless(text: str) -> str:
    """The text on one line, without what would move the cursor or end the encoding: files and file names are untrusted.

    A line break becomes `\\n`, an escape `\\x1b`, half a character `\\ud800`.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def print_json(value: Any) -> None:
    """One JSON document on stdout, indented for people, parseable by programs."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # another code page, or a file name that is no text
        text = json.dumps(value, indent=2)
    print(text)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None) -> None:
    """A plain table on stdout; columns after the first are right-aligned when all their cells start with a digit."""
    cells = [list(row) for row in rows]
    table = Table(title=title, title_justify="left", title_style="heading", box=None, pad_edge=False)
    for i, column in enumerate(columns):
        numeric = bool(cells) and all(row[i][:1].isdigit() or row[i] in ("", "-") for row in cells)
        table.add_column(column, justify="right" if numeric and i else "left", header_style="heading")
    for row in cells:
        table.add_row(*(Text(harmless(cell)) for cell in row))
    out.print(table)


def print_field(label: str, text: str, *, width: int = 11, style: str = "heading") -> None:
    """`label      text` on stdout, as in a record."""
    out.print(Text.assemble((f"{label:<{width}}", style), harmless(text)))


def print_report(report: QuantizeReport) -> None:
    """What a finished run wrote: a line per output, then time, throughput and the kernels used."""
    for output in report.outputs:
        parts = f" in {len(output.paths)} parts" if len(output.paths) > 1 else ""
        resumed = f", {format_size(output.resumed_bytes)} from an earlier run" if output.resumed_bytes else ""
        size = f"{format_size(output.n_bytes)}{parts}, {output.bits_per_weight:.2f} bits per weight"
        print_field(output.profile, f"{output.paths[0]}, {size}{resumed}", style="good")
        for note in output.notes:
            print_warning(note)
    speed = f"read {_rate(report.read_gb_s)}, written {_rate(report.written_gb_s)}, {report.n_threads} threads"
    print_field("time", f"{format_duration(report.seconds)}; {speed}")
    for kernel in dict.fromkeys(report.kernels.values()):
        types = ", ".join(ggml_type for ggml_type, used in report.kernels.items() if used == kernel)
        print_field("kernel", f"{types}: {kernel}")
    print_field("exact", report.exactness)


def _rate(gb_s: float) -> str:
    return f"{gb_s:.2f} GB/s" if gb_s >= 1 else f"{1000 * gb_s:.0f} MB/s"
