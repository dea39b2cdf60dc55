"""Profiles as data: found by name, and precise about mistakes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mimo_gguf.core.errors import MimoGgufError, RecipeError, UsageError
from mimo_gguf.core.ggml_types import GgmlType, ftype_name
from mimo_gguf.core.published_model import published_model
from mimo_gguf.quantization.profile_sizes import idle_globs, size_of
from mimo_gguf.quantization.profiles import CONDITIONS, Layer, list_profiles, load_profile, read_profile

GOOD = """
summary = "mine"
file_type = "Q4_K_M"
default = "Q4_K"
[mtp]
type = "Q8_0"
[[rules]]
tensors = ["*.ffn_down.weight", "output.weight"]
when = ["use_more_bits"]
type = "q6_k"
why = "because"
"""


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("q4_k_m", "Q4_K_M"),
        ("FP16", "F16"),
        ("bfloat16", "BF16"),
        ("fp32", "F32"),
        ("Q4_K", "Q4_K_M"),
        ("iq4-xs", "IQ4_XS"),
    ],
)
def test_names_are_found_in_any_case_and_with_their_aliases(text: str, name: str) -> None:
    assert load_profile(text).name == name


def test_an_unknown_name_is_told_where_the_known_ones_are() -> None:
    with pytest.raises(UsageError, match="no file type or profile 'Q9'") as caught:
        load_profile("Q9")
    assert caught.value.hint is not None
    assert "mimo-gguf profiles" in caught.value.hint


def test_every_shipped_profile_is_the_file_type_of_its_name() -> None:
    for profile in list_profiles():
        assert ftype_name(profile.file_type) == profile.name
        assert profile.mtp.ggml_type is None, "byte identity is the default, for the MTP block too"


def test_a_users_profile_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    profile = load_profile(path)
    assert (profile.name, profile.default, profile.mtp.ggml_type) == ("mine", GgmlType.Q4_K, GgmlType.Q8_0)
    assert profile.rules[0].tensors == ("*.ffn_down.weight", "output.weight")
    assert profile.rules[0].ggml_type is GgmlType.Q6_K


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('default = "Q4_K"', ""), "key 'default' is missing"),
        (('default = "Q4_K"', 'default = "Q4_Z"'), "default: 'Q4_Z' is not a type"),
        (('default = "Q4_K"', 'default = "I32"'), "default: 'I32' is not a type"),
        (('default = "Q4_K"', "default = 4"), "default is 4, not a ggml type"),
        (('file_type = "Q4_K_M"', 'file_type = "MINE"'), "file_type is 'MINE'"),
        (('summary = "mine"', 'summary = "mine"\ncolour = 1'), "unknown key 'colour'"),
        (('type = "Q8_0"', 'typ = "Q8_0"'), r"\[mtp\]: unknown key 'typ'"),
        (('type = "Q8_0"', 'type = "most"'), r"\[mtp\]: type: 'most'"),
        (('type = "Q8_0"', 'without_imatrix = "IQ2_XS"'), "without_imatrix: IQ2_XS itself needs an importance matrix"),
        (('"use_more_bits"', '"full_moon"'), "rule 1: when: no condition 'full_moon'"),
        (('type = "q6_k"', ""), "rule 1: key 'type' is missing"),
        (('type = "q6_k"', 'type = "q6"'), "rule 1: type: 'q6' is not a type"),
        (('why = "because"', "why = 3"), "rule 1: why is 3, not a text"),
        (('["*.ffn_down.weight", "output.weight"]', "[1]"), r"rule 1: tensors is \[1\]"),
        (('["*.ffn_down.weight", "output.weight"]', "[]"), "rule 1: tensors names none"),
        (("[[rules]]", "[rules]"), "rules must be tables"),
        (("[[rules]]", "[[rules"), "not valid TOML"),
    ],
)
def test_mistakes_are_named_with_file_rule_and_key(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    assert change[0] in GOOD
    path.write_text(GOOD.replace(*change, 1))
    with pytest.raises(RecipeError, match=message) as caught:
        read_profile(path)
    assert caught.value.message.startswith(str(path))
    assert caught.value.hint


def test_a_glob_that_names_no_matrix_is_pointed_out(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace('"output.weight"', '"blk.*.ffn_dwn.weight", "*_norm.weight"'))
    assert idle_globs(read_profile(path), published_model()) == (
        "rule 1: blk.*.ffn_dwn.weight names no matrix of MiMo-7B",
        "rule 1: *_norm.weight names no matrix of MiMo-7B",
    )
    assert not any(idle_globs(profile, published_model()) for profile in list_profiles())


def test_the_profile_in_the_documentation_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/quantize.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    profile = read_profile(tmp_path / "mine.toml")
    assert (profile.mtp.ggml_type, len(profile.rules)) == (GgmlType.Q8_0, 2)
    assert idle_globs(profile, published_model()) == ()
    assert all(f"`{condition}`" in page for condition in CONDITIONS)


def test_a_missing_profile_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MimoGgufError, match=r"none\.toml"):
        load_profile(tmp_path / "none.toml")


def test_conditions_mean_what_they_say() -> None:
    def holding(name: str, n: int = 37) -> list[int]:
        return [i for i in range(n) if CONDITIONS[name][0](Layer(i, n, 4, False, True))]

    assert holding("first_eighth") == [0, 1, 2, 3]
    assert holding("first_sixteenth") == [0, 1]
    assert holding("middle_layers") == list(range(4, 32))
    assert holding("use_more_bits") == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 32, 33, 34, 35, 36]


def test_the_reference_model_is_mimo_7b() -> None:
    model = published_model()
    assert len(model.tensors) == 451
    assert sum(info.n_elements for info in model.tensors) == 7_833_409_536
    # 4574.8 MiB is llama.cpp's own dry run; sizes fall with the bits
    assert round(size_of(load_profile("Q4_K_M"), model).n_bytes / 2**20, 1) == 4574.8
    assert round(size_of(load_profile("Q6_K"), model).n_bytes / 2**20, 1) == 6129.8
    needing = {profile.name for profile in list_profiles() if size_of(profile, model).needs_imatrix}
    assert needing == {"Q2_K_S", "IQ3_XXS", "IQ3_XS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ1_S", "IQ1_M"}
