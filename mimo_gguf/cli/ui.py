"""How things look in the terminal: colours, tables, errors. Results go to stdout, everything else to stderr."""

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
    first, *more = [text] if label == "hint" and _COMMAND.search(text) else _between_words(text, err).split("\n")
    err.print(Text.assemble((f"{label}:", label), first.removeprefix(f"{label}:"), *(f"\n{line}" for line in more)))


def print_note(text: str) -> None:
    """A line about what is going on, on stderr; broken between words on a terminal."""
    err.print(Text(_between_words(harmless(text), err), style="note"))


def _between_words(text: str, console: Console) -> str:
    """The text in lines as wide as the terminal; elsewhere, and if a word is wider, it stays in one piece."""
    if not console.is_terminal or cell_len(text) <= console.width:
        return text
    return "\n".join(line.strip() for line in joined(text.split(" "), console.width, " "))


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


# ---- untrusted text: everything shown passes through one of these


def harmless(text: str) -> str:
    """The text on one line, without what would move the cursor, hide, turn text around or end the encoding.

    Names and values come from files that anybody may have made. A line break becomes `\\n`, an escape `\\x1b`, half a
    character `\\ud800`.
    """
    return _UNPLAIN.sub(lambda found: _spelled_out(found[0]), text)


def harmless_lines(text: str) -> str:
    """`harmless`, line by line: line breaks and tabs stay."""
    return _UNPLAIN.sub(lambda found: found[0] if found[0] in "\n\t" else _spelled_out(found[0]), text)


def visible(text: str) -> str:
    """The text with its lines, but with pictures for control characters: a model may say anything.

    What joins letters (U+200C, U+200D) stays, because some languages are written with it.
    """
    return _CONTROLS.sub(lambda found: chr(0x2400 + ord(found[0])) if found[0] < " " else "\ufffd", text)


def _spelled_out(letter: str) -> str:
    return letter if letter.isprintable() else repr(letter)[1:-1]


_UNPLAIN: Final = re.compile(r"[^ -~]")
# C0 and C1 controls; invisible and turning characters, line separators, halves of characters, tags.
_CONTROLS: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


class HarmlessLines:
    """A stream that writes to another what is `harmless`, for llama.cpp's log."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Writes the text, spelled out where that is necessary."""
        self._stream.write(harmless_lines(text))

    def flush(self) -> None:
        """Flushes the stream."""
        self._stream.flush()


def print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What Python says of an error that nobody foresaw, on stderr; for `sys.excepthook`."""
    import traceback

    sys.stderr.write(harmless_lines("".join(traceback.format_exception(kind, error, trace))))


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """One JSON document on stdout, indented for people, parseable by programs; on one line without `indent`."""
    value = _with_finite_numbers(value)
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    text = _UNPLAIN.sub(lambda found: _escaped_in_json(found[0]), text)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # another code page
        text = json.dumps(value, indent=indent)
    print(text, flush=True)


def _escaped_in_json(letter: str) -> str:
    """A letter of a JSON text, by its number if it does not show; the line breaks of the form stay."""
    return letter if letter.isprintable() or letter == "\n" else json.dumps(letter)[1:-1]


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


def print_line(text: str = "", style: str = "") -> None:
    """A line on stdout, on a terminal broken between words."""
    out.print(Text(_between_words(harmless(text), out), style=style))


def print_field(label: str, text: str, *, width: int = 11, style: str = "heading") -> None:
    """`label      text` on stdout, as in a record; on a terminal broken between words, what follows below the text."""
    text = harmless(text)
    if out.is_terminal:
        rows = joined(text.split(" "), max(out.width - width, 20), " ")
        text = ("\n" + " " * width).join(row.strip() for row in rows)
    out.print(Text.assemble((f"{label:<{width}}", style), text))


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
