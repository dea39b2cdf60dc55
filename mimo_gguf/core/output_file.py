"""Output files that appear under their final name only when complete and synced."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mimo_gguf.core.errors import OutputError
from mimo_gguf.core.units import format_size


def check_output(path: Path, *, force: bool) -> None:
    """Raises OutputError where `path` exists (without `force`), is a folder, or its folder is missing or read-only."""
    if path.is_dir():
        raise OutputError(f"{path}: is a folder, not a file", hint="give a file name with -o")
    if path.exists() and not force:
        raise OutputError(f"{path}: exists already", hint="add --force to replace it, or choose another name with -o")
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"{folder}: no such folder", hint=f"mkdir -p {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{folder}: the folder is read-only", hint="choose another place with -o")


def check_free_space(folder: Path, needed_bytes: int) -> None:
    """Raises OutputError where the disk below `folder` has less than `needed_bytes` free."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise OutputError(
            f"{folder}: {format_size(needed_bytes)} needed, {format_size(free)} free on this disk",
            hint="free some space, or choose another disk with -o",
        )


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` durable (where the system can open a folder: not on Windows)."""
    if os.name == "nt":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError:
        pass  # some network file systems refuse; the rename is still atomic
    finally:
        os.close(fd)


@contextlib.contextmanager
def atomic_output(path: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends well, and vanishes when it does not."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}", hint="choose another place with -o") from None
    finally:
        partial.unlink(missing_ok=True)
