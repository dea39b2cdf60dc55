"""Pieces and parcels: together they are the input, each row once, however it is cut."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimo_gguf.batch import pieces
from mimo_gguf.batch.ids import IdTable
from mimo_gguf.batch.pieces import cut, parcels
from mimo_gguf.batch.reading import InputFile
from mimo_gguf.batch.rows import Row, read_row
from mimo_gguf.core.errors import UsageError
from tests.batch.answerers import request, write_rows


def rows_of(path: Path, n_rows: int, answered: IdTable | None = None) -> list[list[Row]]:
    file = InputFile(path)
    try:
        found = pickle.loads(pickle.dumps(list(cut(file))))
    finally:
        file.close()
    return [parcel for piece in found for parcel in parcels(piece, answered or IdTable(), n_rows)]


@given(
    lines=st.lists(st.sampled_from(["", "  ", *(str(n) for n in range(9)), "long" * 20]), max_size=30),
    n_lines=st.integers(1, 5), n_bytes=st.integers(1, 300), n_rows=st.integers(1, 7), ends=st.booleans(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_parcels_are_the_input(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], n_lines: int, n_bytes: int, n_rows: int, ends: bool
) -> None:
    path = tmp_path_factory.mktemp("cut") / "in.jsonl"
    rows = [line if not line.strip() else f'{{"custom_id": "{n}-{line}", "é": 1}}' for n, line in enumerate(lines)]
    path.write_text("\ufeff" + "\n".join(rows) + "\n" * ends, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "LOOK_AHEAD", n_lines)
        patch.setattr(pieces, "_LARGE_BYTES", n_bytes)
        patch.setattr(pieces, "_READ_BYTES", 7)
        found = rows_of(path, n_rows)
    expected = [read_row(row.encode(), number) for number, row in enumerate(rows, start=1) if row.strip()]
    assert sorted((row for parcel in found for row in parcel), key=lambda row: row.number) == expected
    assert all(0 < len(parcel) <= n_rows for parcel in found)


def test_rows_that_are_answered_are_left_out_and_beginnings_stand_together(tmp_path: Path) -> None:
    rows = [request(f"{part}{number}", f"{'abc'[part]} {number}") for number in range(4) for part in range(3)]
    path = write_rows(tmp_path / "in.jsonl", rows)
    (every,) = rows_of(path, 99)
    assert "".join(row.body["prompt"][0] for row in every) == "a" * 4 + "b" * 4 + "c" * 4
    answered = IdTable()
    for row in every[:5]:
        answered.put(row.name, row.digest)
    assert [row.custom_id for parcel in rows_of(path, 3, answered) for row in parcel] == [
        row.custom_id for row in every[5:]
    ]


def test_a_file_that_has_changed_is_noticed(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "in.jsonl", [request("a")])
    file = InputFile(path)
    (piece,) = cut(file)
    file.close()
    write_rows(path, [request("a"), request("b")])
    with pytest.raises(UsageError, match="has changed while"):
        list(parcels(piece, IdTable(), 1))
