"""Merging importance matrices, and what is shown of them, by hand-made files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimo_gguf.core.errors import GgufError, OutputError, UsageError
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.importance_file import ImportanceSums, read_importance_sums, write_importance_sums
from mimo_gguf.core.model_source import string
from mimo_gguf.quality.imatrix.gathering import Gathering, first_reader
from mimo_gguf.quality.imatrix.merging import merge_imatrices
from mimo_gguf.quality.imatrix.statistics import imatrix_statistics
from mimo_gguf.quantization.importance import read_importance
from tests.cli.command_line import assert_clear_error, run_here
from tests.quality.imatrix.runs import difference, measure, random_windows

DATA = Path(__file__).parents[2] / "quantization" / "data"
Q, DOWN = "blk.0.attn_q.weight", "blk.10.ffn_down.weight"


def write(path: Path, n_rows: int = 4, **sums: Any) -> Path:
    """A file of one dense matrix for each of `sums`: Q and DOWN by the names q and down."""
    named = {{"q": Q, "down": DOWN}[key]: np.array([values], np.float32) for key, values in sums.items()}
    counts = dict.fromkeys(named, np.array([n_rows], np.float32))
    write_importance_sums(path, ImportanceSums(named, counts, (path.stem,), n_rows // 2, 2))
    return path


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sums = {name: rng.gamma(1, 5, (1, 32)) for name in (DOWN, Q)}
    counts = dict.fromkeys(sums, np.array([7.0]))
    given = ImportanceSums(sums, counts, ("a", "b"), 3, 512, {"mimo_gguf.imatrix.model": string("x")})
    for ggml_type in (GgmlType.F32, GgmlType.F64):
        write_importance_sums(tmp_path / "m", given, ggml_type=ggml_type)
        found = read_importance_sums(tmp_path / "m", ggml_type=ggml_type)
        assert (found.datasets, found.n_chunks, found.chunk_size) == (("a", "b"), 3, 512)
        assert found.metadata["mimo_gguf.imatrix.model"].value == "x"
        for name in sums:
            assert found.sums[name].dtype == (np.float32 if ggml_type is GgmlType.F32 else np.float64)
            assert np.array_equal(found.sums[name], sums[name].astype(found.sums[name].dtype))
    with pytest.raises(GgufError, match="is F64, not F32"):
        read_importance_sums(tmp_path / "m")


def test_ggufs_own_reader_reads_it(tmp_path: Path) -> None:
    from gguf import GGUFReader

    reader = GGUFReader(write(tmp_path / "m", q=[1, 2, 3]))
    assert [tensor.name for tensor in reader.tensors] == [f"{Q}.in_sum2", f"{Q}.counts"]
    assert [tensor.shape.tolist() for tensor in reader.tensors] == [[3, 1], [1, 1]]
    assert reader.tensors[0].data.tolist() == [[1, 2, 3]]
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.chunk_size"].contents() == 2


def test_a_file_of_llama_imatrix_written_again_is_the_same_matrix(tmp_path: Path) -> None:
    theirs = DATA / "mimo-tiny.imatrix-gguf"
    write_importance_sums(tmp_path / "m", read_importance_sums(theirs))
    a, b = read_importance(theirs), read_importance(tmp_path / "m")
    assert a.columns.keys() == b.columns.keys()
    assert all(np.array_equal(a.columns[name], b.columns[name]) for name in a.columns)
    assert (a.dataset, a.n_chunks) == (b.dataset, b.n_chunks)


def test_sums_are_exact_however_rows_come() -> None:
    rows = np.random.default_rng(1).standard_normal((1000, 8)).astype(np.float32)
    gathered = Gathering()
    for part in np.split(rows, [1, 70, 333]):
        gathered.tap("output.weight", part)
    expected = np.square(rows.astype(np.float64)).sum(0)
    np.testing.assert_allclose(gathered.sums["output.weight"].squares, expected, rtol=1e-6)
    assert gathered.sums["output.weight"].n_rows == 1000


def test_matrices_that_read_the_same_share_their_sums() -> None:
    names = ["attn_k", "attn_v", "attn_q", "attn_output", "ffn_up", "ffn_gate", "ffn_down", "nextn.eh_proj"]
    assert [first_reader(f"blk.12.{name}.weight") for name in names] == [
        f"blk.12.{name}.weight"
        for name in ("attn_q", "attn_q", "attn_q", "attn_output", "ffn_gate", "ffn_gate", "ffn_down", "nextn.eh_proj")
    ]


def test_merged_parts_are_the_whole(tiny_path: Path, tmp_path: Path) -> None:
    windows = random_windows(5, 24)
    for name, part in (("a", windows[:2]), ("b", windows[2:]), ("whole", windows)):
        measure(tiny_path, part, tmp_path / name)
    report = merge_imatrices([tmp_path / "a", tmp_path / "b"], out=tmp_path / "merged")
    assert (report.n_chunks, report.chunk_size, report.partial) == (5, 24, ())
    assert difference(read_importance_sums(tmp_path / "merged"), read_importance_sums(tmp_path / "whole")) < 1e-6


def test_a_matrix_that_only_some_files_have_is_kept_and_told(tmp_path: Path) -> None:
    files = [write(tmp_path / "a", q=[1, 2]), write(tmp_path / "b", n_rows=6, q=[10, 20], down=[5, 5, 5])]
    report = merge_imatrices(files, out=tmp_path / "c")
    merged = read_importance_sums(tmp_path / "c")
    assert report.partial == (DOWN,)
    assert merged.sums[Q].tolist() == [[11, 22]]
    assert (merged.counts[Q].tolist(), merged.counts[DOWN].tolist()) == ([10], [6])
    assert (merged.datasets, merged.n_chunks) == (("a", "b"), 5)


def test_statistics_by_hand(tmp_path: Path) -> None:
    here = write(tmp_path / "a", n_rows=2, q=[2, 4, 2, 0], down=[0, 0])
    there = write(tmp_path / "b", n_rows=1, q=[1, 0, 0, 0])
    found = imatrix_statistics(here, against=there)
    q, down = found.matrices
    assert (q.matrix, q.n_columns, q.n_rows) == (Q, 4, 2)
    assert (q.sum, q.mean, q.smallest, q.largest) == (4, 1, 0, 2)
    assert (q.active, q.entropy, q.evenness, q.largest_share) == (0.75, 1.5, 0.75, 0.5)
    assert q.cosine == pytest.approx(1 / math.sqrt(6))
    assert (down.sum, down.active, down.entropy, down.cosine) == (0, 0, 1, None)
    assert (found.only_here, found.only_there) == ((DOWN,), ())


def test_blocks_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = ["output.weight", "blk.10.ffn_up.weight", "blk.9.ffn_up.weight", "blk.9.attn_q.weight"]
    one = np.ones((1, 2), np.float32)
    write_importance_sums(
        tmp_path / "m", ImportanceSums(dict.fromkeys(names, one), dict.fromkeys(names, one[0, :1]), (), 1, 2)
    )
    assert [matrix.matrix for matrix in imatrix_statistics(tmp_path / "m").matrices] == names[::-1]


def test_foreign_damaged_and_other_files_are_told(tmp_path: Path, tiny_path: Path) -> None:
    a, narrow = write(tmp_path / "a", q=[1, 2]), write(tmp_path / "b", q=[1, 2, 3])
    (tmp_path / "short").write_bytes(a.read_bytes()[:-40])
    for other, error, words in (
        (narrow, UsageError, f"{Q} has 3 columns, in .* it has 2"),
        (write(tmp_path / "c", down=[1]), UsageError, "no matrix in common"),
        (tmp_path / "short", GgufError, "ends at byte"),
        (tmp_path / "nothing", GgufError, "No such file"),
        (tiny_path, GgufError, "not an importance matrix"),
        (DATA / "mimo-tiny.imatrix-dat", GgufError, "is in llama-imatrix's older form"),
    ):
        with pytest.raises(error, match=words):
            merge_imatrices([a, other], out=tmp_path / "merged")
        with pytest.raises(error, match=words):
            imatrix_statistics(a, against=other)
    with pytest.raises(UsageError, match="at least two"):
        merge_imatrices([a], out=tmp_path / "merged")
    with pytest.raises(OutputError, match="exists already"):
        merge_imatrices([a, a], out=narrow)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("words", "expected", "code"),
    [
        (("--merge", "a", "a"), "--merge needs a file to make", 2),
        (("--merge", "--show", "a"), "two things", 2),
        (("a", "b"), "one source at a time", 2),
        (("a", "--against", "b"), "--against is for --show", 2),
        (("--show", "b"), "b: No such file", 1),
        (("nothing.gguf", "-f", "a"), "not UTF-8 text", 2),
        (("nothing.gguf",), "nothing.gguf: No such file", 1),
        (("nothing.gguf", "-o", "a"), "a: exists already", 1),
    ],
)
def test_wrong_commands_get_one_clear_line(words: tuple[str, ...], expected: str, code: int, tmp_path: Path) -> None:
    write(tmp_path / "a", q=[1e20, 2])
    assert_clear_error(run_here(tmp_path, "imatrix", *words), expected, code=code)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_command_measures_merges_and_shows(tiny_path: Path, tmp_path: Path) -> None:
    import json

    (tmp_path / "text.txt").write_text("\n\n".join(f"{i}. Lazy dogs, {i * i} of them." for i in range(900)))
    options = ("-f", "text.txt", "--ctx", "32", "--chunks", "2", "--threads", "1")
    done = run_here(tmp_path, "imatrix", tiny_path, "-o", "a.gguf", *options)
    assert done.returncode == 0, done.stderr
    assert "23 matrices, 8 of them of MTP layers" in done.stdout
    assert "with MTP, through llama.cpp" in done.stdout
    done = run_here(tmp_path, "imatrix", tiny_path.with_name("hf"), "-o", "b.gguf", *options, "--json", "--no-mtp")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["matrices"], report["tokens"]) == (15, 64)
    assert report["without"] == [], "the MTP layer was left out on purpose"
    assert run_here(tmp_path, "imatrix", "--merge", "a.gguf", "b.gguf", "-o", "c.gguf").returncode == 0
    done = run_here(tmp_path, "imatrix", "--show", "c.gguf", "--against", "b.gguf")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
    assert rows["output"][-1] == "1.0000"
    assert rows["blk.2.nextn.eh_proj"][-1] == "-"
    found = json.loads(run_here(tmp_path, "imatrix", "--show", "a.gguf", "--json").stdout)
    assert len(found["matrices"]) == 23
