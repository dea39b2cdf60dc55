"""Files that are fetched while they are read: each from its start to its end, every byte once, no copy on the disk.

SHA-256 needs a file's bytes in order, and there is nothing to go back to. So a reader first announces every span that
it will read. Then it reads them once, in the order of the files and of their offsets. A file whose digest is wrong
arrives once more at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Span(NamedTuple):
    """The bytes [start, stop) of the file with number `file`."""

    file: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class FilePlace:
    """Where a tensor's rows lie in a file that arrives: the first byte, and the bytes of a stored row."""

    file: int
    offset: int
    row_bytes: int

    def span(self, first: int, last: int) -> Span:
        """The bytes of the rows [first, last)."""
        return Span(self.file, self.offset + first * self.row_bytes, self.offset + last * self.row_bytes)


class ArrivingFile(Protocol):
    """A file that arrives: its name for people, its size, and the digest that its bytes must have."""

    @property
    def name(self) -> str: ...

    @property
    def n_bytes(self) -> int: ...

    @property
    def digest(self) -> bytes: ...


class Arrival(Protocol):
    """The files of a source that is fetched while it is read.

    Attributes:
        files: in the order in which they arrive.
        fetched_bytes: the bytes that have arrived.
    """

    @property
    def files(self) -> Sequence[ArrivingFile]: ...

    @property
    def fetched_bytes(self) -> int: ...

    def start(self, files: Collection[int], spans: Sequence[Span], on_checked: Callable[[int, bool], None]) -> None:
        """Begins to fetch.

        Args:
            files: numbers of the files that are needed; all of their bytes are fetched and checked.
            spans: what will be read of them, each once in every arrival of its file. They may overlap.
            on_checked: called, from another thread, with the number of a file and whether its digest is right. That
                can be before its spans are read.
        """

    def arrivals(self) -> Iterator[int]:
        """The numbers of the files in the order in which they are to be read.

        After the last it waits until all are checked. Files with a wrong digest come once more.

        Raises:
            HubError: a file arrived twice with a wrong digest, or the network failed for good.
        """

    def stop(self) -> None:
        """Ends the fetching; whoever waits for bytes gets an error."""


def arrival_bytes(arrival: Arrival) -> int:
    """The size of all its files in bytes."""
    return sum(file.n_bytes for file in arrival.files)
