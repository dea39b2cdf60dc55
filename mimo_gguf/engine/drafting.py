"""Drafts tokens with the MTP blocks: what the MTP context has seen, and what it proposes.

An MTP row at position p pairs the token there with the trunk's hidden state one position before: (x[p], h[p-1])
predicts x[p+1]. The trunk's states come from the target context. Rows wait here until a draft is wanted or the batch is
full, so that the rows of an accepted draft and the next draft are one decode, not two. Several sequences draft
together: each step of a draft is one decode for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from mimo_gguf.core.errors import BackendError
from mimo_gguf.core.gguf_file import open_gguf, read_gguf
from mimo_gguf.llama.api import Floats, LlamaContext
from mimo_gguf.llama.batch import Batch
from mimo_gguf.llama.log import LOG

HiddenState = Literal["pre", "post"]
StateNorm = Callable[[Floats], Floats]


class Drafter:
    """Owns the MTP context and proposes up to `n_draft` tokens at a time for each of its sequences.

    If the file has several MTP blocks, block i proposes the i-th token. A single block is fed with its own states.
    """

    def __init__(
        self, context: LlamaContext, *, n_draft: int = 1, p_min: float = 0.0, hidden: HiddenState = "pre"
    ) -> None:
        self.context = context
        self.n_draft = n_draft
        self.p_min = p_min
        self._n_blocks = max(1, min(context.model.n_mtp, n_draft))
        self.trunk_norm, self._block_norms = _state_norms(context.model.path, self._n_blocks, hidden)
        self._batch = Batch(context.options.n_batch, context.model.n_embd)

    def close(self) -> None:
        self.context.close()

    @property
    def capacity(self) -> int:
        """The number of rows that one decode can have."""
        return self._batch.capacity

    def draft(self, wanted: Sequence[DraftRequest]) -> list[list[int]]:
        """Proposes tokens for each request: up to its limit, fewer if the block is not sure enough.

        Raises:
            BackendError: the MTP context failed; the rows are as they were before.
        """
        if not wanted:
            return []
        return self._draft_with_blocks(wanted) if self._n_blocks > 1 else self._draft_with_one_block(wanted)

    def _draft_with_one_block(self, wanted: Sequence[DraftRequest]) -> list[list[int]]:
        """Drafts with one block. The row of each drawn token, whose state is the trunk's, stays in the cache."""
        room = self.capacity // len(wanted)
        for request in wanted:
            if request.rows.n_waiting >= room:
                self.catch_up(request.rows)
        open_rows = self._decode([request.rows.with_token(request.token) for request in wanted])
        positions = [request.rows.note_cached(request.token) for request in wanted]
        drafts: list[list[int]] = [[] for _ in wanted]
        going = list(range(len(wanted)))
        while going:
            spans, still = [], []
            for place, (index, row) in enumerate(zip(going, open_rows, strict=True)):
                proposal = self._proposal(row)
                if proposal is None:
                    continue
                drafts[index].append(proposal)
                n = len(drafts[index])
                if n < min(wanted[index].limit, self.n_draft):
                    state = self._block_norms[0](self.context.hidden(len(going))[place : place + 1])
                    spans.append(_Span(wanted[index].rows.seq_id, [proposal], positions[index] + n, state))
                    still.append(index)
            if still:
                open_rows = self._decode(spans)
            going = still
        for request, position, drafted in zip(wanted, positions, drafts, strict=True):
            if len(drafted) > 1:  # remove the rows made from the block's own states
                self.context.forget(position + 1, request.rows.seq_id)
        return drafts

    def _draft_with_blocks(self, wanted: Sequence[DraftRequest]) -> list[list[int]]:
        """Drafts with several blocks. Each has a cache of its own layer, so each evaluates the span from the start."""
        for request in wanted:
            self.catch_up(request.rows)
        spans = [request.rows.with_token(request.token) for request in wanted]
        drafts: list[list[int]] = [[] for _ in wanted]
        going = list(range(len(wanted)))
        for block in range(self.n_draft):
            self.context.select_mtp_block(min(block, self._n_blocks - 1))
            open_rows = self._decode([spans[index] for index in going])
            states = self._block_norms[min(block, self._n_blocks - 1)](self.context.hidden(len(going)))
            still = []
            for place, (index, row) in enumerate(zip(going, open_rows, strict=True)):
                span, proposal = spans[index], self._proposal(row)
                self.context.forget(span.position, span.seq_id)
                if proposal is None:
                    continue
                drafts[index].append(proposal)
                if len(drafts[index]) < wanted[index].limit:
                    longer = np.concatenate([span.states, states[place : place + 1]])
                    spans[index] = span._replace(tokens=[*span.tokens, proposal], states=longer)
                    still.append(index)
            if not (going := still):
                break
        self.context.select_mtp_block(0)
        return drafts

    def _proposal(self, row: int) -> int | None:
        """The most likely token of a row of the MTP context's logits; None if it is less likely than `p_min`."""
        logits = self.context.logits(row)
        best = int(logits.argmax())
        if self.p_min > 0 and 1.0 / float(np.exp(logits - logits[best]).sum()) < self.p_min:
            return None
        return best

    def catch_up(self, rows: MtpRows) -> None:
        """Evaluates all waiting rows of a sequence with every block in use, so that they are in the KV cache."""
        if not rows.n_waiting:
            return
        span = rows.waiting()
        for block in range(self._n_blocks):
            if block:
                self.context.forget(span.position, span.seq_id)
            if self._n_blocks > 1:
                self.context.select_mtp_block(block)
            self._decode([span], n_outputs=0)
        if self._n_blocks > 1:
            self.context.select_mtp_block(0)
        rows.note_cached()

    def _decode(self, spans: Sequence[_Span], *, n_outputs: int = 1) -> list[int]:
        """Evaluates the spans in one decode. Returns the number of each last row, which has logits and a state."""
        since, batch = LOG.mark, self._batch
        assert batch.hidden is not None
        batch.clear()
        last = []
        for seq_id, tokens, position, states in spans:
            first = batch.add(tokens, position, n_outputs=n_outputs, seq_id=seq_id)
            batch.hidden[first : batch.n_tokens] = states
            last.append(batch.n_tokens - 1)
        result = self.context.decode(batch.native)
        if result != 0:
            for span in spans:
                self.context.forget(span.position, span.seq_id)
            self.context.select_mtp_block(0)
            raise BackendError(
                f"the MTP context failed at position {spans[0].position} (llama_decode {result}): {LOG.reason(since)}",
                hint="go on without it: --no-mtp",
            )
        return last


class MtpRows:
    """What the MTP context has of one sequence: the rows in its KV cache, and those that wait to be evaluated."""

    def __init__(self, drafter: Drafter, seq_id: int) -> None:
        self.seq_id = seq_id
        self._drafter = drafter
        self._tokens: list[int] = []  # rows that wait: tokens, and the states before them in _states
        self._states = np.zeros((drafter.capacity, drafter.context.model.n_embd), np.float32)
        self._first = 1  # position of the first waiting row; all rows before it are in the KV cache
        self._before: Floats | None = None  # the trunk's state at the last position

    @property
    def end(self) -> int:
        """The position after the last row, waiting or in the cache."""
        return self._first + len(self._tokens)

    @property
    def n_waiting(self) -> int:
        return len(self._tokens)

    @property
    def knows_state(self) -> bool:
        """Whether the trunk's state at the last position is known; otherwise `observe` must begin with that token."""
        return self._before is not None

    def observe(self, tokens: Sequence[int], first_position: int, states: Floats) -> None:
        """Adds the rows of what the target has just evaluated.

        The tokens continue the rows, or begin with the last token, whose state was missing (after a draft, after
        `forget`, at position 0). If tokens were evaluated that were not observed, all earlier rows are forgotten: the
        MTP blocks then attend only to what comes from here on. Only drafts depend on that.

        Args:
            tokens: at consecutive positions from `first_position` on.
            states: the trunk's states of these tokens, shape (len(tokens), n_embd).
        """
        states = self._drafter.trunk_norm(states)
        self.forget(first_position + 1)
        if first_position > self.end or (first_position == self.end and not self.knows_state):
            self._drafter.context.forget(0, self.seq_id)
            self.resume(first_position + 1)
        if first_position == self.end - 1:
            self._before, tokens, states = states[0].copy(), tokens[1:], states[1:]
        done = 0
        while done < len(tokens):
            if len(self._tokens) == len(self._states):
                self._drafter.catch_up(self)
            n = min(len(tokens) - done, len(self._states) - len(self._tokens))
            self._wait(tokens[done : done + n], states[done : done + n])
            done += n

    def _wait(self, tokens: Sequence[int], states: Floats) -> None:
        at = len(self._tokens)
        self._states[at] = self._before
        self._states[at + 1 : at + len(tokens)] = states[:-1]
        self._tokens += tokens
        self._before = states[-1].copy()

    def forget(self, first_position: int) -> None:
        """Removes all rows from `first_position` on."""
        if first_position >= self.end:
            return
        if first_position >= self._first:
            keep = first_position - self._first
            self._before = self._states[keep].copy()
            del self._tokens[keep:]
        else:
            self.resume(first_position)
            self.forget_unknown()

    def forget_unknown(self) -> None:
        """Removes from the cache what an interrupted draft may have left: everything after the known rows."""
        self._drafter.context.forget(self._first, self.seq_id)

    def resume(self, end: int) -> None:
        """Notes that the cache holds the rows before position `end`, and that no row waits."""
        self._tokens, self._first, self._before = [], max(end, 1), None

    def share(self, source: MtpRows, n_tokens: int) -> None:
        """Shares the first `n_tokens` of another sequence: the same cells of the cache, nothing is copied."""
        self._drafter.catch_up(source)
        self.forget(0)
        self._drafter.context.share(source.seq_id, n_tokens, self.seq_id)
        self.resume(min(n_tokens, source.end))

    def waiting(self) -> _Span:
        """The waiting rows, as views that are valid until the next change."""
        return _Span(self.seq_id, self._tokens, self._first, self._states[: len(self._tokens)])

    def with_token(self, token: int) -> _Span:
        """The waiting rows and the row of `token`, which comes after them; there must be room for it."""
        n = len(self._tokens)
        self._states[n] = self._before
        return _Span(self.seq_id, [*self._tokens, token], self._first, self._states[: n + 1])

    def note_cached(self, token: int | None = None) -> int:
        """Notes that the waiting rows, and the row of `token`, are in the cache now. Returns the last position."""
        end = self.end
        if token is None:
            self._tokens, self._first = [], end
            return end - 1
        self.resume(end + 1)
        return end


class DraftRequest(NamedTuple):
    """A request for at most `limit` tokens after `token`, which comes directly after the last of `rows`."""

    rows: MtpRows
    token: int
    limit: int


class _Span(NamedTuple):
    """Rows of one sequence at consecutive positions, and the state before each, shape (len(tokens), n_embd)."""

    seq_id: int
    tokens: list[int]
    position: int
    states: Floats


def _state_norms(path: Path, n_blocks: int, hidden: HiddenState) -> tuple[StateNorm, list[StateNorm]]:
    """What is applied to the trunk's states and to each block's: nothing, or with `hidden="post"` the model's norms."""
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


def _rms_norm(weights: Floats, eps: float) -> StateNorm:
    """The norm x / sqrt(mean(x^2) + eps) * weights over the last axis."""

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
