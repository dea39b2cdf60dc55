"""The catalogue of graphics cards and chips (`gpus.csv`): memory, bandwidth, backend and price, with their sources."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.near_matches import near_matches
from mimo_gguf.core.units import GIB

VENDORS: Final = ("nvidia", "amd", "intel", "apple")
# (vendor, pattern in "name, backend", share of the bandwidth that decoding reaches); the first that matches counts.
# Round numbers at the lower end of measurements with 7 to 8 B models of 4 bits; docs/memory.md has the list.
_EFFICIENCY: Final = (
    ("nvidia", r"CUDA ([2-6]\.\d|7\.[0-4])$", 0.60),  # P40 0.62
    ("nvidia", "", 0.70),  # RTX 2080 0.74, RTX 3080 0.68, RTX 3090 0.72
    ("amd", r"^RX 9\d", 0.65),  # RX 9070 XT 0.67 with ROCm, 0.76 with Vulkan
    ("amd", "", 0.50),  # RX 5700 XT 0.55, RX 7900 XTX 0.51
    ("intel", r" B\d", 0.60),  # Arc B580 0.64
    ("intel", "", 0.35),  # Arc A770 0.35 to 0.44
    ("apple", "Max|Ultra", 0.53),  # M1 Max 0.53
    ("apple", "", 0.75),  # M4 0.80, M2 Pro 0.76
)


@dataclass(frozen=True, slots=True)
class Card:
    """A graphics card, or a chip with a GPU.

    Attributes:
        memory_gb: GiB, as sold; for Apple's chips, the memory of the whole machine.
        bandwidth_gbs: GB/s, as the vendor or the source states it.
        bus_bits, data_rate_gbps: the width of the memory bus, and the Gbit/s of each of its lines. Their product over 8
            is the bandwidth (Apple and some others round it down).
        backend: the backend of llama.cpp that drives it; "none: REASON" if no current one does.
        price_usd: at launch, or as the published list states it; 0 if unknown. Of Apple's chips, of the whole machine.
        price_date: empty if the source gives no date.
        board_watts: the power that the whole card is built for; of Apple's chips, of a Mac mini with it; 0 if unknown.
        power_supply_watts: the power supply that the maker asks for in a machine with one such card; 0 if unknown.
        power_source: the address of the page with these two; empty if both are unknown.
        source: addresses, separated by "; "; empty for the published list.
    """

    name: str
    vendor: str
    memory_gb: float
    bandwidth_gbs: float
    bus_bits: int
    data_rate_gbps: float
    kind: str
    backend: str
    price_usd: float
    price_date: str
    price_source: str
    board_watts: int
    power_supply_watts: int
    power_source: str
    source: str

    @property
    def is_supported(self) -> bool:
        return not self.backend.startswith("none")

    @property
    def memory_bytes(self) -> int:
        """The memory that a model can use: on Apple's chips two thirds of it, or three quarters from 36 GB on."""
        whole = int(self.memory_gb * GIB)
        if self.vendor != "apple":
            return whole
        return whole * 3 // 4 if self.memory_gb >= 36 else whole * 2 // 3

    @property
    def measured_share(self) -> float | None:
        """The share of the bandwidth that decoding reached on this card, measured with this program; else None."""
        return _measured_shares().get(_plain(self.name))

    @property
    def efficiency(self) -> float:
        """The share of the bandwidth that decoding reaches: measured on this card, or expected of its kind."""
        if self.measured_share is not None:
            return self.measured_share
        text = f"{self.name}, {self.backend}"
        return next(share for vendor, where, share in _EFFICIENCY if vendor == self.vendor and re.search(where, text))


@cache
def _measured_shares() -> dict[str, float]:
    """The measured shares by plain name of the card; `python -m benchmarks.gpu.documents` writes the file."""
    with Path(__file__).with_name("measured_shares.csv").open(newline="", encoding="utf-8") as file:
        return {_plain(row["description"]): float(row["share"]) for row in csv.DictReader(file)}


@cache
def cards() -> tuple[Card, ...]:
    """All cards of the catalogue, in its order."""
    with Path(__file__).with_name("gpus.csv").open(newline="", encoding="utf-8") as file:
        return tuple(_card(row) for row in csv.DictReader(file))


def _card(row: dict[str, str]) -> Card:
    return Card(
        name=row["name"],
        vendor=row["vendor"],
        memory_gb=float(row["memory_gb"]),
        bandwidth_gbs=float(row["bandwidth_gbs"]),
        bus_bits=int(row["bus_bits"]),
        data_rate_gbps=float(row["data_rate_gbps"]),
        kind=row["kind"],
        backend=row["backend"],
        price_usd=float(row["price_usd"] or 0),
        price_date=row["price_date"],
        price_source=row["price_source"],
        board_watts=int(row["board_watts"] or 0),
        power_supply_watts=int(row["power_supply_watts"] or 0),
        power_source=row["power_source"],
        source=row["source"],
    )


def find_card(name: str, memory_bytes: int = 0) -> Card:
    """The card called `name`. Case and spaces do not matter, and vendor and memory size may be missing.

    Args:
        memory_bytes: if a card is sold with several memory sizes, the nearest to this is meant.

    Raises:
        UsageError: there is no such card, or several; the hint lists the nearest.
    """
    wanted = _plain(name)
    found = _named(wanted) if wanted else []
    if found and len({_without_size(card.name) for card in found}) == 1:
        return min(found, key=lambda card: abs(card.memory_bytes - memory_bytes))
    if found:
        names = ", ".join(card.name for card in found[:6])
        raise UsageError(f"{name!r} is more than one card", hint=f"one of: {names}{' ...' if len(found) > 6 else ''}")
    raise _unknown(name)


def find_cards(names: Sequence[str]) -> tuple[Card, ...]:
    """Every card that one of `names` means, in the catalogue's order: "RTX 3060" means both sizes of it.

    Raises:
        UsageError: a name means no card; the hint lists the nearest.
    """
    found: set[Card] = set()
    for name in names:
        wanted = _plain(name)
        meant = _named(wanted) if wanted else []
        if not meant:
            raise _unknown(name)
        found.update(meant)
    return tuple(card for card in cards() if card in found)


def _unknown(name: str) -> UsageError:
    near = _nearest(_plain(name))
    see = f"like {', '.join(near)}" if near else "see: mimo-gguf gpus"
    return UsageError(f"no card {name!r} in the catalogue", hint=see)


def other_sizes(card: Card) -> list[Card]:
    """The cards that differ from `card` only in their memory."""
    return [c for c in cards() if c is not card and _without_size(c.name) == _without_size(card.name)]


def _named(wanted: str) -> list[Card]:
    """The cards that `wanted` means: by the full name, without the memory size, by its end, by a part; plain names."""
    meanings: tuple[Callable[[Card], bool], ...] = (
        lambda card: _plain(card.name) == wanted,
        lambda card: _plain(_without_size(card.name)) == wanted,
        lambda card: _plain(_without_size(card.name)).endswith(wanted),
        lambda card: wanted in _plain(card.name),
    )
    matches = ([card for card in cards() if means(card)] for means in meanings)
    return next(filter(None, matches), [])


def _without_size(name: str) -> str:
    return re.sub(r" \d+GB$", "", name)


def _plain(name: str) -> str:
    """The part of a name on which drivers and people agree: `NVIDIA GeForce RTX 4060 Ti` -> `rtx4060ti`."""
    text = re.sub(r"\(.*?\)|nvidia|geforce|amd|radeon|intel|apple|graphics|gpu|\bgb\b", "", name.lower())
    return re.sub(r"[^a-z0-9.]", "", re.sub(r"(\d)gb\b", r"\1", text))


def _nearest(wanted: str) -> list[str]:
    by_name = {_plain(card.name): card.name for card in cards()}
    return [by_name[plain] for plain in near_matches(wanted, by_name)]
