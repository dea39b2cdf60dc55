"""Measures how many drafts of an MTP block the trunk accepts, for blocks of several types under the same trunk.

The trunk runs once, in float32 from its file's weights; each block then reads the states that are kept. A draft counts
as accepted if the trunk finds the same token most likely, as in `mimo-gguf quality`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.quality.backend import judged_rows
from mimo_gguf.quality.divergence import Figure, mean_of, share_of, top_tokens
from mimo_gguf.quality.heads import Head
from mimo_gguf.quality.report import ALL
from mimo_gguf.reference.forward import embed, mtp_block, read_mtp_block
from mimo_gguf.reference.model import open_reference
from mimo_gguf.reference.run import run_windows

if TYPE_CHECKING:
    from mimo_gguf.quality.plan import QualityPlan

Hits = dict[str, NDArray[np.bool_]]  # kind of text -> whether each judged token's draft is accepted


class Trunk:
    """A trunk's states and most likely tokens on the texts, and how many drafts of a block agree with them."""

    def __init__(self, plan: QualityPlan, folder: Path) -> None:
        """Runs the trunk of the plan's first file; the states stay in `folder`, and are not computed twice."""
        self.plan: Final = plan
        self._rows: Final = judged_rows(plan.options.n_ctx)
        with open_reference(plan.files[0].path) as model:
            states = run_windows(model, [window.tokens for window in plan.windows], folder=folder)
            head = Head(model)
            self._top = [top_tokens(head.logits(rows[self._rows])) for rows in states.final]
            self._states = [np.array(rows) for rows in states.before_norm]

    def hits(self, file: Path) -> Hits:
        """Which drafts of a file's MTP block are accepted; its trunk must be the same."""
        found: dict[str, list[NDArray[np.bool_]]] = {}
        rows = slice(self._rows.start - 1, self._rows.stop - 1)  # the block's row that predicts a token is one before
        with open_reference(file) as model:
            weights, head = read_mtp_block(model, model.n_trunk_blocks), Head(model, mtp_block=model.n_trunk_blocks)
            for window, states, top in zip(self.plan.windows, self._states, self._top, strict=True):
                drafted = mtp_block(states[:-1], embed(model, window.tokens)[1:], weights)
                found.setdefault(window.kind, []).append(top_tokens(head.logits(drafted[rows])) == top)
        joined = {kind: np.concatenate(parts) for kind, parts in found.items()}
        return joined | {ALL: np.concatenate(list(joined.values()))}


def acceptance_figures(hits: Hits, best: Hits) -> dict[str, dict[str, Figure]]:
    """For each kind of text the acceptance, and how it differs from the best block's on the same tokens.

    The error of the difference is small, because both blocks read the same text.
    """
    return {
        kind: {"acceptance": share_of(mine), "change": mean_of(mine.astype(float) - best[kind])}
        for kind, mine in hits.items()
    }


def as_pairs(figures: Mapping[str, Mapping[str, Figure]]) -> dict[str, dict[str, list[float]]]:
    """Figures as they are kept: [value, standard error], to six digits."""

    def short(value: float) -> float:
        return float(f"{value:.6g}")

    return {
        kind: {name: [short(figure.value), short(figure.error)] for name, figure in named.items()}
        for kind, named in figures.items()
    }
