"""Options that several commands share mean the same in each, and a path with `~` is a path in the home folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer.main

from mimo_gguf.cli.app import build_app
from tests.cli.command_line import assert_clear_error, run_here

_OWN = {("bench", "-r"), ("chat", "-p"), ("chat", "-f")}  # letters that one command alone has

# What they say depends on the command: a prompt's file or a text to measure with, tokens to generate or to read, the
# window of a conversation or of a measurement, a file's default name, layers if nothing is said.
_AS_THE_COMMAND_NEEDS = {
    "-f", "--file", "--tokens", "-c", "--ctx", "-o", "--out", "--gpu", "--against", "-ngl", "--gpu-layers", "--hidden",
    "--base", "--check", "--max-tokens", "--plot", "--show", "--temperature",
    "--dry-run", "--parallel", "--model",
}  # fmt: skip


def _options() -> dict[str, dict[str, Any]]:
    """Every spelling of an option -> command -> its parameter."""
    found: dict[str, dict[str, Any]] = {}
    program: Any = typer.main.get_command(build_app())
    for name, command in program.commands.items():
        for parameter in command.params:
            for spelling in [*parameter.opts, *parameter.secondary_opts]:
                if spelling.startswith("-"):
                    found.setdefault(spelling, {})[name] = parameter
    return found


def test_one_spelling_one_meaning() -> None:
    """The same letters, help, and range in every command that has the option; some are still two."""
    for spelling, by_command in _options().items():
        if spelling in _AS_THE_COMMAND_NEEDS:
            continue
        said = {(tuple(p.opts), p.help, p.metavar, p.multiple) for p in by_command.values()}
        lists = {p.multiple for p in by_command.values()}
        assert len(said) == 1 or (spelling == "--type" and len(lists) == 2), (spelling, said)


def test_a_letter_is_one_option() -> None:
    letters = {spelling: by_command for spelling, by_command in _options().items() if not spelling.startswith("--")}
    assert {"-t", "-ngl", "-c", "-q", "-o", "-p", "-f", "-n", "-r", "-y"} == set(letters)
    for letter, by_command in letters.items():
        assert len({parameter.name for parameter in by_command.values()}) == 1 or letter == "-f", letter
    assert set(letters["-t"]) == {
        "evaluate",
        "chat",
        "bench",
        "quantize",
        "convert",
        "verify",
        "worker",
        "serve",
        "quality",
        "imatrix",
        "batch",
        "relabel",
    }
    assert set(letters["-ngl"]) == {"batch", "chat", "bench", "evaluate", "fit", "serve", "quality", "imatrix"}
    assert set(_options()["--mtp"]) == set(_options()["--no-mtp"]) == {
        "batch", "chat", "bench", "evaluate", "fit", "convert", "serve", "quality", "imatrix",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["version"], "mimo-gguf --version"),
        (["help"], "mimo-gguf --help"),
        (["quantise"], "mimo-gguf quantize"),
        (["chat", "x", "--hiden", "pre"], "mimo-gguf chat --hidden"),
        (["chat", "x", "--thread", "1"], "mimo-gguf chat --threads"),
        (["chat", "x", "--think", "shwo"], "did you mean show?"),
        (["quantize", "x", "--type", "Q4_KM"], "did you mean Q4_K_M?"),
        (["profiles", "q6k"], "did you mean Q6_K?"),
        (["fit", "x", "--kv-type", "q8-0"], None),
        (["gpus", "--vendor", "nvidea"], "did you mean nvidia?"),
        (["gpus", "--sort", "prise"], "did you mean price?"),
    ],
)
def test_what_was_meant(tmp_path: Path, arguments: list[str], hint: str | None) -> None:
    done = run_here(tmp_path, *arguments)
    if hint is not None:
        assert_clear_error(done, code=2)
        assert done.stderr.splitlines()[-1] == f"hint: {hint}"


def test_a_home_folder(mimo_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(mimo_tiny.parent))
    monkeypatch.setenv("USERPROFILE", str(mimo_tiny.parent))
    path = f"~/{mimo_tiny.name}"
    assert json.loads(run_here(tmp_path, "inspect", path, "--json").stdout)
    assert run_here(tmp_path, "fit", path).returncode == 0
    done = run_here(tmp_path, "quantize", path, "--type", "Q8_0", "-o", "~/", "--dry-run", "--json")
    assert str(mimo_tiny.parent) in done.stdout and "~" not in done.stdout
    assert_clear_error(run_here(tmp_path, "inspect", "~nobody-here/x.gguf"), "~nobody-here")
