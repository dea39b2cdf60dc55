"""Prints to the terminal: colours, tables, errors. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Sequence
from typing import IO, TYPE_CHECKING, Any, Final

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.theme import Theme

from mimo_gguf.core.errors import MimoGgufError
from mimo_gguf.core.units import counted, format_duration, format_size

if TYPE_CHECKING:
    from types import TracebackType

    from mimo_gguf.quantization.report import QuantizeReport

# Colours of middle brightness: the terminal's own yellow and cyan cannot be read on a light background, its blue not on
# a dark one.
TONES: Final = {
    "red": "color(160)",
    "green": "color(29)",
    "yellow": "color(130)",
    "blue": "color(32)",
    "magenta": "color(133)",
    "cyan": "color(30)",
}
# Styles are named by meaning, so that colours are chosen in one place.
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
    """Prints `error: what and where`, then `hint: what to do`, on stderr."""
    _print_labelled("error", error.message)
    if error.hint:
        _print_labelled("hint", error.hint)


def print_warning(text: str) -> None:
    """Prints `warning: text` on stderr."""
    _print_labelled("warning", text)


def _print_labelled(label: str, text: str) -> None:
    """Prints a labelled text, broken between words. A hint with a command stays on one line, to be copied."""
    text = f"{label}: {harmless(text)}"
    first, *more = [text] if label == "hint" and _COMMAND.search(text) else _between_words(text, err).split("\n")
    err.print(Text.assemble((f"{label}:", label), first.removeprefix(f"{label}:"), *(f"\n{line}" for line in more)))


def print_note(text: str) -> None:
    """Prints a line about what is going on, on stderr; on a terminal it is broken between words."""
    err.print(Text(_between_words(harmless(text), err), style="note"))


def _between_words(text: str, console: Console) -> str:
    """Breaks a text into lines as wide as the terminal. Words, and texts that go elsewhere, are not broken."""
    if not console.is_terminal or cell_len(text) <= console.width:
        return text
    return "\n".join(line.strip() for line in joined(text.split(" "), console.width, " "))


_COMMAND: Final = re.compile(r"mimo-gguf \w|pip install ")


def print_joined(parts: Sequence[str], separator: str, *, note: bool = False) -> None:
    """Prints parts on stdout, or a note on stderr; on a terminal lines break only between parts."""
    console = err if note else out
    width = console.width if console.is_terminal else sys.maxsize
    text = "\n".join(joined([harmless(part) for part in parts], width, separator))
    console.print(Text(text, style="note" if note else ""))


def joined(parts: Sequence[str], width: int, separator: str) -> list[str]:
    """Joins parts into lines of at most `width` columns; no part is broken."""
    lines = list(parts[:1])
    for part in parts[1:]:
        if cell_len(lines[-1]) + cell_len(separator) + cell_len(part) <= width:
            lines[-1] += separator + part
        else:
            lines.append(part)
    return lines


# ---- untrusted text: everything shown passes through one of these


def harmless(text: str) -> str:
    """Spells out the characters that would move the cursor, be invisible, reverse text, or cannot be encoded.

    Names and values come from files that anybody may have made. A line break becomes `\\n`, an escape `\\x1b`, half a
    character `\\ud800`.
    """
    return _UNPLAIN.sub(lambda found: _spelled_out(found[0]), text)


def harmless_lines(text: str) -> str:
    """Does the same as `harmless`, but keeps line breaks and tabs."""
    return _UNPLAIN.sub(lambda found: found[0] if found[0] in "\n\t" else _spelled_out(found[0]), text)


def visible(text: str) -> str:
    """Replaces control characters by pictures of them, because a model may write anything. Line breaks stay.

    Joiners of letters (U+200C, U+200D) stay, because some languages are written with them.
    """
    return _CONTROLS.sub(lambda found: chr(0x2400 + ord(found[0])) if found[0] < " " else "\ufffd", text)


def _spelled_out(letter: str) -> str:
    return letter if letter.isprintable() else repr(letter)[1:-1]


_UNPLAIN: Final = re.compile(r"[^ -~]")
# C0 and C1 controls; invisible and text-reversing characters, line separators, halves of characters, tags.
_CONTROLS: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


class HarmlessLines:
    """A stream that writes `harmless_lines` to another stream, for llama.cpp's log."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Writes the text, with harmful characters spelled out."""
        self._stream.write(harmless_lines(text))

    def flush(self) -> None:
        """Flushes the stream."""
        self._stream.flush()


def print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints Python's traceback of an unexpected error on stderr; for `sys.excepthook`."""
    import traceback

    sys.stderr.write(harmless_lines("".join(traceback.format_exception(kind, error, trace))))


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Prints one JSON document on stdout; on one line if `indent` is None."""
    value = _with_finite_numbers(value)
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    text = _UNPLAIN.sub(lambda found: _escaped_in_json(found[0]), text)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # another code page
        text = json.dumps(value, indent=indent)
    print(text, flush=True)


def _escaped_in_json(letter: str) -> str:
    """Escapes a letter of a JSON text if it is not printable; the line breaks between values stay."""
    return letter if letter.isprintable() or letter == "\n" else json.dumps(letter)[1:-1]


def _with_finite_numbers(value: Any) -> Any:
    """Replaces NaN and the infinities, which JSON does not have, by the texts "nan", "inf" and "-inf"."""
    if isinstance(value, dict):
        return {key: _with_finite_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_with_finite_numbers(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None) -> None:
    """Prints a plain table on stdout. Columns after the first are right-aligned if all their cells are numbers."""
    cells = [list(row) for row in rows]
    table = Table(title=title, title_justify="left", title_style="heading", box=None, pad_edge=False)
    for i, column in enumerate(columns):
        numeric = bool(cells) and all(row[i][:1].isdigit() or row[i] in ("", "-") for row in cells)
        table.add_column(column, justify="right" if numeric and i else "left", header_style="heading")
    for row in cells:
        table.add_row(*(Text(harmless(cell)) for cell in row))
    out.print(table)


def print_line(text: str = "", style: str = "") -> None:
    """Prints a line on stdout; on a terminal it is broken between words."""
    out.print(Text(_between_words(harmless(text), out), style=style))


def print_field(label: str, text: str, *, width: int = 11, style: str = "heading", console: Console = out) -> None:
    """Prints `label      text` on stdout or `err`; on a terminal it is broken between words, the lines aligned."""
    text = harmless(text)
    if console.is_terminal:
        rows = joined(text.split(" "), max(console.width - width, 20), " ")
        text = ("\n" + " " * width).join(row.strip() for row in rows)
    console.print(Text.assemble((f"{label:<{width}}", style), text))


def print_report(report: QuantizeReport) -> None:
    """Prints what a finished run wrote: a line per output, then time, throughput and the kernels used."""
    for output in report.outputs:
        parts = f" in {len(output.paths)} parts" if len(output.paths) > 1 else ""
        resumed = f", {format_size(output.resumed_bytes)} from an earlier run" if output.resumed_bytes else ""
        resumed = ", complete already" if output.was_complete else resumed
        size = f"{format_size(output.n_bytes)}{parts}, {output.bits_per_weight:.2f} bits per weight"
        print_field(output.profile, f"{output.paths[0]}, {size}{resumed}", style="good")
    print_notes([(output.profile, output.notes) for output in report.outputs])
    print_field("time", f"{format_duration(report.seconds)}; {_speed(report)}")
    for kernel in dict.fromkeys(report.kernels.values()):
        types = ", ".join(ggml_type for ggml_type, used in report.kernels.items() if used == kernel)
        print_field("kernel", f"{types}: {kernel}")
    print_field("exact", report.exactness)


def print_notes(outputs: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Prints every note once, with the profiles that it is about unless it is about all.

    Args:
        outputs: (profile name, its notes) for each output.
    """
    about: dict[str, list[str]] = {}
    for profile, notes in outputs:
        for note in notes:
            about.setdefault(note, []).append(profile)
    for note, profiles in about.items():
        print_warning(note if len(profiles) == len(outputs) else f"{', '.join(profiles)}: {note}")


def _speed(report: QuantizeReport) -> str:
    if all(output.was_complete for output in report.outputs):
        return "nothing had to be done"
    read, written = _rate(report.read_gb_s), _rate(report.written_gb_s)
    return f"read {read}, written {written}, {counted(report.n_threads, 'thread')}"


def _rate(gb_s: float) -> str:
    return f"{gb_s:.2f} GB/s" if gb_s >= 1 else f"{1000 * gb_s:.0f} MB/s"
