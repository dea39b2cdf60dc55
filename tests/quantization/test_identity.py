"""Whole files against llama_model_quantize: every tensor of every file type, byte for byte, in both layouts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.gguf_file import read_gguf
from mimo_gguf.quantization.importance import ImportanceMatrix
from mimo_gguf.quantization.profiles import list_profiles, load_profile
from mimo_gguf.quantization.type_choice import TypeOptions, parse_tensor_type
from tests.quantization import peer
from tests.quantization.models import QWEN2, STEP35, Model, infos, write_random
from tests.quantization.runs import differing_tensors, quantize

# step35 from BF16; qwen2 from F32 with a tied embedding and columns that fit no block of 256. Small, because the IQ
# types take libggml a second per million weights; which layer gets which type is test_type_choice.py's business.
MODELS = {
    STEP35: Model(n_trunk=1, width=256, ffn=256, vocab=64, heads=4, kv_heads=1, head_dim=64),
    QWEN2: Model(
        layout=QWEN2, n_trunk=1, width=256, ffn=288, vocab=64, heads=4, kv_heads=2, tied=True, ggml_type=GgmlType.F32
    ),
}
PLAIN = [
    "F32",
    "F16",
    "BF16",
    "Q8_0",
    "Q6_K",
    "Q5_K_M",
    "Q5_K_S",
    "Q5_0",
    "Q5_1",
    "Q4_K_M",
    "Q4_K_S",
    "Q4_0",
    "Q4_1",
    "Q3_K_L",
    "Q3_K_M",
    "Q3_K_S",
    "Q2_K",
    "IQ4_XS",
    "IQ4_NL",
    "IQ3_M",
    "IQ3_S",
]
NEED_IMATRIX = ["Q2_K_S", "IQ3_XXS", "IQ3_XS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ1_S", "IQ1_M"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {layout: write_random(folder / f"{layout}.gguf", model) for layout, model in MODELS.items()}


def importance_of(model: Model, *, without: str = "nothing") -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(1)
    return {
        info.name: rng.gamma(0.5, 1.0, info.n_columns).astype(np.float32) + np.float32(1e-3)
        for info in infos(model)
        if len(info.shape) > 1 and without not in info.name
    }


def as_matrix(columns: Mapping[str, NDArray[np.float32]]) -> ImportanceMatrix:
    return ImportanceMatrix(Path("test.dat"), columns, "text", 10)


def test_every_shipped_profile_is_tested_here() -> None:
    assert {profile.name for profile in list_profiles()} == {*PLAIN, *NEED_IMATRIX}


@pytest.mark.parametrize("layout", MODELS)
def test_every_file_type_is_byte_identical_in_one_read(layout: str, sources: dict[str, Path], tmp_path: Path) -> None:
    quantize(sources[layout], tmp_path / "ours", PLAIN)
    for name in PLAIN:
        theirs = tmp_path / "theirs.gguf"
        peer.quantize(sources[layout], theirs, load_profile(name).file_type)
        assert differing_tensors(tmp_path / "ours" / f"{name}.gguf", theirs) == [], name
        assert read_gguf(theirs).value("general.file_type") == read_gguf(tmp_path / "ours" / f"{name}.gguf").value(
            "general.file_type"
        )


@pytest.mark.parametrize("layout", MODELS)
def test_every_file_type_is_byte_identical_with_importance(
    layout: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    columns = importance_of(MODELS[layout])
    names = [*PLAIN, *NEED_IMATRIX]
    quantize(sources[layout], tmp_path / "ours", names, importance=as_matrix(columns))
    for name in names:
        theirs = tmp_path / "theirs.gguf"
        peer.quantize(sources[layout], theirs, load_profile(name).file_type, imatrix=columns)
        assert differing_tensors(tmp_path / "ours" / f"{name}.gguf", theirs) == [], name


def test_importance_that_misses_tensors_is_byte_identical_where_llama_cpp_accepts_it(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    columns = importance_of(MODELS[STEP35], without="blk.1.")
    report = quantize(sources[STEP35], tmp_path / "ours", ["Q4_K_M"], importance=as_matrix(columns))
    peer.quantize(sources[STEP35], tmp_path / "theirs.gguf", load_profile("Q4_K_M").file_type, imatrix=columns)
    assert differing_tensors(tmp_path / "ours/Q4_K_M.gguf", tmp_path / "theirs.gguf") == []
    (note,) = report.outputs[0].notes
    assert note.startswith("no importance entries for blk.1.")
    assert "blk.1.nextn.eh_proj.weight" in note


def test_explicit_types_are_byte_identical(sources: dict[str, Path], tmp_path: Path) -> None:
    wanted = [("attn_(q|k)", GgmlType.Q8_0), ("ffn_down", GgmlType.F16)]
    options = TypeOptions(
        tensor_types=tuple(parse_tensor_type(f"{pattern}={kind.name}") for pattern, kind in wanted),
        output_type=GgmlType.Q5_0,
        token_embedding_type=GgmlType.IQ4_NL,
    )
    quantize(sources[STEP35], tmp_path / "ours", ["Q4_K_S"], types=options)
    peer.quantize(
        sources[STEP35],
        tmp_path / "theirs.gguf",
        load_profile("Q4_K_S").file_type,
        tensor_types=wanted,
        output_type=GgmlType.Q5_0,
        token_embedding_type=GgmlType.IQ4_NL,
    )
    assert differing_tensors(tmp_path / "ours/Q4_K_S.gguf", tmp_path / "theirs.gguf") == []


@pytest.mark.parametrize("first", ["Q8_0", "Q4_K_M", "IQ4_XS", "Q5_1"])
def test_requantizing_is_refused_and_when_allowed_byte_identical(
    first: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    quantize(sources[STEP35], tmp_path / "first", [first])
    source = tmp_path / "first" / f"{first}.gguf"
    with pytest.raises(UsageError, match=r"token_embd\.weight is .* already") as caught:
        quantize(source, tmp_path / "ours", ["Q5_K_M"])
    assert caught.value.hint is not None
    assert "--allow-requantize" in caught.value.hint
    quantize(source, tmp_path / "ours", ["Q5_K_M"], allow_requantize=True)
    theirs = tmp_path / "theirs.gguf"
    peer.quantize(source, theirs, load_profile("Q5_K_M").file_type, allow_requantize=True)
    assert differing_tensors(tmp_path / "ours/Q5_K_M.gguf", theirs) == []


def test_a_quantized_file_may_be_copied_as_it_is(sources: dict[str, Path], tmp_path: Path) -> None:
    quantize(sources[STEP35], tmp_path / "first", ["Q8_0"])
    quantize(tmp_path / "first/Q8_0.gguf", tmp_path / "again", ["Q8_0"])
    assert differing_tensors(tmp_path / "first/Q8_0.gguf", tmp_path / "again/Q8_0.gguf") == []
