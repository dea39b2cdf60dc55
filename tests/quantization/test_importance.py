"""Importance matrices in both of llama.cpp's formats."""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType
from numpy.typing import NDArray

from mimo_gguf.conversion.checkpoint_source import open_checkpoint
from mimo_gguf.core.errors import GgufError, UsageError, WeightsError
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.gguf_file import read_gguf
from mimo_gguf.core.gguf_header import lay_out
from mimo_gguf.core.model_source import MetaValue, TensorInfo, array, string, uint32
from mimo_gguf.quantization import importance
from mimo_gguf.quantization.importance import read_importance
from mimo_gguf.quantization.plan import OutputRequest, QuantizeOptions, plan_quantization
from mimo_gguf.quantization.profiles import load_profile
from mimo_gguf.quantization.run import run_quantization
from tests.quantization import peer
from tests.quantization.models import Model, infos, write_random
from tests.quantization.runs import differing_tensors, quantize, read_tensors
from tests.reference import MIMO_TINY

Sums = Mapping[str, tuple[NDArray[np.float32], float]]  # name -> (sums of squares, count)
MODEL = Model(n_trunk=1, width=256, ffn=256, vocab=64)
DATA = Path(__file__).with_name("data")


def write_dat(path: Path, sums: Sums, *, trailer: bool = True) -> Path:
    parts = [struct.pack("<i", len(sums))]
    for name, (values, count) in sums.items():
        parts += [struct.pack("<i", len(name)), name.encode(), struct.pack("<ii", int(count), values.size)]
        parts.append(values.tobytes())
    if trailer:
        parts += [struct.pack("<ii", 12, 8), b"wiki.txt"]
    path.write_bytes(b"".join(parts))
    return path


def write_gguf(path: Path, sums: Sums, **change: Any) -> Path:
    """`counts` and `chunk_count` = True leave these out; a MetaValue stands for imatrix.<its name>."""
    metadata: dict[str, MetaValue] = {
        "general.architecture": string("imatrix"),
        "general.type": string("imatrix"),
        "imatrix.datasets": array(GGUFValueType.STRING, ["wiki.txt"]),
        "imatrix.chunk_count": uint32(12),
        "imatrix.chunk_size": uint32(512),
    }
    if change.get("chunk_count") is True:
        del metadata["imatrix.chunk_count"]
    metadata |= {f"imatrix.{key}": value for key, value in change.items() if isinstance(value, MetaValue)}
    data: dict[str, NDArray[np.float32]] = {}
    for name, (values, count) in sums.items():
        data[f"{name}.in_sum2"] = values.reshape(1, -1)
        if not change.get("counts"):
            data[f"{name}.counts"] = np.array([[count]], np.float32)
    placed = lay_out(metadata, [TensorInfo(name, values.shape, GgmlType.F32) for name, values in data.items()])
    with path.open("wb") as file:
        file.write(placed.header)
        for offset, values in zip(placed.offsets, data.values(), strict=True):
            file.seek(offset)
            file.write(values.tobytes())
        file.truncate(placed.n_bytes)
    return path


def sums_of(model: Model) -> dict[str, tuple[NDArray[np.float32], float]]:
    rng = np.random.default_rng(3)
    return {
        info.name: (rng.gamma(0.5, 100.0, info.n_columns).astype(np.float32), 37.0)
        for info in infos(model)
        if len(info.shape) > 1
    }


def test_both_formats_give_the_values_llama_cpp_divides_out(tmp_path: Path) -> None:
    sums = sums_of(MODEL) | {"unused.weight": (np.arange(4, dtype=np.float32), 0.0)}
    dat, gguf = (
        read_importance(write_dat(tmp_path / "m.dat", sums)),
        read_importance(write_gguf(tmp_path / "m.gguf", sums)),
    )
    assert dat.columns.keys() == gguf.columns.keys() == sums.keys()
    for name, (values, count) in sums.items():
        if count:
            expected = np.array([np.float32(value) / np.float32(count) for value in values])
            assert np.array_equal(dat.columns[name], expected)
            assert np.array_equal(gguf.columns[name], expected)
    assert np.array_equal(dat.columns["unused.weight"], np.arange(4))  # .dat: sums as they are
    assert np.array_equal(gguf.columns["unused.weight"], np.ones(4))  # GGUF: all alike
    assert (dat.dataset, dat.n_chunks) == (gguf.dataset, gguf.n_chunks) == ("wiki.txt", 12)


# sha256 over names, types and bytes of all tensors of `llama-quantize --imatrix FILE mimo-tiny-BF16.gguf TYPE`, which
# made the same of both files. They are llama-imatrix's own: `-m mimo-tiny-BF16.gguf -f heldout.txt -c 64 --chunks 3`.
LLAMA_QUANTIZE = {
    "Q3_K_M": "3f7d2da0cf058b1c497d0e8d09de704ac4860cf1f27c0d204fabe7ba5d72236d",
    "IQ4_XS": "ff2deac81fc3a334db0fef4f2cb2d831d148843711884997376305b9fbc8248f",
}


@pytest.mark.parametrize("form", ["gguf", "dat"])
def test_files_that_llama_imatrix_wrote_give_what_llama_quantize_makes_of_them(form: str, tmp_path: Path) -> None:
    matrix = read_importance(DATA / f"mimo-tiny.imatrix-{form}")
    assert (len(matrix.columns), matrix.dataset, matrix.n_chunks) == (21, "heldout.txt", 3)
    with open_checkpoint(MIMO_TINY) as model:
        requests = [OutputRequest(load_profile(name), tmp_path / f"{name}.gguf") for name in LLAMA_QUANTIZE]
        report = run_quantization(plan_quantization(model, requests, QuantizeOptions(importance=matrix)))
    for name, expected in LLAMA_QUANTIZE.items():
        digest = hashlib.sha256()
        for tensor, (info, rows) in sorted(read_tensors(tmp_path / f"{name}.gguf").items()):
            digest.update(f"{tensor} {info.ggml_type.name}\n".encode())
            digest.update(rows.data)
        assert digest.hexdigest() == expected, name
    for output in report.outputs:  # llama-imatrix runs neither the MTP block nor, as a rule, the output matrix
        (note,) = output.notes
        named = note.removeprefix("no importance entries for ").split(", ")
        assert {name.split(".")[1] for name in named if name.startswith("blk.")} == {"3"}
        assert "output.weight" in named
        assert "token_embd.weight" not in named, "it is looked up: no matrix has entries for it"


def test_a_dat_file_may_end_after_its_entries(tmp_path: Path) -> None:
    matrix = read_importance(write_dat(tmp_path / "m.dat", sums_of(MODEL), trailer=False))
    assert (matrix.dataset, matrix.n_chunks) == ("", 0)


def test_a_file_made_with_it_is_llama_cpps_and_says_so(tmp_path: Path) -> None:
    source = write_random(tmp_path / "source.gguf", MODEL)
    matrix = read_importance(write_gguf(tmp_path / "m.gguf", sums_of(MODEL)))
    quantize(source, tmp_path / "ours", ["Q3_K_M"], importance=matrix)
    theirs = tmp_path / "theirs.gguf"
    peer.quantize(source, theirs, load_profile("Q3_K_M").file_type, imatrix=matrix.columns)
    assert differing_tensors(tmp_path / "ours/Q3_K_M.gguf", theirs) == []
    model = read_gguf(tmp_path / "ours/Q3_K_M.gguf")
    stored = {key: entry for key, entry in model.metadata.items() if key.startswith("quantize.")}
    assert {key: entry.value for key, entry in stored.items()} == {
        "quantize.imatrix.file": str(tmp_path / "m.gguf")[:127],
        "quantize.imatrix.dataset": "wiki.txt",
        "quantize.imatrix.entries_count": len(matrix.columns),
        "quantize.imatrix.chunks_count": 12,
    }
    assert stored["quantize.imatrix.chunks_count"].value_type is GGUFValueType.UINT32


def test_entries_of_another_width_are_refused(tmp_path: Path) -> None:
    source = write_random(tmp_path / "source.gguf", MODEL)
    sums = sums_of(MODEL) | {"blk.0.attn_q.weight": (np.ones(128, np.float32), 1.0)}
    matrix = read_importance(write_dat(tmp_path / "m.dat", sums))
    with pytest.raises(
        UsageError, match=r"blk\.0\.attn_q\.weight has 128 importance values, its rows have 256 weights"
    ):
        quantize(source, tmp_path / "ours", ["Q4_K_M"], importance=matrix)


def test_a_matrix_of_another_model_is_refused(tmp_path: Path) -> None:
    source = write_random(tmp_path / "source.gguf", MODEL)
    matrix = read_importance(write_dat(tmp_path / "m.dat", {"blk.0.attn_qkv.weight": (np.ones(256, np.float32), 1.0)}))
    with pytest.raises(UsageError, match=r"m\.dat: has no entry for any tensor of .*source\.gguf"):
        quantize(source, tmp_path / "ours", ["Q4_K_M"], importance=matrix)


@pytest.mark.parametrize("given", [False, True])
def test_types_that_need_what_is_missing_are_refused_by_name(given: bool, tmp_path: Path) -> None:
    source = write_random(tmp_path / "source.gguf", MODEL)
    sums = {name: entry for name, entry in sums_of(MODEL).items() if "ffn_up" not in name}
    matrix = read_importance(write_dat(tmp_path / "m.dat", sums)) if given else None
    message = r"no importance entries for blk\.0\.ffn_up\.weight" if given else r"IQ3_XS needs an importance matrix"
    with pytest.raises(UsageError, match=message):
        quantize(source, tmp_path / "ours", ["IQ3_XS"], importance=matrix)


def test_the_mtp_block_falls_back_and_says_so(tmp_path: Path) -> None:
    source = write_random(tmp_path / "source.gguf", MODEL)
    sums = {name: entry for name, entry in sums_of(MODEL).items() if not name.startswith("blk.1.")}
    matrix = read_importance(write_dat(tmp_path / "m.dat", sums))
    report = quantize(source, tmp_path / "ours", ["IQ3_XS"], importance=matrix)
    types = {info.name: info.ggml_type for info in read_gguf(tmp_path / "ours/IQ3_XS.gguf").infos()}
    assert types["blk.1.attn_q.weight"] is GgmlType.Q4_K
    assert types["blk.0.attn_q.weight"] is GgmlType.IQ3_XXS
    assert any("Q4_K instead of IQ3_XXS" in note and "blk.1.attn_q.weight" in note for note in report.outputs[0].notes)


@pytest.mark.parametrize("form", [write_dat, write_gguf])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(256), "importance of blk.0.attn_q.weight is zero in every column"),
        (np.full(256, 1e-30), "importance of blk.0.attn_q.weight is at most 2.7e-32"),
        (np.full(256, 3e38), "importance of blk.0.attn_q.weight is at most 8.11e+36"),
        (np.where(np.arange(256) == 7, 3e38, 1.0), "importance of blk.0.attn_q.weight is at most 8.11e+36"),
        (np.full(256, -1.0), "importance of blk.0.attn_q.weight is negative"),
        (np.where(np.arange(256) == 9, -1e-9, 1.0), "importance of blk.0.attn_q.weight is negative"),
    ],
    ids=["zeros", "tiny", "huge", "one huge", "negative", "one negative"],
)
def test_values_that_would_spoil_a_matrix_are_refused(
    form: Callable[[Path, Sums], Path], values: NDArray[Any], message: str, tmp_path: Path
) -> None:
    source = write_random(tmp_path / "source.gguf", MODEL)
    sums = sums_of(MODEL) | {"blk.0.attn_q.weight": (values.astype(np.float32), 37.0)}
    with pytest.raises(GgufError, match=re.escape(message)):
        quantize(source, tmp_path / "ours", ["Q4_K_M"], importance=read_importance(form(tmp_path / "m", sums)))
    assert list(tmp_path.glob("ours/*")) == []


def test_an_entry_that_no_tensor_uses_may_be_anything_finite(tmp_path: Path) -> None:
    source = write_random(tmp_path / "source.gguf", MODEL)
    sums = sums_of(MODEL) | {"blk.7.attn_q.weight": (np.zeros(256, np.float32), 37.0)}
    quantize(source, tmp_path / "ours", ["Q4_K_M"], importance=read_importance(write_dat(tmp_path / "m.dat", sums)))


def test_columns_without_importance_are_told(tmp_path: Path) -> None:
    source = write_random(tmp_path / "source.gguf", MODEL)
    values = np.where(np.arange(256) < 64, 0, 100).astype(np.float32)
    sums = sums_of(MODEL) | {"blk.0.attn_q.weight": (values, 37.0)}
    matrix = read_importance(write_dat(tmp_path / "m.dat", sums))
    report = quantize(source, tmp_path / "ours", ["Q4_K_M"], importance=matrix)
    (note,) = report.outputs[0].notes
    assert note.endswith("so their weights are not preserved: blk.0.attn_q.weight (64 of 256)")


# Where values are usable, the bytes are llama.cpp's; what llama.cpp refuses after writing it, is refused here, too.
@pytest.mark.parametrize("name", ["Q4_K_M", "Q2_K"])
@pytest.mark.parametrize("scale", [1e-18, 1e17, 3e38])
def test_extreme_values_are_llama_cpps_bytes_or_refused_as_there(
    name: str, scale: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importance, "LARGEST_USABLE", np.inf)  # so that only the output can tell
    source = write_random(tmp_path / "source.gguf", MODEL)
    columns = {
        key: (values / values.max() * np.float32(scale)).astype(np.float32)
        for key, (values, _) in sums_of(MODEL).items()
    }
    matrix = read_importance(write_dat(tmp_path / "m.dat", {key: (value, 1.0) for key, value in columns.items()}))
    theirs = tmp_path / "theirs.gguf"
    if scale < 1e38:
        quantize(source, tmp_path / "ours", [name], importance=matrix)
        peer.quantize(source, theirs, load_profile(name).file_type, imatrix=matrix.columns)
        assert differing_tensors(tmp_path / f"ours/{name}.gguf", theirs) == []
        return
    with pytest.raises(AssertionError, match="quantized data validation failed"):
        peer.quantize(source, theirs, load_profile(name).file_type, imatrix=matrix.columns)
    with pytest.raises(WeightsError, match="became Inf or NaN with these importance values"):
        quantize(source, tmp_path / "ours", [name], importance=matrix)
    assert list(tmp_path.glob("ours/*")) == []


def test_a_matrix_that_became_zeros_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "SMALLEST_USABLE", 0.0)
    source = write_random(tmp_path / "source.gguf", MODEL)
    sums = sums_of(MODEL) | {"blk.0.attn_q.weight": (np.zeros(256, np.float32), 1.0)}
    matrix = read_importance(write_dat(tmp_path / "m.dat", sums))
    with pytest.raises(WeightsError, match=r"blk\.0\.attn_q\.weight: row 0 became all zeros with these importance"):
        quantize(source, tmp_path / "ours", ["Q4_K_M"], importance=matrix)


def number(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}i", *values)


LARGEST = (1 << 31) - 1
NOT_ONE = "not an importance matrix"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (number(LARGEST), NOT_ONE),
        (number(-1), NOT_ONE),
        (number(0), NOT_ONE),
        (b"\x01", NOT_ONE),
        (number(1, LARGEST), NOT_ONE),
        (number(1, -5), NOT_ONE),
        (number(LARGEST, 1) + b"a" + number(1, 1, 0), NOT_ONE),
        (number(1, 1) + b"a" + number(1, LARGEST), NOT_ONE),
        (number(1, 1) + b"a" + number(1, -1), NOT_ONE),
        (number(1, 1) + b"a" + number(1, 1, 0x7F800000), "is not finite"),
        (number(1, 1) + b"a" + number(1, 1, 0, 1, LARGEST), NOT_ONE),
        (number(1, 1) + b"a" + number(1, 1, 0, 1, -9), NOT_ONE),
        (number(1, 1) + b"a" + number(1, 1, 0, 1) + b"\0", NOT_ONE),
        (b"GGUF", "ends inside the GGUF header"),
        (b"GGUF" + b"\xff" * 20, "GGUF version"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 63, 0), "ends inside the tensor table"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 63), "ends inside"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "no imatrix.datasets"),
    ],
    ids=repr,
)
def test_hostile_files_are_refused_in_one_line(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.dat"
    path.write_bytes(data)
    with pytest.raises(GgufError, match=re.escape(message)) as caught:
        read_importance(path)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("chunk_count", MetaValue(GGUFValueType.UINT64, 1 << 63), "imatrix.chunk_count is 9223372036854775808"),
        ("chunk_count", MetaValue(GGUFValueType.INT32, -1), "imatrix.chunk_count is -1"),
        ("chunk_count", MetaValue(GGUFValueType.FLOAT32, float("nan")), "imatrix.chunk_count is nan"),
        ("chunk_count", MetaValue(GGUFValueType.FLOAT64, float("inf")), "imatrix.chunk_count is inf"),
        ("chunk_count", string("many"), "imatrix.chunk_count is 'many'"),
        ("chunk_count", MetaValue(GGUFValueType.BOOL, True), "imatrix.chunk_count is True"),
        ("datasets", uint32(5), "imatrix.datasets is not a list of texts"),
        ("datasets", string("text"), "imatrix.datasets is not a list of texts"),
        ("datasets", array(GGUFValueType.UINT32, [1, 2]), "imatrix.datasets is not a list of texts"),
    ],
)
def test_metadata_of_another_kind_is_refused(key: str, value: MetaValue, message: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", sums_of(MODEL), **{key: value})
    with pytest.raises(GgufError, match=re.escape(message)):
        read_importance(path)


@pytest.mark.parametrize("count", [0.0, -3.0, float("nan"), float("inf"), 3.4e38])
def test_counts_of_any_kind_give_values_or_an_error(count: float, tmp_path: Path) -> None:
    """As llama-quantize: without a count all columns are alike."""
    matrix = read_importance(write_gguf(tmp_path / "m.gguf", {"a": (np.ones(8, np.float32), count)}))
    assert np.array_equal(matrix.columns["a"], np.ones(8)) or not matrix.columns["a"].max() > 1e-38


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.dat")
    with pytest.raises(GgufError, match=r"m\.dat: not a file"):
        read_importance(tmp_path / "m.dat")


def test_a_model_given_for_its_importance_matrix_is_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(GgufError, match="not an importance matrix"):
        read_importance(write_random(tmp_path / "model.gguf", MODEL))


@pytest.mark.parametrize(
    "damage", ["nothing there", "empty", "cut", "text", "not finite", "no counts", "no chunk count"]
)
def test_what_is_no_importance_matrix_is_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "m.dat"
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        write_dat(path, sums_of(MODEL))
        path.write_bytes(path.read_bytes()[:-2000])
    elif damage == "text":
        path.write_text("these are words, not numbers")
    elif damage == "not finite":
        write_dat(path, {"a": (np.array([1, np.nan], np.float32), 1.0)})
    elif damage == "no counts":
        write_gguf(path, sums_of(MODEL), counts=True)
    elif damage == "no chunk count":
        write_gguf(path, sums_of(MODEL), chunk_count=True)
    with pytest.raises(GgufError, match=r"m\.dat: "):
        read_importance(path)
