"""One check of a GGUF's meaning, before anything computes with what it says: our memory model, or llama.cpp.

`gguf_file` sees to it that a file is well-formed. A well-formed file can still say what no model can be, and llama.cpp
aborts, hangs or takes all memory on some of that. Milliseconds, from the header alone.
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
        GgufError: saying what is wrong with it.
    """
    check_measurable(file)
    if not has_vocabulary(file.metadata):
        raise _error(str(file.path), "it has no vocabulary, so it can be measured and not run")


def read_runnable(path: str | Path) -> GgufFile:
    """The header of the GGUF at `path`, which llama.cpp can run.

    Raises:
        GgufError: as `read_gguf` and `check_runnable`.
    """
    file = read_gguf(path)
    check_runnable(file)
    return file


def check_measurable(file: GgufFile) -> None:
    """As `check_runnable`, but a file without a vocabulary will do: what it needs can be told.

    Raises:
        GgufError: as `check_runnable`.
    """
    if (fault := find_fault(file)) is not None:
        raise _error(str(file.path), fault)


def find_fault(file: GgufFile) -> str | None:
    """What stands against computing with what the file says, in words; None if nothing does.

    Raises:
        GgufError: it is of another architecture.
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
