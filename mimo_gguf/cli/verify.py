"""`mimo-gguf verify`: is a file still what was written?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mimo_gguf.cli import ui
from mimo_gguf.cli.options import Json, Quiet, Threads
from mimo_gguf.core.units import format_size

_MEANING = {
    "checksums": "every byte, against the checksums beside the file",
    "embedded digest": "the data of every tensor, against the digest in the file (metadata is not covered)",
    "structure only": "form, length, and that all floats and block scales are finite; there is nothing to compare with",
}


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A GGUF file, or any part of a split one.")],
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check a GGUF file against its checksums: any flipped bit, missing or added byte is found.

    Exit code 1 where something is wrong.
    """
    from mimo_gguf.cli.progress import open_progress
    from mimo_gguf.quantization.verification import verify_gguf

    with open_progress(quiet=quiet or as_json) as progress:
        found = verify_gguf(file, progress, threads)
    if as_json:
        ui.print_json(found.as_json())
    else:
        ui.print_field("file", f"{found.paths[0]}" + (f" and {len(found.paths) - 1} more" if found.paths[1:] else ""))
        ui.print_field("checked", f"{found.n_tensors} tensors, {format_size(found.n_bytes)}: {_MEANING[found.method]}")
        for path in found.without_checksums if len(found.paths) > len(found.without_checksums) else ():
            ui.print_warning(
                f"{path.name}.sums.json is missing: with it the metadata of this part would be checked too"
            )
        for problem in found.problems:
            ui.print_field("damaged", problem)
        ui.print_field("result", "intact" if found.intact else "damaged: convert, quantize or download it again")
    if not found.intact:
        raise typer.Exit(1)
