"""A batch that is being answered: which rows are still to be answered, and where their results go.

It knows nothing of who answers. The loop (`loop.answer_rows`) takes blocks of rows from `next_rows` and hands back each
result with `note`; whoever spreads rows over other machines does the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mimo_gguf.batch.ids import IdTable
from mimo_gguf.batch.output import Output
from mimo_gguf.batch.progress import BatchProgress, Counts
from mimo_gguf.batch.reading import InputFile, Lines
from mimo_gguf.batch.rows import Fault, Result, Row, Run, fault_line, result_line, unanswered_line
from mimo_gguf.batch.survey import duplicate, is_answered, row_of

OnProgress = Callable[[BatchProgress], None]


@dataclass(slots=True)
class BatchJob:
    """The rows of an input, and the output that their results are written to.

    Attributes:
        file: the input; None for stdin.
        is_surveyed: whether the input was looked through, so that each line is a row of its own. What is wrong with
            other input, of a pipe, becomes lines of output.
    """

    lines: Lines
    output: Output
    run: Run
    progress: BatchProgress
    file: InputFile | None = None
    is_surveyed: bool = False
    on_progress: OnProgress = lambda progress: None
    _numbers: IdTable = field(default_factory=IdTable)  # name -> line, if the input was not surveyed
    _noted: IdTable = field(default_factory=IdTable)  # names that `note_line` has written

    def next_rows(self) -> Sequence[Row | Fault]:
        """The next rows to be answered, those with a common beginning together; none at the end of the input.

        It may wait for a pipe, so it belongs into a thread of its own. Faults are lines of a pipe that are not rows.

        Raises:
            UsageError: the input has changed.
        """
        while block := self.lines.block():
            self.check_unchanged()
            found = [row for line in block if (row := self._new(row_of(line))) is not None]
            rows = sorted((row for row in found if isinstance(row, Row)), key=lambda row: row.beginning)
            if found:
                return [*(each for each in found if isinstance(each, Fault)), *rows]
        return ()

    def note(self, row: Row, result: Result) -> None:
        """Writes the result of a row. Raises OutputError if that is impossible."""
        self.output.append(result_line(row, result, self.run))
        self._count(Counts.of(result))

    def note_line(self, name: int, line: bytes, counts: Counts) -> None:
        """Writes a line that answers the row of this name, as `result_line` makes it; only the first one for a row.

        Raises:
            UsageError: the input has changed.
            OutputError: the output cannot be written.
        """
        self.check_unchanged()
        if self._noted.put(name, 1) is None:
            self.output.append(line)
            self._count(counts)

    def note_fault(self, fault: Fault) -> None:
        """Writes what is wrong with a line. Raises OutputError if that is impossible."""
        self.output.append(fault_line(fault))
        self._count(Counts(ok=False))

    def note_unanswered(self, row: Row, code: str, message: str) -> None:
        """Writes that a row was not answered, and why. Raises OutputError if that is impossible."""
        self.output.append(unanswered_line(row, code, message, self.run))
        self._count(Counts(ok=False))

    def finish(self) -> BatchProgress:
        """Ends the output. Raises OutputError if that is impossible, UsageError if the input has changed."""
        self.check_unchanged()
        self.output.finish()
        return self.progress

    def close(self) -> None:
        """Leaves input and output, so that another run can go on."""
        self.output.close()
        if self.file is not None:
            self.file.close()

    def check_unchanged(self) -> None:
        """Raises UsageError if the input has changed since it was looked through."""
        if self.file is not None and self.is_surveyed:
            self.file.check_unchanged()

    def _new(self, row: Row | Fault) -> Row | Fault | None:
        """The row or fault, unless an earlier run has answered it."""
        if not self.is_surveyed and isinstance(row, Row):
            earlier = self._numbers.put(row.name, row.number)
            row = row if earlier is None else duplicate(row, earlier)
        if isinstance(row, Row) and is_answered(row, self.output.earlier.answered):
            return None
        return row

    def _count(self, counts: Counts) -> None:
        self.progress.add(counts)
        self.on_progress(self.progress)
