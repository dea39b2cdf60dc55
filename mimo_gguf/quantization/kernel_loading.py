"""Loads the kernels of a run, with a note if that takes long: they are compiled once on each machine."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from mimo_gguf.core.ggml_types import GgmlType, parse_ggml_type
from mimo_gguf.core.progress import Progress
from mimo_gguf.quantization.kernels import Kernel, have_to_compile, kernel_for
from mimo_gguf.quantization.search.wide import WIDE, wide_kernel

KernelKey = tuple[GgmlType, GgmlType, bool]
"""Target type, type of the rows that the kernel reads, and whether it uses importance weights."""

LLAMA_CPP: Final = "llama.cpp"
SEARCHES: Final = (LLAMA_CPP, WIDE)
"""How blocks are found: as llama.cpp finds them, to the byte, or with smaller errors."""

COMPILING: Final = "compiling the kernels for this processor: 10 to 30 seconds, once"
_PATIENCE_S: Final = 4.0  # loading compiled kernels takes less, on a busy machine, too
# Types whose search tables libggml builds on first use.
_SLOW_TABLES: Final = frozenset(
    parse_ggml_type(name) for name in ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
)


def load_kernels(keys: Iterable[KernelKey], progress: Progress, search: str = LLAMA_CPP) -> dict[KernelKey, Kernel]:
    """Loads the kernel for each key, compiling it if necessary.

    Args:
        search: one of `SEARCHES`; types that the wide one cannot write get llama.cpp's.
        progress: gets a note about anything that takes seconds.

    Raises:
        BackendError: libggml cannot write one of the types, or cannot be loaded.
    """
    wanted = sorted(set(keys))
    if slow := sorted({key[0].name for key in wanted if key[0] in _SLOW_TABLES}):
        progress.note(f"libggml builds its tables for {', '.join(slow)}: this takes some seconds")
    with _noting_compilation(progress, at_once=bool(wanted) and have_to_compile()):
        wide = {key: kernel for key in wanted if search == WIDE and (kernel := wide_kernel(*key)) is not None}
        return {key: wide.get(key) or kernel_for(*key) for key in wanted}


@contextmanager
def _noting_compilation(progress: Progress, *, at_once: bool) -> Iterator[None]:
    """Notes that kernels are being compiled: at once, or as soon as loading takes longer than it should."""
    if at_once:
        progress.note(COMPILING)
        yield
        return
    timer = threading.Timer(_PATIENCE_S, progress.note, [COMPILING])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
