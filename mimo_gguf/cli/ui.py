"""How things look in the terminal: colours, tables, errors. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.theme import Theme

from mimo_gguf.core.errors import MimoGgufError
from mimo_gguf.core.units import counted, format_duration, format_size

if TYPE_CHECKING:
    from mimo_gguf.quantization.report import QuantizeReport

# Colours in the middle between black and white: the terminal's own yellow and cyan cannot be read on a light
# background, its blue not on a dark one.
TONES: Final = {
    "red": "color(160)",
    "green": "color(29)",
    "yellow": "color(130)",
    "blue": "color(32)",
    "magenta": "color(133)",
    "cyan": "color(30)",
}
# Names of meanings, so that one place decides colours.
_THEME: Final = Theme(
    {
        "error": f"bold {TONES['red']}",
        "hint": TONES["cyan"],
        "note": "dim",
        "good": TONES["green"],
        "warning": f"bold {TONES['yellow']}",
        "heading": "bold",
        "figure": f"bold {TONES['cyan']}",
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
    """Broken between words; but a hint with a command is one line, however long, so that it can be copied."""
    text = f"{label}: {harmless(text)}"
    first, *more = [text] if label == "hint" and _COMMAND.search(text) else _between_words(text).split("\n")
    err.print(Text.assemble((f"{label}:", label), first.removeprefix(f"{label}:"), *(f"\n{line}" for line in more)))


def print_note(text: str) -> None:
    """A line about what is going on, on stderr; broken between words on a terminal."""
    err.print(Text(_between_words(harmless(text)), style="note"))


def _between_words(text: str) -> str:
    """The text in lines as wide as the terminal; elsewhere, and where a word is wider, it stays in one piece."""
    return "\n".join(line.strip() for line in joined(text.split(" "), err.width, " ")) if err.is_terminal else text


_COMMAND: Final = re.compile(r"mimo-gguf \w|pip install ")


def print_joined(parts: Sequence[str], separator: str, *, note: bool = False) -> None:
    """The parts on stdout (a note: on stderr), on a terminal in lines that break between them only."""
    console = err if note else out
    width = console.width if console.is_terminal else sys.maxsize
    text = "\n".join(joined([harmless(part) for part in parts], width, separator))
    console.print(Text(text, style="note" if note else ""))


def joined(parts: Sequence[str], width: int, separator: str) -> list[str]:
    """The parts in lines of at most `width` columns, each part in one piece."""
    lines = list(parts[:1])
    for part in parts[1:]:
        if cell_len(lines[-1]) + cell_len(separator) + cell_len(part) <= width:
            lines[-1] += separator + part
        else:
            lines.append(part)
    return lines


def harmless(text: str) -> str:
    """The text on one line, without what would move the cursor or end the encoding: files and file names are untrusted.

    A line break becomes `\\n`, an escape `\\x1b`, half a character `\\ud800`.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def visible(text: str) -> str:
    """The text with its lines, but with pictures for other control characters: a model may say anything."""
    return _CONTROLS.sub(lambda found: chr(0x2400 + ord(found[0])) if found[0] < " " else "\ufffd", text)


_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """One JSON document on stdout, indented for people, parseable by programs; on one line without `indent`."""
    value = _with_finite_numbers(value)
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # another code page, or a file name that is no text
        text = json.dumps(value, indent=indent)
    print(text, flush=True)


def _with_finite_numbers(value: Any) -> Any:
    """`value` with NaN and the infinities, which JSON does not have, as text: "nan", "inf", "-inf"."""
    if isinstance(value, dict):
        return {key: _with_finite_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_with_finite_numbers(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


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
        resumed = ", complete already" if output.was_complete else resumed
        size = f"{format_size(output.n_bytes)}{parts}, {output.bits_per_weight:.2f} bits per weight"
        print_field(output.profile, f"{output.paths[0]}, {size}{resumed}", style="good")
    print_notes([(output.profile, output.notes) for output in report.outputs])
    speed = (
        f"read {_rate(report.read_gb_s)}, written {_rate(report.written_gb_s)}, {counted(report.n_threads, 'thread')}"
    )
    print_field("time", f"{format_duration(report.seconds)}; {speed}")
    for kernel in dict.fromkeys(report.kernels.values()):
        types = ", ".join(ggml_type for ggml_type, used in report.kernels.items() if used == kernel)
        print_field("kernel", f"{types}: {kernel}")
    print_field("exact", report.exactness)


def print_notes(outputs: Sequence[tuple[str, Sequence[str]]]) -> None:
    """The notes of each output (its profile, its notes): once each, with the profiles they are about unless all are."""
    about: dict[str, list[str]] = {}
    for profile, notes in outputs:
        for note in notes:
            about.setdefault(note, []).append(profile)
    for note, profiles in about.items():
        print_warning(note if len(profiles) == len(outputs) else f"{', '.join(profiles)}: {note}")


def _rate(gb_s: float) -> str:
    return f"{gb_s:.2f} GB/s" if gb_s >= 1 else f"{1000 * gb_s:.0f} MB/s"
