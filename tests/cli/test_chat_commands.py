"""What slash commands do beyond the usual: show, add files, resume, leave; and that one table is all there is."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from mimo_gguf.chat.conversation import Conversation, Turn
from mimo_gguf.cli import chat_files, chat_talk
from mimo_gguf.cli.chat_commands import COMMANDS
from mimo_gguf.cli.chat_loop import ChatLoop
from mimo_gguf.cli.chat_screen import CUT_OFF_THINKING
from mimo_gguf.cli.chat_settings import settings_line
from mimo_gguf.core.errors import BackendError, UsageError
from tests.cli.command_line import assert_clear_error, run

GREEDY = ("--temp", "0", "--threads", "1", "--ctx", "512")
DOCS = Path(__file__).parents[2] / "docs" / "chat.md"


def test_the_documentation_has_the_table() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for name, command in COMMANDS.items():
        cell = f"/{name} {command.arguments}".strip().replace("|", "\\|")
        assert f"| `{cell}` | {command.help} |" in text


@pytest.mark.parametrize("line", ["exit", "quit", "bye", "EXIT", "/bye", "/exit", "/q", "/quit"])
def test_every_way_to_leave(loop: ChatLoop, line: str) -> None:
    loop.take(line)
    assert not loop.talk.running and not loop.talk.conversation.turns


def test_a_question_mark_is_help(loop: ChatLoop, capsys: pytest.CaptureFixture[str]) -> None:
    loop.take("/?")
    assert "/regen" in capsys.readouterr().out


def test_system_alone_shows_it(loop: ChatLoop, capsys: pytest.CaptureFixture[str]) -> None:
    loop.take("/system Be brief")
    loop.take("/system")
    assert loop.talk.conversation.system == "Be brief"
    assert capsys.readouterr().err.count("system message: Be brief") == 2
    loop.take("/system none")
    assert loop.talk.conversation.system == ""
    assert "the system message is empty" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["temp=0.5 top_k=3", "temp 0.5 top_k 3", "temp = 0.5 top_k= 3", "temp 0.5 top_k=3"])
def test_settings_with_and_without_an_equals_sign(loop: ChatLoop, line: str) -> None:
    loop.take(f"/set {line}")
    assert (loop.talk.sampling.temperature, loop.talk.sampling.top_k) == (0.5, 3)
    assert "temp=0.5" in settings_line(loop.talk.sampling, loop.talk.options)


@pytest.mark.parametrize(("line", "hint"), [("tmep=1", "did you mean temp?"), ("temp", "/set temp=1")])
def test_a_setting_that_was_meant(loop: ChatLoop, line: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        loop.take(f"/set {line}")
    assert caught.value.hint == hint


def test_what_is_loaded(loop: ChatLoop, mimo_tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop.take("/model")
    shown = capsys.readouterr().out
    assert str(mimo_tiny) in shown and "BF16" in shown and "512 tokens, KV cache f16" in shown


def test_a_file_goes_with_the_next_question_only(
    loop: ChatLoop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my notes.txt").write_text("1 + 1", encoding="utf-8")
    loop.take(f'/file "{tmp_path / "my notes.txt"}"')
    loop.take("/file")
    assert "with the next question: my notes.txt (5 characters)" in capsys.readouterr().err
    loop.take("What is")
    loop.take("Who are you?")
    assert [turn.question for turn in loop.talk.conversation.turns] == ["What is\n\n1 + 1", "Who are you?"]
    loop.take("/file")
    assert "no file waits" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"\xff", b"", None])
def test_a_file_that_is_no_text(loop: ChatLoop, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "x").write_bytes(content)
    with pytest.raises(UsageError):
        loop.take(f"/file {tmp_path / 'x'}")
    assert not loop.talk.files


def test_the_last_conversation_is_kept_and_resumed(loop: ChatLoop, tmp_path: Path) -> None:
    loop.talk.autosave = tmp_path / "there" / "last.json"
    loop.take("Who are you?")
    assert Conversation.load(loop.talk.autosave).turns == loop.talk.conversation.turns
    if os.name != "nt":
        assert stat.S_IMODE(loop.talk.autosave.stat().st_mode) == 0o600
    (tmp_path / "plain").write_text("")
    loop.talk.autosave = tmp_path / "plain" / "last.json"  # cannot be written: the conversation goes on
    loop.take("Who are you?")
    assert len(loop.talk.conversation.turns) == 2


def test_a_question_is_kept_before_it_is_answered(
    loop: ChatLoop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that goes away takes the process with it."""
    kept = loop.talk.autosave = tmp_path / "last.json"
    loop.take("Who are you?")

    def lose(*_: object) -> None:
        first, open_turn = Conversation.load(kept).turns
        assert (first, open_turn.question, open_turn.answer) == (loop.talk.conversation.turns[0], "And now?", "")
        raise BackendError("lost")

    with monkeypatch.context() as patch:
        patch.setattr(chat_talk, "ask", lose)
        with pytest.raises(BackendError):
            loop.take("And now?")
    loop.talk.conversation = Conversation.load(kept)
    loop.take("/regen")
    assert [turn.question for turn in loop.talk.conversation.turns] == ["Who are you?", "And now?"]
    assert Conversation.load(kept).turns == loop.talk.conversation.turns and loop.talk.conversation.turns[1].answer


def test_resuming(mimo_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config"), "APPDATA": str(tmp_path)}
    question = ("-p", "Who are you?", "--json", *GREEDY)
    assert_clear_error(run(tmp_path, "chat", mimo_tiny, "--resume", *question, **home), "no conversation", code=2)
    for name, value in home.items():
        monkeypatch.setenv(name, value)
    path = chat_files.last_conversation()
    path.parent.mkdir(parents=True)
    Conversation("Be kind", [Turn("What is 1 + 1?", "2")]).save(path)
    alone = json.loads(run(tmp_path, "chat", mimo_tiny, *question, **home).stdout)
    resumed = json.loads(run(tmp_path, "chat", mimo_tiny, "--resume", *question, **home).stdout)
    assert resumed["tokens"]["prompt"] > alone["tokens"]["prompt"] + 10
    kept = chat_files.resumed_conversation("")
    assert kept.system == "Be kind" and [turn.question for turn in kept.turns] == ["What is 1 + 1?", "Who are you?"]
    assert chat_files.resumed_conversation("Be short").system == "Be short"


def test_an_answer_cut_off_while_thinking_says_so(mimo_tiny: Path, tmp_path: Path) -> None:
    """Nothing on stdout, a note on stderr, an exit code of its own; as JSON, too."""
    command = ("chat", mimo_tiny, "-p", "What is 17 + 25?", "--max-tokens", "4", *GREEDY)
    done = run(tmp_path, *command)
    assert (done.returncode, done.stdout) == (CUT_OFF_THINKING, "")
    assert "cut off while the model was thinking: raise --max-tokens, or use --think-budget" in done.stderr
    done = run(tmp_path, *command, "--json")
    assert done.returncode == CUT_OFF_THINKING and "cut off" in done.stderr
    document = json.loads(done.stdout)
    assert document["text"] == "" and document["finish_reason"] == "length" and "cut off" in document["warnings"][0]
    assert run(tmp_path, *command[:-8], "--think-budget", "0", "--max-tokens", "20", *GREEDY).returncode == 0
