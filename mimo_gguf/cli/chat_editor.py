"""The prompt of a conversation: history across runs, Tab, pasted text, several lines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import typer
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.layout.processors import TabsProcessor
from prompt_toolkit.styles import Style


class Command(Protocol):
    """The parts of a command that completion uses."""

    @property
    def arguments(self) -> str:
        """The arguments: with FILE in it for a file's name, empty if nothing may follow."""

    @property
    def words(self) -> tuple[str, ...]:
        """The words that may follow, in the order in which they are offered."""

    @property
    def help(self) -> str: ...


def matching(name: str, commands: Iterable[str]) -> list[str]:
    """Finds the command of this name, or else those that begin with it."""
    return [name] if name in commands else [command for command in commands if command.startswith(name)]


class CommandCompleter(Completer):
    """Completes `/name`, the words that may follow it, and file names. In a question it completes nothing."""

    def __init__(self, commands: Mapping[str, Command]) -> None:
        self._commands = commands
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        name, space, typed = document.text_before_cursor.partition(" ")
        if not name.startswith("/"):
            return
        commands = [(command, self._commands[command]) for command in matching(name[1:], self._commands)]
        if not space:
            for full, command in commands:
                end = " " if command.arguments else ""
                yield Completion(f"/{full}{end}", -len(name), display=f"/{full}", display_meta=command.help)
        elif len(commands) == 1 and "FILE" in commands[0][1].arguments:
            yield from self._paths.get_completions(Document(typed.lstrip()), complete_event)
        elif len(commands) == 1:
            begun = typed.rpartition(" ")[2]
            for word in commands[0][1].words:
                if word.startswith(begun) and word != begun:
                    yield Completion(word, -len(begun))


def line_editor(commands: Mapping[str, Command]) -> PromptSession[str]:
    """Makes a prompt for questions and for `commands`."""
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    return PromptSession(
        history=_history(),
        completer=CommandCompleter(commands),
        key_bindings=keys,
        complete_while_typing=False,
        style=Style.from_dict({"": "bold"}),  # questions stand out when one scrolls back
        input_processors=[TabsProcessor(char1=" ", char2=" ")],  # pasted code
        reserve_space_for_menu=6,
    )


class _FileHistory(FileHistory):
    """A history that only lasts for this run if its file cannot be read or written."""

    def load_history_strings(self) -> Iterable[str]:
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        with contextlib.suppress(OSError):
            super().store_string(string)


def _history() -> History:
    """Makes the history. Its file is in the user's folder, and nobody else may read it."""
    folder = Path(typer.get_app_dir("mimo-gguf"))
    path = folder / "chat_history"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
    return _FileHistory(str(path))
