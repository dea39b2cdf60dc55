"""Pictures that commands draw with matplotlib, which is an optional dependency: PNG or SVG by the name's ending."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from mimo_gguf.core.errors import MimoGgufError, UsageError
from mimo_gguf.core.output_file import atomic_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FORMATS: Final = ("png", "svg")
_DPI: Final = 150


def check_picture(path: Path, *, example: str) -> None:
    """Refuses a name under which no picture can be written, before anything is computed for it.

    Args:
        example: the option as it would be right, for the hint.

    Raises:
        UsageError: another ending, or no such folder.
        MimoGgufError: matplotlib is not installed.
    """
    if _kind(path) not in _FORMATS:
        raise UsageError(f"{path}: a picture is a .png or .svg file", hint=example)
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no such folder", hint=example)
    new_figure()


def new_figure() -> Figure:
    """An empty figure of 8 by 5 inches.

    Raises:
        MimoGgufError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MimoGgufError(
            "drawing needs matplotlib, which is not installed", hint='pip install "mimo-gguf[plot]"'
        ) from None
    return Figure(figsize=(8, 5), layout="constrained", dpi=_DPI)


def save_picture(figure: Figure, path: Path) -> None:
    """Writes a figure.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_output(path) as file:
        figure.savefig(file, format=_kind(path), dpi=_DPI)


def _kind(path: Path) -> str:
    return path.suffix.lower().lstrip(".")
