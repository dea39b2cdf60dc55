"""Small documents that users hand in: text, JSON, TOML and YAML, read so that nothing in them can surprise the caller.

A document is untrusted. It may never end, be larger than memory, be nested a million times, or hold numbers of a
million digits. Each of these becomes one error of the caller's class, with the path and the reason in it.
"""

from __future__ import annotations

import json
import math
import os
import stat
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mimo_gguf.core.errors import MimoGgufError, first_line
from mimo_gguf.core.units import format_size

MEGABYTE: Final = 1_000_000
_MOST_LEVELS: Final = 100  # of nesting; the deepest document of a real checkpoint has eight
_MOST_DIGITS: Final = 20  # of a whole number: every 64-bit number has at most that many
_MOST_YAML_EVENTS: Final = 200_000

# What the standard parsers raise for documents that are not well-formed, or too much for them.
_BROKEN: Final = (ValueError, RecursionError, MemoryError, OverflowError, TypeError)


@dataclass(frozen=True, slots=True)
class DocumentKind:
    """How one kind of document is read.

    Attributes:
        error: the class of every error.
        hint: what the user can do about a document that cannot be read.
        most_bytes: the largest document that is read.
        bounded: whether to refuse numbers that no 64-bit type holds: NaN, the infinities, larger whole numbers.
        pipes: whether to read pipes and terminals, too (for prompts: `--prompt-file <(command)`).
    """

    error: type[MimoGgufError]
    hint: str
    most_bytes: int = 16 * MEGABYTE
    bounded: bool = True
    pipes: bool = False

    def read_bytes(self, path: Path) -> bytes:
        """The content of the file at `path`.

        Raises:
            MimoGgufError: of the kind's class: no such file, unreadable, not a file, or too large.
        """
        try:
            with _open(path, pipes=self.pipes) as fd_file:
                data = fd_file.read(self.most_bytes + 1)
        except _NotAFileError:
            raise self.fail(path, "not a file") from None
        except OSError as error:
            raise self.error(f"{path}: {error.strerror or error}", hint="check the path and permissions") from None
        except ValueError as error:  # a NUL in the name
            raise self.fail(path, str(error)) from None
        if len(data) > self.most_bytes:
            raise self.fail(path, f"larger than {format_size(self.most_bytes)}, so it is not read")
        return bytes(data)

    def read_text(self, path: Path) -> str:
        """The UTF-8 text in the file at `path`.

        Raises:
            MimoGgufError: as `read_bytes`, or not UTF-8.
        """
        return self.decode(self.read_bytes(path), path)

    def read_json(self, path: Path) -> Any:
        """The JSON value in the file at `path`, nested not too deeply, with texts that UTF-8 can hold.

        Raises:
            MimoGgufError: as `read_text`, or not such JSON.
        """
        return self.parse_json(self.read_bytes(path), path)

    def parse_json(self, data: bytes | str, where: Path | str) -> Any:
        """The JSON value in `data`, under the rules of `read_json`; `where` names the document in errors.

        Raises:
            MimoGgufError: of the kind's class: not such JSON.
        """
        text = data if isinstance(data, str) else self.decode(data, where)
        try:
            value = json.loads(text, parse_int=_bounded_int if self.bounded else None)
        except _BROKEN as error:
            raise self.fail(where, f"not valid JSON: {_reason(error)}") from None
        return self._checked(value, where, "JSON")

    def read_toml(self, path: Path) -> dict[str, Any]:
        """The TOML table in the file at `path`.

        Raises:
            MimoGgufError: as `read_text`, or not TOML; the message has line and column.
        """
        text = self.read_text(path)
        try:
            table = tomllib.loads(text)
        except _BROKEN as error:
            raise self.fail(path, f"not valid TOML: {_reason(error)}") from None
        self._checked(table, path, "TOML")
        return table

    def parse_yaml(self, text: str, where: Path | str) -> Any:
        """The YAML value in `text`. References (`*name`) are refused: a few lines of them stand for terabytes.

        Raises:
            MimoGgufError: of the kind's class: not YAML, nested too deeply, with references or absurd numbers.
        """
        import yaml

        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            _check_yaml_events(yaml.parse(text, Loader=loader))
            value = yaml.load(text, Loader=loader)
        except (*_BROKEN, yaml.YAMLError, AttributeError, LookupError) as error:
            raise self.fail(where, f"not valid YAML: {_reason(error)}") from None
        return self._checked(value, where, "YAML")

    def fail(self, where: Path | str, what: str) -> MimoGgufError:
        """The kind's error for the document `where`, with the kind's hint."""
        return self.error(f"{where}: {what}", hint=self.hint)

    def decode(self, data: bytes, where: Path | str) -> str:
        """The UTF-8 text in `data`, with `\\n` between lines whatever the file has; `where` names the file in errors.

        Raises:
            MimoGgufError: of the kind's class: not UTF-8.
        """
        try:
            return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
        except UnicodeDecodeError as error:
            raise self.fail(where, f"not UTF-8 text (byte {error.start})") from None

    def _checked(self, value: Any, where: Path | str, form: str) -> Any:
        try:
            _check_values(value, bounded=self.bounded)
        except ValueError as error:
            raise self.fail(where, f"not valid {form}: {_reason(error)}") from None
        return value


class _NotAFileError(Exception):
    """The path leads to a folder, a device, a socket, or a pipe that is not allowed."""


def _open(path: Path, *, pipes: bool) -> Any:
    """Opens the file at `path`, without waiting for the writer of a pipe unless `pipes`."""
    if not _may_be_read(path.stat().st_mode, pipes=pipes):  # before it is opened, which has effects on some devices
        raise _NotAFileError
    waits = 0 if pipes else getattr(os, "O_NONBLOCK", 0)
    file = os.fdopen(os.open(path, os.O_RDONLY | waits | getattr(os, "O_BINARY", 0)), "rb")
    if not _may_be_read(os.fstat(file.fileno()).st_mode, pipes=pipes):  # it may have been exchanged since
        file.close()
        raise _NotAFileError
    return file


def _may_be_read(mode: int, *, pipes: bool) -> bool:
    return stat.S_ISREG(mode) or (pipes and (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)))


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, MemoryError):
        return "too large for the memory"
    return first_line(error)


def _bounded_int(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _check_values(value: Any, *, bounded: bool) -> None:
    """Raises ValueError for nesting, numbers and texts that later code could fail on."""
    level, depth = [value], 0
    while level:
        if depth > _MOST_LEVELS:
            raise ValueError("nested too deeply")
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.keys()
                inner += item.values()
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, str):
                if not item.isascii():
                    item.encode()  # raises for half a character, which JSON can hold and UTF-8 cannot
            elif bounded and isinstance(item, int) and item.bit_length() > 64:
                raise ValueError(f"a number of {item.bit_length()} bits")
            elif bounded and isinstance(item, float) and not math.isfinite(item):
                raise ValueError(f"{item} is not a finite number")
        level, depth = inner, depth + 1


def _check_yaml_events(events: Iterator[Any]) -> None:
    """Raises ValueError for what no document of ours needs, before anything is built from it."""
    import yaml

    depth = 0
    for count, event in enumerate(events):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"the reference *{event.anchor}; references are not read")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MOST_LEVELS:
            raise ValueError("nested too deeply")
        if count > _MOST_YAML_EVENTS:
            raise ValueError("too long")
