"""The line a conversation is typed on: history across runs, lines pasted together, several lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import NestedCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.styles import Style


def line_editor(words: dict[str, dict[str, None] | None]) -> PromptSession[str]:
    """A prompt for lines of which some are commands: `/name` and the words that may follow it."""
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    return PromptSession(
        history=_history(),
        completer=NestedCompleter.from_nested_dict(words),
        key_bindings=keys,
        complete_while_typing=False,
        style=Style.from_dict({"": "bold"}),  # questions stand out when one scrolls back
        reserve_space_for_menu=6,
    )


def _history() -> History:
    """Kept in the user's folder, readable to nobody else; where none can be written, for this run only."""
    try:
        folder = Path(typer.get_app_dir("mimo-gguf"))
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "chat_history"
        path.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))
