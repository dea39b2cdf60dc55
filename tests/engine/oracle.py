"""Arranged acceptance: a model with random weights accepts almost no draft, so a drafter is told what will be drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mimo_gguf.engine.drafting import Drafter, DraftRequest
from mimo_gguf.engine.session import Session
from mimo_gguf.engine.slot import Slot


class Oracle:
    """Makes a drafter propose what will be drawn, except where `share_wrong` says otherwise. Keeps the drafter's work.

    `texts` holds, for each slot, its prompt and its answer, one after the other; `proposed` what the drafter itself
    said at which position of which text.
    """

    def __init__(
        self, session: Session, texts: Mapping[Slot, Sequence[int]], share_wrong: float, seed: int = 0
    ) -> None:
        assert session.drafter is not None
        self.texts = dict(texts)
        self.proposed: dict[tuple[tuple[int, ...], int], list[int]] = {}
        self._drafter: Drafter = session.drafter
        self._session = session
        self._rng = np.random.default_rng(seed)
        self._share_wrong = share_wrong
        self._propose = session.drafter.draft
        session.drafter.draft = self.draft  # type: ignore[method-assign]

    def draft(self, wanted: Sequence[DraftRequest]) -> list[list[int]]:
        for request, proposed in zip(wanted, self._propose(wanted), strict=True):
            slot = self._session.slots[request.rows.seq_id]
            self.proposed[tuple(self.texts[slot]), len(slot.tokens)] = proposed
        return [self._answer(request) for request in wanted]

    def _answer(self, request: DraftRequest) -> list[int]:
        slot = self._session.slots[request.rows.seq_id]
        at = len(slot.tokens) + 1
        coming = self.texts[slot][at : at + min(request.limit, self._drafter.n_draft)]
        return [(t + 1) % 256 if self._rng.random() < self._share_wrong else t for t in coming]
