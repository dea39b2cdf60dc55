"""The files of a server: uploaded ones and results of batches, in one folder, under names that the server gives.

No path of the disk is made of anything that a request says: an id has a fixed form, and is looked up before it is used.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from mimo_gguf.core.log import LOGGER
from mimo_gguf.core.output_file import atomic_output, make_folder
from mimo_gguf.core.unguessable import unguessable_name
from mimo_gguf.server.failures import refusal

_ID: Final = re.compile(r"file-[0-9a-f]{24}")


def new_file_id() -> str:
    """An id that no file has."""
    return unguessable_name("file-")


class FileStore:
    """Files with what OpenAI says of them, in a folder that only this server uses."""

    def __init__(self, folder: Path) -> None:
        """Opens the folder, and makes it if it is missing. Raises OutputError if that cannot be."""
        self.folder = folder
        make_folder(folder)
        self._files: dict[str, dict[str, Any]] = {}
        for path in sorted(folder.glob("file-*.json")):
            described = read_document(path)
            if (
                described is not None
                and _ID.fullmatch(str(described.get("id")))
                and self._data(described["id"]).is_file()
            ):
                self._files[described["id"]] = described
        for left in folder.glob(".*.partial"):  # uploads that a kill broke off
            left.unlink(missing_ok=True)

    def list(self) -> list[dict[str, Any]]:
        """All files, the newest first."""
        return sorted(self._files.values(), key=lambda each: (each["created_at"], each["id"]), reverse=True)

    def find(self, file_id: str) -> dict[str, Any]:
        """What is said of a file. Raises Refused if there is none."""
        found = self._files.get(file_id)
        if found is None:
            raise refusal(404, f"no file {file_id[:60]!r} here", code="not_found", param="id")
        return found

    def path(self, file_id: str) -> Path:
        """Where the content of a file is. Raises Refused if there is none."""
        return self._data(self.find(file_id)["id"])

    @contextlib.contextmanager
    def writing(self, file_id: str) -> Iterator[BinaryIO]:
        """The content of a new file. It is one as soon as `add` names it. Raises OutputError if the disk is full."""
        with atomic_output(self._data(file_id)) as file:
            yield file

    def add(self, file_id: str, filename: str, purpose: str) -> dict[str, Any]:
        """Notes that a file was written. Raises OutputError if that cannot be."""
        described = {
            "id": file_id, "object": "file", "bytes": self._data(file_id).stat().st_size,
            "created_at": int(time.time()), "expires_at": None, "filename": filename[:255] or file_id,
            "purpose": purpose, "status": "processed", "status_details": None,
        }  # fmt: skip
        write_document(self.folder / f"{file_id}.json", described)
        self._files[file_id] = described
        return described

    def delete(self, file_id: str) -> None:
        """Removes a file. Raises Refused if there is none."""
        known = self.find(file_id)["id"]
        (self.folder / f"{known}.json").unlink(missing_ok=True)
        self._data(known).unlink(missing_ok=True)
        del self._files[known]

    def _data(self, file_id: str) -> Path:
        return self.folder / f"{file_id}.jsonl"


def read_document(path: Path) -> dict[str, Any] | None:
    """A document that the server has written; None, and a line in the log, if it is damaged."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        LOGGER.error("%s cannot be read, and is left out", path)
        return None
    return found


def write_document(path: Path, document: dict[str, Any]) -> None:
    """Writes a document so that it is there as a whole, or as it was before. Raises OutputError."""
    with atomic_output(path) as file:
        file.write(json.dumps(document, ensure_ascii=False).encode("utf-8", "replace"))
