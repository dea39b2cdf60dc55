"""From a download to a checkpoint, in one call."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.real_model.folder import write_checkpoint
from benchmarks.real_model.original import fetch_original, open_original
from benchmarks.real_model.trained import KEPT, bare, has_mtp, read_trained

DOWNLOADS = Path(os.environ.get("REAL_MODEL", Path(__file__).resolve().parents[2] / "build" / "real-model"))


def build_checkpoint(
    folder: Path, layout: str = "widened", trained: Path | None = KEPT, downloads: Path = DOWNLOADS
) -> Path:
    """Builds a checkpoint and gives its folder.

    Args:
        folder: where the checkpoint appears when it is whole; one that was there is replaced.
        layout: "widened" or "padded".
        trained: file of the trained biases and MTP layer; None means zero biases and no MTP layer.
        downloads: folder for the original.
    """
    added = bare() if trained is None else read_trained(trained)
    original = open_original(fetch_original(downloads), added)
    write_checkpoint(folder, original, layout, mtp=has_mtp(added))
    return folder
