"""What slash commands do beyond the usual: show, add files, resume, leave; and that one table is all there is."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from mimo_gguf.chat.conversation import Conversation, Turn
from mimo_gguf.cli import chat_files, chat_talk
from mimo_gguf.cli.chat_commands import COMMANDS
from mimo_gguf.cli.chat_kept import KeptFile, kept_conversations, kept_folder, resumed_conversation
from mimo_gguf.cli.chat_loop import ChatLoop
from mimo_gguf.cli.chat_screen import CUT_OFF_THINKING
from mimo_gguf.cli.chat_settings import settings_line
from mimo_gguf.core.errors import BackendError, UsageError
from mimo_gguf.runtime.model import Answer, AnswerOptions
from tests.cli.command_line import assert_clear_error, run_here

GREEDY = ("--temp", "0", "--threads", "1", "--ctx", "512")
DOCS = Path(__file__).parents[2] / "docs" / "chat.md"


def test_the_documentation_has_the_table() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for name, command in COMMANDS.items():
        cell = f"/{name} {command.arguments}".strip().replace("|", "\\|")
        assert f"| `{cell}` | {command.help} |" in text


@pytest.mark.parametrize("line", ["exit", "quit", "bye", "EXIT", "/bye", "/exit", "/q", "/quit"])
def test_every_way_to_leave(loop: ChatLoop, line: str) -> None:
    loop.run_line(line)
    assert not loop.talk.running and not loop.talk.conversation.turns


def test_a_question_mark_is_help(loop: ChatLoop, capsys: pytest.CaptureFixture[str]) -> None:
    loop.run_line("/?")
    assert "/regen" in capsys.readouterr().out


def test_system_alone_shows_it(loop: ChatLoop, capsys: pytest.CaptureFixture[str]) -> None:
    loop.run_line("/system Be brief")
    loop.run_line("/system")
    assert loop.talk.conversation.system == "Be brief"
    assert capsys.readouterr().err.count("system message: Be brief") == 2
    loop.run_line("/system none")
    assert loop.talk.conversation.system == ""
    assert "the system message is empty" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["temp=0.5 top_k=3", "temp 0.5 top_k 3", "temp = 0.5 top_k= 3", "temp 0.5 top_k=3"])
def test_settings_with_and_without_an_equals_sign(loop: ChatLoop, line: str) -> None:
    loop.run_line(f"/set {line}")
    assert (loop.talk.sampling.temperature, loop.talk.sampling.top_k) == (0.5, 3)
    assert "temp=0.5" in settings_line(loop.talk.sampling, loop.talk.options)


@pytest.mark.parametrize(("line", "hint"), [("tmep=1", "did you mean temp?"), ("temp", "/set temp=1")])
def test_a_setting_that_was_meant(loop: ChatLoop, line: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        loop.run_line(f"/set {line}")
    assert caught.value.hint == hint


def test_what_is_loaded(loop: ChatLoop, mimo_tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop.run_line("/model")
    shown = capsys.readouterr().out
    assert str(mimo_tiny) in shown and "BF16" in shown and "512 tokens, KV cache f16" in shown


def test_a_file_goes_with_the_next_question_only(
    loop: ChatLoop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my notes.txt").write_text("1 + 1", encoding="utf-8")
    loop.run_line(f'/file "{tmp_path / "my notes.txt"}"')
    loop.run_line("/file")
    assert "with the next question: my notes.txt (5 characters)" in capsys.readouterr().err
    loop.run_line("What is")
    loop.run_line("Who are you?")
    assert [turn.question for turn in loop.talk.conversation.turns] == ["What is\n\n1 + 1", "Who are you?"]
    loop.run_line("/file")
    assert "no file waits" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"\xff", b"", None])
def test_a_file_that_is_no_text(loop: ChatLoop, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "x").write_bytes(content)
    with pytest.raises(UsageError):
        loop.run_line(f"/file {tmp_path / 'x'}")
    assert not loop.talk.files


def test_the_last_conversation_is_kept_and_resumed(
    loop: ChatLoop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop.talk.autosave = KeptFile(tmp_path / "there")
    loop.run_line("Who are you?")
    kept, again = resumed_conversation(tmp_path / "there", "")
    assert again.turns == loop.talk.conversation.turns and kept.path is not None
    if os.name != "nt":
        assert stat.S_IMODE(kept.path.stat().st_mode) == 0o600
    (tmp_path / "plain").write_text("")
    loop.talk.autosave = KeptFile(tmp_path / "plain")  # cannot be written: the conversation goes on
    loop.run_line("Who are you?")
    loop.run_line("Who are you?")
    assert len(loop.talk.conversation.turns) == 3
    assert capsys.readouterr().err.count("cannot be kept for --resume") == 1


def test_a_question_is_kept_before_it_is_answered(
    loop: ChatLoop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that goes away takes the process with it."""
    loop.talk.autosave = KeptFile(tmp_path)
    loop.run_line("Who are you?")

    def lose(*_: object) -> None:
        first, open_turn = resumed_conversation(tmp_path, "")[1].turns
        assert (first, open_turn.question, open_turn.answer) == (loop.talk.conversation.turns[0], "And now?", "")
        raise BackendError("lost")

    with monkeypatch.context() as patch:
        patch.setattr(chat_talk, "ask", lose)
        with pytest.raises(BackendError):
            loop.run_line("And now?")
    loop.talk.autosave, loop.talk.conversation = resumed_conversation(tmp_path, "")
    loop.run_line("/regen")
    assert [turn.question for turn in loop.talk.conversation.turns] == ["Who are you?", "And now?"]
    assert loop.talk.conversation.turns[1].answer
    assert resumed_conversation(tmp_path, "")[1].turns == loop.talk.conversation.turns


def keep_one(folder: Path, question: str) -> KeptFile:
    kept = KeptFile(folder)
    kept.keep(Conversation(turns=[Turn(question, "Yes")]))
    assert kept.path is not None
    last_ns = max((path.stat().st_mtime_ns for path in folder.iterdir() if path != kept.path), default=0)
    os.utime(kept.path, ns=(0, last_ns + 1_000_000_000))  # clocks of file systems are too coarse for an order
    return KeptFile.of(kept.path)


def questions(folder: Path) -> list[list[str]]:
    return [[turn.question for turn in conversation.turns] for _, conversation in kept_conversations(folder)]


@pytest.mark.parametrize("ending", [KeyboardInterrupt, None])
def test_a_first_question_that_was_cancelled_leaves_the_last_conversation(
    loop: ChatLoop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: type[BaseException] | None
) -> None:
    keep_one(tmp_path, "Yesterday?")
    loop.talk.autosave = KeptFile(tmp_path)

    def cancel(*_: object) -> Answer:
        if ending is not None:
            raise ending
        return replace(answered, tokens=())

    answered = loop.talk.model.chat([{"role": "user", "content": "1"}], options=AnswerOptions(max_tokens=1))
    monkeypatch.setattr(chat_talk, "ask", cancel)
    with contextlib.suppress(KeyboardInterrupt):
        loop.run_line("And today?")
    assert questions(tmp_path) == [["Yesterday?"]]


@pytest.mark.parametrize("lines", [["/regen"], ["/edit", "Another?"]])
def test_an_answer_stays_kept_if_the_next_try_is_cancelled(
    loop: ChatLoop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    loop.talk.autosave = KeptFile(tmp_path)
    loop.run_line("Who are you?")
    turns = list(loop.talk.conversation.turns)

    def cancel(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(chat_talk, "ask", cancel)
    with pytest.raises(KeyboardInterrupt):
        for line in lines:
            loop.run_line(line)
    assert loop.talk.conversation.turns == turns
    assert resumed_conversation(tmp_path, "")[1].turns == turns


def test_clear_and_load_begin_a_file_of_their_own(loop: ChatLoop, tmp_path: Path) -> None:
    loop.talk.autosave = KeptFile(tmp_path / "kept")
    loop.run_line("Who are you?")
    loop.run_line("/clear")
    loop.run_line("What is 1 + 1?")
    loop.run_line(f"/save {tmp_path / 'talk'}")
    loop.run_line(f"/load {tmp_path / 'talk'}")
    loop.run_line("And 2 + 2?")
    assert sorted(questions(tmp_path / "kept")) == [
        ["What is 1 + 1?"], ["What is 1 + 1?", "And 2 + 2?"], ["Who are you?"]
    ]  # fmt: skip
    assert [len(Conversation.load(tmp_path / "talk.json").turns)] == [1]


def test_an_older_conversation_by_its_number(
    loop: ChatLoop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(chat_files, "kept_folder", lambda: tmp_path)
    loop.talk.autosave = KeptFile(tmp_path)
    with pytest.raises(UsageError, match="no conversation is kept yet"):
        loop.run_line("/load")
    for question in ("First?", "Second?\x1b[2J"):
        keep_one(tmp_path, question)
    (tmp_path / "damaged.json").write_text("{")
    loop.run_line("/load")
    shown = capsys.readouterr().out
    assert shown.index("Second?") < shown.index("First?") and "\x1b" not in shown
    for wrong in ("3", "0", "9" * 5000):
        with pytest.raises(UsageError, match="no conversation number"):
            loop.run_line(f"/load {wrong}")
    loop.run_line("/load 2")
    loop.run_line("And now?")
    assert questions(tmp_path) == [["First?", "And now?"], ["Second?\x1b[2J"]]


def test_the_last_ten_are_kept(tmp_path: Path) -> None:
    for n in range(12):
        keep_one(tmp_path, str(n))
    assert questions(tmp_path) == [[str(n)] for n in range(11, 1, -1)]


def test_conversations_that_changed_at_the_same_time_are_kept_in_order(tmp_path: Path) -> None:
    for n in range(12):
        keep_one(tmp_path, str(n))
        for path in tmp_path.glob("*.json"):
            os.utime(path, ns=(10**18, 10**18))  # a file system's clock may tick more slowly than we write
    assert questions(tmp_path) == [[str(n)] for n in range(11, 1, -1)]


def test_two_chats_that_go_on_with_one_conversation_are_both_kept(tmp_path: Path) -> None:
    keep_one(tmp_path, "Yesterday?")
    both = [resumed_conversation(tmp_path, "") for _ in range(2)]
    for n, (kept, conversation) in enumerate(both):
        conversation.turns.append(Turn(f"From {n}?", "Yes"))
        kept.keep(conversation)
        kept.keep(conversation)
    assert sorted(questions(tmp_path)) == [["Yesterday?", "From 0?"], ["Yesterday?", "From 1?"]]


def test_resuming(mimo_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config"), "APPDATA": str(tmp_path)}
    question = ("-p", "Who are you?", "--json", *GREEDY)
    assert_clear_error(run_here(tmp_path, "chat", mimo_tiny, "--resume", *question, **home), "no conversation", code=2)
    for name, value in home.items():
        monkeypatch.setenv(name, value)
    KeptFile(kept_folder()).keep(Conversation("Be kind", [Turn("What is 1 + 1?", "2")]))
    alone = json.loads(run_here(tmp_path, "chat", mimo_tiny, *question, **home).stdout)
    resumed = json.loads(run_here(tmp_path, "chat", mimo_tiny, "--resume", *question, **home).stdout)
    assert resumed["tokens"]["prompt"] > alone["tokens"]["prompt"] + 10
    _, kept = resumed_conversation(kept_folder(), "")
    assert kept.system == "Be kind" and [turn.question for turn in kept.turns] == ["What is 1 + 1?", "Who are you?"]
    assert resumed_conversation(kept_folder(), "Be short")[1].system == "Be short"


def test_an_answer_cut_off_while_thinking_says_so(mimo_tiny: Path, tmp_path: Path) -> None:
    """Nothing on stdout and a note on stderr; as JSON, too. A limit that was given is no failure, the window's is."""
    command = ("chat", mimo_tiny, "-p", "What is 17 + 25?", "--max-tokens", "4", *GREEDY)
    done = run_here(tmp_path, *command)
    assert (done.returncode, done.stdout) == (0, "")
    assert "cut off while the model was thinking: raise --max-tokens, or use --think-budget" in done.stderr
    long = ("chat", mimo_tiny, "-p", "What is 17 + 25? " * 21, *GREEDY[:-1], "256")
    done = run_here(tmp_path, *long)
    assert (done.returncode, done.stdout) == (CUT_OFF_THINKING, ""), done.stderr
    assert "cut off while the model was thinking: start with a larger --ctx" in done.stderr
    assert run_here(tmp_path, *long, "--json").returncode == CUT_OFF_THINKING
    done = run_here(tmp_path, *command, "--json")
    assert done.returncode == 0 and "cut off" in done.stderr
    document = json.loads(done.stdout)
    assert document["text"] == "" and document["finish_reason"] == "length" and "cut off" in document["warnings"][0]
    assert run_here(tmp_path, *command[:-8], "--think-budget", "0", "--max-tokens", "20", *GREEDY).returncode == 0
