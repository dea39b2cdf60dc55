"""The private symbols of llama.cpp that MTP needs: their mangled names and their types.

https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/llama-ext.h
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

# name -> (Itanium mangling, MSVC mangling, argument types, result type); plain C names are tried first.
PRIVATE: Final[dict[str, tuple[str, str, tuple[Any, ...], Any]]] = {
    "llama_set_embeddings_nextn": (
        "_Z26llama_set_embeddings_nextnP13llama_contextbb",
        "?llama_set_embeddings_nextn@@YAXPEAUllama_context@@_N1@Z",
        (ctypes.c_void_p, ctypes.c_bool, ctypes.c_bool),
        None,
    ),
    "llama_set_nextn_layer_offset": (
        "_Z28llama_set_nextn_layer_offsetP13llama_contexti",
        "?llama_set_nextn_layer_offset@@YAXPEAUllama_context@@H@Z",
        (ctypes.c_void_p, ctypes.c_int32),
        None,
    ),
    "llama_get_embeddings_nextn": (
        "_Z26llama_get_embeddings_nextnP13llama_context",
        "?llama_get_embeddings_nextn@@YAPEAMPEAUllama_context@@@Z",
        (ctypes.c_void_p,),
        ctypes.c_void_p,
    ),
    "llama_get_embeddings_nextn_ith": (
        "_Z30llama_get_embeddings_nextn_ithP13llama_contexti",
        "?llama_get_embeddings_nextn_ith@@YAPEAMPEAUllama_context@@H@Z",
        (ctypes.c_void_p, ctypes.c_int32),
        ctypes.POINTER(ctypes.c_float),
    ),
}
