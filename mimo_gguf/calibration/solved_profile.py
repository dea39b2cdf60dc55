"""Writes a solved mix as a profile: a TOML file in the format of quant_profiles/, to keep, read, edit and give back.

Every matrix is named in it, so that the file gives the same types again whatever its default is. Matrices with the same
part of their name and the same type share a rule, and each rule says what it is for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mimo_gguf.calibration.mix import Mix
from mimo_gguf.core.geometry import block_number
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.units import counted
from mimo_gguf.quantization.profiles import Profile
from mimo_gguf.quantization.type_choice import TypeChoice

SUFFIX = "-calibrated"  # of the profile's name, and so of the file's


@dataclass(frozen=True, slots=True)
class _Rule:
    tensors: tuple[str, ...]
    ggml_type: GgmlType
    why: str


def solved_name(base: Profile) -> str:
    """The name of the profile that a calibration makes of `base`: `Q4_K_M-calibrated`."""
    return base.name if base.name.endswith(SUFFIX) else base.name + SUFFIX


def profile_text(base: Profile, mix: Mix, kept: Sequence[TypeChoice] = (), *, solved_for: str = "") -> str:
    """The text of the profile that gives every matrix the type it has in `mix`, or in `kept` if it was not solved.

    Args:
        base: the profile whose file type it keeps.
        kept: choices that were fixed before solving; their reasons stay.
        solved_for: what was solved for, in words, for the summary.
    """
    summary = f"{base.file_type.name.removeprefix('MOSTLY_')} with types solved by calibration{solved_for}"
    rules = [*_kept_rules(kept), *_solved_rules(mix)]
    lines = [
        f"summary = {_quoted(summary)}",
        f"file_type = {_quoted(base.file_type.name.removeprefix('MOSTLY_'))}",
        f"default = {_quoted(base.default.name)}",
        "",
        "[mtp]",
        'type = "same" # its matrices are named below',
    ]
    for rule in rules:
        tensors = rule.tensors[0] if len(rule.tensors) == 1 else None
        lines += [
            "",
            "[[rules]]",
            f"tensors = {_quoted(tensors)}" if tensors else _listed(rule.tensors),
            f"type = {_quoted(rule.ggml_type.name)}",
            f"why = {_quoted(rule.why)}",
        ]
    return "\n".join(lines) + "\n"


def _kept_rules(kept: Sequence[TypeChoice]) -> list[_Rule]:
    grouped: dict[tuple[GgmlType, str], list[str]] = {}
    for choice in kept:
        grouped.setdefault((choice.info.ggml_type, choice.why), []).append(choice.info.name)
    return [_Rule(tuple(names), ggml_type, why) for (ggml_type, why), names in grouped.items()]


def _solved_rules(mix: Mix) -> list[_Rule]:
    """One rule for each part and type, parts in the model's order, the type of most matrices last."""
    parts: dict[str, dict[GgmlType, list[str]]] = {}
    for name, ggml_type in mix.types.items():
        parts.setdefault(_part(name), {}).setdefault(ggml_type, []).append(name)
    rules = []
    for part, by_type in parts.items():
        total = sum(map(len, by_type.values()))
        for ggml_type, names in sorted(by_type.items(), key=lambda entry: (len(entry[1]), entry[0].name)):
            in_order = tuple(sorted(names, key=lambda name: block_number(name) or 0))
            tensors = (f"*.{part}",) if len(names) == total and block_number(names[0]) is not None else in_order
            rules.append(_Rule(tensors, ggml_type, _why(mix, names, total)))
    return rules


def _why(mix: Mix, names: Sequence[str], total: int) -> str:
    share = sum(mix.costs[name] for name in names) / mix.predicted if mix.predicted > 0 else 0.0
    return (
        f"solved: {len(names)} of {counted(total, 'such matrix', 'such matrices')}, {share:.1%} of the predicted "
        f"divergence of {mix.predicted:.5f}"
    )


def _part(name: str) -> str:
    """`attn_v.weight` of `blk.7.attn_v.weight`; another name whole."""
    return name.split(".", 2)[2] if block_number(name) is not None else name


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _listed(names: Sequence[str]) -> str:
    return "tensors = [\n" + "".join(f"  {_quoted(name)},\n" for name in names) + "]"


def pinned_choices(choices: Sequence[TypeChoice], solved: Mapping[str, object]) -> tuple[TypeChoice, ...]:
    """The choices about matrices that are not solved."""
    return tuple(choice for choice in choices if choice.info.name not in solved and len(choice.info.shape) > 1)
