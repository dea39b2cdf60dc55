"""What a long run tells whoever watches. The command line draws it; a library call may ignore it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Job:
    """One file that is being made or read: a name for people and its size."""

    name: str
    n_bytes: int


class Progress(Protocol):
    """Called from the thread that started the run, several times a second; `note` perhaps from another one."""

    def start(self, jobs: Sequence[Job]) -> None:
        """The run begins."""

    def update(self, done: Sequence[int], resumed: Sequence[int]) -> None:
        """So many bytes of each job are done; so many of these an earlier run had done."""

    def note(self, text: str) -> None:
        """A line about a step that takes a moment or a choice that was made."""

    def finish(self) -> None:
        """The work has ended, well or not."""


class Silence:
    """A Progress that says nothing."""

    def start(self, jobs: Sequence[Job]) -> None: ...

    def update(self, done: Sequence[int], resumed: Sequence[int]) -> None: ...

    def note(self, text: str) -> None: ...

    def finish(self) -> None: ...
