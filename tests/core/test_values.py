"""Units, type names, geometry, shelves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from gguf import GGML_QUANT_SIZES

from mimo_gguf.core import shelves
from mimo_gguf.core.errors import GgufError, OutputError, RecipeError, UsageError
from mimo_gguf.core.geometry import block_number, read_geometry, tensor_group
from mimo_gguf.core.ggml_types import GgmlType, canonical_name, ftype_name, parse_ggml_type, row_bytes
from mimo_gguf.core.model_source import string, uint32
from mimo_gguf.core.output_file import (
    Destination,
    atomic_output,
    check_free_space,
    check_output,
    make_folder,
    name_outputs,
    parse_destination,
)
from mimo_gguf.core.paths import path_kind
from mimo_gguf.core.units import counted, format_count, format_duration, format_size, listed, parse_size


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("8GiB", 8 << 30), ("8g", 8 << 30), ("8000 MB", 8_000_000_000), ("1.5GiB", 3 << 29), ("512", 512), ("4k", 4096)],
)
def test_parse_size(text: str, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes


def test_counted_nouns() -> None:
    assert [counted(n, "thread") for n in (0, 1, 2)] == ["0 threads", "1 thread", "2 threads"]
    assert [counted(n, "matrix", "matrices") for n in (1, 3)] == ["1 matrix", "3 matrices"]


def test_long_lists_are_cut() -> None:
    assert listed([]) == ""
    assert listed(["a", "b", "c", "d"]) == "a, b, c, d"
    assert listed({"a": 1, "b": 2, "c": 3}, most=1) == "a and 2 more"


@pytest.mark.parametrize("text", ["", "eight", "8 XB", "-1G", "1e9", "9" * 400 + "GiB", "99999999999T", "nan"])
def test_parse_size_refuses(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


def test_formats() -> None:
    assert format_size(4_797_235_200) == "4.47 GiB"
    assert format_size(12) == "12 B"
    assert format_count(7_833_409_536) == "7.83 B"
    assert format_duration(125) == "2 min 05 s"
    assert format_duration(3780) == "1 h 03 min"


@pytest.mark.parametrize("ggml_type", list(GGML_QUANT_SIZES))
def test_row_bytes(ggml_type: GgmlType) -> None:
    n_weights, n_bytes = GGML_QUANT_SIZES[ggml_type]
    assert row_bytes(ggml_type, 3 * n_weights) == 3 * n_bytes
    if n_weights > 1:
        with pytest.raises(ValueError, match="not a whole number"):
            row_bytes(ggml_type, n_weights + 1)


def test_type_names() -> None:
    assert parse_ggml_type("fp16") is GgmlType.F16
    assert parse_ggml_type("q4_k") is GgmlType.Q4_K
    assert canonical_name("q4-k-m") == "Q4_K_M"
    assert ftype_name(15) == "Q4_K_M"
    assert ftype_name(0) == "F32"
    with pytest.raises(UsageError, match="no tensor type 'Q9'"):
        parse_ggml_type("Q9")


def test_names_taken_apart() -> None:
    assert block_number("blk.36.nextn.eh_proj.weight") == 36
    assert block_number("output.weight") is None
    assert [tensor_group(name, 36) for name in ("token_embd.weight", "blk.35.attn_q.bias", "blk.36.ffn_up.weight")] == [
        "embedding",
        "trunk",
        "mtp",
    ]
    assert tensor_group("output_norm.weight", 36) == "output"


def test_geometry_needs_its_keys() -> None:
    with pytest.raises(GgufError, match="architecture 'llama'"):
        read_geometry({"general.architecture": string("llama")}, (), where="x")
    metadata = {"general.architecture": string("qwen2"), "qwen2.attention.head_count": uint32(4)}
    with pytest.raises(GgufError, match=r"qwen2\.embedding_length is missing"):
        read_geometry(metadata, (), where="x")


def test_shelves_are_found_and_broken_toml_is_located(tmp_path: Path) -> None:
    assert "mimo.toml" in {path.name for path in shelves.entries(shelves.CONVERT)}
    (tmp_path / "bad.toml").write_text("a = [1,\nb = 2")
    with pytest.raises(RecipeError, match="line 2"):
        shelves.read_toml(tmp_path / "bad.toml")


def test_output_checks(tmp_path: Path) -> None:
    existing = tmp_path / "a.gguf"
    existing.write_bytes(b"old")
    with pytest.raises(OutputError, match="exists already"):
        check_output(existing, force=False)
    check_output(existing, force=True)
    with pytest.raises(OutputError, match="is a folder"):
        check_output(tmp_path, force=True)
    with pytest.raises(OutputError, match="no such folder"):
        check_output(tmp_path / "no" / "b.gguf", force=False)
    with pytest.raises(OutputError, match="needed"):
        check_free_space(tmp_path, 1 << 60)


@pytest.mark.parametrize(
    ("out", "expected"),
    [
        (None, ["here/M-F16.gguf", "here/M-Q8_0.gguf"]),
        ("models", ["models/M-F16.gguf", "models/M-Q8_0.gguf"]),
        ("MiMo-v1.5/", ["MiMo-v1.5/M-F16.gguf", "MiMo-v1.5/M-Q8_0.gguf"]),
        ("x.gguf/", ["x.gguf/M-F16.gguf", "x.gguf/M-Q8_0.gguf"]),
        ("~/x", [f"{Path.home()}/x/M-F16.gguf", f"{Path.home()}/x/M-Q8_0.gguf"]),
    ],
)
def test_outputs_in_a_folder(out: str | None, expected: list[str]) -> None:
    destination = None if out is None else parse_destination(out)
    paths = name_outputs(destination, Path("here"), "M", ["F16", "Q8_0"])
    assert list(paths) == [Path(name) for name in expected]


def test_an_existing_folder_may_have_any_name(tmp_path: Path) -> None:
    for name in ("folder.gguf", "MiMo-v1.5"):
        (tmp_path / name).mkdir()
        assert parse_destination(str(tmp_path / name)) == Destination(tmp_path / name, is_file=False)


def test_one_output_by_its_own_name() -> None:
    out = parse_destination("x.GGUF")
    assert name_outputs(out, Path("here"), "M", ["F16"]) == (Path("x.GGUF"),)
    with pytest.raises(UsageError, match="one file name for 2 outputs"):
        name_outputs(out, Path("here"), "M", ["F16", "Q8_0"])


@pytest.mark.parametrize("out", ["a.bin", "models/MiMo-v1.5", "x.gguf.part"])
def test_a_name_that_may_be_either_is_asked_about(out: str) -> None:
    with pytest.raises(UsageError, match="nor is a folder") as caught:
        parse_destination(out)
    assert caught.value.hint == f"-o {out}.gguf for a file, -o {out}/ for a folder"


@pytest.mark.parametrize("name", ["y" * 300 + ".gguf", "y" * 230 + ".gguf", "\u4f60" * 80 + ".gguf"])
def test_names_too_long_for_what_is_built_beside_them(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match="name is too long"):
        check_output(tmp_path / name, force=False)


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError):
            make_folder(place)
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_path_kinds(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert path_kind(tmp_path) == "folder"
    assert path_kind(tmp_path / "file") == "file"
    assert path_kind(os.devnull) == "special"
    for name in ("none", "x" * 5000, "a\0b", "file/below"):
        assert path_kind(tmp_path / name) == "nothing"


def test_atomic_output_leaves_nothing_behind_on_failure(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_output(path) as file:
        file.write(b"half")
        _ = 1 / 0
    assert path.read_bytes() == b"old"
    with atomic_output(path) as file:
        file.write(b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]
    assert path.read_bytes() == b"new"
