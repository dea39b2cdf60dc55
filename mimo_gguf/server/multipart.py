"""Takes an upload (multipart/form-data) apart as it arrives: fields into memory, the file into wherever it goes.

python-multipart reads the form. What is kept here are the rules: one file, few and short fields, and a whole body.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from mimo_gguf.server.failures import Refused, refusal

_LONGEST_FIELD: Final = 64 << 10
_MOST_FIELDS: Final = 32
logging.getLogger("python_multipart").addHandler(logging.NullHandler())  # a client could fill the log of the server


class Upload:
    """An upload that is being read. `feed` takes pieces of its body until `finish`.

    Attributes:
        fields: the parts that are not the file, by name.
        filename: what the client calls the file; None until it has come.
    """

    def __init__(self, content_type: str, write: Callable[[bytes], object]) -> None:
        """Makes the upload that a Content-Type announces; `write` takes pieces of its one file.

        Raises:
            Refused: the Content-Type announces none.
        """
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise refusal(415, "a file is uploaded as multipart/form-data", code="not_multipart")
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self._write = write
        self._name = ""
        self._header = self._header_value = self._disposition = b""
        self._value: bytearray | None = None  # of the field that is being read; None in the file
        self._is_whole = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part, "on_header_begin": self._begin_header,
                    "on_header_field": self._add_header, "on_header_value": self._add_header_value,
                    "on_header_end": self._end_header, "on_headers_finished": self._end_headers,
                    "on_part_data": self._add_data, "on_part_end": self._end_part, "on_end": self._end,
                },
            )  # fmt: skip
        except FormParserError:
            raise _broken("its boundary is too long") from None

    def feed(self, piece: bytes) -> None:
        """Reads a piece. Raises Refused if the body is not what it should be."""
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise _broken(str(error)[:200]) from None

    def finish(self) -> None:
        """Raises Refused if the body has ended too early, or had no file."""
        if not self._is_whole:
            raise _broken("it ends too early")
        if self.filename is None:
            raise refusal(400, "missing field: file", code="missing_field", param="file")

    def _begin_part(self) -> None:
        self._disposition = b""

    def _begin_header(self) -> None:
        self._header = self._header_value = b""

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._header_value

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise _broken("a part has no name")
        self._name, self._value = options[b"name"].decode("utf-8", "replace"), bytearray()
        if self._name == "file":
            if b"filename" not in options or self.filename is not None:
                raise _broken("it needs one file, with a filename")
            self.filename, self._value = options[b"filename"].decode("utf-8", "replace"), None

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._value is None:
            self._write(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > _LONGEST_FIELD:
            raise _broken("a field is too long")

    def _end_part(self) -> None:
        if self._value is not None:
            if len(self.fields) >= _MOST_FIELDS:
                raise _broken("it has too many fields")
            self.fields[self._name] = self._value.decode("utf-8", "replace")

    def _end(self) -> None:
        self._is_whole = True


def _broken(why: str) -> Refused:
    return refusal(400, f"the upload cannot be read: {why}", code="invalid_multipart")
