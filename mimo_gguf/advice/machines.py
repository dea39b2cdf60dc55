"""What can be bought or is there: a card, two of them, a computer with unified memory, a CPU alone; and its parts.

Every figure carries a mark: measured on this machine, published (by the page that is named), or estimated from others.
A figure that is not known is None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from mimo_gguf.core.units import GIB
from mimo_gguf.fit.plan import FitPlan
from mimo_gguf.fit.speeds import Mark
from mimo_gguf.hardware.cards import Card

CARD: Final = "card"
TWO_CARDS: Final = "two cards"
UNIFIED: Final = "unified memory"
CPU: Final = "CPU alone"
HERE: Final = "this machine"
SETTING: Final = "setting"

# What the other parts of a computer take: in the middle, the power supplies that vendors ask for are larger than their
# cards' power by so much.
REST_WATTS: Final = 420
SYSTEM_BYTES: Final = 2 * GIB  # of RAM, for the operating system and a browser's window
_RAM_SIZES: Final = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)  # GB, as memory is sold
# Peak GB/s of common memories: channels x 8 bytes x millions of transfers per second.
_MEMORIES: Final = (
    ("two channels of DDR4-3200", 51.2),
    ("two channels of DDR5-5600", 89.6),
    ("four channels of DDR5-5600", 179.2),
    ("eight channels of DDR5-4800", 307.2),
    ("twelve channels of DDR5-6400", 614.4),
)


@dataclass(frozen=True, slots=True)
class Figure:
    """A number, and where it is from.

    Attributes:
        source: an address with its date, or in words what it is computed from.
    """

    value: float
    mark: Mark
    source: str

    def as_json(self) -> dict[str, Any]:
        """The figure as a JSON document."""
        return {"value": round(self.value, 6), "mark": self.mark, "source": self.source}


NOTHING_BOUGHT: Final = Figure(0.0, "estimated", "nothing is bought")


@dataclass(frozen=True, slots=True)
class Machine:
    """What holds the model.

    Attributes:
        kind: CARD, TWO_CARDS, UNIFIED, CPU or HERE; SETTING if nothing is bought.
        cards: the catalogue's; several of them share the layers.
    """

    kind: str
    name: str
    cards: tuple[Card, ...] = ()

    @property
    def memories(self) -> tuple[int, ...]:
        """The bytes of each card."""
        return tuple(card.memory_bytes for card in self.cards)


def machine_of(cards: Sequence[Card]) -> Machine:
    """The machine with these cards: with one or two, with a chip of unified memory, or with none."""
    if not cards:
        return Machine(CPU, "CPU alone")
    if len(cards) == 1:
        return Machine(UNIFIED if cards[0].kind == "integrated" else CARD, cards[0].name, tuple(cards))
    names = [card.name for card in cards]
    same = len(set(names)) == 1
    return Machine(TWO_CARDS, f"{len(names)} x {names[0]}" if same else " and ".join(names), tuple(cards))


def price(cards: Sequence[Card]) -> Figure | None:
    """The price of all cards at launch; None if one of them is not known."""
    if not cards or not all(card.price_usd for card in cards):
        return None
    dates = " and ".join(sorted({card.price_date or "no date" for card in cards}))
    sources = "; ".join(dict.fromkeys(card.price_source for card in cards))
    return Figure(sum(card.price_usd for card in cards), "published", f"at launch, {dates}: {sources}")


def price_date(cards: Sequence[Card]) -> str:
    """The month of the price, or of the oldest one."""
    return min((card.price_date for card in cards), default="")


def board_watts(cards: Sequence[Card]) -> Figure | None:
    """The power of all cards, or of the computer with unified memory; None if one is not known."""
    if not cards or not all(card.board_watts for card in cards):
        return None
    sources = "; ".join(dict.fromkeys(card.power_source for card in cards))
    return Figure(sum(card.board_watts for card in cards), "published", sources)


def power_supply(cards: Sequence[Card]) -> Figure | None:
    """The power supply for these cards; None if a card's power is not known, or the computer brings its own."""
    if not cards or any(card.kind in ("integrated", "laptop") for card in cards):
        return None
    first, *others = sorted(cards, key=lambda card: -(card.power_supply_watts or card.board_watts))
    if not first.board_watts or not all(card.board_watts for card in others):
        return None
    if first.power_supply_watts and not others:
        return Figure(first.power_supply_watts, "published", first.power_source)
    base = first.power_supply_watts or first.board_watts + REST_WATTS
    watts = base + sum(card.board_watts for card in others)
    return Figure(50 * math.ceil(watts / 50), "estimated", f"power of the cards and {REST_WATTS} W for the computer")


def ram(plan: FitPlan) -> Figure:
    """The RAM to have, in GB as it is sold: the plan's need on the host, and the system's."""
    needed = (plan.devices[-1].needed_bytes + SYSTEM_BYTES) / GIB
    size = next((size for size in _RAM_SIZES if size >= needed), needed)
    source = f"{plan.devices[-1].needed_bytes / GIB:.1f} GiB of the plan and {SYSTEM_BYTES // GIB} for the system"
    return Figure(size, "estimated", source)


def disk(plan: FitPlan) -> Figure:
    """The disk that the file takes, in GiB. It is made while it is downloaded, so nothing more is needed."""
    return Figure(plan.model.file_bytes / GIB, "estimated", "the planned size of the file")


def energy(watts: Figure | None, tps_all: Figure | None) -> Figure | None:
    """The kWh of a million tokens with all users busy, at the full power of the cards: W / (tok/s) / 3.6."""
    if watts is None or tps_all is None:
        return None
    source = "at full power of the cards; the rest of the computer is not counted"
    return Figure(watts.value / tps_all.value / 3.6, "estimated", source)


def cost(kwh: Figure | None, kwh_price: float | None) -> Figure | None:
    """The cost of a million tokens, in the currency of the price."""
    if kwh is None or kwh_price is None:
        return None
    return Figure(kwh.value * kwh_price, "estimated", f"at {kwh_price:g} per kWh")


def memory_with(gb_per_s: float) -> str:
    """The slowest common memory that is faster than this at its peak; empty if none is."""
    return next((f"{name} ({peak:g} GB/s at most)" for name, peak in _MEMORIES if peak >= gb_per_s), "")
