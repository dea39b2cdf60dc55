"""The small files of a checkpoint: JSON and text, read with one error for whatever is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from mimo_gguf.core.documents import MEGABYTE, DocumentKind
from mimo_gguf.core.errors import CheckpointError
from mimo_gguf.core.paths import path_kind

# A tokenizer.json has 10 to 20 MB. Trainers write NaN into entries that nothing reads; entries are checked when read.
_DOCUMENT: Final = DocumentKind(CheckpointError, "download this file again", most_bytes=256 * MEGABYTE, bounded=False)
_LFS_POINTER: Final = b"version https://git-lfs.github.com/spec/"


def is_lfs_pointer(data: bytes) -> bool:
    """Whether `data` is a pointer of git-lfs, which stands for a file until that is fetched."""
    return data.startswith(_LFS_POINTER)


def lfs_pointer_error(path: Path) -> CheckpointError:
    """The error for a file that git-lfs has not fetched."""
    return CheckpointError(
        f"{path}: only the pointer of git-lfs to this file, not the file itself",
        hint="run `git lfs install && git lfs pull` in that folder, or give the Hub id: it downloads what is needed",
    )


def read_text(path: Path) -> str:
    """The UTF-8 text in `path`.

    Raises:
        CheckpointError: unreadable, not a file, not UTF-8, or a pointer of git-lfs.
    """
    data = _DOCUMENT.read_bytes(path)
    if is_lfs_pointer(data):
        raise lfs_pointer_error(path)
    return _DOCUMENT.decode(data, path)


def _is_missing(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    except OSError:  # such as a folder without permission: reading it gives the error
        return False
    return False


def read_json(path: Path, if_missing: str) -> dict[str, Any]:
    """The JSON object in `path`; every text in it can be written as UTF-8.

    Raises:
        CheckpointError: missing (`if_missing` says what that means), unreadable, or not a JSON object.
    """
    if _is_missing(path):
        raise CheckpointError(f"{path.parent}: {if_missing}", hint="give the folder that has it, or download it again")
    value = _DOCUMENT.parse_json(read_text(path), path)
    if not isinstance(value, dict):
        raise _DOCUMENT.fail(path, f"a JSON {type(value).__name__}, not an object")
    return value


def read_optional_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, or an empty one if there is no such file.

    Raises:
        CheckpointError: as `read_json`.
    """
    return {} if path_kind(path) == "nothing" else read_json(path, "missing")
