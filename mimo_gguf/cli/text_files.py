"""Reads text from files, pipes and arguments: UTF-8, or one clear error."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mimo_gguf.core.errors import UsageError


def read_text(path: Path) -> str:
    """Reads the text of a file, or of a pipe that the shell opened (`<(...)`).

    Raises:
        UsageError: it cannot be read, is larger than any window, or is not UTF-8.
    """
    from mimo_gguf.core.documents import MEGABYTE, DocumentKind

    text = DocumentKind(UsageError, "give a text file in UTF-8", most_bytes=100 * MEGABYTE, pipes=True)
    return decoded(text.read_bytes(path), str(path))


def read_stdin() -> str:
    """Reads all text from stdin.

    Raises:
        UsageError: it is not UTF-8.
    """
    return decoded(sys.stdin.buffer.read(), "stdin")


def argument_text(text: str, option: str) -> str:
    """Decodes an argument as UTF-8, whatever the locale's encoding.

    Raises:
        UsageError: it is not UTF-8.
    """
    return decoded(os.fsencode(text), option)


def decoded(data: bytes, source: str) -> str:
    """Decodes bytes as UTF-8, without a byte order mark and with plain line ends.

    Args:
        source: where the bytes come from, for the message.

    Raises:
        UsageError: they are not UTF-8.
    """
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"{source}: not UTF-8 text (byte {error.start})", hint="give text in UTF-8") from None
