"""Greedy text of the torch reference, and how often its MTP layer drafts the trunk's own next token."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence

import torch

from tests.reference.mimo import Cache, Hidden, Mimo


@torch.no_grad()
def generate_greedy(model: Mimo, prompt: Sequence[int], n_max: int, stop: Collection[int] = ()) -> list[int]:
    """Up to `n_max` tokens after `prompt`; a token of `stop` ends the text and is its last."""
    cache: Cache = {}
    tokens: list[int] = []
    ids = torch.tensor(prompt)
    while len(tokens) < n_max:
        logits, _ = model.trunk(ids, cache)
        tokens.append(int(logits[-1].argmax()))
        if tokens[-1] in stop:
            break
        ids = torch.tensor(tokens[-1:])
    return tokens


@torch.no_grad()
def draft_hits(
    model: Mimo, prompt: Sequence[int], generated: Sequence[int], *, hidden_kind: Hidden = "pre"
) -> tuple[int, int]:
    """(drafts that the trunk would have taken, drafts made) by the first MTP layer along a greedy text.

    After each token of `generated` but the last, the MTP layer drafts the one that follows; it is a hit when it is the
    token that the trunk chose.
    """
    ids = torch.tensor([*prompt, *generated])
    _, hidden = model.trunk(ids)
    logits, _ = model.mtp(0, hidden[:-1], ids[1:], hidden_kind=hidden_kind)
    # Row r holds x[r+1] and drafts x[r+2].
    drafts = logits[len(prompt) - 1 : -1].argmax(-1)
    return int((drafts == ids[len(prompt) + 1 :]).sum()), len(drafts)


def with_swapped_halves(model: Mimo) -> Mimo:
    """A copy whose MTP layers read [embedding, state]: what a converter makes that gets the order wrong."""
    swapped = copy.deepcopy(model)
    for layer in swapped.model.mtp_layers:
        weight = layer.input_proj.weight
        weight.data = weight.data.roll(weight.shape[1] // 2, dims=1)
    return swapped
