"""Looks at an output's place before a run: nothing, a complete output, or parts and a journal to resume from."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mimo_gguf.core.certificate_room import with_empty_room
from mimo_gguf.core.digests import HEADER, RUN
from mimo_gguf.core.errors import GgufError
from mimo_gguf.core.gguf_file import read_part
from mimo_gguf.core.model_source import ModelSource
from mimo_gguf.core.output_file import check_output
from mimo_gguf.core.paths import path_kind
from mimo_gguf.core.version import __version__
from mimo_gguf.quantization.checksums import checksum_path, read_checksums
from mimo_gguf.quantization.journal import Journal
from mimo_gguf.quantization.partial_file import partial_path
from mimo_gguf.quantization.plan import SOURCE_DIGEST, OutputPlan, PartPlan


def is_complete(plan: OutputPlan, source: ModelSource) -> bool:
    """Whether an earlier run like this one has completed the output."""
    if path_kind(journal_path(plan)) != "nothing":
        return False
    run = run_digest(plan, source)
    try:
        return all(_is_made_by(run, part) for part in plan.parts)
    except (OSError, GgufError):
        return False


def _is_made_by(run: str, part: PartPlan) -> bool:
    """Whether the part at its place is whole and of this run, by its checksums, size and header alone."""
    sums = read_checksums(checksum_path(part.path))
    with part.path.open("rb") as file:
        header = with_empty_room(file.read(len(part.layout.header)), sums.room)
    is_whole = part.path.stat().st_size == part.layout.n_bytes and HEADER.of(header) == sums.header_digest
    return is_whole and sums.run == run


def recorded_source(plan: OutputPlan) -> str:
    """The source's digest in the metadata of a complete output."""
    return str(read_part(plan.parts[0].path).metadata[SOURCE_DIGEST].value)


def check_places(plans: Sequence[OutputPlan], *, force: bool) -> None:
    """Refuses early what `open_output` would refuse later.

    A journal at an output's place counts as `force`: an earlier run may have renamed some of its parts already.

    Raises:
        OutputError: an output exists (without `force`), or its place cannot be written.
    """
    for plan in plans:
        check_parts(plan, force=force or path_kind(journal_path(plan)) == "file")


def check_parts(plan: OutputPlan, *, force: bool) -> None:
    """Raises OutputError if a part exists (without `force`), or its place cannot be written."""
    for part in plan.parts:
        check_output(part.path, force=force)


def journal_path(plan: OutputPlan) -> Path:
    """The path of an output's journal."""
    return plan.path.with_name(f".{plan.path.name}.journal")


def can_resume(plan: OutputPlan, journal: Journal, n_chunks: int) -> bool:
    """Whether the files that the journal describes exist: every partial; once sealed, a partial or the final file."""
    if not (journal.done or journal.sealed) or (journal.sealed and not journal.done.keys() >= set(range(n_chunks))):
        return False
    for part in plan.parts:
        paths = (partial_path(part.path), part.path) if journal.sealed else (partial_path(part.path),)
        if not any(path.is_file() and path.stat().st_size == part.layout.n_bytes for path in paths):
            return False
    return True


def remove_partials(path: Path) -> None:
    """Removes what earlier runs left of the output `path`, however many parts they split it into."""
    stem, digits = glob.escape(path.stem), "[0-9]" * 5
    for name in (glob.escape(path.name), f"{stem}-{digits}-of-{digits}.gguf"):
        for partial in (*path.parent.glob(f".{name}.partial"), *path.parent.glob(f".{name}.sums.json.partial")):
            partial.unlink(missing_ok=True)


def run_digest(plan: OutputPlan, source: ModelSource) -> str:
    """Computes the hex digest of everything that decides an output's bytes: a resumed run must have the same."""
    digest = RUN.start()
    digest.update(f"{__version__} {source.fingerprint} {plan.chunk_weights} {plan.profile.digest}\n".encode())
    for part in plan.parts:
        digest.update(os.fsencode(part.path.name) + f" {part.layout.n_bytes}\n".encode())
        digest.update(part.layout.header)
    for tensor in plan.tensors:
        if tensor.importance is not None:
            digest.update(np.ascontiguousarray(tensor.importance).view(np.uint8).data)
    return digest.hexdigest()
