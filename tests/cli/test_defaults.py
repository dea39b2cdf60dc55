"""Defaults in the configuration file and in variables: which win, what is refused, and that they are written down."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

from mimo_gguf.cli.app import build_app
from mimo_gguf.cli.defaults import SETTINGS, default_map, defaults_in_force, unknown_variables
from mimo_gguf.core.errors import UsageError
from tests.cli.command_line import assert_clear_error, run_here

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIMO_GGUF_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.delenv("MIMO_GGUF_MODELS", raising=False)
    return tmp_path / "config.toml"


def test_every_setting_is_an_option_of_its_commands_and_written_down() -> None:
    program: Any = typer.main.get_command(build_app())
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| `(MIMO_GGUF_\w+)` \|", page, re.MULTILINE))
    assert rows == {setting.name: setting.variable for setting in SETTINGS}
    for setting in SETTINGS:
        for command in setting.commands:
            names = {parameter.name for parameter in program.commands[command].params}
            assert setting.name in names, (command, setting.name)


def test_the_nearest_wins(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Command line, variable, the command's table, the file's first lines, the program."""

    def folder(*arguments: str) -> str:
        return run_here(tmp_path, "models", *arguments).stdout.split(";")[0].removeprefix("no models in ").strip()

    config.touch()
    assert folder().endswith("mimo-gguf/models")
    config.write_text('models-dir = "/first/lines"\n')
    assert folder() == "/first/lines"
    config.write_text('models_dir = "/first/lines"\n[models]\nmodels_dir = "/table"\n')
    assert folder() == "/table"
    monkeypatch.setenv("MIMO_GGUF_MODELS", "/variable")
    assert folder() == "/variable"
    assert folder("--models-dir", "/line") == "/line"


def test_a_file_becomes_defaults_of_commands(config: Path) -> None:
    found = default_map({"ctx": 512, "kv-type": "q8_0", "serve": {"ctx": 8192, "port": 1}})
    assert found["chat"] == {"ctx": 512, "kv_type": "q8_0"}
    assert found["serve"] == {"ctx": 8192, "kv_type": "q8_0", "port": 1}
    assert found["quantize"] == {}


@pytest.mark.parametrize(
    ("text", "error", "hint"),
    [
        ("ctxx = 1", "has no setting ctxx", "did you mean ctx?"),
        ("[chat]\nport = 1", "[chat] has no setting port", "one of: "),
        ("[chatt]\nctx = 1", "no command [chatt] with settings", "did you mean chat?"),
        ("ctx = ", "Invalid value", "docs/install.md"),
        ('ctx = "many"', "invalid value for '-c' / '--ctx'", "change it there"),
        ("ctx = -5", "invalid value for '-c' / '--ctx'", "change it there"),
    ],
)
def test_a_wrong_file_is_one_clear_line(config: Path, tmp_path: Path, text: str, error: str, hint: str) -> None:
    config.write_text(text)
    done = run_here(tmp_path, "chat", "x.gguf", "-p", "x")
    assert_clear_error(done, str(config), error, code=2)
    assert hint in done.stderr
    assert run_here(tmp_path, "--version").returncode == 0


def test_a_wrong_variable_is_named(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.touch()
    monkeypatch.setenv("MIMO_GGUF_CTX", "many")
    assert_clear_error(run_here(tmp_path, "chat", "x.gguf", "-p", "x"), "MIMO_GGUF_CTX: ", code=2)
    done = run_here(tmp_path, "chat", "x.gguf", "-p", "x", "--ctx=512")
    assert_clear_error(done, "x.gguf", code=1)


def test_where_each_value_comes_from(config: Path) -> None:
    table = {"ctx": 512, "temp": 0.7, "api_key": "secret", "serve": {"ctx": 8192}}
    found = defaults_in_force(table, {"MIMO_GGUF_TEMP": "0.5", "MIMO_GGUF_API_KEY": ""})
    assert [(each.name, each.value, each.source) for each in found] == [
        ("ctx", 512, str(config)), ("serve.ctx", 8192, str(config)),
        ("temp", "0.5", "MIMO_GGUF_TEMP"), ("api_key", "(set)", str(config)),
    ]  # fmt: skip
    assert [problem for problem, _ in unknown_variables({"MIMO_GGUF_CTXX": "1", "MIMO_GGUF_CTX": "1"})] == [
        "MIMO_GGUF_CTXX is not a variable of this program"
    ]


def test_the_file_must_be_there_if_it_is_named(config: Path) -> None:
    from mimo_gguf.core.config_file import read_config

    with pytest.raises(UsageError, match="No such file"):
        read_config()
