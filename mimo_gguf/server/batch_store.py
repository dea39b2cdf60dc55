"""What a server knows of its batches: one small document each, written anew whenever the state changes."""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from mimo_gguf.core.output_file import make_folder
from mimo_gguf.core.unguessable import unguessable_name
from mimo_gguf.server.failures import refusal
from mimo_gguf.server.file_store import new_file_id, read_document, write_document

_ID: Final = re.compile(r"batch_[0-9a-f]{24}")
OPEN: Final = frozenset({"validating", "in_progress", "finalizing", "cancelling"})
# What a batch is made into -> the state in which it ends. The second one is OpenAI's name for the time of it.
_TIMES: Final = {
    "in_progress": "in_progress_at", "finalizing": "finalizing_at", "completed": "completed_at", "failed": "failed_at",
    "expired": "expired_at", "cancelling": "cancelling_at", "cancelled": "cancelled_at",
}  # fmt: skip


@dataclass(slots=True)
class Batch:
    """A batch.

    Attributes:
        id: its name.
        endpoint: the url that all of its rows have.
        input_file_id: the file of its rows.
        window_s: seconds after its creation at which it expires; `completion_window` is the user's word for it.
        output_id, error_id: the files that answers and failures will go to.
        status: one of OpenAI's.
        ends_as: the state in which it will end, once answers and failures are in their files.
        times: when it came into a state, by OpenAI's name for that, in seconds since 1970.
        errors: what is wrong with its rows, if it has failed.
        total, completed, failed: rows, those with an answer, those with a failure.
        has_output, has_errors: whether there are answers, and failures, in the files.
    """

    endpoint: str
    input_file_id: str
    completion_window: str
    window_s: int
    metadata: dict[str, str] | None = None
    id: str = field(default_factory=lambda: unguessable_name("batch_"))
    created_at: int = field(default_factory=lambda: int(time.time()))
    output_id: str = field(default_factory=new_file_id)
    error_id: str = field(default_factory=new_file_id)
    status: str = "validating"
    ends_as: str = "completed"
    times: dict[str, int] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)
    total: int = 0
    completed: int = 0
    failed: int = 0
    has_output: bool = False
    has_errors: bool = False

    @property
    def is_open(self) -> bool:
        """Whether there is something left to do."""
        return self.status in OPEN

    @property
    def expires_at(self) -> int:
        """When it expires, in seconds since 1970."""
        return self.created_at + self.window_s

    def become(self, status: str) -> None:
        """Changes the state, and notes the time."""
        self.status = status
        self.times[_TIMES[status]] = int(time.time())

    def as_json(self) -> dict[str, Any]:
        """The batch as OpenAI describes it."""
        return {
            "id": self.id, "object": "batch", "endpoint": self.endpoint,
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.input_file_id, "completion_window": self.completion_window, "status": self.status,
            "output_file_id": self.output_id if self.has_output else None,
            "error_file_id": self.error_id if self.has_errors else None,
            "created_at": self.created_at, "expires_at": self.expires_at,
            **{name: self.times.get(name) for name in _TIMES.values()},
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "metadata": self.metadata,
        }  # fmt: skip


class BatchStore:
    """The batches of a server, in a folder that only this server uses."""

    def __init__(self, folder: Path) -> None:
        """Opens the folder, and makes it if it is missing. Raises OutputError if that cannot be."""
        self.folder = folder
        make_folder(folder)
        self._batches: dict[str, Batch] = {}
        for path in sorted(folder.glob("batch_*.json")):
            found = _read(path)
            if found is not None:
                self._batches[found.id] = found

    def list(self) -> list[Batch]:
        """All batches, the newest first."""
        return sorted(self._batches.values(), key=lambda each: (each.created_at, each.id), reverse=True)

    def find(self, batch_id: str) -> Batch:
        """A batch. Raises Refused if there is none with this id."""
        found = self._batches.get(batch_id)
        if found is None:
            raise refusal(404, f"no batch {batch_id[:60]!r} here", code="not_found", param="batch_id")
        return found

    def save(self, batch: Batch) -> None:
        """Writes what is known of a batch. Raises OutputError if that cannot be."""
        self._batches[batch.id] = batch
        write_document(self.folder / f"{batch.id}.json", asdict(batch))

    def work_path(self, batch: Batch) -> Path:
        """Where the lines of output are, until they are in their files."""
        return self.folder / f"{batch.id}.jsonl"


def _read(path: Path) -> Batch | None:
    """A batch as it was written; None if its document is damaged."""
    document = read_document(path)
    names = {each.name for each in fields(Batch)}
    if document is None or document.keys() != names or not _ID.fullmatch(str(document["id"])):
        return None
    return Batch(**document)
