"""The progress of a long run, as it is reported. The command line draws it; a library call may ignore it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Job:
    """One file that is being made or read: a name for people and its size.

    Attributes:
        is_download: whether it is not a file but what is downloaded, which goes on beside the files.
    """

    name: str
    n_bytes: int
    is_download: bool = False


class Progress(Protocol):
    """The methods that a run calls several times a second, from the thread that started it; `note` from any thread."""

    def start(self, jobs: Sequence[Job]) -> None:
        """Receives the files of the run when it begins."""

    def update(self, done: Sequence[int], resumed: Sequence[int]) -> None:
        """Receives the bytes done of each job, and those of them that an earlier run had done."""

    def note(self, text: str) -> None:
        """Receives one line about a step that is slow, or about a choice that was made."""

    def finish(self) -> None:
        """Learns that the run has ended, with or without an error."""


class Silence:
    """A Progress that shows nothing."""

    def start(self, jobs: Sequence[Job]) -> None: ...

    def update(self, done: Sequence[int], resumed: Sequence[int]) -> None: ...

    def note(self, text: str) -> None: ...

    def finish(self) -> None: ...
