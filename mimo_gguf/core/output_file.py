"""Output files that appear under their final name only when complete and synced."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from mimo_gguf.core.errors import OutputError, UsageError
from mimo_gguf.core.paths import command_word, path_kind, standing_folder
from mimo_gguf.core.units import format_size, parse_size

# Files that are built beside an output have longer names (".NAME.sums.json.PID.partial"); 255 is the usual limit.
_LONGEST_NAME_BYTES: Final = 210
_SMALLEST_PART_BYTES: Final = 1_000_000


def check_output(path: Path, *, force: bool) -> None:
    """Raises OutputError if a file cannot be made at `path`.

    It exists (unless `force`) or is not a plain file. Or its name is too long for the files that are built beside it,
    or its folder is missing or read-only.
    """
    if len(os.fsencode(path.name)) > _LONGEST_NAME_BYTES:
        raise OutputError(f"{path}: the name is too long", hint="give a shorter file name with -o")
    kind = path_kind(path)
    if kind == "folder":
        raise OutputError(f"{path}: is a folder, not a file", hint="give a file name with -o")
    if kind == "special":
        raise OutputError(f"{path}: is a device or pipe, not a file", hint="give a file name with -o")
    if kind == "file" and not force:
        raise OutputError(f"{path}: exists already", hint="add --force to replace it, or choose another name with -o")
    check_folder(path.parent)


def check_folder(folder: Path) -> None:
    """Raises OutputError if `folder` is missing, is not a folder, or is read-only."""
    kind = path_kind(folder)
    if kind != "folder":
        what, hint = (
            ("no such folder", f"mkdir -p {command_word(folder)}")
            if kind == "nothing"
            else ("is a file", "give a folder")
        )
        raise OutputError(f"{folder}: {what}", hint=hint)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{folder}: the folder is read-only", hint="choose another place with -o")


@dataclass(frozen=True, slots=True)
class Destination:
    """The file or folder that `-o OUT` names."""

    path: Path
    is_file: bool  # otherwise a folder, which is made if it is missing


def parse_destination(text: str) -> Destination:
    """The destination that `-o OUT` names.

    It is a folder if it is one already, ends in a slash or has no suffix, and a file if it ends in .gguf. A leading ~
    is the home folder, because the shell does not expand it in `--out=~/models`.

    Raises:
        UsageError: it might be either.
    """
    path = Path(text)
    with contextlib.suppress(RuntimeError):  # ~nobody
        path = path.expanduser()
    if path_kind(path) == "folder" or text.endswith(("/", os.sep)) or not path.suffix:
        return Destination(path, is_file=False)
    if path.suffix.lower() != ".gguf":
        hint = f"-o {text}.gguf for a file, -o {text}/ for a folder"
        raise UsageError(f"{text}: neither ends in .gguf nor is a folder", hint=hint)
    return Destination(path, is_file=True)


def parse_part_size(text: str) -> int:
    """The number of bytes of the largest part of a split file.

    Raises:
        UsageError: not a size, or so small that every tensor would have a file of its own.
    """
    size = parse_size(text)
    if size < _SMALLEST_PART_BYTES:
        raise UsageError(f"{text}: parts of {format_size(size)} are too small", hint="write it like 2GB or 500MB")
    return size


def name_outputs(out: Destination | None, default_folder: Path, model: str, ftypes: Sequence[str]) -> tuple[Path, ...]:
    """The path of the file of each type: `out` if it is a file, else `<model>-<TYPE>.gguf` in a folder.

    That folder is `out`, or `default_folder` if `out` is None.

    Raises:
        UsageError: one file name for several types.
    """
    if out is not None and out.is_file:
        if len(ftypes) > 1:
            raise UsageError(f"{out.path}: one file name for {len(ftypes)} outputs", hint="give a folder with -o")
        return tuple(out.path for _ in ftypes)
    folder = default_folder if out is None else out.path
    return tuple(folder / f"{model}-{ftype}.gguf" for ftype in ftypes)


def make_folder(folder: Path) -> None:
    """Makes the folder of an output if it is missing.

    Raises:
        OutputError: that is impossible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror or error}", hint="choose another place with -o") from None


def free_bytes(folder: Path) -> int:
    """The free bytes of the disk that holds `folder`, or will hold it once it is made."""
    return shutil.disk_usage(standing_folder(folder)).free


def check_free_space(folder: Path, needed_bytes: int) -> None:
    """Raises OutputError if the disk of `folder` has less than `needed_bytes` free."""
    free = free_bytes(folder)
    if free < needed_bytes:
        raise OutputError(
            f"{folder}: {format_size(needed_bytes)} needed, {format_size(free)} free on this disk",
            hint="free some space, or choose another disk with -o",
        )


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` durable. It does nothing on Windows, which cannot open a folder.

    Raises:
        OutputError: the folder has vanished.
    """
    if os.name == "nt":
        return
    try:
        fd = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror or error}", hint="run the same command again") from None
    try:
        os.fsync(fd)
    except OSError:
        pass  # some network file systems refuse; the rename is still atomic
    finally:
        os.close(fd)


@contextlib.contextmanager
def atomic_output(path: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` if the block ends without an error, and vanishes otherwise.

    Raises:
        OutputError: it cannot be written.
    """
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
        with contextlib.suppress(OSError):  # it is not in a folder
            partial.unlink(missing_ok=True)
