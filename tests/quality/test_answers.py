"""The model's own answers: prompts in a fixed order, lines that go on after an interruption, a text that `-f` reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from mimo_gguf.core.errors import OutputError
from mimo_gguf.quality import answers
from mimo_gguf.quality.answers import shipped_prompts, write_answers
from mimo_gguf.quality.text_sources import read_texts
from tests.cli.command_line import run_here


class Echo:
    """A model that repeats the prompt, and is interrupted after so many calls."""

    def __init__(self, most: int = 99) -> None:
        self.most = most
        self.asked: list[str] = []

    def __call__(self, prompts: Sequence[str], longest: int) -> tuple[list[str], int]:
        self.most -= 1
        if self.most < 0:
            raise KeyboardInterrupt
        self.asked += prompts
        return [f"You asked: {prompt}" for prompt in prompts], len(prompts)


def last(messages: Sequence[dict[str, str]]) -> str:
    return messages[-1]["content"]


def test_prompts_are_many_mixed_and_different() -> None:
    prompts = shipped_prompts()
    assert len(prompts) == len(set(prompts)) >= 450
    assert {"什" in prompt or "请" in prompt for prompt in prompts[:60]} == {True, False}
    assert not [prompt for prompt in prompts if "{" in prompt]


def test_answers_are_conversations_for_judging(tmp_path: Path) -> None:
    written = write_answers(tmp_path / "a.jsonl", last, Echo(), n_prompts=20)
    assert (written.n_conversations, written.n_tokens) == (20, 20)
    documents = read_texts([str(written.path)])
    assert [document.messages[2]["content"] for document in documents] == [
        f"You asked: {prompt}" for prompt in shipped_prompts()[:20]
    ]
    assert [message["role"] for message in documents[0].messages] == ["system", "user", "assistant"]


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    path, again = tmp_path / "a.jsonl", Echo()
    with pytest.raises(KeyboardInterrupt):
        write_answers(path, last, Echo(2), n_prompts=20)
    assert not path.exists()
    partial = path.with_name(".a.jsonl.partial")
    partial.write_text(partial.read_text()[:-5])  # torn in the middle of a line
    write_answers(path, last, again, n_prompts=20)
    assert again.asked == shipped_prompts()[15:20]
    write_answers(tmp_path / "b.jsonl", last, Echo(), n_prompts=20)
    assert path.read_text() == (tmp_path / "b.jsonl").read_text()
    assert not partial.exists()


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        write_answers(tmp_path / "a.jsonl", last, Echo(), n_prompts=1)
    write_answers(tmp_path / "a.jsonl", last, Echo(), n_prompts=1, force=True)
    assert "You asked" in (tmp_path / "a.jsonl").read_text()


def test_the_command_asks_the_base(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "LONGEST", 24)
    done = run_here(tmp_path, "quality", "--write-text", "own.jsonl", "--base", tiny_path, "--prompts", "2", "-t", "1")
    assert done.returncode == 0, done.stderr
    assert "own.jsonl: 2 conversations" in done.stdout
    conversations = [json.loads(line)["messages"] for line in (tmp_path / "own.jsonl").read_text().splitlines()]
    assert [messages[1]["content"] for messages in conversations] == shipped_prompts()[:2]
    assert run_here(tmp_path, "quality", "--write-text", "x.jsonl").stderr.startswith(
        "error: --write-text needs a model"
    )
    assert run_here(tmp_path, "quality").returncode == 2
