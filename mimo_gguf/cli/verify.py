"""`mimo-gguf verify`: checks that a file is still what was written, or compares it with its original."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mimo_gguf.cli import ui
from mimo_gguf.cli.options import Json, Quiet, Threads
from mimo_gguf.core.units import counted, format_size, listed

if TYPE_CHECKING:
    from mimo_gguf.quantization.verification import Verification

_MEANING = {
    "checksums": "every byte, against the checksums beside the file",
    "embedded digest": "the data of every tensor, against the digest in the file (metadata is not covered)",
    "structure only": "form, length, and that all floats and block scales are finite; there is nothing to compare with",
}


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A GGUF file, or any part of a split one.")],
    against: Annotated[
        str | None,
        typer.Option(
            "--against", metavar="SRC", help="Compare with the original: a checkpoint folder, a Hub id, or a GGUF file."
        ),
    ] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check a GGUF file against its checksums: any flipped bit, missing or added byte is found.

    Its sha256, which the Hub shows for an uploaded file, is printed and added to the checksums. If the file has a
    certificate of its quality, it must be about these tensors. The exit code is 1 if something is wrong.

    With --against the file is compared with the original that it was made from: the error of each kind of tensor (with
    --tensors of each one, the worst first), and predictions. The exit code is 1 if its weights are not the original's.
    """
    from mimo_gguf.cli.progress import open_progress
    from mimo_gguf.verbs import compare, verify

    if against is not None:
        from mimo_gguf.cli.comparison import show

        with open_progress(quiet=quiet, as_json=as_json, goes_on=False) as progress:
            comparison = compare(file, against, threads=threads, progress=progress)
        show(comparison, tensors=tensors, as_json=as_json)
        raise typer.Exit(1 if comparison.foreign else 0)
    with open_progress(quiet=quiet, as_json=as_json, goes_on=False) as progress:
        found = verify(file, threads=threads, progress=progress)
    if as_json:
        ui.print_json(found.as_json())
    else:
        _print(found)
    if not found.intact:
        raise typer.Exit(1)


def _print(found: Verification) -> None:
    ui.print_field("file", listed(list(map(str, found.paths)), most=1))
    ui.print_field(
        "checked", f"{counted(found.n_tensors, 'tensor')}, {format_size(found.n_bytes)}: {_MEANING[found.method]}"
    )
    for path in found.without_checksums if len(found.paths) > len(found.without_checksums) else ():
        ui.print_warning(f"{path.name}.sums.json is missing: with it the metadata of this part would be checked too")
    for path, digest in found.sha256.items():
        more = f"  {path.name}" if len(found.sha256) > 1 else ""
        ui.print_field("sha256", f"{digest}{more}")
    if found.recorded:
        ui.print_note(f"sha256 written into {listed([f'{path.name}.sums.json' for path in found.recorded], most=1)}")
    for note in found.notes:
        ui.print_field("note", note)
    if found.certificate is not None:
        ui.print_field("quality", f"a certificate about these tensors, {found.certificate}")
    for problem in found.problems:
        ui.print_field("damaged", problem)
    for problem in found.certificate_problems:
        ui.print_field("quality", problem)
    ui.print_field("result", _result(found))


def _result(found: Verification) -> str:
    from mimo_gguf.core.stored_certificate import repair_hint

    if found.problems:
        return "damaged: convert, quantize or download it again"
    if found.certificate_problems:
        return f"the file is intact, its certificate is not: {repair_hint(found.paths[0])}"
    return "intact"
