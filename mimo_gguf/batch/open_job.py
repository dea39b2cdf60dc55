"""Opens a batch: what is in the input, what earlier runs have answered, and what is left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mimo_gguf.batch.job import BatchJob, OnProgress
from mimo_gguf.batch.output import Earlier, Output, PipeOutput, open_output, read_earlier
from mimo_gguf.batch.progress import BatchProgress
from mimo_gguf.batch.reading import InputFile, Lines
from mimo_gguf.batch.rows import Run
from mimo_gguf.batch.survey import Refuse, Survey, survey
from mimo_gguf.core.paths import path_kind

STANDARD: Final = "-"  # the name of stdin, and of stdout
_STDIN, _STDOUT = 0, 1


@dataclass(frozen=True, slots=True)
class Source:
    """Where rows come from and go: `-` is stdin or stdout.

    Attributes:
        retry_errors: answer the rows again that failed in an earlier run.
        force: start over, whatever is in the output.
    """

    rows: str | Path
    output: str | Path = STANDARD
    retry_errors: bool = False
    force: bool = False

    @property
    def is_pipe(self) -> bool:
        """Whether the rows come from a pipe, which can be read only once."""
        return str(self.rows) == STANDARD or path_kind(self.rows) == "special"


def look_through(source: Source, run: Run, refuse: Refuse) -> tuple[Survey | None, Earlier]:
    """What is in the input, None for a pipe, and what earlier runs have answered. Nothing is changed.

    Raises:
        UsageError, OutputError: as `open_job`.
    """
    earlier = Earlier()
    if str(source.output) != STANDARD:
        earlier = read_earlier(Path(source.output), run, retry_errors=source.retry_errors, force=source.force)
    if source.is_pipe:
        return None, earlier
    file = InputFile(Path(source.rows))
    try:
        return _surveyed(file, source, refuse, earlier), earlier
    finally:
        file.close()


def open_job(
    source: Source, run: Run, refuse: Refuse, on_progress: OnProgress = lambda progress: None
) -> tuple[BatchJob, Survey | None]:
    """Opens input and output, and looks through the input unless it is a pipe.

    Args:
        run: the run that will answer.
        refuse: gives the result of a row that will be refused in any case; None for others.
        on_progress: called after each row.

    Raises:
        UsageError: the input cannot be read, a line is not a row of its own, or no row can be answered; or a row has
            changed since it was answered.
        OutputError: the output cannot be written, or holds something else.
    """
    output: Output = PipeOutput(_STDOUT)
    file = None if str(source.rows) == STANDARD else InputFile(Path(source.rows))
    try:
        if str(source.output) != STANDARD:
            output = open_output(Path(source.output), run, retry_errors=source.retry_errors, force=source.force)
        try:
            found = None if file is None or source.is_pipe else _surveyed(file, source, refuse, output.earlier)
            lines = Lines(_STDIN) if file is None else Lines(file.fd) if source.is_pipe else file.lines()
            return BatchJob(
                lines, output, run, _progress(found, output.earlier), file, found is not None, on_progress
            ), found
        except BaseException:
            output.close()
            raise
    except BaseException:
        if file is not None:
            file.close()
        raise


def _surveyed(file: InputFile, source: Source, refuse: Refuse, earlier: Earlier) -> Survey:
    found = survey(file.lines(), refuse, earlier.answered)
    file.check_unchanged()
    found.check(str(source.rows))
    return found


def _progress(found: Survey | None, earlier: Earlier) -> BatchProgress:
    n = len(earlier.answered)
    n_rows = None if found is None else found.n_rows
    return BatchProgress(n_rows, n_earlier=n, n_done=n, n_failed=earlier.n_failed)
