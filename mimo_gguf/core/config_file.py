"""The user's configuration file: `config.toml` in the folder for such files, or what MIMO_GGUF_CONFIG names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from mimo_gguf.core.errors import UsageError, first_line
from mimo_gguf.core.paths import path_kind, program_config

CONFIG_VARIABLE: Final = "MIMO_GGUF_CONFIG"


def config_path() -> Path:
    """Where the configuration file is, or would be."""
    if given := os.environ.get(CONFIG_VARIABLE):
        return Path(given).expanduser()
    return program_config() / "config.toml"


def read_config() -> dict[str, Any]:
    """The configuration file as a table; empty if there is none.

    Raises:
        UsageError: it cannot be read, or is not TOML.
    """
    import tomllib

    path = config_path()
    if path_kind(path) == "nothing" and not os.environ.get(CONFIG_VARIABLE):
        return {}
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}", hint="check the path, or remove it") from None
    except ValueError as error:  # TOMLDecodeError, and bytes that are not UTF-8
        raise UsageError(f"{path}: {first_line(error)}", hint="docs/install.md has an example") from None
