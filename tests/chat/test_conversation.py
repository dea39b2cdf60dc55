"""Conversations: what the model is given of them, undoing, saving, and fitting the window."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mimo_gguf.chat.conversation import Conversation, Turn
from mimo_gguf.chat.template import Message
from mimo_gguf.core.errors import UsageError


def talk(n: int) -> Conversation:
    return Conversation("sys", [Turn(f"q{i}", f"a{i}", f"r{i} " * 10) for i in range(n)])


def n_words(messages: list[Message]) -> int:
    return sum(len(str(message["content"]).split()) for message in messages)


def test_reasoning_of_earlier_turns_is_left_out() -> None:
    conversation = talk(1)
    assert [m["content"] for m in conversation.messages("next")] == ["sys", "q0", "a0", "next"]
    conversation.keep_reasoning = True
    assert conversation.messages()[2]["content"].startswith("<think>\nr0 r0")


def test_room_is_made_reasoning_first_then_the_oldest() -> None:
    conversation = talk(4)
    conversation.keep_reasoning = True
    assert conversation.make_room("next", n_words, 1000) == (0, 0)
    assert conversation.next_to_leave_out() == 'the reasoning of turn 1 ("q0")'
    assert conversation.make_room("next", n_words, 40) == (2, 0)
    assert ["r" in m["content"] for m in conversation.messages()[2::2]] == [False, False, True, True]
    assert conversation.make_room("next", n_words, 12) == (2, 0)
    assert conversation.next_to_leave_out() == 'turn 1 ("q0")'
    assert conversation.make_room("next", n_words, 6) == (0, 2)
    assert [m["content"] for m in conversation.messages("n")] == ["sys", "q2", "a2", "q3", "a3", "n"]
    assert conversation.make_room("next", n_words, 0) == (0, 2)
    assert conversation.next_to_leave_out() == ""
    assert [m["content"] for m in conversation.messages("n")] == ["sys", "n"]
    conversation.undo()
    assert conversation.n_left_out == 3 and len(conversation.turns) == 3


def test_saved_and_loaded(tmp_path: Path) -> None:
    conversation = talk(3)
    conversation.make_room("x", n_words, 6)
    conversation.save(tmp_path / "talk.json")
    assert Conversation.load(tmp_path / "talk.json") == conversation


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": "other"}', '{"format": "mimo-gguf conversation 1", "turns": [{"x": 1}]}', "\xff"],
)
def test_no_saved_conversation(text: str, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UsageError, match=r"talk\.json"):
        Conversation.load(path)
    with pytest.raises(UsageError, match="absent"):
        Conversation.load(tmp_path / "absent.json")


def test_a_hostile_number_of_turns_left_out(tmp_path: Path) -> None:
    talk(1).save(tmp_path / "t.json")
    data = json.loads((tmp_path / "t.json").read_text())
    (tmp_path / "t.json").write_text(json.dumps(data | {"n_left_out": 99}))
    assert Conversation.load(tmp_path / "t.json").n_left_out == 1


def test_markdown_and_undo() -> None:
    conversation = talk(2)
    assert "## q0" in conversation.as_markdown() and "<details>" in conversation.as_markdown()
    assert conversation.undo() == Turn("q1", "a1", "r1 " * 10)
    conversation.clear()
    assert conversation.undo() is None
