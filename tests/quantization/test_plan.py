"""Plans: exact sizes before anything is written, stable bytes, split files."""

from __future__ import annotations

import dataclasses
import errno
import json
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mimo_gguf.core.errors import GgufError, MimoGgufError, UsageError
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.gguf_file import open_gguf, read_gguf, read_part
from mimo_gguf.core.gguf_header import lay_out
from mimo_gguf.core.model_source import TensorInfo, string, uint32
from mimo_gguf.llama.api import api
from mimo_gguf.quantization.chunks import chunk_rows, cut_into_chunks
from mimo_gguf.quantization.estimate import estimate_time
from mimo_gguf.quantization.plan import OutputRequest, QuantizeOptions, _plan_parts, plan_quantization
from mimo_gguf.quantization.profiles import MtpRule, load_profile
from mimo_gguf.quantization.type_choice import TypeOptions, parse_tensor_type
from tests.quantization.models import MIMO_7B, QWEN2, Model, replace, write_hollow, write_random
from tests.quantization.runs import differing_tensors, files_in, quantize

MODEL = Model(n_trunk=2, width=64, ffn=96, vocab=72, heads=2, kv_heads=1, head_dim=32)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_random(tmp_path / "Random-BF16.gguf", MODEL)


def test_a_plan_is_what_is_written_to_the_byte(source: Path, tmp_path: Path) -> None:
    names = ["Q4_0", "Q8_0", "BF16", "Q4_K_M"]
    with open_gguf(source) as model:
        plan = plan_quantization(model, [OutputRequest(load_profile(n), tmp_path / f"{n}.gguf") for n in names])
    quantize(source, tmp_path, names)
    document = json.loads(json.dumps(plan.as_json()))
    for output in document["outputs"]:
        assert Path(output["path"]).stat().st_size == output["n_bytes"]
        written = {info.name: info.ggml_type.name for info in read_gguf(output["path"]).infos()}
        assert written == {tensor["name"]: tensor["to"] for tensor in output["tensors"]}
        assert all(tensor["why"] for tensor in output["tensors"])


@pytest.mark.full_size
def test_planning_mimo_7b_reads_no_weights_and_gives_llama_cpps_size(tmp_path: Path) -> None:
    hollow = write_hollow(tmp_path / "hollow.gguf", MIMO_7B)
    with open_gguf(hollow) as model:
        plan = plan_quantization(model, [OutputRequest(load_profile("Q4_K_M"), tmp_path / "o.gguf")])
    assert round(sum(tensor.info.n_bytes for tensor in plan.outputs[0].tensors) / 2**20, 2) == 4574.82


def test_the_same_run_gives_the_same_bytes_whatever_the_source_is_called(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "a", ["Q4_0"], n_threads=1)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    source.rename(elsewhere / source.name)
    quantize(elsewhere / source.name, tmp_path / "b", ["Q4_0"], n_threads=4)
    assert files_in(tmp_path / "a") == files_in(tmp_path / "b")


def test_by_way_of_a_bf16_file_or_straight_the_result_is_the_same(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "straight", ["Q4_0", "BF16"])
    between = tmp_path / "straight/BF16.gguf"
    between.rename(tmp_path / "straight/Random-BF16.gguf")
    quantize(tmp_path / "straight/Random-BF16.gguf", tmp_path / "detour", ["Q4_0"])
    assert (tmp_path / "straight/Q4_0.gguf").read_bytes() == (tmp_path / "detour/Q4_0.gguf").read_bytes()


def test_metadata_is_kept_and_the_source_is_named(tmp_path: Path) -> None:
    extra = {"general.license": string("mit"), "mimo_gguf.version": string("0.0.1")}
    source = write_random(tmp_path / "Random-BF16.gguf", MODEL, extra=extra)
    quantize(source, tmp_path, ["Q4_0", "F16"])
    quantized, floats = read_gguf(tmp_path / "Q4_0.gguf"), read_gguf(tmp_path / "F16.gguf")
    for key, entry in read_gguf(source).metadata.items():
        if key != "mimo_gguf.version":
            assert quantized.metadata[key] == entry
    assert quantized.value("general.file_type") == 2
    assert quantized.value("general.quantization_version") == 2
    assert floats.value("general.quantization_version") is None
    assert quantized.value("mimo_gguf.source.name") == "Random"
    assert quantized.value("mimo_gguf.source.digest") == floats.value("mimo_gguf.source.digest") != "0" * 32


@pytest.mark.parametrize(
    ("outs", "message"),
    [(["a.gguf", "a.gguf"], "same path"), (["Random-BF16.gguf"], "is the source itself"), ([], "no output")],
)
def test_impossible_outputs_are_refused(outs: list[str], message: str, source: Path, tmp_path: Path) -> None:
    with open_gguf(source) as model, pytest.raises(UsageError, match=message):
        plan_quantization(model, [OutputRequest(load_profile("F16"), tmp_path / out) for out in outs])


@pytest.mark.parametrize("how", ["symlink", "hardlink", "dots"])
def test_the_source_is_known_under_any_name(how: str, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "other.gguf"
    if how == "dots":
        out = tmp_path / "none" / ".." / source.name
        (tmp_path / "none").mkdir()
    elif how == "symlink":
        out.symlink_to(source)
    else:
        out.hardlink_to(source)
    with open_gguf(source) as model, pytest.raises(UsageError, match="is the source itself"):
        plan_quantization(model, [OutputRequest(load_profile("F16"), out)], QuantizeOptions(force=True))


@pytest.mark.parametrize(
    ("types", "message"),
    [
        (TypeOptions(tensor_types=(parse_tensor_type("ffn_dwn=Q8_0"),)), "--tensor-type ffn_dwn: no matrix of"),
        (TypeOptions(tensor_types=(parse_tensor_type("attn_norm=Q8_0"),)), "--tensor-type attn_norm: no matrix of"),
        (TypeOptions(mtp=MtpRule(GgmlType.Q8_0)), "--mtp-type: .* has no MTP layer"),
    ],
)
def test_options_that_name_nothing_are_refused(types: TypeOptions, message: str, tmp_path: Path) -> None:
    source = write_random(tmp_path / "source.gguf", replace(MODEL, layout=QWEN2))
    with open_gguf(source) as model, pytest.raises(UsageError, match=message) as caught:
        plan_quantization(
            model, [OutputRequest(load_profile("Q8_0"), tmp_path / "o.gguf")], QuantizeOptions(types=types)
        )
    assert caught.value.hint


def test_a_source_of_another_alignment_is_laid_out_anew(tmp_path: Path) -> None:
    written = write_random(tmp_path / "source.gguf", MODEL)
    part = read_part(written)
    aligned = lay_out({**part.metadata, "general.alignment": uint32(256)}, [t.info for t in part.tensors], 256)
    data = written.read_bytes()
    with (tmp_path / "aligned.gguf").open("wb") as file:
        file.write(aligned.header)
        for tensor, offset in zip(part.tensors, aligned.offsets, strict=True):
            file.seek(offset)
            file.write(data[tensor.offset : tensor.offset + tensor.info.n_bytes])
        file.truncate(aligned.n_bytes)
    quantize(tmp_path / "aligned.gguf", tmp_path / "a", ["Q8_0"])
    quantize(written, tmp_path / "b", ["Q8_0"])
    assert differing_tensors(tmp_path / "a/Q8_0.gguf", tmp_path / "b/Q8_0.gguf") == []


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    source = write_random(tmp_path / "m.gguf", MODEL, extra={"general.architecture": string("llama")})
    with open_gguf(source) as model, pytest.raises(GgufError, match="architecture 'llama'"):
        plan_quantization(model, [OutputRequest(load_profile("F16"), tmp_path / "o.gguf")])


def test_a_disk_that_fails_while_its_speed_is_sampled_is_one_line(source: Path, tmp_path: Path) -> None:
    def failing(first: int, last: int, out: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with open_gguf(source) as model:
        bad = dataclasses.replace(
            model, tensors=tuple(dataclasses.replace(tensor, read_rows=failing) for tensor in model.tensors)
        )
        plan = plan_quantization(bad, [OutputRequest(load_profile("F16"), tmp_path / "o.gguf")])
    with pytest.raises(MimoGgufError, match=r"Random-BF16\.gguf: cannot be read: Input/output error"):
        estimate_time(plan)


# ---- split files


def test_split_files_are_llama_cpps_own(tmp_path: Path) -> None:
    model = replace(MODEL, layout=QWEN2)
    source = write_random(tmp_path / "source.gguf", model)
    quantize(source, tmp_path / "whole", ["Q8_0"])
    report = quantize(source, tmp_path / "split", ["Q8_0"], split_max_bytes=30_000)
    parts = report.outputs[0].paths
    assert len(parts) > 3
    assert parts[1].name == f"Q8_0-00002-of-{len(parts):05d}.gguf"
    assert all(path.stat().st_size <= 30_000 for path in parts)
    n_tensors = sum(len(read_part(path).tensors) for path in parts)
    for number, path in enumerate(parts):
        stored = read_part(path).metadata
        split = {key: (entry.value_type, entry.value) for key, entry in stored.items() if key.startswith("split.")}
        assert split == {
            "split.no": (GGUFValueType.UINT16, number),
            "split.count": (GGUFValueType.UINT16, len(parts)),
            "split.tensors.count": (GGUFValueType.INT32, n_tensors),
        }
        assert number == 0 or len(stored) == 3
    assert differing_tensors(parts[0], tmp_path / "whole/Q8_0.gguf") == []
    quantize(parts[2], tmp_path / "joined", ["Q8_0"])
    assert differing_tensors(tmp_path / "joined/Q8_0.gguf", tmp_path / "whole/Q8_0.gguf") == []


def test_llama_cpp_loads_split_files(tmp_path: Path) -> None:
    source = write_random(tmp_path / "source.gguf", replace(MODEL, layout=QWEN2))
    parts = quantize(source, tmp_path / "split", ["Q8_0"], split_max_bytes=40_000).outputs[0].paths
    lib = api()
    params = lib.llama_model_default_params()
    params.use_mmap = False
    model = lib.llama_model_load_from_file(str(parts[0]).encode(), params)
    assert model
    n_loaded = lib.llama_model_n_params(model)
    lib.llama_model_free(model)
    assert n_loaded == sum(info.n_elements for info in read_gguf(parts[0]).infos())


# ---- properties

types = st.sampled_from([GgmlType.F32, GgmlType.BF16, GgmlType.Q8_0, GgmlType.Q4_K])
tensors = st.lists(st.tuples(types, st.integers(1, 40), st.integers(1, 3)), min_size=1, max_size=12).map(
    lambda rows: [
        TensorInfo(f"blk.{i}.x.weight", (n_rows, 256 * blocks), ggml_type)
        for i, (ggml_type, n_rows, blocks) in enumerate(rows)
    ]
)


@given(tensors, st.integers(1, 5000))
def test_chunks_cover_every_row_once(infos: list[TensorInfo], chunk_weights: int) -> None:
    rows: dict[int, list[int]] = {}
    for chunk in cut_into_chunks(infos, chunk_weights):
        assert 0 < chunk.last - chunk.first <= chunk_rows(infos[chunk.tensor], chunk_weights)
        rows.setdefault(chunk.tensor, []).extend(range(chunk.first, chunk.last))
    assert rows == {i: list(range(info.n_rows)) for i, info in enumerate(infos)}


@given(tensors, st.integers(1, 200_000))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_parts_hold_every_tensor_once_and_stay_below_the_limit(infos: list[TensorInfo], limit: int) -> None:
    metadata = {"general.architecture": string("step35")}
    parts = _plan_parts(Path("m.gguf"), metadata, infos, limit)
    assert [i for part in parts for i in range(part.first, part.last)] == list(range(len(infos)))
    for part in parts:
        assert part.first < part.last
        assert part.layout.n_bytes <= limit or part.last - part.first == 1
