"""`mimo-gguf chat`: one question, pipes, JSON, refusals, and a conversation in a real terminal."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from mimo_gguf.cli import chat
from mimo_gguf.cli.chat_commands import COMMANDS
from mimo_gguf.cli.chat_loop import ChatLoop
from mimo_gguf.cli.chat_screen import CUT_OFF_THINKING, JsonScreen
from mimo_gguf.cli.chat_settings import changed_option
from mimo_gguf.core.errors import DoesNotFit, MimoGgufError, UsageError
from mimo_gguf.engine.sampling import SamplingOptions
from mimo_gguf.engine.session import Ended
from mimo_gguf.hardware.devices import CPU, Device
from mimo_gguf.runtime.model import AnswerOptions
from tests.cli.command_line import PROGRAM

APP = typer.Typer()
APP.command()(chat.command)
GREEDY = ("--temp", "0", "--threads", "1", "--ctx", "512")


def run(*arguments: str | Path, stdin: str | None = None) -> tuple[str, str]:
    """(stdout, stderr); errors of ours come through as exceptions."""
    result = CliRunner().invoke(APP, [str(argument) for argument in arguments], input=stdin)
    if isinstance(result.exception, MimoGgufError):
        raise result.exception
    assert result.exit_code in (0, CUT_OFF_THINKING), result.output
    return result.stdout, result.stderr


def test_one_question(mimo_tiny: Path) -> None:
    answer, notes = run(mimo_tiny, "-p", "Who are you?", *GREEDY)
    assert "MiMo" in answer and "think" not in answer and notes == ""  # nobody watches
    notes = run(mimo_tiny, "-p", "Who are you?", "--stats", *GREEDY)[1]
    assert re.fullmatch(r"\d+ tokens, [\d.]+ tok/s · MTP drafts \d+% right.* · context \d+ of 512\n", notes)
    assert notes.partition(",")[0] in run(mimo_tiny, "-p", "Who are you?", "--verbose", *GREEDY)[1]
    assert run(mimo_tiny, *GREEDY, stdin="Who are you?")[0] == answer
    assert run(mimo_tiny, "-p", "Who are you?", "--no-mtp", *GREEDY)[0] == answer


def test_no_speed_is_told_of_a_few_tokens(mimo_tiny: Path) -> None:
    for n, said in (("1", "1 token · "), ("7", "7 tokens · "), ("8", r"8 tokens, [\d.]+ tok/s · ")):
        notes = run(mimo_tiny, "-p", "Who are you?", "--verbose", "--max-tokens", n, *GREEDY)[1]
        assert re.search(f"^{said}", notes, re.MULTILINE), notes


def test_json(mimo_tiny: Path) -> None:
    line, notes = run(mimo_tiny, "-p", "Who are you?", "--json", "--always-draft", *GREEDY)
    document = json.loads(line)
    assert line.count("\n") == 1 and notes == ""
    assert document["text"] and document["reasoning"] and document["finish_reason"] == "stop"
    assert document["tokens"]["generated"] > 5 and document["timings"]["generation_s"] > 0
    assert 0 < document["mtp"]["acceptance"] <= 1 and document["mtp"]["drafting"]
    again = json.loads(run(mimo_tiny, "-p", "x", "--json", "--seed", "7", "--temp", "1.5", "--max-tokens", "9")[0])
    assert again["seed"] == 7 and again["finish_reason"] in ("length", "stop")


def test_ctrl_c_leaves_a_document_that_says_so(mimo_tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JsonScreen, "show", lambda *_: signal.raise_signal(signal.SIGINT))
    result = CliRunner().invoke(APP, [str(mimo_tiny), "-p", "Tell me a story.", "--json", *GREEDY])
    assert result.exit_code == 130
    assert json.loads(result.stdout)["finish_reason"] == "abort"


def test_a_prompt_that_is_too_long_is_a_failure(mimo_tiny: Path) -> None:
    result = CliRunner().invoke(APP, [str(mimo_tiny), "-p", "word " * 1000, *GREEDY])
    assert isinstance(result.exception, UsageError)
    assert "the window holds 512" in result.exception.message and "--ctx" in (result.exception.hint or "")


def test_what_comes_through_a_pipe_must_be_text(mimo_tiny: Path) -> None:
    result = CliRunner().invoke(APP, [str(mimo_tiny), *GREEDY], input=b"a\xff")
    assert isinstance(result.exception, UsageError)
    assert result.exception.message == "stdin: not UTF-8 text (byte 1)"


def test_a_file_joins_the_prompt(mimo_tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "question.txt").write_text("Who are you?")
    document = json.loads(run(mimo_tiny, "-f", tmp_path / "question.txt", "--json", *GREEDY)[0])
    assert document == json.loads(run(mimo_tiny, "-p", "Who are you?", "--json", *GREEDY)[0]) | {
        "timings": document["timings"],
        "mtp": document["mtp"],
    }
    both = json.loads(run(mimo_tiny, "-p", "Answer:", "-f", tmp_path / "question.txt", "--json", *GREEDY)[0])
    assert both["tokens"]["prompt"] > document["tokens"]["prompt"]


def test_the_log_goes_where_it_is_wanted(mimo_tiny: Path, tmp_path: Path) -> None:
    _, notes = run(mimo_tiny, "-p", "x", "--log-file", tmp_path / "log", *GREEDY)
    assert "step35" in (tmp_path / "log").read_text() and "llama_" not in notes
    assert "step35" in run(mimo_tiny, "-p", "x", "--verbose", *GREEDY)[1]


def test_a_grammar(mimo_tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "digits.gbnf").write_text("root ::= [0-9]+")
    answer, _ = run(mimo_tiny, "-p", "x", "--grammar", tmp_path / "digits.gbnf", "--max-tokens", "5", *GREEDY)
    assert answer.strip().isdigit()
    (tmp_path / "schema.json").write_text(
        '{"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}'
    )
    answer, _ = run(mimo_tiny, "-p", "x", "--json-schema", tmp_path / "schema.json", *GREEDY)
    assert json.loads(answer)["n"] in (1, 2)
    (tmp_path / "schema.json").write_text("no schema")
    for both in ((), ("--grammar", tmp_path / "digits.gbnf")):
        with pytest.raises(UsageError):
            run(mimo_tiny, "-p", "x", "--json-schema", tmp_path / "schema.json", *both)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (("-p", "x", "--hidden", "mid"), UsageError, "mid"),
        (("-p", "x", "--draft", "0"), UsageError, "0 drafts"),
        (("-p", "x", "--top-p", "2"), UsageError, "top_p"),
        (("-p", "x", "--kv-type", "q9"), UsageError, "q9"),
        (("-f", "absent.txt"), UsageError, "absent.txt"),
        (("-p", "x", "--grammar", "absent.gbnf"), UsageError, "absent.gbnf"),
        ((), UsageError, "empty"),
        (("-p", " "), UsageError, "empty"),
    ],
)
def test_wrong_usage(mimo_tiny: Path, arguments: tuple[str, ...], error: type[MimoGgufError], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        run(mimo_tiny, *arguments, stdin="")
    assert caught.value.hint and caught.value.exit_code == 2


def test_what_does_not_fit_is_refused_with_a_way_out(mimo_tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mimo_gguf.hardware.devices import list_devices
    from mimo_gguf.runtime import launch

    host = list_devices()[-1]
    monkeypatch.setattr(launch, "list_devices", lambda: (type(host)(**_fields(host) | {"free_bytes": 1 << 20}),))
    with pytest.raises(DoesNotFit, match="free") as caught:
        run(mimo_tiny, "-p", "x", *GREEDY)
    assert caught.value.exit_code == 3 and caught.value.hint
    assert run(mimo_tiny, "-p", "Who are you?", "--force", *GREEDY)[0]


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in type(value).__dataclass_fields__}


# ---- the conversation


def test_commands(loop: ChatLoop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop.run_line("Who are you?")
    first = loop.talk.conversation.turns[0]
    assert "MiMo" in first.answer and first.reasoning
    loop.run_line("What is 1 + 1?")
    loop.run_line(f"/save {tmp_path / 'talk'}")
    loop.run_line(f"/save {tmp_path / 'talk'} kv")
    loop.run_line(f"/export {tmp_path / 'talk'}")
    assert "## Who are you?" in (tmp_path / "talk.md").read_text()
    loop.run_line("/undo")
    assert loop.talk.conversation.turns == [first]
    loop.run_line("/regen")
    assert loop.talk.conversation.turns == [first]  # greedy: the same again
    loop.run_line("/edit")
    assert loop.talk.next_line == "Who are you?"
    loop.run_line("Who are you, then?")
    assert [turn.question for turn in loop.talk.conversation.turns] == ["Who are you, then?"]
    loop.run_line(f"/load {tmp_path / 'talk.json'}")
    assert len(loop.talk.conversation.turns) == 2
    assert "with the cache" in capsys.readouterr().err and len(loop.talk.model.session.slot.tokens) > 50
    loop.run_line("/set temp=0.5 top_k=3 max_tokens=7 seed=none")
    assert (loop.talk.sampling.temperature, loop.talk.sampling.top_k, loop.talk.options.max_tokens) == (0.5, 3, 7)
    loop.run_line("/mtp off")
    assert not loop.talk.model.session.drafting_allowed
    for line in (
        "/stats",
        "/tokens",
        "/tokens some text",
        "/think",
        "/think off",
        "/think fold",
        "/fit",
        "/think 5",
        "/help",
        "/system Be kind",
    ):
        loop.run_line(line)
    assert loop.talk.options.think_budget == 5 and loop.talk.conversation.system == "Be kind"
    loop.run_line("/think 0")
    assert loop.talk.options.think_budget == 0
    loop.run_line("/clear")
    assert not loop.talk.conversation.turns
    loop.run_line("//x is no command")
    assert loop.talk.conversation.turns[0].question == "/x is no command"
    loop.run_line("/quit")
    assert not loop.talk.running
    assert "Traceback" not in capsys.readouterr().out


@pytest.mark.parametrize("line", ["/nosuch", "/", "/s", "/undo", "/regen", "/set x=1", "/set temp=hot", "/think maybe",
                                  "/save", "/load absent", "/mtp maybe", "/set 'x", "/set temp",
                                  "/set temp=1 max_tokens=0", "/set think_budget=-1", "/clear all", "/export",
                                  "/think", "/set top_k=1.5", "/set top_p=2", "/set temp=-1", "/set seed=-1",
                                  "/save {here}/absent/x", "/save {here}/plain/x", "/export {here}/plain/x kv",
                                  "/save {long}", "/export {long}", "/load {long}", "/save x.kv", "/load x.kv",
                                  "/export /", "/save .", "/load ~", "/save a\0b", "/load ~nobody-here/x"])  # fmt: skip
def test_mistakes_in_commands(loop: ChatLoop, line: str, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("no folder")
    with pytest.raises(UsageError) as caught:
        loop.run_line(line.format(here=tmp_path, long="n" * 300))
    assert caught.value.hint and " -o" not in caught.value.hint
    assert [file.name for file in tmp_path.iterdir()] == ["plain"]
    assert loop.talk.sampling.greedy  # of a line that is wrong nothing counts


def test_what_was_meant(loop: ChatLoop) -> None:
    for line, said, hint in (
        ("/hlep", "no command /hlep", "did you mean /help?"),
        ("/s", "/s may be several commands", "/system or /save or /stats or /set?"),
    ):
        with pytest.raises(UsageError, match=said) as caught:
            loop.run_line(line)
        assert hint in (caught.value.hint or "")


def test_a_file_of_somebody_else_is_kept(loop: ChatLoop, tmp_path: Path) -> None:
    loop.run_line("Who are you?")
    (tmp_path / "mine.json").write_text("{}")
    for line in (f"/save {tmp_path / 'mine'}", f"/export {tmp_path / 'mine.json'}"):
        with pytest.raises(UsageError, match="exists already"):
            loop.run_line(line)
    assert (tmp_path / "mine.json").read_text() == "{}"
    for _ in range(2):  # what the chat wrote it may write again
        loop.run_line(f"/save {tmp_path / 'new'}")


def test_a_cache_of_somebody_else_is_kept_too(loop: ChatLoop, tmp_path: Path) -> None:
    loop.run_line("Who are you?")
    (tmp_path / "talk.kv").write_text("mine")
    with pytest.raises(UsageError, match=r"talk\.kv: exists already"):
        loop.run_line(f"/save {tmp_path / 'talk'} kv")
    assert [file.name for file in tmp_path.iterdir()] == ["talk.kv"]
    loop.run_line(f"/save {tmp_path / 'a talk about kv'} kv")
    assert {file.name for file in tmp_path.iterdir()} == {"talk.kv", "a talk about kv.json", "a talk about kv.kv"}


SAVED = {
    "format": "mimo-gguf conversation 1", "system": "", "keep_reasoning": False, "n_left_out": 0,
    "turns": [{"question": "a?", "answer": "b"}],
}  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe\x00", b"5", b"[1]", b"[" * 100_000, b'{"format": 1}', json.dumps(SAVED)[:-3].encode()]
    + [json.dumps(SAVED | wrong).encode() for wrong in (
        {"format": "mimo-gguf conversation 9"}, {"turns": [{"question": "a?"}]}, {"turns": ["a?"]}, {"turns": 3},
        {"turns": [{"question": "a?", "answer": "b", "more": "c"}]}, {"n_left_out": "many"},
    )],
)  # fmt: skip
def test_what_no_chat_saved_is_not_loaded(loop: ChatLoop, tmp_path: Path, content: bytes) -> None:
    loop.run_line("Who are you?")
    turns = loop.talk.conversation.turns
    (tmp_path / "talk.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"talk\.json: (not |nested)"):
        loop.run_line(f"/load {tmp_path / 'talk'}")
    assert loop.talk.conversation.turns is turns


def test_half_characters_are_saved_as_far_as_they_can(loop: ChatLoop, tmp_path: Path) -> None:
    """What a terminal passes on of bytes that are no text."""
    loop.run_line("Who are you \udcff?")
    for command in ("save", "export"):
        loop.run_line(f"/{command} {tmp_path / 'talk'}")
    assert "## Who are you ??" in (tmp_path / "talk.md").read_text()
    loop.run_line(f"/load {tmp_path / 'talk'}")
    assert loop.talk.conversation.turns[0].question == "Who are you ??"


def test_counts_of_what_is_left_out_are_within_the_conversation(loop: ChatLoop, tmp_path: Path) -> None:
    for given, taken in ((-3, 0), (5, 1)):
        (tmp_path / "talk.json").write_text(json.dumps(SAVED | {"n_left_out": given, "n_without_reasoning": given}))
        loop.run_line(f"/load {tmp_path / 'talk'}")
        assert (loop.talk.conversation.n_left_out, loop.talk.conversation.n_without_reasoning) == (taken, taken)


def test_capitals_do_not_matter_in_a_command(loop: ChatLoop) -> None:
    loop.run_line("/Quit")
    assert not loop.talk.running


def test_a_stopped_regeneration_keeps_the_answer(loop: ChatLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    loop.run_line("Who are you?")
    (turn,) = loop.talk.conversation.turns
    monkeypatch.setattr(loop.talk.model.session, "step", lambda samplers: dict.fromkeys(samplers, Ended("cancelled")))
    loop.run_line("/regen")
    assert loop.talk.conversation.turns == [turn]


def test_editing_ends_with_any_other_line(loop: ChatLoop) -> None:
    loop.run_line("Who are you?")
    for line in ("", "/tokens"):
        loop.run_line("/edit")
        loop.run_line(line)
    loop.run_line("Hi!")
    assert [turn.question for turn in loop.talk.conversation.turns] == ["Who are you?", "Hi!"]


def test_left_out_reasoning_is_counted(loop: ChatLoop, capsys: pytest.CaptureFixture[str]) -> None:
    loop.run_line("Who are you?")
    assert "left out" not in capsys.readouterr().err
    reasoning = loop.talk.model.vocabulary.tokenize(
        f"<think>\n{loop.talk.conversation.turns[0].reasoning}\n</think>\n\n"
    )
    loop.run_line("Who are you?")
    found = re.search(r"(\d+) tokens of earlier reasoning left out", capsys.readouterr().err)
    assert found and abs(int(found[1]) - len(reasoning)) <= 2  # tokens may join at its ends
    loop.run_line("/think keep")
    loop.run_line("/regen")
    assert "left out" not in capsys.readouterr().err


def test_a_window_nearly_full_names_what_goes(loop: ChatLoop, capsys: pytest.CaptureFixture[str]) -> None:
    loop.run_line("Who are you?")
    loop.talk._warn_when_full(round(0.84 * 512))
    assert "warning" not in capsys.readouterr().err
    loop.talk._warn_when_full(round(0.86 * 512))
    assert 'warning: 440 of 512 tokens used (86%): next to be left out is turn 1 ("Who are you?")' in (
        capsys.readouterr().err
    )


def test_a_long_conversation_leaves_the_oldest_out(loop: ChatLoop, capsys: pytest.CaptureFixture[str]) -> None:
    for n in range(12):
        loop.run_line(f"Tell me a story about number {n}.")
    assert loop.talk.conversation.n_left_out > 0
    assert len(loop.talk.conversation.turns) == 12
    assert all(turn.answer or turn.reasoning for turn in loop.talk.conversation.turns)
    assert "left out" in capsys.readouterr().err


def test_a_question_too_long_for_the_window_drives_nothing_out(loop: ChatLoop) -> None:
    loop.run_line("Who are you?")
    with pytest.raises(UsageError, match=r"the question alone has \d+ tokens, the window holds 512"):
        loop.run_line("word " * 600)
    assert loop.talk.conversation.n_left_out == 0 and len(loop.talk.conversation.turns) == 1


def test_an_answer_stopped_before_it_began_is_told_shortly(
    loop: ChatLoop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop.talk.model.session, "step", lambda samplers: dict.fromkeys(samplers, Ended("cancelled")))
    loop.run_line("Who are you?")
    assert capsys.readouterr().err == "stopped\n"


def test_reasoning_is_folded_into_a_line(loop: ChatLoop, capsys: pytest.CaptureFixture[str]) -> None:
    loop.run_line("/think fold")
    loop.run_line("Who are you?")
    shown, reasoning = capsys.readouterr().out, loop.talk.conversation.turns[0].reasoning
    assert re.search(r"^thought for \d+ tokens, [\d.]+ s$", shown, re.MULTILINE)
    assert reasoning and reasoning not in shown
    loop.run_line("/think show")
    loop.run_line("/regen")
    assert reasoning in capsys.readouterr().out


def test_little_memory_is_told_once(loop: ChatLoop, capsys: pytest.CaptureFixture[str]) -> None:
    from mimo_gguf.hardware.memory_watch import MemoryWatch

    host = Device("CPU", "host memory", CPU, "CPU", 1 << 20, 1 << 30)
    loop.talk.watch = MemoryWatch(["CPU"], interval_s=0, read=lambda: [host])
    loop.run_line("Who are you?")
    loop.run_line("Who are you?")
    assert capsys.readouterr().err.count("are left on CPU") == 1


def test_tokens_of_a_text(loop: ChatLoop, capsys: pytest.CaptureFixture[str]) -> None:
    loop.run_line("/tokens to be 文<|im_end|>")
    shown, notes = capsys.readouterr()
    (row,) = shown.splitlines()
    names = [entry.partition(" ")[2] for entry in row.split("  ")]
    assert "".join(name.strip("'") for name in names) == "to be <E6><96><87><|im_end|>"
    assert notes == f"{len(names)} tokens\n"


def test_help_fits_into_80_columns(loop: ChatLoop, capsys: pytest.CaptureFixture[str]) -> None:
    loop.run_line("/help")
    shown, notes = capsys.readouterr()
    assert all(len(line) <= 80 for line in [*shown.splitlines(), *notes.splitlines()])
    assert all(f"/{name}" in shown for name in COMMANDS)


def test_settings() -> None:
    sampling, options = changed_option(SamplingOptions(seed=3), AnswerOptions(max_tokens=5), "seed", "none")
    assert sampling.seed is None
    assert changed_option(sampling, options, "max_tokens", "none")[1].max_tokens is None
    assert changed_option(sampling, options, "temperature", "1")[0].temperature == 1.0


def test_every_command_is_documented() -> None:
    assert all(command.help for command in COMMANDS.values())


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
def test_a_conversation_in_a_terminal(mimo_tiny: Path, tmp_path: Path) -> None:
    """Typed into a real terminal: an answer, Ctrl-C that stops only the answer, Ctrl-D that leaves with 0."""
    import pty

    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"TERM": "xterm-256color", "HOME": str(tmp_path), "COLUMNS": "80", "LINES": "24"}
        arguments = ["chat", str(mimo_tiny), "--threads", "1", "--ctx", "2048", "--temp", "0"]
        os.execv(sys.executable, [*PROGRAM, *arguments])
    try:
        seen = _until(terminal, "/help", ">")
        os.write(terminal, b"Who are you?\r")
        seen = _until(terminal, "tok/s", "[0;1m>")
        assert "MiMo" in seen and "Traceback" not in seen
        os.write(terminal, b"Tell me a story.\r")
        _until(terminal, "story.", "\x1b[2m")  # reasoning has begun, dimmed
        os.write(terminal, b"kept")
        os.write(terminal, b"\x03")
        _until(terminal, "stopped", "[0;1m>", "kept")
        os.write(terminal, b"\x03")
        _until(terminal, "Ctrl-D leaves", "[0;1m>")
        os.write(terminal, b"\x04")
        _until_end(terminal)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(pid, 0)
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0


def _until(terminal: int, *words: str, timeout_s: float = 30) -> str:
    """What the terminal shows until it has shown all of `words` in this order."""
    seen, deadline = "", time.monotonic() + timeout_s
    pattern = re.compile(".*?".join(map(re.escape, words)), re.DOTALL)
    while not pattern.search(seen):
        ready, _, _ = select.select([terminal], [], [], max(deadline - time.monotonic(), 0))
        assert ready, seen
        text = os.read(terminal, 65536).decode("utf-8", "replace")
        if "\x1b[6n" in text:  # where is the cursor?
            os.write(terminal, b"\x1b[1;1R")
        seen += text
    return seen


def _until_end(terminal: int) -> None:
    try:
        while os.read(terminal, 65536):
            pass
    except OSError:
        pass  # Linux's way of saying end of file
