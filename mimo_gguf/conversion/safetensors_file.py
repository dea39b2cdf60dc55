"""Tensor tables of safetensors files: the safetensors library checks the header, this module keeps the offsets.

Format: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mimo_gguf.conversion.checkpoint_files import is_lfs_pointer, lfs_pointer_error
from mimo_gguf.core.errors import CheckpointError, first_line
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.paths import path_kind

_POINTER_BYTES: Final = 64
_DTYPES: Final = {"BF16": GgmlType.BF16, "F16": GgmlType.F16, "F32": GgmlType.F32}


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """One tensor in a safetensors file; `shape` is row-major, `offset` is in bytes from the start of the file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    path: Path
    offset: int

    @property
    def ggml_type(self) -> GgmlType:
        """The ggml type whose values have the same bytes.

        Raises:
            CheckpointError: the dtype is not a float of 16 or 32 bits.
        """
        try:
            return _DTYPES[self.dtype]
        except KeyError:
            raise CheckpointError(
                f"{self.path}: tensor {self.name} is {self.dtype}, not one of {', '.join(_DTYPES)}",
                hint="convert from the original checkpoint, not from a quantized one",
            ) from None


def read_header(path: Path) -> dict[str, StoredWeights]:
    """The tensors of the file at `path`, by name.

    Raises:
        CheckpointError: no such file, unreadable, truncated, or a header the safetensors library refuses (bad JSON,
            hostile sizes, overlapping or missing ranges).
    """
    from safetensors import SafetensorError, safe_open

    if path_kind(path) == "nothing":
        raise CheckpointError(f"{path}: no such file", hint="download the checkpoint again, all of it")
    if path_kind(path) != "file":  # opening a pipe waits for its writer
        raise CheckpointError(f"{path}: not a file", hint="download the checkpoint again, all of it")
    try:
        with path.open("rb") as file:
            first = file.read(_POINTER_BYTES)
            if is_lfs_pointer(first):
                raise lfs_pointer_error(path)
            with safe_open(path, framework="numpy"):
                (length,) = struct.unpack("<Q", first[:8])
                file.seek(8)
                header = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}", hint="check the file's permissions") from None
    except (SafetensorError, ValueError, RecursionError, MemoryError, struct.error) as error:
        raise CheckpointError(
            f"{path}: not a complete safetensors file: {first_line(error)}", hint="download this file again"
        ) from None
    return {
        name: StoredWeights(name, tuple(entry["shape"]), entry["dtype"], path, 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
        if name != "__metadata__"
    }
