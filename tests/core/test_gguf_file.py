"""Our GGUF reader against the gguf library's writer and reader, and against files made to hurt it."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from mimo_gguf.core.errors import GgufError
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.gguf_file import model_name, open_gguf, read_gguf, read_part
from mimo_gguf.core.gguf_header import lay_out
from mimo_gguf.core.model_source import MetaValue, TensorInfo, array, string, uint32

RNG = np.random.default_rng(3)
MATRIX = RNG.standard_normal((6, 64)).astype(np.float32)
HALVES = RNG.standard_normal((4, 32)).astype(np.float16)


def write_with_library(path: Path) -> None:
    writer = GGUFWriter(path, "step35")
    writer.add_uint32("step35.block_count", 3)
    writer.add_float32("step35.rope.freq_base", 640000.0)
    writer.add_bool("flag", True)
    writer.add_uint64("big", 1 << 60)
    writer.add_int8("small", -5)
    writer.add_array("list.bool", [True, False])
    writer.add_array("list.text", ["a", "ü", "\u4f60"])
    writer.add_array("list.int", [1, -2, 3])
    writer.add_string("text", "line\nline")
    writer.add_tensor("token_embd.weight", MATRIX)
    writer.add_tensor("blk.0.attn_q.weight", HALVES)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_with_library(path)
    model = read_gguf(path)
    assert model.architecture == "step35"
    expected = {
        "step35.block_count": 3,
        "step35.rope.freq_base": 640000.0,
        "flag": True,
        "big": 1 << 60,
        "small": -5,
        "list.bool": [True, False],
        "list.text": ["a", "ü", "\u4f60"],
        "list.int": [1, -2, 3],
        "text": "line\nline",
    }
    assert {key: model.value(key) for key in expected} == expected
    with open_gguf(path) as source:
        originals: tuple[np.ndarray[Any, Any], ...] = (MATRIX, HALVES)
        for tensor, original in zip(source.tensors, originals, strict=True):
            assert tensor.info.shape == original.shape
            rows = np.empty((2, tensor.info.row_bytes), np.uint8)
            tensor.read_rows(1, 3, rows)
            assert rows.tobytes() == original[1:3].tobytes()


def test_header_is_the_librarys(tmp_path: Path) -> None:
    """Metadata and tensors read and laid out again are the same bytes."""
    path = tmp_path / "m.gguf"
    write_with_library(path)
    model = read_gguf(path)
    layout = lay_out(model.metadata, model.infos())
    raw = path.read_bytes()
    assert layout.header == raw[: len(layout.header)]
    assert layout.n_bytes == len(raw)
    assert layout.offsets == tuple(tensor.offset for _, tensor in model.tensors())


NAMES = st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=20)
VALUES = st.one_of(
    st.integers(0, 2**32 - 1).map(lambda n: MetaValue(GGUFValueType.UINT32, n)),
    st.integers(-(2**63), 2**63 - 1).map(lambda n: MetaValue(GGUFValueType.INT64, n)),
    st.booleans().map(lambda b: MetaValue(GGUFValueType.BOOL, b)),
    st.text(max_size=40).map(string),
    st.lists(st.text(max_size=5), min_size=1, max_size=5).map(lambda v: array(GGUFValueType.STRING, v)),
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1).map(lambda v: array(GGUFValueType.INT32, v)),
)
TYPES = st.sampled_from([GgmlType.F32, GgmlType.BF16, GgmlType.Q8_0, GgmlType.Q4_K, GgmlType.Q6_K])


@settings(max_examples=60, deadline=None)
@given(
    metadata=st.dictionaries(NAMES, VALUES, max_size=8),
    tensors=st.dictionaries(NAMES, st.tuples(st.integers(1, 5), st.integers(1, 3), TYPES), min_size=1, max_size=6),
)
def test_layout_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    metadata: dict[str, MetaValue],
    tensors: dict[str, tuple[int, int, GgmlType]],
) -> None:
    infos = [TensorInfo(name, (rows, 256 * n), kind) for name, (rows, n, kind) in tensors.items()]
    layout = lay_out({"general.architecture": string("x"), **metadata}, infos)
    path = tmp_path_factory.mktemp("layout") / "m.gguf"
    path.write_bytes(layout.header + bytes(layout.n_bytes - len(layout.header)))
    part = read_part(path)
    assert {key: part.metadata[key] for key in metadata} == metadata
    assert [(t.info, t.offset) for t in part.tensors] == list(zip(infos, layout.offsets, strict=True))
    theirs = {tensor.name: tensor.data_offset for tensor in GGUFReader(path).tensors}
    assert theirs == dict(zip((info.name for info in infos), layout.offsets, strict=True))


def patch(offset: int, content: bytes) -> Callable[[bytes], bytes]:
    return lambda raw: raw[:offset] + content + raw[offset + len(content) :]


def patch_after(marker: bytes, skip: int, content: bytes) -> Callable[[bytes], bytes]:
    def change(raw: bytes) -> bytes:
        at = raw.index(marker) + len(marker) + skip
        return raw[:at] + content + raw[at + len(content) :]

    return change


Q = struct.Struct("<Q").pack
I = struct.Struct("<I").pack  # noqa: E741 - the format letter
HOSTILE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda raw: b"", "the file is empty"),
    "short": (lambda raw: raw[:10], "ends inside the GGUF header"),
    "short, and another format": (lambda _: b"hello", "not a GGUF file"),
    "short, of one byte": (lambda _: b"\n", "not a GGUF file"),
    "another format": (patch(0, b"PK\x03\x04"), "not a GGUF file"),
    "old version": (patch(4, I(1)), "GGUF version 1"),
    "big-endian": (patch(4, struct.pack(">I", 3)), "big-endian"),
    "absurd tensor count": (patch(8, Q(1 << 60)), "ends inside the tensor table"),
    "absurd metadata count": (patch(16, Q(1 << 60)), "ends inside"),
    "absurd key length": (patch(24, Q(1 << 62)), "ends inside a metadata key"),
    "key is no text": (patch(32, b"\xff\xfe"), "a metadata key is not UTF-8"),
    "unknown value type": (patch_after(b"block_count", 0, I(99)), "unknown value type 99"),
    "absurd text length": (patch_after(b"text", 4, Q(1 << 61)), "ends inside"),
    "absurd array length": (patch_after(b"list.int", 8, Q(1 << 61)), "ends inside the array list.int"),
    "absurd string in an array": (patch_after(b"list.text", 16, Q(1 << 61)), "the array list.text"),
    "array of arrays": (patch_after(b"list.int", 4, I(9)), "holds arrays"),
    "dimensions": (patch_after(b"token_embd.weight", 0, I(9)), "9 dimensions"),
    "no extent": (patch_after(b"token_embd.weight", 4, Q(0)), "cannot have shape"),
    "absurd extent": (patch_after(b"token_embd.weight", 4, Q(1 << 61)), "cannot have shape"),
    "unknown type": (patch_after(b"token_embd.weight", 20, I(250)), "unknown type 250"),
    "no whole blocks": (patch_after(b"attn_q.weight", 20, I(12)), "Q4_K cannot have shape [32, 4]"),
    "misaligned": (patch_after(b"attn_q.weight", 24, Q(1537)), "misaligned"),
    "overlapping": (patch_after(b"attn_q.weight", 24, Q(32)), "overlaps"),
    "beyond the end": (patch_after(b"attn_q.weight", 24, Q(1 << 40)), "the file at"),
    "truncated data": (lambda raw: raw[:-64], "the file at"),
    "name twice": (lambda raw: raw.replace(b"flag", b"text"), "appears twice"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile(tmp_path: Path, case: str) -> None:
    path = tmp_path / "m.gguf"
    write_with_library(path)
    change, expected = HOSTILE[case]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(GgufError) as caught:
        read_gguf(path)
    assert expected in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(GgufError, match="is a folder") as caught:
        read_gguf(tmp_path)
    assert caught.value.hint == f"mimo-gguf convert {tmp_path}"
    with pytest.raises(GgufError, match="is a device"):
        read_gguf(os.devnull)
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(GgufError):
            read_gguf(tmp_path / name)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_mutation_escapes(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any bytes changed anywhere: the file is read or refused with GgufError, never anything else."""
    folder = tmp_path_factory.getbasetemp() / "mutations"
    folder.mkdir(exist_ok=True)
    path = folder / "m.gguf"
    write_with_library(path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, 900))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(raw[: data.draw(st.integers(0, len(raw)))]) if data.draw(st.booleans()) else raw)
    with contextlib.suppress(GgufError):
        read_gguf(path)


def write_parts(folder: Path, count: int = 2) -> list[Path]:
    paths = []
    for number in range(count):
        metadata = {
            "general.architecture": string("step35"),
            "split.no": MetaValue(GGUFValueType.UINT16, number),
            "split.count": MetaValue(GGUFValueType.UINT16, count),
            "split.tensors.count": MetaValue(GGUFValueType.INT32, count),
        }
        info = TensorInfo(f"blk.{number}.attn_q.weight", (2, 32), GgmlType.F32)
        layout = lay_out(metadata, [info])
        path = folder / f"m-Q8_0-{number + 1:05d}-of-{count:05d}.gguf"
        path.write_bytes(layout.header + bytes([number + 1]) * (layout.n_bytes - len(layout.header)))
        paths.append(path)
    return paths


def test_split_files_are_one_model(tmp_path: Path) -> None:
    for path in write_parts(tmp_path):
        with open_gguf(path) as source:
            assert [t.info.name for t in source.tensors] == ["blk.0.attn_q.weight", "blk.1.attn_q.weight"]
            assert not any(key.startswith("split.") for key in source.metadata)
            row = np.empty((1, 128), np.uint8)
            source.tensors[1].read_rows(0, 1, row)
            assert set(row.ravel()) == {2}
        assert model_name(read_gguf(path)) == "m"


def test_split_part_missing(tmp_path: Path) -> None:
    first, second = write_parts(tmp_path)
    second.unlink()
    with pytest.raises(GgufError, match=second.name):
        read_gguf(first)


def test_split_part_renamed(tmp_path: Path) -> None:
    first, _ = write_parts(tmp_path)
    with pytest.raises(GgufError, match="does not end in"):
        read_gguf(first.rename(tmp_path / "other.gguf"))


def test_split_parts_swapped(tmp_path: Path) -> None:
    first, second = write_parts(tmp_path)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    with pytest.raises(GgufError, match="says it is part"):
        read_gguf(first)


@pytest.mark.parametrize(
    ("file_name", "name"),
    [
        ("MiMo-7B-RL-Q4_K_M.gguf", "MiMo-7B-RL"),
        ("MiMo-7B-RL-BF16.gguf", "MiMo-7B-RL"),
        ("mimo.f16.gguf", "mimo"),
        ("MiMo-7B-RL-0530-IQ4_XS.gguf", "MiMo-7B-RL-0530"),
        ("MiMo-7B-RL.gguf", "MiMo-7B-RL"),
    ],
)
def test_model_name(tmp_path: Path, file_name: str, name: str) -> None:
    write_with_library(tmp_path / file_name)
    assert model_name(read_gguf(tmp_path / file_name)) == name


def test_source_notices_a_changed_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_with_library(path)
    with open_gguf(path) as source:
        source.check_unchanged()
        path.write_bytes(path.read_bytes() + b"x")
        with pytest.raises(Exception, match="changed while it was being read"):
            source.check_unchanged()


def test_metadata_helpers() -> None:
    assert uint32(3) == MetaValue(GGUFValueType.UINT32, 3)
