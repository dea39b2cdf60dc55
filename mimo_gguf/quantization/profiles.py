"""Quantization profiles: which ggml type each tensor of a file gets, and why. One TOML file per file type.

A profile is an ordered list of rules: globs on GGUF tensor names, conditions on the layer, a ggml type, the reason. The
first rule that applies decides; `default` is for the rest. A rule of its own says what happens to the MTP blocks.
The shipped profiles are llama.cpp's own mixes
(https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/llama-quant.cpp, llama_tensor_get_type_impl).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from gguf import LlamaFileType

from mimo_gguf.core.digests import RECIPE
from mimo_gguf.core.errors import RecipeError, UsageError
from mimo_gguf.core.ggml_types import GgmlType, canonical_name, ftype_name
from mimo_gguf.core.near_matches import name_hint
from mimo_gguf.core.shelves import QUANT_PROFILES, entries, read_toml

SAME: Final = "same"  # the MTP block is typed as any other block of the file
# Types whose weights come out as garbage without importance weights.
NEED_IMPORTANCE: Final = frozenset(
    {GgmlType.IQ3_XXS, GgmlType.IQ2_XXS, GgmlType.IQ2_XS, GgmlType.IQ2_S, GgmlType.IQ1_M, GgmlType.IQ1_S}
)


@dataclass(frozen=True, slots=True)
class Layer:
    """What a rule's condition may depend on: the tensor's block `i` of `n`, the model, and the run.

    Attributes:
        i: number of the block; -1 for a tensor outside the blocks.
        n: number of blocks in the file, MTP blocks included.
        n_gqa: number of query heads per KV head.
        with_imatrix: whether an importance matrix is given, for whichever tensors.
        whole_blocks: whether the tensor's rows are a whole number of the default type's blocks.
    """

    i: int
    n: int
    n_gqa: int
    with_imatrix: bool
    whole_blocks: bool


def use_more_bits(layer: Layer) -> bool:
    """Whether a block is in the first or last eighth, or every third between (llama.cpp's function of this name)."""
    i, n = layer.i, layer.n
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def middle_layers(layer: Layer) -> bool:
    """Whether a block lies between the first and the last eighth."""
    return layer.n // 8 <= layer.i < 7 * layer.n // 8


# name in a profile -> (test, meaning for people)
CONDITIONS: Final[Mapping[str, tuple[Callable[[Layer], bool], str]]] = {
    "use_more_bits": (use_more_bits, "the first and last eighth of the blocks, and every third between"),
    "middle_layers": (middle_layers, "the blocks between the first and the last eighth"),
    "first_eighth": (lambda layer: layer.i < layer.n // 8, "the first eighth of the blocks"),
    "first_sixteenth": (lambda layer: layer.i < layer.n // 16, "the first sixteenth of the blocks"),
    "first_two": (lambda layer: layer.i < 2, "the first two blocks"),
    "first_four": (lambda layer: layer.i < 4, "the first four blocks"),
    "gqa_4": (lambda layer: layer.n_gqa >= 4, "models with four or more query heads per KV head"),
    "with_imatrix": (lambda layer: layer.with_imatrix, "runs with an importance matrix"),
    "without_imatrix": (lambda layer: not layer.with_imatrix, "runs without an importance matrix"),
    "ragged_columns": (lambda layer: not layer.whole_blocks, "rows that the default's blocks do not divide"),
}


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of a profile: a tensor that matches a glob gets this type if every condition holds."""

    tensors: tuple[str, ...]
    when: tuple[str, ...]
    ggml_type: GgmlType
    why: str

    def applies(self, tensor_name: str, layer: Layer) -> bool:
        """Whether this rule decides about a tensor of that name."""
        return any(fnmatchcase(tensor_name, glob) for glob in self.tensors) and all(
            CONDITIONS[name][0](layer) for name in self.when
        )


@dataclass(frozen=True, slots=True)
class MtpRule:
    """The rule for the MTP blocks.

    Attributes:
        ggml_type: a type for all their matrices; None if the file's rules decide.
        without_imatrix: the type for matrices whose own type needs importance weights, if there are none for them.
            llama-imatrix does not run the MTP blocks.
    """

    ggml_type: GgmlType | None
    without_imatrix: GgmlType = GgmlType.Q4_K


@dataclass(frozen=True, slots=True)
class Profile:
    """A file type as data.

    Attributes:
        name: the profile's file name without .toml, like "Q4_K_M".
        file_type: the value of general.file_type.
        needs_imatrix: types that this profile must not use without an importance matrix, besides NEED_IMPORTANCE.
        digest: the hex digest of the file, so that a changed profile is noticed.
    """

    name: str
    path: Path
    file_type: LlamaFileType
    summary: str
    aliases: tuple[str, ...]
    default: GgmlType
    rules: tuple[Rule, ...]
    mtp: MtpRule
    needs_imatrix: frozenset[GgmlType]
    digest: str


def list_profiles() -> tuple[Profile, ...]:
    """Reads every shipped profile, sorted by name.

    Raises:
        RecipeError: a profile has a mistake in it.
    """
    return tuple(read_profile(path) for path in entries(QUANT_PROFILES))


def load_profile(name_or_path: str | Path) -> Profile:
    """Reads the profile of a file type, or a user's TOML file.

    A file type may be written in any case, and by its usual other names (`fp16`, `q4_k`).

    Raises:
        UsageError: no such profile.
        RecipeError: the profile has a mistake in it.
    """
    text = str(name_or_path)
    if text.lower().endswith(".toml"):
        return read_profile(Path(text))
    wanted = canonical_name(text)
    profiles = list_profiles()
    for profile in profiles:
        if wanted == profile.name.upper() or wanted in profile.aliases:
            return profile
    otherwise = "mimo-gguf profiles lists them; or give a file ending in .toml"
    hint = name_hint(text, [profile.name for profile in profiles], otherwise)
    raise UsageError(f"no file type or profile {text!r}", hint=hint)


# ---- reading


def read_profile(path: Path) -> Profile:
    """Reads the profile in a TOML file.

    Raises:
        RecipeError: the file cannot be read, or something in it is not allowed; the message has file, rule and key.
    """
    where = str(path)
    table = read_toml(path)
    _check_keys(
        table,
        where,
        required={"file_type", "default", "summary"},
        optional={"aliases", "rules", "mtp", "needs_imatrix"},
    )
    rules = table.get("rules", [])
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise RecipeError(f"{where}: rules must be tables", hint="write each rule under its own [[rules]] line")
    return Profile(
        name=path.stem,
        path=path,
        file_type=_file_type(table["file_type"], where),
        summary=_text(table, "summary", where),
        aliases=tuple(canonical_name(alias) for alias in _texts(table, "aliases", where)),
        default=_ggml_type(table["default"], f"{where}: default"),
        rules=tuple(_read_rule(rule, f"{where}: rule {number}") for number, rule in enumerate(rules, 1)),
        mtp=_read_mtp(table.get("mtp", {}), f"{where}: [mtp]"),
        needs_imatrix=frozenset(
            _ggml_type(name, f"{where}: needs_imatrix") for name in _texts(table, "needs_imatrix", where)
        ),
        digest=RECIPE.hex(path.read_bytes()),
    )


def _read_rule(table: dict[str, Any], where: str) -> Rule:
    _check_keys(table, where, required={"tensors", "type", "why"}, optional={"when"})
    globs = _texts(table, "tensors", where)
    if not globs:
        raise RecipeError(f"{where}: tensors names none", hint='write tensors = "*.ffn_down.weight"')
    when = _texts(table, "when", where)
    for name in when:
        if name not in CONDITIONS:
            raise RecipeError(
                f"{where}: when: no condition {name!r}", hint=f"one of: {', '.join(CONDITIONS)} (all must hold)"
            )
    return Rule(globs, when, _ggml_type(table["type"], f"{where}: type"), _text(table, "why", where))


def _read_mtp(table: Any, where: str) -> MtpRule:
    if not isinstance(table, dict):
        raise RecipeError(f"{where} must be a table", hint='write [mtp] and below it type = "same"')
    _check_keys(table, where, required=set(), optional={"type", "without_imatrix"})
    wanted = table.get("type", SAME)
    fallback = _ggml_type(table.get("without_imatrix", "Q4_K"), f"{where}: without_imatrix")
    if fallback in NEED_IMPORTANCE:
        raise RecipeError(
            f"{where}: without_imatrix: {fallback.name} itself needs an importance matrix", hint="Q4_K does not"
        )
    return MtpRule(None if wanted == SAME else _ggml_type(wanted, f"{where}: type"), fallback)


def _check_keys(table: Mapping[str, Any], where: str, *, required: set[str], optional: set[str]) -> None:
    allowed = ", ".join(sorted(required | optional))
    for key in table:
        if key not in required | optional:
            raise RecipeError(f"{where}: unknown key {key!r}", hint=f"allowed: {allowed}")
    for key in sorted(required):
        if key not in table:
            raise RecipeError(f"{where}: key {key!r} is missing", hint=f"required: {', '.join(sorted(required))}")


def _text(table: Mapping[str, Any], key: str, where: str) -> str:
    value = table[key]
    if not isinstance(value, str) or not value.strip():
        raise RecipeError(f"{where}: {key} is {value!r}, not a text", hint=f'write {key} = "..."')
    return value


def _texts(table: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    """Reads one text or a list of texts; no text if the key is missing."""
    value = table.get(key, [])
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
        raise RecipeError(f"{where}: {key} is {value!r}, not a text or a list of texts", hint=f'write {key} = "..."')
    return tuple(values)


def parse_weight_type(text: str) -> GgmlType:
    """The type that `text` names, in any case; weights can be written in it.

    Raises:
        UsageError: there is no such type.
    """
    from mimo_gguf.quantization.kernels.libggml import QUANTIZABLE_TYPES

    known = {ggml_type.name: ggml_type for ggml_type in sorted(QUANTIZABLE_TYPES, key=lambda t: t.name)}
    name = canonical_name(text)
    if name not in known:
        kind = name.rpartition("_")[0]  # Q4_K_M is a file's mix, its tensors are Q4_K
        hint = f"{name} is a file type, its tensors are {kind}" if kind in known else name_hint(text, known)
        raise UsageError(f"{text!r} is not a type that a tensor can be written in", hint=hint)
    return known[name]


def _ggml_type(value: Any, where: str) -> GgmlType:
    if not isinstance(value, str):
        raise RecipeError(f"{where} is {value!r}, not a ggml type", hint='write it like "Q4_K"')
    try:
        return parse_weight_type(value)
    except UsageError as error:
        raise RecipeError(f"{where}: {error.message}", hint=error.hint) from None


def _file_type(value: Any, where: str) -> LlamaFileType:
    names = {ftype_name(member): member for member in LlamaFileType if member.name != "GUESSED"}
    wanted = canonical_name(value) if isinstance(value, str) else ""
    if wanted not in names:
        known = ", ".join(names)
        raise RecipeError(f"{where}: file_type is {value!r}, not one of llama.cpp's", hint=f"one of: {known}")
    return names[wanted]
