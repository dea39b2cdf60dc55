"""Which types are solved and which are kept, and the solution as a profile that gives the same types again."""

from __future__ import annotations

from pathlib import Path

import pytest

from mimo_gguf.calibration.solved_profile import profile_text, solved_name
from mimo_gguf.calibration.type_plan import solve_types, wanted_types
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.geometry import read_geometry
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.model_source import TensorInfo
from mimo_gguf.quantization.profiles import load_profile, read_profile
from mimo_gguf.quantization.type_choice import TypeOptions, choose_types, parse_tensor_type
from tests.quantization.models import Model, infos, metadata

Q3, X4, Q4, Q5, Q6 = GgmlType.Q3_K, GgmlType.IQ4_XS, GgmlType.Q4_K, GgmlType.Q5_K, GgmlType.Q6_K
SMALL = Model(n_trunk=4)


def costs_of(model: Model) -> dict[str, dict[GgmlType, float]]:
    """V is sensitive, the down projection is not."""
    found = {}
    for info in infos(model):
        weight = 50.0 if "attn_v" in info.name else 0.1 if "ffn_down" in info.name else 1.0
        found[info.name] = {t: weight * c for t, c in zip((Q3, X4, Q4, Q5, Q6), (1, 0.4, 0.3, 0.1, 0.03), strict=True)}
    return found


def test_solved_types_keep_head_embedding_mtp_and_what_the_user_said() -> None:
    geometry = read_geometry(metadata(SMALL), infos(SMALL), where="test")
    profile = load_profile("Q4_K_M")
    options = TypeOptions(tensor_types=(parse_tensor_type(r"blk\.0\.ffn_up=Q6_K"),))
    wanted = wanted_types(profile, geometry, infos(SMALL), options, "solve")
    solved = solve_types(wanted, costs_of(SMALL), wanted.n_bytes)
    before = {choice.info.name: choice.info.ggml_type for choice in wanted.choices}
    for name in ("token_embd.weight", "output.weight", "blk.0.ffn_up.weight", "blk.4.attn_v.weight"):
        assert solved.types[name] is before[name]
        assert name not in wanted.solved
    assert solved.types["blk.1.attn_v.weight"] is Q6
    sizes = {info.name: info for info in infos(SMALL)}
    n_bytes = sum(TensorInfo(n, sizes[n].shape, t).n_bytes for n, t in solved.types.items())
    n_bytes += sum(info.n_bytes for info in sizes.values() if info.name not in solved.types)
    assert n_bytes <= wanted.n_bytes
    assert solved.before is not None and solved.after is not None
    assert solved.after < 0.42 * solved.before
    free = wanted_types(profile, geometry, infos(SMALL), options, "free")
    assert free.solved - wanted.solved == {"token_embd.weight", "output.weight"}
    assert not wanted_types(profile, geometry, infos(SMALL), options, "profile").solved


def test_solution_written_as_a_profile_gives_the_same_types_again(tmp_path: Path) -> None:
    geometry = read_geometry(metadata(SMALL), infos(SMALL), where="test")
    base = load_profile("Q4_K_M")
    wanted = wanted_types(base, geometry, infos(SMALL), TypeOptions(), "solve")
    solved = solve_types(wanted, costs_of(SMALL), wanted.n_bytes)
    path = tmp_path / f"{solved_name(base)}.toml"
    path.write_text(profile_text(base, solved.mix, wanted.kept))
    profile = read_profile(path)
    assert (profile.name, profile.file_type) == ("Q4_K_M-calibrated", base.file_type)
    assert all(rule.why for rule in profile.rules)
    for tensors in (
        infos(SMALL),
        [TensorInfo(i.name, i.shape, solved.types.get(i.name, i.ggml_type)) for i in infos(SMALL)],
    ):
        again = {choice.info.name: choice.info.ggml_type for choice in choose_types(profile, geometry, tensors)}
        assert {name: again[name] for name in solved.types} == solved.types
    assert solved_name(profile) == profile.name


def with_extremes(costs: dict[str, dict[GgmlType, float]]) -> dict[str, dict[GgmlType, float]]:
    return {
        name: by_type | {GgmlType.Q8_0: by_type[Q6] / 50, GgmlType.Q2_K: 3 * by_type[Q3]}
        for name, by_type in costs.items()
    }


def test_the_smallest_and_the_largest_type_are_mixed_where_costs_say_so() -> None:
    geometry = read_geometry(metadata(SMALL), infos(SMALL), where="test")
    wanted = wanted_types(load_profile("Q4_K_M"), geometry, infos(SMALL), TypeOptions(), "solve")
    costs = with_extremes(costs_of(SMALL))
    costs["blk.2.attn_v.weight"] = {t: 1000 * cost for t, cost in costs["blk.2.attn_v.weight"].items()}
    costs["blk.1.ffn_down.weight"] = {t: cost / 1000 for t, cost in costs["blk.1.ffn_down.weight"].items()}
    types = solve_types(wanted, costs, wanted.n_bytes).types
    assert types["blk.2.attn_v.weight"] is GgmlType.Q8_0
    assert types["blk.1.ffn_down.weight"] is GgmlType.Q2_K


def test_rows_that_super_blocks_do_not_divide_mix_small_blocks() -> None:
    ragged = Model(n_trunk=4, width=288, ffn=512)
    geometry = read_geometry(metadata(ragged), infos(ragged), where="test")
    wanted = wanted_types(load_profile("Q4_K_M"), geometry, infos(ragged), TypeOptions(), "solve")
    costs = {}
    for info in infos(ragged):
        small = {GgmlType.Q4_0: 0.35, GgmlType.IQ4_NL: 0.3, GgmlType.Q5_0: 0.1, GgmlType.Q8_0: 0.001}
        of_256 = {Q3: 1.0, X4: 0.4, Q4: 0.3, Q5: 0.1, Q6: 0.03}
        costs[info.name] = small if info.n_columns % 256 else of_256
    solved = solve_types(wanted, costs, wanted.n_bytes)
    by_part = {part: {t for n, t in solved.types.items() if part in n} for part in ("attn_q", "ffn_down")}
    assert by_part["attn_q"] <= {GgmlType.IQ4_NL, GgmlType.Q5_0, GgmlType.Q8_0}
    assert by_part["ffn_down"] <= {GgmlType.Q2_K, Q3, X4, Q4, Q5, Q6, GgmlType.Q8_0}
    assert len({t for name, t in solved.types.items() if name in wanted.solved and "ffn_down" not in name}) > 1


def test_a_type_at_the_end_of_those_that_are_mixed_keeps_its_own() -> None:
    geometry = read_geometry(metadata(SMALL), infos(SMALL), where="test")
    costs = with_extremes(costs_of(SMALL))
    wanted = wanted_types(load_profile("Q8_0"), geometry, infos(SMALL), TypeOptions(), "solve")
    assert set(solve_types(wanted, costs, wanted.n_bytes).types.values()) == {GgmlType.Q8_0}
    wanted = wanted_types(load_profile("Q2_K"), geometry, infos(SMALL), TypeOptions(), "solve")
    solved = solve_types(wanted, costs, wanted.n_bytes)
    assert GgmlType.Q2_K in solved.types.values()
    assert solved.before is not None and solved.after is not None and solved.after < solved.before


def test_file_types_are_accepted_or_refused_as_the_docs_say() -> None:
    geometry = read_geometry(metadata(SMALL), infos(SMALL), where="test")
    refused = []
    for path in sorted((Path(__file__).parents[2] / "quant_profiles").glob("*.toml")):
        try:
            wanted_types(load_profile(path.stem), geometry, infos(SMALL), TypeOptions(), "solve")
        except UsageError as error:
            assert "calibration does not write IQ" in error.message
            refused.append(path.stem)
    assert refused == ["IQ1_M", "IQ1_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ3_XS", "IQ3_XXS"]
    assert "`IQ1_S` to `IQ3_XS`" in (Path(__file__).parents[2] / "docs/calibration.md").read_text()


def test_a_bound_below_what_is_kept_is_refused() -> None:
    geometry = read_geometry(metadata(SMALL), infos(SMALL), where="test")
    wanted = wanted_types(load_profile("Q6_K"), geometry, infos(SMALL), TypeOptions(), "solve")
    with pytest.raises(UsageError, match="what keeps its type alone needs"):
        solve_types(wanted, costs_of(SMALL), 1000)
    with pytest.raises(UsageError, match="calibration does not write IQ2_XS"):
        wanted_types(load_profile("IQ2_XS"), geometry, infos(SMALL), TypeOptions(), "solve")
