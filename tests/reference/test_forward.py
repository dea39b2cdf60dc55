"""The forward pass in numpy against llama.cpp in float32 and against the torch reference."""

from __future__ import annotations

from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
import torch

from mimo_gguf import convert
from mimo_gguf.core.errors import GgufError
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.gguf_file import open_gguf
from mimo_gguf.core.model_source import Bytes, ModelSource, SourceTensor, string
from mimo_gguf.reference.decode import Floats
from mimo_gguf.reference.forward import angles, causal_attention, embed, head_logits, rotate, silu
from mimo_gguf.reference.model import ReferenceModel, Rotation, open_reference
from mimo_gguf.reference.run import run_windows
from tests.engine.test_parity import (
    GEOMETRIES,
    TOLERANCE,
    Case,
    difference,
    make_case,
    reference,
    through_llama,
    write_model,
)
from tests.reference import MIMO_TINY, Hidden, Mimo, load_checkpoint
from tests.tiny_models import make_model, quantized, write_gguf


def int32(tokens: object) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.asarray(tokens, np.int32)


@pytest.mark.parametrize("seed", range(len(GEOMETRIES)))
def test_logits_equal_llama_cpp_and_torch(seed: int, tmp_path: Path) -> None:
    case = make_case(seed, **GEOMETRIES[seed])
    path = write_model(tmp_path, case)
    with open_reference(path) as model:
        states = run_windows(model, [int32(case.tokens)], mtp=True)
        trunk = head_logits(model, states.final[0])
        mtp = head_logits(model, states.mtp[0], mtp_block=model.n_trunk_blocks)
    for wanted in (reference(case), through_llama(path, case)):
        assert trunk.shape == wanted[0].shape and mtp.shape == wanted[1][0].shape
        assert np.abs(trunk - wanted[0]).max() < TOLERANCE
        assert np.abs(mtp - wanted[1][0]).max() < TOLERANCE


@pytest.mark.parametrize("hidden", ["pre", "post"])
def test_a_checkpoint_and_both_states_that_mtp_may_read(hidden: Hidden) -> None:
    """The trained example, whose weights are in bfloat16, without a GGUF in between."""
    tokens = np.random.default_rng(1).integers(0, 900, 50)
    torch_model: Mimo = load_checkpoint(MIMO_TINY)
    with torch.no_grad():
        logits, state = torch_model.trunk(torch.from_numpy(tokens))
        drafts, _ = torch_model.mtp(0, state[:-1], torch.from_numpy(tokens[1:]), hidden_kind=hidden)
    with open_reference(MIMO_TINY) as model:
        states = run_windows(model, [int32(tokens)], mtp=True, hidden=hidden)
        assert np.abs(states.before_norm[0] - state.numpy()).max() < TOLERANCE
        assert np.abs(head_logits(model, states.final[0]) - logits.numpy()).max() < TOLERANCE
        assert np.abs(head_logits(model, states.mtp[0]) - drafts.numpy()).max() < TOLERANCE


def test_the_trained_example_equals_llama_cpp(tmp_path: Path) -> None:
    convert(MIMO_TINY, out=tmp_path / "tiny.gguf", types="F32")
    tokens = np.random.default_rng(2).integers(0, 900, 60).tolist()
    with open_reference(MIMO_TINY) as model:
        states = run_windows(model, [int32(tokens)], mtp=True)
        got = head_logits(model, states.final[0]), [head_logits(model, states.mtp[0])]
    case = Case({"num_nextn_predict_layers": 1}, {}, tokens)
    trunk, mtp = difference(got, through_llama(tmp_path / "tiny.gguf", case))
    assert trunk < TOLERANCE and mtp < TOLERANCE


def test_the_trunk_alone_with_its_output_tied_to_the_embedding(tmp_path: Path) -> None:
    case = make_case(3, num_nextn_predict_layers=0, tie_word_embeddings=True)
    del case.state["lm_head.weight"]
    path = write_model(tmp_path, case)
    with open_reference(path) as model:
        assert model.geometry.architecture == "qwen2"
        got = head_logits(model, run_windows(model, [int32(case.tokens)]).final[0])
    assert np.abs(got - reference(case)[0]).max() < TOLERANCE


def test_a_model_with_several_mtp_blocks_gives_the_rows_of_the_first(tmp_path: Path) -> None:
    case = make_case(2, **GEOMETRIES[2])
    seen = set()
    with open_reference(write_model(tmp_path, case)) as model:
        states = run_windows(model, [int32(case.tokens)], mtp=True, tap=lambda name, rows: seen.add(name))
        assert np.abs(head_logits(model, states.mtp[0]) - reference(case)[1][0]).max() < TOLERANCE
        assert {f"blk.{number}.nextn.eh_proj.weight" for number in (3, 4, 5)} <= seen


def test_a_quantized_file_is_its_decoded_weights(tmp_path: Path) -> None:
    """Logits equal those of a float file with the same weights, which llama.cpp computes."""
    path = quantized(make_model(tmp_path), "Q4_0")
    case = make_case(0)
    with open_reference(path) as model:
        assert "Q4_0" in {tensor.info.ggml_type.name for tensor in model.source.tensors}
        decoded = write_gguf(as_float(model), tmp_path / "decoded.gguf")
        states = run_windows(model, [int32(case.tokens)], mtp=True)
        got = head_logits(model, states.final[0]), [head_logits(model, states.mtp[0])]
    trunk, mtp = difference(got, through_llama(decoded, case))
    assert trunk < TOLERANCE and mtp < TOLERANCE


def as_float(model: ReferenceModel) -> ModelSource:
    def widened(tensor: SourceTensor) -> SourceTensor:
        name = tensor.info.name

        def read(first: int, last: int, out: Bytes) -> None:
            out[...] = model.rows(name, first, last).view(np.uint8)

        return replace(tensor, info=replace(tensor.info, ggml_type=GgmlType.F32), read_rows=read)

    return replace(model.source, tensors=tuple(map(widened, model.source.tensors)))


def test_attention_over_many_tiles_equals_torch() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((300, n, 16), np.float32) * 3 for n in (6, 2, 2))
    heads = [torch.from_numpy(t).to(torch.float64).transpose(0, 1)[None] for t in (q, k, v)]
    wanted = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)[0]
    got = causal_attention(q, k, v).reshape(300, 6, 16)
    assert np.abs(got - wanted.transpose(0, 1).numpy()).max() < 5e-5


def test_silu_equals_torch_where_exp_overflows_too() -> None:
    x = np.linspace(-200, 200, 3 * 40000, dtype=np.float32).reshape(3, -1)  # a row is more than a piece
    wanted = torch.nn.functional.silu(torch.from_numpy(x)).numpy()
    assert np.abs(silu(x) - wanted).max() < 1e-5
    rows = x.reshape(-1, 60).copy()
    assert silu(rows, out=rows) is rows
    assert np.array_equal(rows.reshape(3, -1), silu(x))


def test_dimensions_beyond_the_rotated_ones_stay() -> None:
    x = np.random.default_rng(0).standard_normal((9, 2, 16), np.float32)
    turned = rotate(x, *angles(9, Rotation(8, 10000.0), 3))
    assert np.array_equal(turned[..., 8:], x[..., 8:])
    assert np.allclose(np.square(turned).sum(-1), np.square(x).sum(-1), rtol=1e-5)
    assert np.abs(rotate(turned, *_backwards(angles(9, Rotation(8, 10000.0), 3))) - x).max() < 1e-6


def _backwards(turn: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    return turn[0], -turn[1]


def test_embeddings_and_logits_of_a_matrix_that_is_read_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_model(tmp_path)
    tokens = int32([271, 0, 5, 5, 140, 271, 1])
    with open_reference(path) as model:
        rows, whole = embed(model, tokens), model.weights("token_embd.weight")
        logits = head_logits(model, rows)
        monkeypatch.setattr(ReferenceModel, "chunks", partialmethod(ReferenceModel.chunks, n_weights=640))
        monkeypatch.setattr("mimo_gguf.reference.model._STRIP_BYTES", 1)
        assert np.array_equal(rows, whole[tokens])
        assert np.array_equal(embed(model, tokens), rows)
        assert np.abs(head_logits(model, rows) - logits).max() < 1e-5


def test_a_model_that_stretches_positions_is_refused(tmp_path: Path) -> None:
    with open_gguf(make_model(tmp_path)) as source:
        changed = replace(source, metadata={**source.metadata, "step35.rope.scaling.type": string("yarn")})
        with pytest.raises(GgufError, match=r"rope\.scaling\.type stretches positions"):
            ReferenceModel(changed)


def test_a_file_without_some_tensor_is_refused(tmp_path: Path) -> None:
    with open_gguf(make_model(tmp_path)) as source:
        some = tuple(tensor for tensor in source.tensors if tensor.info.name != "blk.1.ffn_up.weight")
        with pytest.raises(GgufError, match=r"tensor blk\.1\.ffn_up\.weight is missing"):
            ReferenceModel(replace(source, tensors=some))
