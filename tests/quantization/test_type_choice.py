"""Every tensor's type against llama.cpp's own dry run, at full size, in both layouts, on odd shapes and tied models."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.geometry import Geometry, read_geometry
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.quantization.profiles import MtpRule, Profile, list_profiles, load_profile
from mimo_gguf.quantization.type_choice import (
    ImportanceGiven,
    TypeOptions,
    choose_types,
    kept_reason,
    parse_tensor_type,
)
from tests.quantization import peer
from tests.quantization.models import MIMO_7B, QWEN2, STEP35, Model, infos, metadata, replace, write_hollow

PROFILES = list_profiles()
FULL = {layout: replace(MIMO_7B, layout=layout) for layout in (STEP35, QWEN2)}
# columns of 96 and 160 fit no block of 256, 100 not even blocks of 32; 40 blocks of small models move the thresholds
ODD = {
    "ragged": Model(width=96, ffn=160, heads=2, kv_heads=1, head_dim=48),
    "unfit": Model(width=100, ffn=256, heads=2, kv_heads=2, head_dim=50),
    "tied": Model(layout=QWEN2, tied=True, n_trunk=9, heads=4, kv_heads=2),
    "tied_ragged": Model(layout=QWEN2, tied=True, width=96, ffn=256, heads=2, kv_heads=1, head_dim=48),
    "gqa_2": Model(n_trunk=21, n_mtp=2, heads=4, kv_heads=2),
}


def geometry(model: Model) -> Geometry:
    return read_geometry(metadata(model), infos(model), where="test")


def ours(profile: Profile, model: Model, options: TypeOptions, importance: ImportanceGiven) -> dict[str, GgmlType]:
    choices = choose_types(profile, geometry(model), infos(model), options, importance)
    return {choice.info.name: choice.info.ggml_type for choice in choices}


@pytest.fixture(scope="module")
def hollow(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("hollow")
    return {name: write_hollow(folder / f"{name}.gguf", model) for name, model in {**FULL, **ODD}.items()}


def theirs(path: Path, profile: Profile, **options: object) -> dict[str, GgmlType]:
    log = peer.quantize(path, path.with_suffix(".out"), profile.file_type, dry_run=True, **options)  # type: ignore[arg-type]
    return peer.chosen_types(log)


def everywhere(model: Model) -> ImportanceGiven:
    return ImportanceGiven(True, {info.name for info in infos(model)})


@pytest.mark.full_size
@pytest.mark.parametrize("layout", FULL)
@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_every_assignment_of_mimo_7b_is_llama_cpps(profile: Profile, layout: str, hollow: dict[str, Path]) -> None:
    # every name, yet not `given`: llama.cpp assigns, in a dry run, types that it would refuse to write
    model = FULL[layout]
    alone = ImportanceGiven(False, everywhere(model).names)
    assert ours(profile, model, TypeOptions(), alone) == theirs(hollow[layout], profile)
    imatrix = {"blk.0.attn_q.weight": np.ones(4096, np.float32)}
    assert ours(profile, model, TypeOptions(), everywhere(model)) == theirs(hollow[layout], profile, imatrix=imatrix)


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_odd_shapes_and_importance_follow_llama_cpp(profile: Profile, name: str, hollow: dict[str, Path]) -> None:
    model = ODD[name]
    alone = ImportanceGiven(False, everywhere(model).names)
    assert ours(profile, model, TypeOptions(), alone) == theirs(hollow[name], profile)
    imatrix = {"blk.0.attn_q.weight": np.ones(model.width, np.float32)}
    assert ours(profile, model, TypeOptions(), everywhere(model)) == theirs(hollow[name], profile, imatrix=imatrix)


def test_importance_changes_the_first_down_projections_of_mimo_7b(hollow: dict[str, Path]) -> None:
    imatrix = {"blk.0.attn_q.weight": np.ones(4096, np.float32)}
    for name in ("Q4_0", "Q5_0", "IQ4_XS", "IQ4_NL", "IQ3_XXS"):
        profile = load_profile(name)
        expected = theirs(hollow[STEP35], profile, imatrix=imatrix)
        assert ours(profile, FULL[STEP35], TypeOptions(), everywhere(FULL[STEP35])) == expected
        assert expected != theirs(hollow[STEP35], profile), "the importance matrix should have made a difference"


@pytest.mark.parametrize("name", ["gqa_2", "tied"])
def test_explicit_types_follow_llama_cpp(name: str, hollow: dict[str, Path]) -> None:
    options = TypeOptions(
        tensor_types=(parse_tensor_type("attn_v=Q8_0"), parse_tensor_type(r"ffn_(up|gate)=IQ4_XS")),
        output_type=GgmlType.Q5_K,
        token_embedding_type=GgmlType.Q3_K,
    )
    expected = theirs(
        hollow[name],
        load_profile("Q4_K_M"),
        tensor_types=[("attn_v", GgmlType.Q8_0), ("ffn_(up|gate)", GgmlType.IQ4_XS)],
        output_type=GgmlType.Q5_K,
        token_embedding_type=GgmlType.Q3_K,
    )
    assert ours(load_profile("Q4_K_M"), ODD[name], options, ImportanceGiven()) == expected


def test_an_override_changes_only_the_tensors_it_names() -> None:
    model, profile = MIMO_7B, load_profile("Q4_K_M")
    plain = ours(profile, model, TypeOptions(), ImportanceGiven())
    options = TypeOptions(tensor_types=(parse_tensor_type(r"blk\.0\.ffn_down=Q8_0"),))
    changed = ours(profile, model, options, ImportanceGiven())
    assert {name for name in plain if plain[name] != changed[name]} == {"blk.0.ffn_down.weight"}


def test_the_mtp_rule_types_the_matrices_of_the_mtp_block_and_nothing_else() -> None:
    profile = load_profile("Q4_K_M")
    plain = ours(profile, MIMO_7B, TypeOptions(), ImportanceGiven())
    changed = ours(profile, MIMO_7B, TypeOptions(mtp=MtpRule(GgmlType.Q8_0)), ImportanceGiven())
    differing = {name for name in plain if plain[name] != changed[name]}
    matrices = {info.name for info in infos(MIMO_7B) if len(info.shape) == 2}
    assert differing == {name for name in matrices if name.startswith("blk.36.")}
    assert {changed[name] for name in differing} == {GgmlType.Q8_0}


def test_missing_importance_is_marked_in_the_trunk_and_replaced_in_the_mtp_block() -> None:
    profile = load_profile("IQ2_XS")
    names = {info.name for info in infos(MIMO_7B) if not info.name.startswith(("blk.36.", "blk.7.ffn_up"))}
    choices = choose_types(profile, geometry(MIMO_7B), infos(MIMO_7B), TypeOptions(), ImportanceGiven(True, names))
    assert [choice.info.name for choice in choices if choice.lacks_importance] == ["blk.7.ffn_up.weight"]
    by_name = {choice.info.name: choice for choice in choices}
    draft = by_name["blk.36.ffn_up.weight"]
    assert (draft.info.ggml_type, draft.fallback_from) == (GgmlType.Q4_K, GgmlType.IQ2_XS)


def test_a_profiles_fallback_holds_for_a_type_given_with_mtp_too() -> None:
    profile = dataclasses.replace(load_profile("Q4_K_M"), mtp=MtpRule(None, without_imatrix=GgmlType.Q8_0))
    options = TypeOptions(mtp=MtpRule(GgmlType.IQ2_XS))
    choices = choose_types(profile, geometry(MIMO_7B), infos(MIMO_7B), options, ImportanceGiven())
    draft = {choice.info.name: choice for choice in choices}["blk.36.ffn_up.weight"]
    assert (draft.info.ggml_type, draft.fallback_from) == (GgmlType.Q8_0, GgmlType.IQ2_XS)


def test_types_that_embedding_and_output_cannot_have_without_importance_are_marked() -> None:
    options = TypeOptions(token_embedding_type=GgmlType.IQ2_XS, output_type=GgmlType.IQ3_XXS)
    choices = choose_types(load_profile("Q4_K_M"), geometry(MIMO_7B), infos(MIMO_7B), options, ImportanceGiven())
    assert [choice.info.name for choice in choices if choice.lacks_importance] == ["token_embd.weight"]


def test_vectors_norms_and_biases_are_kept_for_a_reason() -> None:
    for info in infos(MIMO_7B):
        assert (kept_reason(info) is not None) == (len(info.shape) == 1), info.name


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("ffn_down", "PATTERN=TYPE", "ffn_down=Q6_K"),
        ("*=Q8_0", "regular expression", "ffn_down=Q6_K"),
        ("ffn_down=Q9", "'Q9' is not a type that a tensor can be written in", "one of: "),
        ("ffn_down=Q8_K", "'Q8_K' is not a type", "did you mean Q2_K or "),  # ggml's own, only for its sums
        ("ffn_down=Q4_K_M", "'Q4_K_M' is not a type", "Q4_K_M is a file type, its tensors are Q4_K"),
    ],
)
def test_a_wrong_tensor_type_is_explained(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_tensor_type(text)
    assert hint in str(caught.value.hint)
