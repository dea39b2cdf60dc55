"""What Python does in the middle of a pass: stop it, and look at the rows that the model's matrices read.

llama.cpp calls an observer's context back for every node of its graph. It computes up to each node that the observer
wants and calls again then, so what the node's matrix has read is still there. Source: `callback_eval` in
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/src/ggml-backend.cpp
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.llama.lifetime import Caught, Exit

_F32: Final = 0  # GGML_TYPE_F32
_MUL_MAT: Final = b"MUL_MAT"
_MOST_OPS: Final = 64  # MUL_MAT is among the first


class Observer(Protocol):
    """Somebody who looks at what matrices read while a pass runs."""

    def wants(self, matrix: str) -> bool:
        """Whether to be shown the rows that `matrix` reads, by its GGUF name. It is asked again in every pass."""

    def see(self, matrix: str, rows: NDArray[np.float32]) -> None:
        """Gets the rows that `matrix` is multiplied with, shape (n_rows, n_columns): a view, valid during the call."""


class GgmlTensor(ctypes.Structure):
    """ggml_tensor (https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/include/ggml.h)."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    )


@dataclass(frozen=True, slots=True)
class TensorAccess:
    """The functions of ggml that read tensors.

    Attributes:
        mul_mat: ggml's number of the matrix product.
        is_host: whether a buffer lies in the memory of this process.
        copy: copies a part of a tensor's data from wherever it lies: tensor, target, offset, bytes.
    """

    mul_mat: int
    is_host: Callable[[int], bool]
    copy: Callable[[int, int, int, int], None]

    @classmethod
    def of(cls, ggml_function: Callable[..., Any]) -> TensorAccess:
        """Takes them from the installed library, through `api.ggml_function`."""
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        name_of = ggml_function("ggml_op_name", ctypes.c_char_p, ctypes.c_int)
        return cls(
            mul_mat=next(number for number in range(_MOST_OPS) if name_of(number) == _MUL_MAT),
            is_host=ggml_function("ggml_backend_buffer_is_host", ctypes.c_bool, pointer),
            copy=ggml_function("ggml_backend_tensor_get", None, pointer, pointer, size, size),
        )

    def rows(self, address: int) -> NDArray[np.float32]:
        """The rows of a float32 tensor, shape (n_rows, n_columns), without a copy if it lies in this memory."""
        tensor = GgmlTensor.from_address(address)
        shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
        n_bytes = 4 + sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))
        if tensor.buffer and self.is_host(tensor.buffer):
            raw = (ctypes.c_uint8 * n_bytes).from_address(tensor.data)
        else:
            raw = (ctypes.c_uint8 * n_bytes)()
            self.copy(address, ctypes.addressof(raw), 0, n_bytes)
        return np.ndarray(shape, np.float32, raw, strides=strides).reshape(-1, shape[-1])


class RunningPass(Caught):
    """The callbacks of a running pass. They keep what `stop_when` and the observer raise, and stop the pass then.

    Attributes:
        stop_when: called between two nodes, on CPU backends; None if there is nothing to ask.
        callbacks: what llama.cpp calls, one object each, because `catching` compares by identity.
        native: the observer's callback for C, kept here for as long as llama.cpp may call it.
    """

    __slots__ = ("_access", "_observer", "callbacks", "native", "stop_when")

    def __init__(self, observer: Observer | None = None, access: TensorAccess | None = None) -> None:
        super().__init__()
        self.stop_when: Callable[[], bool] | None = None
        self._observer = observer
        self._access = access
        self.callbacks: tuple[Any, Any] = (self.is_to_stop, self.observe)
        self.native: Any = None

    @property
    def observes(self) -> bool:
        """Whether there is an observer."""
        return self._observer is not None

    def is_to_stop(self, _: Any) -> bool:
        """Whether the pass is to stop: an exception was raised, the process ends, or `stop_when` says so."""
        try:
            if self.error is not None or Exit.stops_here():
                return True
            return self.stop_when is not None and self.stop_when()
        except BaseException as error:
            self.error = error
            return True

    def observe(self, address: int, asks: bool, _: Any) -> bool:
        """Tells llama.cpp whether the node at `address` is wanted, or shows it to the observer when it is computed."""
        try:
            if self.error is not None or Exit.stops_here():
                return False
            return self._observe(address, asks=asks)
        except BaseException as error:
            self.error = error
            return False

    def _observe(self, address: int, *, asks: bool) -> bool:
        assert self._access is not None
        assert self._observer is not None
        node = GgmlTensor.from_address(address)
        if node.op != self._access.mul_mat:
            return False
        weights, read = node.src[0], node.src[1]
        if GgmlTensor.from_address(read).type != _F32:
            return False
        matrix = weights_name(GgmlTensor.from_address(weights).name)
        if asks:
            return self._observer.wants(matrix)
        self._observer.see(matrix, self._access.rows(read))
        return True


def weights_name(name: bytes) -> str:
    """The GGUF name of a matrix. A copy on a device is called `CUDA0#blk.0.attn_k.weight#0`."""
    parts = name.decode("utf-8", "replace").split("#")
    return parts[1] if len(parts) > 1 else parts[0]
