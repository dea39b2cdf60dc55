"""The slash commands that read and write files: /save, /load, /export, /file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

from mimo_gguf.chat.conversation import Conversation, shortened
from mimo_gguf.cli import ui
from mimo_gguf.cli.chat_kept import KeptFile, kept_conversations, kept_folder, modified_ns
from mimo_gguf.cli.chat_talk import Talk
from mimo_gguf.cli.text_files import read_text
from mimo_gguf.core.errors import OutputError, UsageError
from mimo_gguf.core.output_file import atomic_output
from mimo_gguf.core.paths import path_kind
from mimo_gguf.core.units import counted
from mimo_gguf.engine.state import load_state, save_state, state_key

_CACHE: Final = ".kv"  # suffix of the file beside a saved conversation


def save(talk: Talk, text: str) -> None:
    """Saves the conversation; with `kv` after the name its cache as well, so that it need not be read again."""
    name = text.removesuffix(" kv")
    path = _path(name, ".json", "/save talk.json, or with the cache: /save talk.json kv")
    cache = path.with_suffix(_CACHE) if name != text else None
    with _writing(talk, path, *[cache] if cache else []):
        talk.conversation.save(path)
        if cache:
            session = talk.model.session
            save_state(session, session.slot, state_key(talk.model.file, session), cache)
    ui.print_note(f"saved to {path}" + (" with its cache" if cache else ""))


def load(talk: Talk, name: str) -> None:
    """Goes on with a saved conversation, and with its cache if there is one of this model.

    A number means one of the last ten conversations; without anything these are listed.
    """
    if not name:
        _show_kept(kept_folder())
        return
    kept = name.isdecimal()
    path = _kept_path(kept_folder(), name) if kept else _path(name, ".json", "/load talk.json")
    talk.conversation = Conversation.load(path)
    if talk.autosave is not None:
        talk.autosave = KeptFile.of(path) if kept else KeptFile(talk.autosave.folder)
    talk.own_files.add(path.resolve())
    note, cache = counted(len(talk.conversation.turns), "turn") + " loaded", path.with_suffix(_CACHE)
    if path_kind(cache) == "file":
        session = talk.model.session
        is_loaded = load_state(session, session.slot, state_key(talk.model.file, session), cache)
        talk.own_files.update([cache.resolve()] if is_loaded else [])
        note += " with the cache" if is_loaded else "; its cache is of another model or damaged, so it is read again"
    if talk.conversation.turns:
        note += f"; the last was {shortened(talk.conversation.turns[-1].question)}"
    ui.print_note(note)


def _show_kept(folder: Path) -> None:
    """The last ten conversations as a table."""
    kept = kept_conversations(folder)
    if not kept:
        raise UsageError("no conversation is kept yet", hint="/load talk.json goes on with one that /save wrote")
    rows = [
        (str(n), f"{datetime.fromtimestamp(modified_ns(path) / 1e9):%Y-%m-%d %H:%M}", str(len(said.turns)),
         ui.visible(shortened(said.turns[0].question)))
        for n, (path, said) in enumerate(kept, 1)
    ]  # fmt: skip
    ui.print_table(("number", "last said", "turns", "first question"), rows)
    ui.print_note("/load 1 goes on with number 1")


def _kept_path(folder: Path, number: str) -> Path:
    """The file of a row in the table."""
    for n, (path, _) in enumerate(kept_conversations(folder), 1):
        if str(n) == number:
            return path
    raise UsageError(f"there is no conversation number {number}", hint=f"/load lists them; ./{number} is a file")


def export(talk: Talk, name: str) -> None:
    """Writes the conversation as Markdown."""
    path = _path(name, ".md", "/export talk.md")
    with _writing(talk, path), atomic_output(path) as file:
        file.write(talk.conversation.as_markdown().encode("utf-8", "replace"))
    ui.print_note(f"written to {path}")


def attach(talk: Talk, name: str) -> None:
    """Adds a file's text to the next question; without a name, lists the files that wait."""
    if not name:
        waiting = ", ".join(f"{file} ({len(text)} characters)" for file, text in talk.files)
        ui.print_note(f"with the next question: {waiting}" if waiting else "no file waits; /file notes.txt adds one")
        return
    path = _expanded(name)
    text = read_text(path)
    if not text.strip():
        raise UsageError(f"{path}: the file is empty", hint="choose another file")
    talk.files.append((path.name, text))
    n_tokens = len(talk.model.vocabulary.tokenize(text))
    ui.print_note(f"{path.name} goes with the next question: {counted(n_tokens, 'token')}")


@contextlib.contextmanager
def _writing(talk: Talk, *paths: Path) -> Iterator[None]:
    """Refuses to overwrite files that this chat has neither written nor read; afterwards the files are its own.

    Raises:
        UsageError: a file exists already, or cannot be written.
    """
    for path in paths:
        if path_kind(path) != "nothing" and path.resolve() not in talk.own_files:
            raise UsageError(f"{path}: exists already", hint="choose another name, or delete it first")
    try:
        yield
    except OutputError as error:
        raise UsageError(error.message, hint="choose another name") from None
    talk.own_files.update(path.resolve() for path in paths)


def _path(name: str, suffix: str, example: str) -> Path:
    """The path that a name means; `suffix` is added to a name without one."""
    if not name:
        raise UsageError("a file name is missing", hint=example)
    path = _expanded(name)
    if not path.name or "\0" in name or path_kind(path) == "folder":
        raise UsageError(f"{name}: is not a file name", hint=example)
    if path.suffix == _CACHE:
        raise UsageError(f"{name}: {_CACHE} is the ending of caches", hint=example)
    return path if path.suffix else path.with_suffix(suffix)


def _expanded(name: str) -> Path:
    """The path that a name means: `~` is replaced, and quotes around it, as for a shell, are removed."""
    if len(name) > 1 and name[0] == name[-1] and name[0] in "\"'":
        name = name[1:-1]
    path = Path(name)
    with contextlib.suppress(RuntimeError):  # ~nobody
        path = path.expanduser()
    return path
