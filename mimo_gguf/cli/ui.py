"""How things look in the terminal: the only module that knows rich. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.theme import Theme

from mimo_gguf.core.errors import MimoGgufError

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
    err.print("[error]error:[/error]", error.message, markup=True, emoji=False)
    if error.hint:
        err.print("[hint]hint:[/hint]", error.hint, emoji=False)


def print_warning(text: str) -> None:
    err.print("[warning]warning:[/warning]", text, emoji=False)


def print_note(text: str) -> None:
    """A line about what is going on, on stderr."""
    err.print(text, style="note", markup=False, emoji=False)


def print_json(value: Any) -> None:
    """One JSON document on stdout, indented for people, parseable by programs."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None) -> None:
    """A plain table on stdout; columns after the first are right-aligned when all their cells start with a digit."""
    cells = [list(row) for row in rows]
    table = Table(title=title, title_justify="left", title_style="heading", box=None, pad_edge=False)
    for i, column in enumerate(columns):
        numeric = bool(cells) and all(row[i][:1].isdigit() or row[i] in ("", "-") for row in cells)
        table.add_column(column, justify="right" if numeric and i else "left", header_style="heading")
    for row in cells:
        table.add_row(*row)
    out.print(table, markup=False)
