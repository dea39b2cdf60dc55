"""llama.cpp's own quantizer, as the oracle: `llama_model_quantize` of the installed llama-cpp-python."""

from __future__ import annotations

import ctypes
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from gguf import LlamaFileType
from numpy.typing import NDArray

from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.llama.api import api
from mimo_gguf.llama.log import LOG

_KEPT = re.compile(r"\] +(\S+) +- \[.*?type = +(\w+), size = +[\d.]+ MiB$", re.MULTILINE)
_CHANGED = re.compile(r"\] +(\S+) +- \[.*?type = +\w+, size = .*MiB -> .*MiB \((\w+)\)$", re.MULTILINE)


def quantize(
    source: Path,
    out: Path,
    file_type: LlamaFileType,
    *,
    imatrix: Mapping[str, NDArray[np.float32]] | None = None,
    tensor_types: Sequence[tuple[str, GgmlType]] = (),
    output_type: GgmlType | None = None,
    token_embedding_type: GgmlType | None = None,
    allow_requantize: bool = False,
    dry_run: bool = False,
) -> str:
    """Runs it and returns its log; AssertionError with the log where it fails."""
    lib = api()
    params = lib.llama_model_quantize_default_params()
    params.nthread, params.ftype = 2, int(file_type)
    params.allow_requantize, params.dry_run = allow_requantize, dry_run
    if output_type is not None:
        params.output_tensor_type = int(output_type)
    if token_embedding_type is not None:
        params.token_embedding_type = int(token_embedding_type)
    alive: list[object] = []
    if imatrix is not None:
        entries = (lib.llama_model_imatrix_data * (len(imatrix) + 1))()
        for entry, (name, values) in zip(entries, imatrix.items(), strict=False):
            entry.name, entry.size = name.encode(), values.size
            entry.data = values.ctypes.data_as(type(entry.data))
        params.imatrix = ctypes.cast(entries, type(params.imatrix))
        alive += [entries, *imatrix.values()]
    if tensor_types:
        overrides = (lib.llama_model_tensor_override * (len(tensor_types) + 1))()
        for override, (pattern, ggml_type) in zip(overrides, tensor_types, strict=False):
            override.pattern, override.type = pattern.encode(), int(ggml_type)
        params.tt_overrides = ctypes.cast(overrides, type(params.tt_overrides))
        alive.append(overrides)
    text = io.StringIO()
    before, LOG.copy_to = LOG.copy_to, text
    try:
        failed = lib.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params))
    finally:
        LOG.copy_to = before
    assert not failed, text.getvalue()[-2000:]
    return text.getvalue()


def chosen_types(log: str) -> dict[str, GgmlType]:
    """The type of every tensor a (dry) run speaks of."""
    found = dict(_KEPT.findall(log)) | dict(_CHANGED.findall(log))
    return {name: GgmlType[type_name.upper()] for name, type_name in found.items()}
