"""Keeps the last ten conversations, each in a file of its own in the program's folder, for `--resume` and `/load`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import typer

from mimo_gguf.chat.conversation import Conversation
from mimo_gguf.core.errors import OutputError, UsageError

_MOST_KEPT: Final = 10


def kept_folder() -> Path:
    """The folder of the last conversations."""
    return Path(typer.get_app_dir("mimo-gguf")) / "conversations"


@dataclass(slots=True)
class KeptFile:
    """The file of one conversation, named after the time at which it began.

    Attributes:
        folder: the folder of all kept conversations.
        path: the file; None if nothing has been kept yet.
    """

    folder: Path
    path: Path | None = None
    _written_ns: int = 0

    @classmethod
    def of(cls, path: Path) -> KeptFile:
        """The file of a conversation that was loaded and now goes on."""
        return cls(path.parent, path, modified_ns(path))

    def keep(self, conversation: Conversation) -> None:
        """Writes the conversation, and removes those older than the last ten. One without turns leaves no file.

        If another chat has written the same file meanwhile, this one goes into a new file, and both are kept.

        Raises:
            OutputError: the file cannot be written.
        """
        try:
            self._keep(conversation)
        except OSError as error:
            raise OutputError(f"{self.folder}: {error.strerror or error}", hint="/save talk.json elsewhere") from None

    def _keep(self, conversation: Conversation) -> None:
        ours = self.path is not None and modified_ns(self.path) == self._written_ns
        if not conversation.turns:
            if ours and self.path is not None:
                self.path.unlink()
            self.path = None
            return
        if not ours or self.path is None:
            self.path = self.folder / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}.json"
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        conversation.save(self.path)
        self.path.chmod(0o600)
        self._written_ns = modified_ns(self.path)
        for path in _newest_first(self.folder)[_MOST_KEPT:]:
            path.unlink(missing_ok=True)


def kept_conversations(folder: Path) -> list[tuple[Path, Conversation]]:
    """Loads the conversations that have turns, the last changed one first. Damaged files are left out."""
    found = []
    for path in _newest_first(folder):
        try:
            conversation = Conversation.load(path)
        except UsageError:
            continue
        if conversation.turns:
            found.append((path, conversation))
    return found


def resumed_conversation(folder: Path, system: str) -> tuple[KeptFile, Conversation]:
    """Loads the last conversation and its file. A system message that is not empty replaces its own.

    Raises:
        UsageError: there is no conversation.
    """
    for path, conversation in kept_conversations(folder):
        conversation.system = system or conversation.system
        return KeptFile.of(path), conversation
    raise UsageError("there is no conversation to resume", hint="leave --resume out")


def _newest_first(folder: Path) -> list[Path]:
    """Sorts by the last change, and by name (the time of the start) within a tick of the file system's clock."""
    return sorted(folder.glob("*.json"), key=lambda path: (modified_ns(path), path.name), reverse=True)


def modified_ns(path: Path) -> int:
    """The time of the file's last change in nanoseconds; 0 if it does not exist."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
