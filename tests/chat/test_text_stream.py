"""Streamed text: whole characters, stop strings across token boundaries, reasoning apart from the answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_gguf.chat.reasoning import Kind, ReasoningSplitter, split_reasoning
from mimo_gguf.chat.text_stream import TextStream, held_back


def in_pieces(raw: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(raw) + 1) for cut in cuts})
    return [raw[a:b] for a, b in zip([0, *places], [*places, len(raw)], strict=True)]


@given(st.text(), st.lists(st.integers(0, 1000)))
def test_any_cutting_gives_the_text_back(text: str, cuts: list[int]) -> None:
    stream = TextStream()
    raw = text.encode("utf-8", "ignore")
    pieces = [stream.push(piece) for piece in in_pieces(raw, cuts)]
    assert "".join(pieces) + stream.finish() == raw.decode()


def test_half_a_character_waits() -> None:
    stream = TextStream()
    euro = "€".encode()
    assert [stream.push(euro[:1]), stream.push(euro[1:2]), stream.push(euro[2:] + b"!")] == ["", "", "€!"]
    assert stream.push(euro[:2]) == ""
    assert stream.finish() == "�"


@given(
    st.text(alphabet="abx", max_size=30),
    st.lists(st.text(alphabet="abx", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(0, 40)),
)
def test_stop_strings_end_the_text_wherever_it_is_cut(text: str, stops: list[str], cuts: list[int]) -> None:
    stream = TextStream(stops)
    shown = ""
    seen = ""
    for piece in in_pieces(text.encode(), cuts):
        seen += piece.decode()
        shown += stream.push(piece)
        assert not any(stop in shown for stop in stops)
        if any(stop in seen for stop in stops):
            assert stream.stopped  # at once, not at the end
            break
    shown += stream.finish()
    ends = [text.find(stop) for stop in stops if stop in text]
    assert stream.stopped == bool(ends)
    if not ends:
        assert shown == text
    else:
        # The stop string completed first decides; a longer one that began earlier was not complete yet.
        assert text.startswith(shown) and any(text.startswith(shown + stop) for stop in stops)


def test_only_what_may_become_a_stop_string_is_held() -> None:
    stream = TextStream(["</s>", "END"])
    assert stream.push(b"abc</") == "abc"
    assert stream.push(b"x") == "</x"
    assert stream.push(b"EN") == ""
    assert stream.push(b"D of it") == ""
    assert stream.stopped and stream.finish() == ""


@pytest.mark.parametrize(("text", "n"), [("ab<", 1), ("ab</thin", 6), ("ab</think>", 0), ("<</", 2), ("", 0)])
def test_held_back(text: str, n: int) -> None:
    assert held_back(text, ("</think>",)) == n


CASES = [
    ("<think>\nlet me see\n</think>\n\nThe answer", "let me see", "The answer"),
    ("\n<think>a</think>b", "a", "b"),
    ("<think>\n\n</think>\n\nplain", "", "plain"),
    ("no block at all", "", "no block at all"),
    ("\n  indented answer", "", "\n  indented answer"),
    ("talk about <think> and </think> tags", "", "talk about <think> and </think> tags"),
    ("<think>never ends\n", "never ends", ""),
    ("<think>a < b </thin> </think>\nc </think> d", "a < b </thin> ", "c </think> d"),
    ("<thi", "", "<thi"),
    ("<think>", "", ""),
    ("<think>cut off\n</thi", "cut off", ""),
    ("<think>a <", "a <", ""),
    ("", "", ""),
    ("<think>one\n\ntwo</think>three\n\nfour\n", "one\n\ntwo", "three\n\nfour\n"),
]


@pytest.mark.parametrize(("text", "reasoning", "answer"), CASES)
def test_reasoning_is_split_off(text: str, reasoning: str, answer: str) -> None:
    assert split_reasoning(text) == (reasoning, answer)


@given(st.sampled_from([case[0] for case in CASES]) | st.text(alphabet="<think>/ \na"), st.lists(st.integers(0, 60)))
def test_splitting_does_not_depend_on_the_pieces(text: str, cuts: list[int]) -> None:
    splitter = ReasoningSplitter()
    pieces = []
    for piece in in_pieces(text.encode(), cuts):
        pieces += splitter.push(piece.decode())
    pieces += splitter.finish()
    got = tuple("".join(p.text for p in pieces if p.kind is kind) for kind in Kind)
    assert got == split_reasoning(text)


def test_reasoning_streams_as_it_comes() -> None:
    splitter = ReasoningSplitter()
    assert [p.text for p in splitter.push("<think>\nfirst")] == ["first"]
    assert splitter.thinking
    assert [p.text for p in splitter.push(" second\n")] == [" second"]
    assert [(p.kind, p.text) for p in splitter.push("</think>\nnow")] == [(Kind.ANSWER, "now")]
    assert not splitter.thinking


def test_a_block_the_prompt_opened() -> None:
    splitter = ReasoningSplitter(inside=True)
    pieces = splitter.push("hm</think>ok") + splitter.finish()
    assert [(p.kind, p.text) for p in pieces] == [(Kind.REASONING, "hm"), (Kind.ANSWER, "ok")]
