"""`mimo-gguf profiles`: lists the file types, shows one with its rules, or checks a profile of your own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mimo_gguf.cli import ui
from mimo_gguf.cli.options import Json
from mimo_gguf.core.units import format_size

if TYPE_CHECKING:
    from mimo_gguf.core.model_sizes import ModelSizes
    from mimo_gguf.quantization.profile_sizes import ProfileSize
    from mimo_gguf.quantization.profiles import Profile


def command(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show one: a file type, or a TOML file.")] = None,
    check: Annotated[
        Path | None, typer.Option("--check", metavar="FILE", help="Check a profile of your own (TOML) and show it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the file types with their size for MiMo-7B, or show one with its rules and their reasons."""
    from mimo_gguf.core.published_model import published_model
    from mimo_gguf.quantization.profile_sizes import idle_globs, size_of
    from mimo_gguf.quantization.profiles import list_profiles, load_profile, read_profile

    model = published_model()
    chosen = read_profile(check) if check else load_profile(name) if name else None
    if chosen is not None:
        size, warnings = size_of(chosen, model), idle_globs(chosen, model)
        if as_json:
            ui.print_json(_as_json(chosen, size, rules=True) | {"warnings": list(warnings)})
        else:
            _print_one(chosen, size, model)
        for line in warnings if not as_json else ():
            ui.print_warning(line)
        return
    sized = sorted(((profile, size_of(profile, model)) for profile in list_profiles()), key=lambda ps: -ps[1].n_bytes)
    if as_json:
        ui.print_json({"model": model.label, "profiles": [_as_json(*ps, rules=False) for ps in sized]})
        return
    ui.print_table(
        ("type", "bits per weight", f"size of {model.label}", "imatrix", "what it is"),
        [
            (
                profile.name,
                f"{size.bits_per_weight:.2f}",
                format_size(size.n_bytes),
                "needed" if size.needs_imatrix else "",
                profile.summary,
            )
            for profile, size in sized
        ],
    )
    ui.print_note("weights alone, MTP layer included; mimo-gguf profiles NAME shows the rules")


def _print_one(profile: Profile, size: ProfileSize, model: ModelSizes) -> None:
    from mimo_gguf.quantization.profiles import CONDITIONS

    ui.print_field("profile", f"{profile.name} ({profile.path})")
    ui.print_field("", profile.summary)
    ui.print_field("size", f"{size.bits_per_weight:.2f} bits per weight, {format_size(size.n_bytes)} for {model.label}")
    ui.print_field("imatrix", "needed" if size.needs_imatrix else "optional")
    ui.print_field("matrices", ", ".join(f"{name} x{count}" for name, count in size.types))
    mtp = (
        profile.mtp.ggml_type.name
        if profile.mtp.ggml_type is not None
        else f"same as the file ({', '.join(size.mtp_types)})"
    )
    ui.print_field("mtp", mtp)
    ui.print_line()
    rows = [
        (rule.ggml_type.name, " ".join(rule.tensors), " and ".join(CONDITIONS[name][1] for name in rule.when), rule.why)
        for rule in profile.rules
    ]
    rows.append((profile.default.name, "every other matrix", "", ""))
    rows.append(("kept", "norms, biases, vectors", "", "small, and every value passes through them"))
    ui.print_table(("type", "tensors", "in", "why"), rows, title="rules, the first that applies decides")


def _as_json(profile: Profile, size: ProfileSize, *, rules: bool) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": profile.name,
        "summary": profile.summary,
        "path": str(profile.path),
        "default": profile.default.name,
        "bits_per_weight": round(size.bits_per_weight, 4),
        "n_bytes": size.n_bytes,
        "needs_imatrix": size.needs_imatrix,
        "types": dict(size.types),
        "mtp": "same" if profile.mtp.ggml_type is None else profile.mtp.ggml_type.name,
    }
    if rules:
        document["rules"] = [
            {"tensors": list(rule.tensors), "when": list(rule.when), "type": rule.ggml_type.name, "why": rule.why}
            for rule in profile.rules
        ]
        document["tensors"] = {choice.info.name: choice.info.ggml_type.name for choice in size.choices}
    return document
