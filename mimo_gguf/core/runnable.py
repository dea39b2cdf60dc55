"""The check whether a well-formed GGUF makes sense, before llama.cpp or our memory model computes with it.

`gguf_file` checks that a file is well-formed. Such a file can still hold numbers that no model has, and some of them
make llama.cpp abort, hang or allocate all memory. The check needs milliseconds, and the header alone.
"""

from __future__ import annotations

from pathlib import Path

from mimo_gguf.core.errors import GgufError
from mimo_gguf.core.gguf_file import GgufFile, read_gguf
from mimo_gguf.core.model_rules import model_fault
from mimo_gguf.core.vocabulary_rules import has_vocabulary, vocabulary_fault


def check_runnable(file: GgufFile) -> None:
    """Refuses a file that llama.cpp cannot run as a MiMo model, or that would end the process.

    Raises:
        GgufError: it is such a file; the message has the reason.
    """
    check_measurable(file)
    if not has_vocabulary(file.metadata):
        raise _error(str(file.path), "it has no vocabulary, so it can be measured but not run")


def read_runnable(path: str | Path) -> GgufFile:
    """The header of the GGUF at `path`, if llama.cpp can run it.

    Raises:
        GgufError: as `read_gguf` and `check_runnable`.
    """
    file = read_gguf(path)
    check_runnable(file)
    return file


def check_measurable(file: GgufFile) -> None:
    """Refuses a file whose memory cannot be computed. Unlike for `check_runnable`, it needs no vocabulary.

    Raises:
        GgufError: it is such a file; the message has the reason.
    """
    if (fault := find_fault(file)) is not None:
        raise _error(str(file.path), fault)


def find_fault(file: GgufFile) -> str | None:
    """The first reason why llama.cpp cannot run the file, in words; None if there is none.

    A file without a vocabulary passes.

    Raises:
        GgufError: the architecture is not one of MiMo's layouts.
    """
    infos = file.infos()
    fault = model_fault(file.metadata, infos, where=str(file.path))
    if fault is None and has_vocabulary(file.metadata):
        n_rows = next(info.shape[0] for info in infos if info.name == "token_embd.weight")
        fault = vocabulary_fault(file.metadata, n_rows)
    return fault


def _error(where: str, fault: str) -> GgufError:
    return GgufError(
        f"{where}: {fault}",
        hint="convert the checkpoint again: mimo-gguf convert SRC; what the file says: mimo-gguf inspect FILE",
    )
