"""The verb: advice on what to buy, or on what to do with what is there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimo_gguf.advice.budget import choose_to_buy
from mimo_gguf.advice.choices import Choice, Planner
from mimo_gguf.advice.here import Situation, changes, look
from mimo_gguf.advice.needs import USUAL_CTX, Needs
from mimo_gguf.hardware.cards import Card, find_card, other_sizes
from mimo_gguf.hardware.devices import Device, host_device, imagined_gpu, list_devices
from mimo_gguf.hardware.kept_speeds import KeptSpeeds, read_speeds
from mimo_gguf.store.choosing import TYPES, candidates_of


@dataclass(frozen=True, slots=True)
class Advice:
    """What to buy, or what to change.

    Attributes:
        model: name of the file, or of the model as published.
        now: what is there and what it does; None if the advice is from a budget alone.
        choices: what to buy, or single changes of what is there; the best first.
        notes: what the user should know, a sentence each.
    """

    model: str
    needs: Needs
    now: Choice | None
    choices: tuple[Choice, ...]
    notes: tuple[str, ...]

    @property
    def best(self) -> Choice | None:
        """What helps most; None if nothing does."""
        return self.choices[0] if self.choices else None

    def as_json(self) -> dict[str, Any]:
        """The advice as a JSON document."""
        return {
            "model": self.model,
            "needs": self.needs.as_json(),
            "now": self.now and self.now.as_json(),
            "choices": [choice.as_json() for choice in self.choices],
            "notes": list(self.notes),
        }


def advise(
    file: str | Path | None = None,
    *,
    ftype: str | None = None,
    ctx: int | None = None,
    users: int = 1,
    min_tps: float | None = None,
    budget: float | None = None,
    have: Sequence[str] = (),
    kwh_price: float | None = None,
) -> Advice:
    """Advises on hardware. Headers alone are read.

    With a budget and no `have`: what to buy. Else: what the machine can do, and which single change helps most.

    Args:
        file: a GGUF, checkpoint or Hub id; None is MiMo-7B as published.
        ftype: the file type; None chooses.
        ctx: tokens of context of each user; None means 8192, 0 those the model was trained for.
        users: conversations at a time.
        min_tps: tokens per second that each user shall get.
        budget: USD that may be spent.
        have: names of the cards that are there, beside this machine's RAM; without them, this machine.
        kwh_price: price of a kWh.

    Raises:
        UsageError: an unknown card or type, amounts that are none, a context beyond the model's.
        DoesNotFit: nothing of a known price within the budget does what is asked; the hint says what would.
        GgufError, CheckpointError, HubError: the file cannot be read.
    """
    needs = Needs(users, USUAL_CTX if ctx is None else ctx, min_tps, budget, kwh_price)
    there = [find_card(name) for name in have]
    candidates, _ = candidates_of(None if file is None else str(file), [ftype] if ftype else [], TYPES)
    model = Path(candidates[0].model.label).name
    if len(candidates) > 1:  # what all of them are made of
        model = model.removesuffix(f"-{candidates[0].name}.gguf")
    planner = Planner(needs.of_model(candidates[0].model))
    if budget is not None and not there:
        choices = choose_to_buy(candidates[0], candidates[1:], planner)
        return Advice(model, planner.needs, None, choices, ())
    kept = KeptSpeeds() if there else read_speeds()
    devices = _imagined([card for card in there if card.is_supported]) if there else list_devices()
    situation = Situation(devices, tuple(candidates), planner, kept)
    now = look(situation)
    notes = (*_notes(dict(zip(have, there, strict=True))), *filter(None, [kept.problem]))
    return Advice(model, planner.needs, now, changes(situation, now), notes)


def _imagined(cards: Sequence[Card]) -> tuple[Device, ...]:
    """The devices of a machine with these cards and this one's RAM."""
    names = ["GPU"] if len(cards) == 1 else [f"GPU{i}" for i in range(len(cards))]
    gpus = (imagined_gpu(card.memory_bytes, name, card.name) for card, name in zip(cards, names, strict=True))
    return (*gpus, host_device())


def _notes(there: Mapping[str, Card]) -> Iterator[str]:
    """What is to be said about the cards, by the names that the user gave them."""
    for name, card in there.items():
        others = [other.name for other in other_sizes(card)]
        if not card.is_supported:
            yield f"llama.cpp does not run on the {card.name}: {card.backend.removeprefix('none: ')}"
        elif others and not re.search(rf"\b{card.memory_gb:g} ?(gb)?$", name.lower()):
            yield f"taking the {card.name}; there is also the {', the '.join(others)}"
