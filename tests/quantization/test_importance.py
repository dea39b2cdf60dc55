"""Importance matrices in both of llama.cpp's formats."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFValueType
from numpy.typing import NDArray

from mimo_gguf.conversion.checkpoint_source import open_checkpoint
from mimo_gguf.core.errors import GgufError, UsageError
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.gguf_file import read_gguf
from mimo_gguf.core.gguf_header import lay_out
from mimo_gguf.core.model_source import MetaValue, TensorInfo, array, string, uint32
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


def write_gguf(path: Path, sums: Sums, **drop: bool) -> Path:
    metadata: dict[str, MetaValue] = {
        "general.architecture": string("imatrix"),
        "general.type": string("imatrix"),
        "imatrix.datasets": array(GGUFValueType.STRING, ["wiki.txt"]),
        "imatrix.chunk_count": uint32(12),
        "imatrix.chunk_size": uint32(512),
    }
    if drop.get("chunk_count"):
        del metadata["imatrix.chunk_count"]
    data: dict[str, NDArray[np.float32]] = {}
    for name, (values, count) in sums.items():
        data[f"{name}.in_sum2"] = values.reshape(1, -1)
        if not drop.get("counts"):
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
        assert {"token_embd.weight", "output.weight"} < set(named)


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
