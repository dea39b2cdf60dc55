"""Advice from what is there: what the machine can do now, and which single changes would help, the best first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from mimo_gguf.advice.budget import STEP_UP, buyable, listed, sentence, worth
from mimo_gguf.advice.choices import ANY_HOST, Choice, Planner, choice_on, with_better_types
from mimo_gguf.advice.machines import HERE, NOTHING_BOUGHT, SETTING, Machine, machine_of, price, price_date
from mimo_gguf.advice.needs import Needs
from mimo_gguf.core.units import format_size
from mimo_gguf.fit.plan import FitPlan
from mimo_gguf.fit.solver import Candidate, Wishes, solve
from mimo_gguf.fit.speeds import card_of, card_rate, pass_seconds, speeds_here
from mimo_gguf.hardware.cards import Card
from mimo_gguf.hardware.devices import Device
from mimo_gguf.hardware.kept_speeds import KeptSpeeds
from mimo_gguf.hardware.nvml import nvidia_cards, unused_cards

_FAR: Final = float("inf")
_GAIN: Final = "<gain>"  # in a reason: how much faster than now


@dataclass(frozen=True, slots=True)
class Situation:
    """What is there.

    Attributes:
        devices: the cards, then the host; real, or imagined with this machine's RAM beside them.
        candidates: the files that there are or could be, smallest first.
    """

    devices: tuple[Device, ...]
    candidates: tuple[Candidate, ...]
    planner: Planner
    kept: KeptSpeeds

    @property
    def needs(self) -> Needs:
        return self.planner.needs

    @property
    def cards(self) -> tuple[Card, ...]:
        """The cards that the catalogue knows."""
        found = (card_of(device) for device in self.devices[:-1])
        return tuple(card for card in found if card is not None)

    @property
    def is_real(self) -> bool:
        """Whether the devices are this machine's."""
        return all(device.pointer for device in self.devices[:-1])


def look(situation: Situation) -> Choice:
    """What the machine does now: the best run for what is asked, or the one that misses it by the least."""
    wishes = Wishes(n_ctx=situation.needs.n_ctx, n_seq_max=situation.needs.users)
    plan = solve(situation.candidates, situation.devices, wishes)
    now = _on_these(situation, replace(plan.plan, file_type=plan.file_type))
    return replace(now, why=sentence(_state(now, situation)))


def _on_these(situation: Situation, plan: FitPlan) -> Choice:
    """The choice of a plan on the devices that are there; free, because they are there."""
    cards = situation.cards
    names = " and ".join(device.description or device.name for device in situation.devices[:-1]) or "no card"
    machine = Machine(HERE, f"{'this machine: ' if situation.is_real else ''}{names}", cards)
    found = [card_of(fit.device) if fit.device.is_gpu else None for fit in plan.devices]
    rates = [card_rate(card) if card else 0.0 for card in found]
    speeds = speeds_here(plan, situation.kept)
    choice = choice_on(machine, plan, situation.needs, rates=rates, speeds=speeds)
    return replace(choice, price=NOTHING_BOUGHT, price_date="")


def _state(now: Choice, situation: Situation) -> str:
    plan = now.plan
    if not plan.fits:
        tightest = plan.tightest
        return f"does not fit: {format_size(-tightest.spare_bytes)} are missing on {tightest.device.name}"
    if len(plan.devices) == 1:
        where = "runs on the CPU"
        if now.tps is None:
            where += "; how fast is not known: mimo-gguf bench MODEL --save measures it, once"
    elif plan.settings.n_gpu_layers == plan.n_layers:
        where = f"fits, all layers on {'the card' if len(plan.devices) == 2 else 'the cards'}"
    else:
        where = f"only {plan.settings.n_gpu_layers} of {plan.n_layers} layers are on the cards, the others slow it down"
    needs = situation.needs
    if needs.min_tps and now.tps_all and not needs.are_met_at(now.tps_each(needs.users)):
        where += f"; {now.speed / needs.users:.0f} tok/s for each user are less than the {needs.min_tps:g} asked for"
    return where


def changes(situation: Situation, now: Choice) -> tuple[Choice, ...]:
    """Single changes, the one that helps most first.

    With a budget that is the fastest within it. Without one, what costs nothing comes first if it is clearly faster,
    then the most speed for the money. A change that makes possible what is asked precedes one that does not.
    """
    found = [
        *_smaller_file(situation, now),
        *_unused_card(situation, now),
        *_second_card(situation, now),
        *_other_cards(situation, now),
        *_more_ram(situation, now),
    ]
    needs = situation.needs
    budget = needs.budget_usd
    if budget is not None:
        found = [change for change in found if _usd(change) <= budget or not change.machine.cards]

    def helps(change: Choice) -> tuple[float, ...]:
        times = change.times_as_fast
        is_better = times is None or times >= STEP_UP
        meets = needs.are_met_at(change.tps_each(needs.users))
        if budget is not None:
            return meets, is_better, *worth(change)
        return meets, is_better, not _usd(change), (change.speed - now.speed) / (_usd(change) or 1.0), *worth(change)

    return tuple(sorted(found, key=helps, reverse=True))


def _compared(choice: Choice, now: Choice, why: str, *, name: str = "", kind: str = "") -> Choice:
    """The choice with how much faster than now it is, also in its reason."""
    times = choice.speed / now.speed if choice.speed and now.speed else None
    if times is None and choice.plan.devices[-1].device is now.plan.devices[-1].device and now.plan.fits:
        times = _reads(now.plan) / _reads(choice.plan)  # on the same devices, however fast they are
    if times is None:
        gain = f"{choice.speed:.0f} tok/s" if choice.speed else "how fast is not known"
    else:
        gain = "as fast as now" if 0.95 < times < 1.05 else f"{times:.1f} times as fast as now"
    machine = replace(choice.machine, name=name or choice.name, kind=kind or choice.machine.kind)
    return replace(choice, machine=machine, times_as_fast=times, why=sentence(why.replace(_GAIN, gain)))


def _reads(plan: FitPlan) -> float:
    return pass_seconds(plan, [1.0] * len(plan.devices)) or 1.0


def _smaller_file(situation: Situation, now: Choice) -> Iterator[Choice]:
    smallest = situation.candidates[0]
    if now.file_type == smallest.name or not now.plan.fits:
        return  # what does not fit was planned with every file already
    wishes = Wishes(n_ctx=situation.needs.n_ctx, n_seq_max=situation.needs.users)
    plan = solve([smallest], situation.devices, wishes).plan
    if plan.fits:
        choice = _on_these(situation, replace(plan, file_type=smallest.name))
        why = f"{_GAIN}, because fewer bytes are read for a token; it costs nothing but some quality"
        yield _compared(choice, now, why, name=f"{smallest.name} instead of {now.file_type}", kind=SETTING)


def _unused_card(situation: Situation, now: Choice) -> Iterator[Choice]:
    """A card of NVIDIA's that the installed llama.cpp does not use."""
    if not situation.is_real:
        return
    for unused in unused_cards(situation.devices, nvidia_cards()):
        card = card_of(Device(unused.name, unused.name, "gpu", "CUDA", unused.free_bytes, unused.total_bytes))
        plan = situation.planner.plan(situation.candidates[0], [unused.total_bytes])
        if card is not None and plan is not None:
            choice = choice_on(machine_of([card]), plan, situation.needs)
            free = replace(choice, price=NOTHING_BOUGHT, price_date="")
            why = f"the card is there, but llama.cpp was built without CUDA (docs/install.md): {_GAIN}"
            yield _compared(free, now, why, name=f"llama.cpp with CUDA, for the {card.name}", kind=SETTING)


def _second_card(situation: Situation, now: Choice) -> Iterator[Choice]:
    """Another card like the one that is there: it makes nothing faster, but holds what one cannot."""
    cards = situation.cards
    if len(cards) != 1 or len(situation.devices) != 2 or cards[0].kind not in ("desktop", "datacenter"):
        return
    is_whole = now.plan.fits and now.plan.settings.n_gpu_layers == now.plan.n_layers
    for candidate in reversed(situation.candidates):
        if is_whole and candidate.model.file_bytes <= now.plan.model.file_bytes:
            return
        plan = situation.planner.plan(candidate, [cards[0].memory_bytes] * 2)
        if plan is not None:
            choice = choice_on(machine_of([*cards, *cards]), plan, situation.needs)
            bought = replace(choice, price=price(cards), price_date=price_date(cards))
            holds = f"{candidate.name} instead of {now.file_type}" if is_whole else f"all layers of {candidate.name}"
            why = f"together they hold {holds}; they take turns with the layers: {_GAIN}"
            yield _compared(bought, now, why, name=f"a second {cards[0].name}")
            return


def _other_cards(situation: Situation, now: Choice) -> Iterator[Choice]:
    """One card for what is there: the next step up, the most speed for the money, and the fastest within a budget."""
    needs = situation.needs
    candidate = next((c for c in situation.candidates if c.name == now.file_type), situation.candidates[0])
    budget = _FAR if needs.budget_usd is None else needs.budget_usd
    mine = {card.name for card in situation.cards}
    faster = [c for c in buyable(candidate, situation.planner) if c.speed > STEP_UP * now.speed and c.name not in mine]
    better = [choice for choice in faster if choice.price and choice.price.value <= budget]
    if not better:
        return
    least = "the cheapest that is clearly faster" if now.speed else "the cheapest that holds it"
    picks = [
        (least, min(better, key=lambda c: (_usd(c), -c.speed))),
        ("the most speed for the money", max(better, key=lambda c: ((c.speed - now.speed) / _usd(c), *worth(c)))),
    ]
    if needs.budget_usd is not None:
        picks.append(("the fastest within the budget", max(better, key=worth)))
    others = situation.candidates[situation.candidates.index(candidate) + 1 :]
    for choice in {choice.name: choice for _, choice in picks}.values():
        reasons = listed([reason for reason, pick in picks if pick.name == choice.name])
        name = choice.name + _instead(situation.cards, choice)
        full = with_better_types(choice, situation.planner, others)
        yield _compared(full, now, f"{reasons}: {_GAIN}", name=name)


def _instead(mine: Sequence[Card], choice: Choice) -> str:
    """What a choice takes the place of; another computer if a card cannot be exchanged."""
    if any(card.kind in ("laptop", "integrated") for card in (*mine, *choice.machine.cards)):
        return ", another computer" if choice.machine.cards[0].kind == "integrated" else ", in another computer"
    names = sorted({card.name for card in mine})
    return f" instead of the {' and the '.join(names)}" if names else ""


def _more_ram(situation: Situation, now: Choice) -> Iterator[Choice]:
    """More RAM, if what is asked does not fit and the CPU could hold it."""
    plan = None if now.plan.fits else situation.planner.plan_on(situation.candidates[0], (ANY_HOST,))
    if plan is not None:
        missing = max(plan.devices[-1].needed_bytes - situation.devices[-1].free_bytes, 0)
        why = f"with {format_size(missing)} more free RAM it runs on the CPU: {_GAIN}"
        yield _compared(choice_on(machine_of(()), plan, situation.needs), now, why, name="more RAM")


def _usd(choice: Choice) -> float:
    return choice.price.value if choice.price else _FAR
