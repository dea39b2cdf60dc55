"""The input of one decode: tokens of one or several sequences, and which of them give logits."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from mimo_gguf.llama.api import Floats, api


class Batch:
    """At most `capacity` rows for one decode. Memory is allocated once; `clear` and `add` only write into it.

    Attributes:
        native: the argument for llama_decode.
        hidden: hidden states beside the tokens, shape (capacity, n_embd), for the MTP context. The caller fills row i
            for token i. None without `n_embd`.
    """

    def __init__(self, capacity: int, n_embd: int = 0) -> None:
        self.capacity = capacity
        self.n_tokens = 0
        self.hidden: Floats | None = np.zeros((capacity, n_embd), np.float32) if n_embd else None
        self._tokens = np.zeros(capacity, np.int32)
        self._positions = np.zeros(capacity, np.int32)
        self._outputs = np.zeros(capacity, np.int8)
        self._seq_ids = np.zeros(capacity, np.int32)
        self._ones = np.ones(capacity, np.int32)
        self.native = self._native_batch()

    def _native_batch(self) -> Any:
        int32_p, float_p = ctypes.POINTER(ctypes.c_int32), ctypes.POINTER(ctypes.c_float)
        first, n = self._seq_ids.ctypes.data, self.capacity
        self._seq_rows = (int32_p * n)(*(ctypes.cast(first + 4 * i, int32_p) for i in range(n)))
        batch = api().llama_batch()
        batch.n_outputs = 0
        batch.token = self._tokens.ctypes.data_as(int32_p)
        batch.pos = self._positions.ctypes.data_as(int32_p)
        batch.n_seq_id = self._ones.ctypes.data_as(int32_p)
        batch.seq_id = ctypes.cast(self._seq_rows, ctypes.POINTER(int32_p))
        batch.logits = self._outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
        if self.hidden is not None:
            batch.embd = self.hidden.ctypes.data_as(float_p)
        # The struct holds bare addresses. It keeps their memory alive, even without this object: `Batch(n).fill(...)`.
        batch.memory = (
            self._tokens, self._positions, self._outputs, self._seq_ids, self._ones, self._seq_rows, self.hidden,
        )  # fmt: skip
        return batch

    def clear(self) -> None:
        """Removes all rows."""
        self.n_tokens = self.native.n_tokens = self.native.n_outputs = 0

    def add(self, tokens: Sequence[int], first_position: int, *, n_outputs: int, seq_id: int = 0) -> int:
        """Adds `tokens` of one sequence at consecutive positions. Returns the number of the first new row.

        The last `n_outputs` of them give logits.
        """
        first, n = self.n_tokens, len(tokens)
        end = self.n_tokens = self.native.n_tokens = first + n
        self.native.n_outputs += n_outputs  # not llama.cpp's: LlamaContext.decode checks it
        if n == 1:  # the case of plain generation, without making arrays
            self._tokens[first], self._positions[first] = tokens[0], first_position
            self._seq_ids[first], self._outputs[first] = seq_id, n_outputs
            return first
        self._tokens[first:end] = tokens
        self._positions[first:end] = np.arange(first_position, first_position + n, dtype=np.int32)
        self._seq_ids[first:end] = seq_id
        self._outputs[first:end] = 0
        self._outputs[end - n_outputs : end] = 1
        return first

    def fill(self, tokens: Sequence[int], first_position: int, *, n_outputs: int) -> Any:
        """Replaces all rows by `tokens` of sequence 0. Returns the native batch."""
        self.clear()
        self.add(tokens, first_position, n_outputs=n_outputs)
        return self.native
