"""Rows of data files: JSON lines, JSON, CSV and Parquet, from the Hub, a package, this machine, or made here."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Final

from mimo_gguf.core.errors import MimoGgufError, UsageError, first_line
from mimo_gguf.core.paths import path_kind
from mimo_gguf.evaluation.making import MAKERS
from mimo_gguf.evaluation.spans import possible_answers
from mimo_gguf.evaluation.task import Data, Task

EXTRA: Final = "pip install 'mimo-gguf[evaluate]'"
_FORMATS: Final = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")
_BROKEN: Final = (ValueError, RecursionError)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row stands, so that it can be read again.

    Attributes:
        file: the file; what is made has none.
        number: the row's number in it, from 1 on: the line of JSON lines.
        at: the byte at which its line begins; -1 in files without such lines.
    """

    file: Path | None
    number: int
    at: int = -1

    def __str__(self) -> str:
        return f"{self.file or 'made'}, row {self.number}"


@dataclass(frozen=True, slots=True)
class Files:
    """The files of a task, on this machine.

    Attributes:
        commit: of the Hub's repository; None for others.
    """

    paths: tuple[Path, ...]
    commit: str | None = None


def find_files(task: Task, given: Path | None) -> Files:
    """The files with a task's rows, after downloading what is missing.

    Args:
        given: a file that is read instead.

    Raises:
        UsageError: there is no such file or package, or its format is not known.
        HubError: as `fetch_dataset`.
    """
    data = task.data
    if given is not None or data.file is not None:
        path = given or task.folder / str(data.file)
        if path_kind(path) != "file":
            raise UsageError(f"{path}: no such file", hint=f"--data {task.name}=FILE.jsonl")
        files = Files((path,))
    else:
        files = _fetched(data, data.files)
    return _checked(files)


def find_examples(task: Task) -> Files:
    """The files with the rows of a task's examples, as those of its problems. Raises as `find_files`."""
    names = task.examples.files if task.examples is not None else ()
    if task.data.file is None:
        return _checked(_fetched(task.data, names))
    paths = tuple(task.folder / name for name in names)
    for path in paths:
        if path_kind(path) != "file":
            raise UsageError(f"{path}: no such file", hint="correct files in [examples]")
    return _checked(Files(paths))


def _fetched(data: Data, names: tuple[str, ...]) -> Files:
    """Files of a package or of a repository on the Hub; none of what is made here."""
    if data.package is not None:
        return Files(_of_package(data.package, names))
    if data.repository is None:
        return Files(())
    from mimo_gguf.conversion.hub_datasets import fetch_dataset

    commit, paths = fetch_dataset(data.repository, data.revision, names)
    return Files(paths, commit)


def _checked(files: Files) -> Files:
    for path in files.paths:
        if not path.name.lower().endswith(_FORMATS):
            raise UsageError(f"{path}: not one of {', '.join(_FORMATS)}", hint="give the rows as JSON lines")
    return files


def read_rows(data: Data, files: Files) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yields every row, with its place.

    Raises:
        UsageError: a file cannot be read, or a row is not an object.
        MimoGgufError: a library is missing.
    """
    if data.made is not None and not files.paths:
        for number, row in enumerate(MAKERS[data.made](data.n_problems or 100), 1):
            yield Place(None, number), row
    for path in files.paths:
        yield from _read_file(path)


def read_row_again(place: Place) -> dict[str, Any]:
    """The row at a place. Raises as `read_rows`."""
    if place.file is not None and place.at >= 0:
        with place.file.open("rb") as file:
            file.seek(place.at)
            return _object(file.readline(), place)
    for found, row in _read_file(place.file) if place.file is not None else ():
        if found.number == place.number:
            return row
    raise UsageError(f"{place}: is not there any more", hint="start over with --force")


def field_of(row: Mapping[str, Any], name: str, place: Place) -> Any:
    """A field of a row. Raises UsageError if the row does not have it."""
    if row.get(name) is None:
        raise UsageError(f"{place}: has no {name!r}", hint=f"it has {', '.join(map(str, row))[:200]}")
    return row[name]


def answers_in(row: Mapping[str, Any], names: Sequence[str], place: Place) -> list[str]:
    """The right answers in some fields of a row. Raises UsageError if one is missing, or has no form that is known."""
    values = [field_of(row, name, place) for name in names]
    try:
        return possible_answers(*values)
    except ValueError as error:
        raise UsageError(
            f"{place}: no answers in {', '.join(names)}: {error}", hint="give a text, a list of texts, or DROP's record"
        ) from None


def _of_package(package: str, names: tuple[str, ...]) -> tuple[Path, ...]:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise MimoGgufError(f"the problems are in the package {package}, which is not installed", hint=EXTRA)
    return tuple(Path(spec.origin).parent / name for name in names)


def _read_file(path: Path) -> Iterator[tuple[Place, dict[str, Any]]]:
    name = path.name.lower()
    with _reported(path):
        if name.endswith(".jsonl"):
            with path.open("rb") as lines:
                yield from _json_lines(path, lines, seekable=True)
        elif name.endswith(".jsonl.gz"):
            with gzip.open(path) as unpacked:
                yield from _json_lines(path, unpacked, seekable=False)
        elif name.endswith(".json"):
            for number, row in enumerate(_json(path), 1):
                yield Place(path, number), row
        elif name.endswith(".csv"):
            with path.open(encoding="utf-8-sig", newline="") as text:
                for number, row in enumerate(csv.DictReader(text), 1):
                    yield Place(path, number), row
        else:
            for number, row in enumerate(_parquet(path), 1):
                yield Place(path, number), row


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Turns what goes wrong in reading into one clear line."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}", hint="check the file and its permissions") from None
    except (EOFError, csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {first_line(error)}", hint="the file is broken; fetch it again") from None


def _json_lines(path: Path, lines: IO[bytes] | gzip.GzipFile, *, seekable: bool) -> Iterator[Any]:
    at = 0
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = Place(path, number, at if seekable else -1)
            yield place, _object(line, place)
        at += len(line)


def _object(line: bytes, place: Place) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except _BROKEN as error:
        raise UsageError(f"{place}: not JSON: {first_line(error)[:200]}", hint="correct the line") from None
    if not isinstance(row, dict):
        raise UsageError(f"{place}: not a JSON object", hint="one object a line, as in the data set")
    return row


def _json(path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_bytes())
    except _BROKEN as error:
        raise UsageError(f"{path}: not JSON: {first_line(error)[:200]}", hint="correct the file") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{path}: not a list of objects", hint="one object for each problem")
    return rows


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise MimoGgufError(f"{path.name}: Parquet is read by pyarrow, which is not installed", hint=EXTRA) from None
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except ArrowException as error:
        raise UsageError(f"{path}: {first_line(error)}", hint="the file is broken; fetch it again") from None
