"""Paths: the kind of thing that one leads to, for any text that a user may type; the folder of what is kept."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
from pathlib import Path
from typing import Literal

PathKind = Literal["file", "folder", "nothing", "special"]


def path_kind(path: str | Path) -> PathKind:
    """The kind of thing at `path`: a `file`, a `folder`, `special` (a pipe or device) or `nothing`.

    `Path.exists` and its like raise for a name that no system can have (too long, with a NUL); here it is `nothing`.
    """
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return "nothing"
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "special"


def standing_folder(folder: Path) -> Path:
    """The folder itself, or the nearest above it that exists: on whose disk it will be once it is made."""
    while path_kind(folder) == "nothing" and folder != folder.parent:
        folder = folder.parent
    return folder


def is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, after making the folder if it is missing."""
    stands = standing_folder(folder)
    return path_kind(stands) == "folder" and os.access(stands, os.W_OK | os.X_OK)


def command_word(path: str | Path) -> str:
    """The path as one word of a command, for a hint to be typed as it stands: quoted if it has spaces or quotes."""
    return subprocess.list2cmdline([str(path)]) if os.name == "nt" else shlex.quote(str(path))


def program_cache() -> Path:
    """The folder of everything large that this program keeps, except for compiled kernels on some systems."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mimo-gguf"


def program_data() -> Path:
    """The folder of what the user wants to keep: models."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "mimo-gguf"


def program_config() -> Path:
    """The folder of the configuration file."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "mimo-gguf"
