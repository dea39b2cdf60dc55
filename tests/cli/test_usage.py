"""What is typed wrongly, and Ctrl-C at any moment: one form of error, the promised exit codes, never a traceback."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mimo_gguf.conversion import open_model
from mimo_gguf.core.errors import HubError
from tests.cli.command_line import PROGRAM, assert_clear_error, hear_interrupts, run, run_here
from tests.reference import MIMO_TINY


@pytest.mark.parametrize(
    ("arguments", "says", "hint"),
    [
        (["chta", "x"], "no such command 'chta'", "mimo-gguf chat"),
        (["xyzzy"], "no such command 'xyzzy'", "mimo-gguf --help"),
        (["--nope"], "no such option: --nope", "mimo-gguf --help"),
        (["inspect"], "missing argument 'FILE'", "mimo-gguf inspect --help"),
        (["inspect", "a", "b"], "unexpected extra argument", "mimo-gguf inspect --help"),
        (["inspect", "a", "--tensor"], "no such option: --tensor", "mimo-gguf inspect --tensors"),
        (["chat", "a", "--ctx"], "option '--ctx' requires an argument", "mimo-gguf chat --help"),
        (["chat", "a", "--ctx", "many"], "invalid value for '-c' / '--ctx'", "mimo-gguf chat --help"),
        (["chat", "a", "--max-tokens", "0"], "invalid value for '--max-tokens'", "mimo-gguf chat --help"),
        (["verify", "a", "--json=3"], "option '--json' does not take a value", "mimo-gguf verify --help"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: list[str], says: str, hint: str) -> None:
    done = run_here(tmp_path, *arguments)
    assert_clear_error(done, says, code=2)
    assert done.stderr.splitlines()[-1] == f"hint: {hint}"
    assert done.stdout == ""


def test_help_says_what_is_written(tmp_path: Path) -> None:
    """Square brackets are not read as markup, and a flag does not look as if it took a value."""
    done = run_here(tmp_path, "chat", "--help")
    assert done.returncode == 0
    text = " ".join(done.stdout.replace("│", " ").split())
    assert "[default: what fits]" in text and "[default: 0.6]" in text
    assert "<bool>" not in done.stdout and "--help -h Show this message" in text
    assert "[[" not in run_here(tmp_path, "fit", "--help").stdout
    assert run_here(tmp_path).stdout == run_here(tmp_path, "--help").stdout


def test_a_hint_can_be_typed_as_it_stands(tmp_path: Path) -> None:
    """Spaces and quotes in a path do not break the command that is to be typed."""
    folder = tmp_path / "it's mine"
    folder.mkdir()
    done = run_here(tmp_path, "inspect", folder)
    assert shlex.split(done.stderr.splitlines()[-1]) == ["hint:", "mimo-gguf", "convert", str(folder)]
    (folder / "a b.gguf").write_bytes(b"GGUF")
    done = run_here(tmp_path, "convert", folder / "a b.gguf")
    assert shlex.split(done.stderr.splitlines()[-1])[3] == str(folder / "a b.gguf")
    done = run_here(tmp_path, "convert", MIMO_TINY, "-o", folder / "not there" / "a.gguf")
    assert shlex.split(done.stderr.splitlines()[-1])[-1] == str(folder / "not there")
    done = run_here(tmp_path, "convert", folder)
    assert shlex.split(done.stderr.splitlines()[-1])[-3] == str(folder / "a b.gguf")


@pytest.mark.parametrize("name", ["absent.gguf", "models/absent.gguf", "models/absent.GGUF"])
def test_a_missing_file_is_not_asked_for_on_the_hub(tmp_path: Path, name: str) -> None:
    done = run_here(tmp_path, "convert", name)
    assert_clear_error(done, f"{name}: no such file")


def test_a_hub_id_that_was_meant_as_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise HubError("models/absent: no such repository", hint="look at its page")

    monkeypatch.setattr(open_model, "find_repository", fail)
    (tmp_path / "models").mkdir()
    done = run_here(tmp_path, "convert", "models/absent")
    assert_clear_error(done, "no such repository; nor is there a folder models/absent here")
    assert "folder" not in run_here(tmp_path, "convert", "others/absent").stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_behind_the_output(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run([*PROGRAM, "profiles"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert_clear_error(done, "no space left")


@pytest.mark.skipif(os.name == "nt", reason="POSIX shells close streams")
def test_closed_streams(tmp_path: Path) -> None:
    command = f"'{sys.executable}' -m mimo_gguf profiles >&- 2>&-"
    assert subprocess.run(command, shell=True, timeout=60).returncode == 0


@pytest.mark.skipif(os.name == "nt", reason="POSIX shells close streams")
@pytest.mark.parametrize(("arguments", "code"), [("-p x --max-tokens 3 --think-budget 0", 0), ("", 2), ("-f -", 2)])
def test_closed_stdin(mimo_tiny: Path, arguments: str, code: int) -> None:
    command = f"'{sys.executable}' -m mimo_gguf chat '{mimo_tiny}' --ctx 512 {arguments} <&-"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    if code:
        assert_clear_error(done, "the prompt is empty", code=code)


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", "\\xe4\\u4e2d\\U0001f600"), ("latin-1", "ä\\u4e2d\\U0001f600")]
)
def test_what_the_output_cannot_hold_is_spelled_out(tmp_path: Path, mimo_tiny: Path, encoding: str, shown: str) -> None:
    (tmp_path / "g.gbnf").write_text('root ::= "ä中😀"', encoding="utf-8")
    said = {}
    for form in ("--temp=0", "--json"):
        command = [*PROGRAM, "chat", str(mimo_tiny), "--ctx", "512", "--grammar", "g.gbnf", "-p", "Ä", form]
        env = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C"}
        done = subprocess.run(command, cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        said[form] = done.stdout.decode(encoding)
    assert said["--temp=0"] == f"{shown}\n"
    assert json.loads(said["--json"])["text"] == "ä中😀"


def test_arguments_are_utf_8_in_any_locale(tmp_path: Path, mimo_tiny: Path) -> None:
    counts = []
    for locale in ("C", "C.UTF-8"):
        env = {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        done = run(
            tmp_path, "chat", mimo_tiny, "--ctx", "512", "-p", "Grüße, 中文!", "--json", "--max-tokens", "1", **env
        )
        counts.append(json.loads(done.stdout)["tokens"]["prompt"])
    assert counts[0] == counts[1]


# ---- Ctrl-C while the program is still being imported

_AT_IMPORT = """
import os, runpy, signal, sys
def interrupt(event, arguments):
    if event == "import" and arguments[0] == {module!r}:
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(interrupt)
sys.argv = ["mimo-gguf", "--help"]
runpy.run_module("mimo_gguf", run_name="__main__", alter_sys=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("module", ["mimo_gguf.cli.app", "typer", "rich.console", "mimo_gguf.cli.ui"])
def test_ctrl_c_in_an_import(module: str) -> None:
    code = _AT_IMPORT.format(module=module)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, preexec_fn=hear_interrupts
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_at_any_moment(tmp_path: Path) -> None:
    """Ten real signals over the first half second. Until our first module runs, Python itself answers."""
    codes = set()
    for step in range(10):
        process = subprocess.Popen(
            [*PROGRAM, "profiles"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            preexec_fn=hear_interrupts,
        )  # fmt: skip
        time.sleep(0.04 + 0.046 * step)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        codes.add(process.returncode)
        assert "__main__.py" not in errors and "mimo_gguf/cli" not in errors, errors
    assert codes <= {0, 1, 130, -signal.SIGINT} and 130 in codes


def test_the_module_is_the_program(tmp_path: Path) -> None:
    assert run(tmp_path, "--version").stdout.startswith("mimo-gguf ")
