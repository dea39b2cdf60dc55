"""The last words of ggml, which ends the process when it finds something it cannot go on with."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Final

from mimo_gguf.llama.api import ggml_function

_kept: Final[list[Any]] = []  # ggml calls it as long as the process lives


def before_abort(call: Callable[[str], None]) -> None:
    """Has `call` told the reason when ggml is about to end the process, which it does as soon as `call` returns.

    It is called in whichever thread ggml is in. The usual report on stderr is left out.
    https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/include/ggml.h (ggml_set_abort_callback)

    Raises:
        BackendError: llama.cpp cannot be loaded.
    """
    callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(lambda reason: call(reason.decode("utf-8", "replace")))
    ggml_function("ggml_set_abort_callback", ctypes.c_void_p, ctypes.c_void_p)(ctypes.cast(callback, ctypes.c_void_p))
    _kept.append(callback)
