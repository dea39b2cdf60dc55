"""Advice from a budget: what to buy, each choice with its reason and with what the next step up would give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from mimo_gguf.advice.choices import ANY_HOST, Choice, Planner, choice_on, with_better_types
from mimo_gguf.advice.machines import TWO_CARDS, UNIFIED, machine_of, memory_with
from mimo_gguf.core.errors import DoesNotFit
from mimo_gguf.fit.solver import Candidate
from mimo_gguf.hardware.cards import Card, cards

STEP_UP: Final = 1.25  # so much faster is worth mentioning as the next step
_FAR: Final = float("inf")


def choose_to_buy(candidate: Candidate, better: Sequence[Candidate], planner: Planner) -> tuple[Choice, ...]:
    """The choices within the budget, the best first; then the best of other forms, and the CPU alone.

    The best is the fastest. Which is faster does not depend on the budget, so a larger one never makes it worse.

    Args:
        better: further file types, to be named if a choice holds them.

    Raises:
        DoesNotFit: nothing of a known price within the budget meets the needs; the hint has the cheapest that does.
    """
    needs = planner.needs
    everything = list(buyable(candidate, planner))
    affordable = [choice for choice in everything if needs.budget_usd is None or _usd(choice) <= needs.budget_usd]
    priced = [choice for choice in affordable if choice.price]
    if not priced:
        raise _nothing(everything, planner)
    picks = _picked(priced)
    picks += _other_forms(picks, [*priced, *(choice for choice in everything if not choice.price)])
    found = [_with_next_step(with_better_types(pick, planner, better), everything) for pick in picks]
    return (*found, *cpu_alone(candidate, planner))


def buyable(candidate: Candidate, planner: Planner) -> Iterator[Choice]:
    """Every card of the catalogue that can be bought, and every two alike, that meet the needs."""
    for card in cards():
        if not card.is_supported or card.kind == "laptop":
            continue
        pairs = ((card,),) if card.kind == "integrated" else ((card,), (card, card))
        for chosen in pairs:
            if len(chosen) > 1 and (not card.price_usd or planner.plan(candidate, [card.memory_bytes])):
                break  # a second card makes nothing faster, it only holds more
            if choice := meeting(candidate, chosen, planner):
                yield choice


def meeting(candidate: Candidate, chosen: Sequence[Card], planner: Planner) -> Choice | None:
    """The choice of these cards; None if they are too small or too slow."""
    machine = machine_of(chosen)
    plan = planner.plan(candidate, machine.memories)
    choice = choice_on(machine, plan, planner.needs) if plan else None
    if choice is None or not planner.needs.are_met_at(choice.tps_each(planner.needs.users)):
        return None
    return choice


def worth(choice: Choice) -> tuple[float, ...]:
    """What makes one choice better than another, whatever the budget: speed, then memory, then a low price."""
    return choice.speed, sum(choice.machine.memories), -_usd(choice)


def _usd(choice: Choice) -> float:
    return choice.price.value if choice.price else _FAR


# Why a choice is picked, and what is compared for it.
_REASONS: Final[tuple[tuple[str, Callable[[Choice], tuple[float, ...]]], ...]] = (
    ("the fastest within the budget", worth),
    ("the cheapest that does what is asked", lambda choice: (-_usd(choice), *worth(choice))),
    ("the most speed for the money", lambda choice: (choice.speed / _usd(choice), *worth(choice))),
    (
        "the most memory within the budget, for better file types and longer contexts",
        lambda choice: (_memory(choice), *worth(choice)),
    ),
)


def _memory(choice: Choice) -> float:
    return sum(choice.machine.memories)


def _picked(choices: Sequence[Choice]) -> list[Choice]:
    """The winner of each reason, once, with all its reasons in a sentence."""
    winners: dict[str, list[str]] = {}
    for reason, order in _REASONS:
        winners.setdefault(max(choices, key=order).name, []).append(reason)
    by_name = {choice.name: choice for choice in choices}
    return [replace(by_name[name], why=sentence(listed(reasons))) for name, reasons in winners.items()]


def _other_forms(picks: Sequence[Choice], choices: Sequence[Choice]) -> list[Choice]:
    """The best of two cards and of unified memory, if no pick is one."""
    found = []
    for kind, why in (
        (
            TWO_CARDS,
            "two cards where one is too small; they take turns with the layers, so speed does not add up",
        ),
        (UNIFIED, "the fastest computer with unified memory; the price is that of the whole computer"),
    ):
        of_kind = [choice for choice in choices if choice.machine.kind == kind]
        priced = [choice for choice in of_kind if choice.price]
        if of_kind and not any(pick.machine.kind == kind for pick in picks):
            best = max(priced or of_kind, key=worth)
            unknown = "" if best.price else "; its price is not known, so nothing says that it is within the budget"
            found.append(replace(best, why=sentence(why + unknown)))
    return found


def _with_next_step(choice: Choice, everything: Sequence[Choice]) -> Choice:
    return replace(choice, next_step=next_step(choice, everything))


def next_step(choice: Choice, everything: Sequence[Choice]) -> str:
    """What the cheapest clearly faster choice above this price would give; empty if there is none."""
    own = choice.price.value if choice.price else 0.0
    faster = [each for each in everything if own < _usd(each) < _FAR and each.speed >= STEP_UP * choice.speed]
    if not faster or not choice.speed:
        return ""
    step = min(faster, key=lambda each: (_usd(each), -each.speed))
    more = f", {_usd(step) - own:+.0f}" if own else ""
    times = f"{step.speed / choice.speed:.1f} times as fast"
    return f"{step.name} for {_usd(step):.0f} USD{more}: {step.speed:.0f} tok/s, {times}"


def cpu_alone(candidate: Candidate, planner: Planner) -> Iterator[Choice]:
    """The CPU alone, with the bandwidth that its memory must have."""
    plan = planner.plan_on(candidate, (ANY_HOST,))
    if plan is None:
        return
    choice = choice_on(machine_of(()), plan, planner.needs)
    bandwidth = choice.bandwidth_gbs
    if bandwidth is None:
        return
    memory = memory_with(bandwidth.value)
    if not memory:
        return  # no common memory is as fast
    why = f"needs no card, if memory delivers {bandwidth.value:.0f} GB/s, as {memory} may"
    yield replace(choice, why=sentence(why))


def _nothing(everything: Sequence[Choice], planner: Planner) -> DoesNotFit:
    """The error for a budget that buys nothing that meets the needs."""
    needs = planner.needs
    priced = [choice for choice in everything if choice.price]
    budget = f" for {needs.budget_usd:g} USD" if needs.budget_usd is not None else ""
    if not priced:
        return DoesNotFit(
            "no card of a known price, and no two of them, do what is asked",
            hint="a smaller --ctx, fewer --users, a smaller --type or a lower --min-tps",
        )
    cheapest = min(priced, key=lambda choice: (_usd(choice), -choice.speed))
    return DoesNotFit(
        f"no card of a known price does what is asked{budget}",
        hint=f"the cheapest that does is the {cheapest.name}: mimo-gguf advise --budget {_usd(cheapest):.0f}",
    )


def listed(texts: Sequence[str]) -> str:
    """The texts with commas, and "and" before the last."""
    *others, last = texts
    return f"{', '.join(others)} and {last}" if others else last


def sentence(text: str) -> str:
    """The text as a sentence."""
    return text[:1].upper() + text[1:] + "."
