"""Sizes, counts and lists as people write and read them. Inside the package a size is an int of bytes (`_bytes`)."""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import islice
from typing import Final

from mimo_gguf.core.errors import UsageError

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

_FACTORS: Final[dict[str, int]] = {
    "": 1, "b": 1,
    "k": KIB, "kib": KIB, "kb": 1000,
    "m": MIB, "mib": MIB, "mb": 1000**2,
    "g": GIB, "gib": GIB, "gb": 1000**3,
    "t": 1 << 40, "tib": 1 << 40, "tb": 1000**4,
}  # fmt: skip
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


def parse_size(text: str) -> int:
    """The number of bytes that a text like `8GiB`, `8G`, `8000MB` or `1048576` means.

    `K`, `M`, `G`, `T` alone are binary (1024), as in llama.cpp and ls; `KB`, `MB`, `GB` are decimal.

    Raises:
        UsageError: the text is not a size, or beyond any machine.
    """
    match = _SIZE.fullmatch(text)
    factor = _FACTORS.get(match.group(2).lower()) if match else None
    if match is None or factor is None:
        raise UsageError(f"{text!r} is not a size", hint="write it like 8GiB, 512MiB or 8000MB")
    number = float(match.group(1)) * factor
    if not number < 1 << 63:
        raise UsageError(f"{text!r:.40} is more than any machine has", hint="write it like 8GiB, 512MiB or 8000MB")
    return int(number)


def format_size(n_bytes: int) -> str:
    """The size in binary units, with about three significant places: `4.47 GiB`, `333.0 MiB`, `12 B`."""
    for factor, unit, places in ((GIB, "GiB", 2), (MIB, "MiB", 1), (KIB, "KiB", 1)):
        if abs(n_bytes) >= factor:
            return f"{n_bytes / factor:.{places}f} {unit}"
    return f"{n_bytes} B"


def format_share(n_bytes: int, total_bytes: int) -> str:
    """A part in the unit of the whole: `1.92 of 4.47 GiB`."""
    whole, unit = format_size(total_bytes).split()
    factor = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB}[unit]
    places = len(whole.partition(".")[2])
    return f"{n_bytes / factor:.{places}f} of {whole} {unit}"


def format_count(n: int) -> str:
    """A number of parameters, in decimal units: `7.83 B`, `210.8 M`, `3.3 K`."""
    for factor, unit, places in ((10**9, "B", 2), (10**6, "M", 1), (10**3, "K", 1)):
        if n >= factor:
            return f"{n / factor:.{places}f} {unit}"
    return str(n)


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: `1 thread`, `2 threads`, `0 files`, `3 matrices`.

    Args:
        plural: the noun for every number but one, if an "s" at its end does not make it.
    """
    return f"{n} {noun if n == 1 else plural or noun + 's'}"


def listed(names: Collection[str], most: int = 4) -> str:
    """At most `most` of the names, and the number of the others: `a, b, c, d and 7 more`."""
    text = ", ".join(islice(names, most))
    return f"{text} and {len(names) - most} more" if len(names) > most else text


def format_clock(seconds: float) -> str:
    """A time that is left, in short: `8 s`, `2:05`, `1:03:20`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_duration(seconds: float) -> str:
    """A time that has passed: `8.4 s`, `2 min 05 s`, `1 h 03 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
