"""Drafting tokens with the MTP blocks: what the MTP context has seen, and what it proposes.

An MTP row at position p pairs the token there with the trunk's state one position before: (x[p], h[p-1]) predicts
x[p+1]. The trunk's states come from the target context. Rows wait here until a draft is wanted (or a batch is full),
so that catching up after an accepted draft and drafting again is one decode, not two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from mimo_gguf.core.errors import BackendError
from mimo_gguf.core.gguf_file import open_gguf, read_gguf
from mimo_gguf.runtime.llama_api import LOG, Batch, Floats, LlamaContext

HiddenState = Literal["pre", "post"]
Transform = Callable[[Floats], Floats]


class Drafter:
    """Owns the MTP context of one sequence and proposes up to `n_draft` tokens at a time.

    With several MTP blocks in the file, block i proposes the i-th token; with one, it is chained on its own state.
    """

    def __init__(
        self, context: LlamaContext, *, n_draft: int = 1, p_min: float = 0.0, hidden: HiddenState = "pre"
    ) -> None:
        self.context = context
        self.n_draft = n_draft
        self.p_min = p_min
        self._n_blocks = max(1, min(context.model.n_mtp, n_draft))
        self._trunk_norm, self._block_norms = _transforms(context.model.path, self._n_blocks, hidden)
        self._batch = Batch(context.options.n_batch, context.model.n_embd)
        self._tokens: list[int] = []  # rows that wait: tokens, and the states before them in _states
        self._states = np.zeros((context.options.n_batch, context.model.n_embd), np.float32)
        self._first = 1  # position of the first waiting row; before it everything is in the KV cache
        self._before: Floats | None = None  # the trunk's state at the last position

    @property
    def end(self) -> int:
        """Position after the last row known here, waiting or in the cache."""
        return self._first + len(self._tokens)

    def close(self) -> None:
        self.context.close()

    def follow(self, tokens: Sequence[int], first_position: int, states: Floats) -> None:
        """Takes what the target has just evaluated: `tokens` at consecutive positions and its states, one row each.

        It follows on what is known here, or begins with the last token known, whose state was missing (after a draft,
        after `forget`, at position 0).
        """
        states = self._trunk_norm(states)
        self.forget(first_position + 1)
        if first_position == self.end - 1:
            self._before, tokens, states = states[0].copy(), tokens[1:], states[1:]
        elif first_position != self.end or self._before is None:
            raise BackendError("the MTP context lost its place", hint="a mistake in mimo-gguf; please report it")
        done = 0
        while done < len(tokens):
            if len(self._tokens) == self._batch.capacity:
                self.catch_up()
            n = min(len(tokens) - done, self._batch.capacity - len(self._tokens))
            self._take(tokens[done : done + n], states[done : done + n])
            done += n

    def _take(self, tokens: Sequence[int], states: Floats) -> None:
        at = len(self._tokens)
        self._states[at] = self._before
        self._states[at + 1 : at + len(tokens)] = states[:-1]
        self._tokens += tokens
        self._before = states[-1].copy()

    @property
    def knows_state(self) -> bool:
        """Whether the trunk's state at the last position is known; otherwise `follow` must begin with that token."""
        return self._before is not None

    def forget(self, first_position: int) -> None:
        """Drops every row from `first_position` on."""
        if first_position >= self.end:
            return
        if first_position >= self._first:
            keep = first_position - self._first
            self._before = self._states[keep].copy()
            del self._tokens[keep:]
        else:
            self.context.forget(first_position)
            self._tokens, self._first, self._before = [], max(first_position, 1), None

    def resume(self, end: int) -> None:
        """Takes the cache's content as it is: rows up to `end`, put there from a saved state."""
        self._tokens, self._first, self._before = [], max(end, 1), None

    def draft(self, token: int, limit: int) -> list[int]:
        """Proposes what follows `token`, which itself follows everything seen so far; at most `limit` tokens."""
        if self._before is None or limit < 1:
            return []
        position, before = self.end, self._before
        if self._n_blocks > 1:
            self.catch_up()
            return self._draft_with_blocks(token, position, before, min(limit, self.n_draft))
        return self._draft_with_one_block(token, position, before, min(limit, self.n_draft))

    def _draft_with_one_block(self, token: int, position: int, before: Floats, limit: int) -> list[int]:
        """The row of `token` is final (its state is the trunk's), so it joins the waiting ones and stays."""
        if len(self._tokens) == self._batch.capacity:
            self.catch_up()
        self._states[len(self._tokens)] = before
        self._tokens.append(token)
        self._decode(self._tokens, self._first, self._states, n_outputs=1)
        row = len(self._tokens) - 1
        self._first, self._tokens, self._before = position + 1, [], None
        drafts: list[int] = []
        while (proposal := self._proposal(row)) is not None:
            drafts.append(proposal)
            if len(drafts) == limit:
                break
            state = self._block_norms[0](self.context.hidden(1))
            self._decode([proposal], position + len(drafts), state, n_outputs=1)
            row = 0
        if len(drafts) > 1:
            self.context.forget(position + 1)  # rows made from the block's own states
        return drafts

    def _draft_with_blocks(self, token: int, position: int, before: Floats, limit: int) -> list[int]:
        """Block i must see the drafted stretch in its own layer's cache, so each runs it from `token` on."""
        tokens, states = [token], before[None, :]
        drafts: list[int] = []
        for block in range(limit):
            self.context.select_mtp_block(min(block, self._n_blocks - 1))
            self._decode(tokens, position, states, n_outputs=1)
            proposal = self._proposal(len(tokens) - 1)
            state = self.context.hidden(1).copy()
            self.context.forget(position)
            if proposal is None:
                break
            drafts.append(proposal)
            tokens = [*tokens, proposal]
            states = np.concatenate([states, self._block_norms[min(block, self._n_blocks - 1)](state)])
        self.context.select_mtp_block(0)
        return drafts

    def _proposal(self, row: int) -> int | None:
        """The most likely token of a row of the MTP context's logits; None where it is not likely enough."""
        logits = self.context.logits(row)
        best = int(logits.argmax())
        if self.p_min > 0 and 1.0 / float(np.exp(logits - logits[best]).sum()) < self.p_min:
            return None
        return best

    def catch_up(self) -> None:
        """Moves all waiting rows into the KV cache, through every block in use."""
        if not self._tokens:
            return
        for block in range(self._n_blocks):
            if block:
                self.context.forget(self._first)
            if self._n_blocks > 1:
                self.context.select_mtp_block(block)
            self._decode(self._tokens, self._first, self._states, n_outputs=0)
        if self._n_blocks > 1:
            self.context.select_mtp_block(0)
        self._first += len(self._tokens)
        self._tokens = []

    def _decode(self, tokens: Sequence[int], position: int, states: Floats, *, n_outputs: int) -> None:
        since = LOG.mark
        batch = self._batch.fill(tokens, position, n_outputs=n_outputs)
        assert self._batch.hidden is not None
        self._batch.hidden[: len(tokens)] = states[: len(tokens)]
        result = self.context.decode(batch)
        if result != 0:
            raise BackendError(
                f"the MTP context failed at position {position} (llama_decode {result}): {LOG.reason(since)}",
                hint="go on without it: --no-mtp",
            )


def _transforms(path: Path, n_blocks: int, hidden: HiddenState) -> tuple[Transform, list[Transform]]:
    """What is done to the trunk's states and to each block's own before they are fed on: nothing, or their norm."""
    if hidden == "pre":
        return _unchanged, [_unchanged] * n_blocks
    model = read_gguf(path)
    eps = float(model.value(f"{model.architecture}.attention.layer_norm_rms_epsilon", 1e-5))
    first = int(model.value(f"{model.architecture}.block_count")) - int(
        model.value(f"{model.architecture}.nextn_predict_layers", 0)
    )
    names = ["output_norm.weight", *(f"blk.{first + i}.nextn.shared_head_norm.weight" for i in range(n_blocks))]
    trunk, *blocks = (_rms_norm(weights, eps) for weights in _read_vectors(path, names))
    return trunk, blocks


def _unchanged(states: Floats) -> Floats:
    return states


def _rms_norm(weights: Floats, eps: float) -> Transform:
    def norm(states: Floats) -> Floats:
        mean_square = np.square(states, dtype=np.float32).mean(axis=-1, keepdims=True, dtype=np.float32)
        return np.asarray(states / np.sqrt(mean_square + np.float32(eps)) * weights, np.float32)

    return norm


def _read_vectors(path: Path, names: Sequence[str]) -> list[Floats]:
    from gguf import dequantize

    with open_gguf(path) as source:
        by_name = {tensor.info.name: tensor for tensor in source.tensors}
        vectors = []
        for name in names:
            tensor = by_name[name]
            raw = np.empty((1, tensor.info.row_bytes), np.uint8)
            tensor.read_rows(0, 1, raw)
            vectors.append(dequantize(raw, tensor.info.ggml_type).reshape(-1).astype(np.float32))
    return vectors
