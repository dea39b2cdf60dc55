"""Reports why ggml aborts: it ends the process at an error that it cannot handle."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Final

from mimo_gguf.llama.api import ggml_function

_kept: Final[list[Any]] = []  # callbacks that ggml may call as long as the process lives


def before_abort(call: Callable[[str], None]) -> None:
    """Registers `call`, which gets the reason when ggml is about to abort. The process ends as soon as it returns.

    It is called in the thread that ggml runs in. ggml's own report on stderr is left out. Source:
    https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/include/ggml.h (ggml_set_abort_callback)

    Raises:
        BackendError: llama.cpp cannot be loaded.
    """
    callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(lambda reason: call(reason.decode("utf-8", "replace")))
    ggml_function("ggml_set_abort_callback", ctypes.c_void_p, ctypes.c_void_p)(ctypes.cast(callback, ctypes.c_void_p))
    _kept.append(callback)
