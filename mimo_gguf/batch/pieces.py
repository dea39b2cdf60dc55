"""Cuts an input into pieces, and a piece into parcels of rows, so that whoever answers elsewhere gets a few at a time.

A piece is a place in a file. What is in its parcels depends on nothing else, so that it can be read a second time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mimo_gguf.batch.ids import IdTable
from mimo_gguf.batch.reading import LOOK_AHEAD, InputFile, Lines, Stamp
from mimo_gguf.batch.rows import Row
from mimo_gguf.batch.survey import is_answered, row_of

_LARGE_BYTES: Final = 4 << 20  # a piece ends behind the line that makes it so large
_READ_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """Some lines of a file. It can be pickled.

    Attributes:
        stamp: the state of the file that was cut.
        n_before: lines before it.
        first, n_bytes: where it begins, and how long it is.
    """

    path: Path
    stamp: Stamp
    n_before: int
    first: int
    n_bytes: int


def cut(file: InputFile) -> Iterator[Piece]:
    """Cuts a file between lines: the order of the pieces is that of the file.

    Raises:
        UsageError: the file cannot be read.
    """
    path, first, n_before, n_lines, at = file.path.absolute(), 0, 0, 0, 0
    for block in file.blocks(_READ_BYTES):
        end = -1
        while (end := block.find(b"\n", end + 1)) >= 0:
            n_lines += 1
            n_bytes = at + end + 1 - first
            if n_lines >= LOOK_AHEAD or n_bytes >= _LARGE_BYTES:
                yield Piece(path, file.stamp, n_before, first, n_bytes)
                first, n_before, n_lines = first + n_bytes, n_before + n_lines, 0
        at += len(block)
    if at > first:
        yield Piece(path, file.stamp, n_before, first, at - first)


def parcels(piece: Piece, answered: IdTable, n_rows: int) -> Iterator[list[Row]]:
    """The rows of a piece that are not answered, up to `n_rows` at a time; those with a common beginning together.

    Raises:
        UsageError: the file has changed since it was cut, or cannot be read.
    """
    file = InputFile(piece.path)
    try:
        file.check_is(piece.stamp)
        os.lseek(file.fd, piece.first, os.SEEK_SET)
        lines = Lines(file.fd, n_before=piece.n_before, n_bytes=piece.n_bytes)
        rows: list[Row] = []
        while block := lines.block():
            found = [row_of(line) for line in block]
            rows += [row for row in found if isinstance(row, Row) and not is_answered(row, answered)]
        file.check_is(piece.stamp)
    finally:
        file.close()
    rows.sort(key=lambda row: row.beginning)
    for at in range(0, len(rows), n_rows):
        yield rows[at : at + n_rows]
