"""The recipe shelves, `convert/` and `quant_profiles/`: data files found beside the code wherever it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from mimo_gguf.core.documents import DocumentKind
from mimo_gguf.core.errors import RecipeError

CONVERT: Final = "convert"
QUANT_PROFILES: Final = "quant_profiles"
# The longest shipped recipe has 9 KB; tomllib needs minutes for absurd megabytes.
_RECIPE: Final = DocumentKind(RecipeError, "correct the file at that place", most_bytes=250_000)


def shelf(name: str) -> Path:
    """The folder of a shelf: the copy in the wheel, or else the checkout's.

    Raises:
        RecipeError: neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_shipped" / name, package.parent / name):
        if folder.is_dir() and any(folder.glob("*.toml")):
            return folder
    raise RecipeError(f"the folder {name}/ was not installed beside {package}", hint="install again: pip install .")


def entries(name: str) -> tuple[Path, ...]:
    """The TOML files on a shelf, sorted by name."""
    return tuple(sorted(shelf(name).glob("*.toml")))


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        RecipeError: it cannot be read or is not TOML; the message has line and column.
    """
    return _RECIPE.read_toml(path)
