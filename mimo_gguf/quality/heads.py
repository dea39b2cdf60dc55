"""Logits from final states: a model's head applied again, from a matrix that may be larger than memory allows."""

from __future__ import annotations

from typing import Final

from mimo_gguf.quality.divergence import Floats
from mimo_gguf.reference.forward import head_logits
from mimo_gguf.reference.model import ReferenceModel

_KEPT_BYTES: Final = 1 << 30  # of a head in float32 that stays in memory; a larger one is decoded for each call


class Head:
    """The head of a model, which gives logits from states after the final norm."""

    def __init__(self, model: ReferenceModel, *, mtp_block: int | None = None) -> None:
        """Reads the head if it is small.

        Args:
            mtp_block: the GGUF number of an MTP block whose head is meant, if that has its own.

        Raises:
            CheckpointError, GgufError: the data ends early.
        """
        geometry = model.geometry
        self._model: Final = model
        self._mtp_block: Final = mtp_block
        small = 4 * geometry.vocab_size * geometry.embedding_length <= _KEPT_BYTES
        self._matrix = model.weights(model.head_name(mtp_block)) if small else None

    def logits(self, states: Floats) -> Floats:
        """The logits float32 [n, n_vocab] of states [n, n_embd]."""
        if self._matrix is None:
            return head_logits(self._model, states, mtp_block=self._mtp_block)
        logits: Floats = states @ self._matrix.T
        return logits
