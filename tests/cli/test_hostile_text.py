"""Text from files, models and errors never reaches a terminal raw: no escape, control, invisible or turning character.

The same hostile text is put wherever a stranger's file can put it, and every command is asked about that file.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mimo_gguf.cli import ui
from mimo_gguf.conversion.checkpoint_source import open_checkpoint
from tests.cli.command_line import PROGRAM, run_here
from tests.reference import MIMO_TINY
from tests.tiny_models import write_gguf

EVIL = "\x1b]0;owned\x07\x1b[31m\x9b31m\x85\x08\r\u202eevil\u2066\u200b\ufeff\U000e0041"
_RAW = [
    *map(chr, range(9)),
    *map(chr, range(11, 32)),
    *map(chr, range(0x7F, 0xA0)),
    *"\u202e\u2066\u200b\ufeff\U000e0041",
]
QUICK = ("--temp", "0", "--threads", "1", "--ctx", "512", "--max-tokens", "8")


def assert_harmless(*texts: str) -> None:
    for text in texts:
        assert not [letter for letter in _RAW if letter in text], ascii(text)[:2000]


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model that runs, with hostile text in its metadata, in a folder with a hostile name."""
    folder = tmp_path_factory.mktemp("evil") / EVIL.replace("\x08", "")
    folder.mkdir()
    with open_checkpoint(MIMO_TINY) as source:
        metadata = dict(source.metadata)
        for key, entry in source.metadata.items():
            if key.startswith("general.") and key != "general.architecture" and isinstance(entry.value, str):
                metadata[key] = replace(entry, value=entry.value + EVIL)
        metadata[f"evil.{EVIL}"] = replace(metadata["general.name"], value=EVIL)
        yield write_gguf(replace(source, metadata=metadata), folder / "evil.gguf")


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "{}"), ("inspect", "{}", "--metadata", "--tensors"), ("inspect", "{}", "--metadata", "--json"),
        ("verify", "{}"), ("verify", "{}", "--json"), ("fit", "{}"), ("fit", "{}", "--json"), ("fit", "{}", "--auto"),
        ("quantize", "{}", "--type", "Q8_0", "-o", "out{evil}/", "--threads", "1"),
        ("quantize", "{}", "--type", "Q8_0", "-o", "out/", "--dry-run"), ("quantize", "{}", "--type", "Q8{evil}"),
        ("chat", "{}", "-p", "Hi", "--verbose", *QUICK), ("chat", "{}", "-p", "Hi", "--json", "--verbose", *QUICK),
        ("chat", "{}", "-p", "Hi", "--grammar", "evil.gbnf", *QUICK),
        ("chat", "{}", "-p", "Hi", "--json-schema", "evil.json", *QUICK),
        ("chat", "{}", "--{evil}"), ("{evil}",), ("profiles", "{evil}"), ("profiles", "--check", "evil.toml"),
        ("gpus", "--vendor", "{evil}"), ("gpus", "--gpu", "{evil}"),
        ("bench", "{}", "--tokens", "2", "--prompt-tokens", "4", "-r", "1", "--kinds", "maths", "--drafts", "0"),
        ("convert", "checkpoint", "-o", "converted{evil}/", "--threads", "1"),
        ("convert", "checkpoint", "-o", "converted/", "--dry-run", "--json"), ("convert", "broken{evil}"),
    ],
)  # fmt: skip
def test_every_command(evil: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "evil.gbnf").write_text(f"root ::= {EVIL}", encoding="utf-8", newline="")
    (tmp_path / "evil.json").write_text(json.dumps({EVIL: 1}, ensure_ascii=False), encoding="utf-8")
    (tmp_path / "evil.toml").write_text(f'summary = "{EVIL}"\n', encoding="utf-8", newline="")
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(MIMO_TINY, checkpoint)
    (checkpoint / "README.md").write_text(f'---\nlicense: "{json.dumps(EVIL)[1:-1]}"\nlanguage: ["{EVIL[-8:]}"]\n---\n')
    done = run_here(tmp_path, *(word.replace("{}", str(evil)).replace("{evil}", EVIL) for word in arguments))
    assert_harmless(done.stdout, done.stderr)
    assert done.returncode in (0, 1, 2, 3, 4), done.stderr
    assert "Traceback" not in done.stderr
    if "--json" in arguments and done.returncode in (0, 4):
        json.loads(done.stdout)


def test_json_means_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    value = {EVIL: [EVIL, 'ä中😀\n\t"\\', float("nan")]}
    ui.print_json(value)
    text = capsys.readouterr().out
    assert_harmless(text)
    assert json.loads(text) == {EVIL: [EVIL, 'ä中😀\n\t"\\', "nan"]} and "ä中😀" in text


def test_an_error_that_nobody_foresaw(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise RuntimeError(EVIL)
    except RuntimeError as error:
        ui.print_traceback(type(error), error, error.__traceback__)
    said = capsys.readouterr().err
    assert_harmless(said)
    assert said.startswith("Traceback") and "RuntimeError: \\x1b]0;owned" in said


@pytest.mark.skipif(sys.platform == "win32", reason="a pseudo-terminal")
@pytest.mark.parametrize("view", ["show", "hide"])
def test_an_answer_on_a_terminal(mimo_tiny: Path, tmp_path: Path, view: str) -> None:
    """What the model is made to say is shown with pictures in place of controls; rich's own colours aside."""
    import pty

    spelled = "".join(f"\\U{ord(letter):08X}" for letter in EVIL)
    (tmp_path / "evil.gbnf").write_text(f'root ::= "<think>" "{spelled}" "</think>" "{spelled}"')
    command = [*PROGRAM, "chat", str(mimo_tiny), "-p", "Hi", "--grammar", str(tmp_path / "evil.gbnf"), "--think", view,
               "--temp", "0", "--threads", "1", "--ctx", "512"]  # fmt: skip
    child, terminal = pty.fork()
    if child == 0:
        os.environ |= {"TERM": "dumb", "NO_COLOR": "1"}
        os.execv(command[0], command)
    shown = b""
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:
            break
        if not data:
            break
        shown += data
    os.waitpid(child, 0)
    text = shown.decode("utf-8").replace("\r\n", "\n").replace("\r", "")
    assert "evil" in text and "␛]0;owned␇" in text, ascii(text)
    assert_harmless(text)
