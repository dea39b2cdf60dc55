"""Checkpoint to a GGUF of one name, in one call."""

from __future__ import annotations

from pathlib import Path

import mimo_gguf


def convert(folder: Path, out: Path, ftype: str | None = None) -> Path:
    """The path of the GGUF that the checkpoint becomes: in its own float type, or in `ftype`."""
    mimo_gguf.convert(folder, out=out, types=ftype or (), force=True)
    return out
