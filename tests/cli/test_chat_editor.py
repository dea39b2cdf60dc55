"""The line editor of a conversation, driven by prompt_toolkit's own documents and by keys that are really pressed."""

from __future__ import annotations

import asyncio
import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import typer
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.data_structures import Size
from prompt_toolkit.document import Document
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput
from prompt_toolkit.output.vt100 import Vt100_Output

from mimo_gguf.cli.chat_commands import COMMANDS
from mimo_gguf.cli.chat_editor import CommandCompleter, line_editor


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of this test's own, for the history, and a folder with nothing in it to complete file names from."""
    for name in ("HOME", "APPDATA", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def keyboard() -> Iterator[PipeInput]:
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        yield keys


def completed(line: str) -> list[str]:
    """What `line` becomes with each completion offered at its end."""
    found = CommandCompleter(COMMANDS).get_completions(Document(line), CompleteEvent(completion_requested=True))
    return [line[: len(line) + completion.start_position] + completion.text for completion in found]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("/th", ["/think "]),
        ("/s", ["/system ", "/save ", "/stats", "/set "]),
        ("/undo", ["/undo"]),
        ("/think f", ["/think fold"]),
        ("/th f", ["/th fold"]),  # as the beginning of a name will do, too
        ("/think fold", []),
        ("/mtp ", ["/mtp on", "/mtp off"]),
        ("/set seed=1 max", ["/set seed=1 max_tokens="]),
        ("/s f", []),
        ("/nosuch ", []),
        ("/clear ", []),
        ("/system s", []),
        ("//th", []),
        ("what", []),
        ("what is /th", []),
        ("", []),
    ],
)
def test_what_is_offered(typed: str, offered: list[str]) -> None:
    assert completed(typed) == offered


def test_every_command_is_offered() -> None:
    assert [line.strip() for line in completed("/")] == [f"/{name}" for name in COMMANDS]


@pytest.mark.parametrize("command", ["/save", "/load", "/export", "/l"])
def test_file_names(command: str) -> None:
    Path("talk about C.json").touch()
    Path("folder").mkdir()
    Path("folder/other.json").touch()
    assert completed(f"{command} ta") == [f"{command} talk about C.json"]
    assert completed(f"{command} folder/") == [f"{command} folder/other.json"]
    assert completed(f"{command} absent/") == []


@pytest.mark.parametrize(
    "steps",
    [
        (("/th\t", "/think "), ("fo\t", "/think fold")),
        (("/st\t", "/stats"),),
        (("/mtp of\t", "/mtp off"),),
        (("/load ta\t", "/load talk.json"),),
        (("/s\t", "/s"), ("\t", "/system "), ("\t", "/save ")),  # several: one after the other
        (("why\t?", "why?"),),
    ],
)
def test_tab_is_pressed(keyboard: PipeInput, steps: Sequence[tuple[str, str]]) -> None:
    Path("talk.json").touch()
    session = line_editor(COMMANDS)

    async def type_slowly() -> str:
        line = asyncio.create_task(session.prompt_async())
        for keys, shown in steps:
            keyboard.send_text(keys)
            async with asyncio.timeout(30):
                while session.default_buffer.text != shown:
                    await asyncio.sleep(0.01)
        keyboard.send_text("\r")
        return await line

    assert asyncio.run(type_slowly()) == steps[-1][1]


def test_lines_pasted_together_are_one_question(keyboard: PipeInput) -> None:
    keyboard.send_text("\x1b[200~first\nsecond\r\n\tthird\x1b[201~\r")
    assert line_editor(COMMANDS).prompt() == "first\nsecond\n\tthird"


def test_tabs_of_pasted_code_are_shown_as_spaces() -> None:
    screen = io.StringIO()
    output = Vt100_Output(screen, lambda: Size(rows=24, columns=80), term="xterm", enable_cpr=False)
    with create_pipe_input() as keys, create_app_session(input=keys, output=output):
        keys.send_text("\x1b[200~if x:\n\treturn\x1b[201~\r")
        assert line_editor(COMMANDS).prompt() == "if x:\n\treturn"
    assert "    return" in re.sub(r"\x1b\[[\d;]*m", "", screen.getvalue())


def test_alt_enter_is_a_new_line(keyboard: PipeInput) -> None:
    keyboard.send_text("first\x1b\rsecond\r")
    assert line_editor(COMMANDS).prompt() == "first\nsecond"


def test_history_is_there_in_the_next_run(keyboard: PipeInput) -> None:
    keyboard.send_text("\x1b[200~first\nsecond\x1b[201~\r")
    assert line_editor(COMMANDS).prompt() == "first\nsecond"

    async def press_up() -> str:
        session = line_editor(COMMANDS)
        line = asyncio.create_task(session.prompt_async())
        async with asyncio.timeout(30):
            while session.default_buffer.text != "first\nsecond":
                keyboard.send_text("\x1b[A")  # history is read in the background
                await asyncio.sleep(0.02)
        keyboard.send_text("!\r")
        return await line

    assert asyncio.run(press_up()) == "first\nsecond!"
    (path,) = Path("../home").rglob("chat_history")
    assert os.name == "nt" or path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("what", ["folder", "home is a file"])
def test_no_history_is_no_reason_to_stop(keyboard: PipeInput, what: str) -> None:
    if what == "folder":
        (Path(typer.get_app_dir("mimo-gguf")) / "chat_history").mkdir(parents=True)
    else:
        Path("../home").touch()
    session = line_editor(COMMANDS)
    for _ in range(2):
        keyboard.send_text("hello\r")
        assert session.prompt() == "hello"
    session.history.store_string("more")
    assert list(session.history.load_history_strings()) == []
