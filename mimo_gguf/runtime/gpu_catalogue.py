"""Which cards run the model, how much context they hold, and how fast: the catalogue (`gpus.csv`) and its arithmetic.

Decoding one token reads every weight once, so tokens per second are memory bandwidth over bytes read, times the share
of the bandwidth that llama.cpp's kernels reach (`_EFFICIENCY`).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.units import GIB
from mimo_gguf.runtime.devices import host_device, imagined_gpu
from mimo_gguf.runtime.fit import FitPlan, plan_model
from mimo_gguf.runtime.memory_model import CONTEXT_STEP, ModelSizes, RunSettings, predict_memory

VENDORS: Final = ("nvidia", "amd", "intel", "apple")
SORTS: Final = ("vram", "price", "speed", "value")
# (vendor, pattern in "name, backend", share of the bandwidth that decoding reaches); the first that matches counts.
# Round numbers at the lower end of what was measured with 7 to 8 B models of 4 bits; docs/memory.md has the list.
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
# Share of MTP drafts that the model accepts: between the 0.5-0.7 measured on prose and 0.88 on code (exllamav3 #238).
MTP_ACCEPTANCE: Final = 0.7
_READ_AT: Final = 2048  # tokens in the KV cache for which a speed is given


@dataclass(frozen=True, slots=True)
class Card:
    """A graphics card, or a chip with one.

    Attributes:
        memory_gb: as sold; for Apple's chips the whole machine's memory.
        bandwidth_gbs: as the vendor or the source gives it.
        bus_bits, data_rate_gbps: width of the memory bus, and what each of its lines carries: their product over 8 is
            the bandwidth again (Apple and some others round it down).
        backend: what llama.cpp drives it with; "none: why" where nothing current does.
        price_usd: at launch; of the published list, what that list says. 0 where unknown; `price_date` is empty where
            the source gives no date.
        source: addresses, separated by "; "; the published list has none.
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
    source: str

    @property
    def is_supported(self) -> bool:
        return not self.backend.startswith("none")

    @property
    def memory_bytes(self) -> int:
        """What a model can have of it: Metal lends the GPU two thirds, of 36 GB and more three quarters."""
        whole = int(self.memory_gb * GIB)
        if self.vendor != "apple":
            return whole
        return whole * 3 // 4 if self.memory_gb >= 36 else whole * 2 // 3

    @property
    def efficiency(self) -> float:
        """Share of the bandwidth that decoding reaches."""
        text = f"{self.name}, {self.backend}"
        return next(share for vendor, where, share in _EFFICIENCY if vendor == self.vendor and re.search(where, text))


@cache
def cards() -> tuple[Card, ...]:
    """The catalogue."""
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
        source=row["source"],
    )


def find_card(name: str, memory_bytes: int = 0) -> Card:
    """The card called `name`; vendor words, case, spaces and the memory size may be missing.

    Args:
        memory_bytes: of a card sold with several memory sizes the nearest to this; 0 takes the smallest.

    Raises:
        UsageError: no such card, or several; the hint lists the nearest.
    """
    wanted = _plain(name)
    found = _named(wanted) if wanted else []
    if found and len({_without_size(card.name) for card in found}) == 1:
        return min(found, key=lambda card: abs(card.memory_bytes - memory_bytes))
    if found:
        names = ", ".join(card.name for card in found[:6])
        raise UsageError(f"{name!r} is more than one card", hint=f"one of: {names}{' ...' if len(found) > 6 else ''}")
    near = _nearest(wanted)
    see = f"like {', '.join(near)}" if near else "see: mimo-gguf gpus"
    raise UsageError(f"no card {name!r} in the catalogue", hint=f"{see}; or give its memory with --vram 8GiB")


def other_sizes(card: Card) -> list[Card]:
    """The cards that only their memory tells from `card`."""
    return [c for c in cards() if c is not card and _without_size(c.name) == _without_size(card.name)]


def _named(wanted: str) -> list[Card]:
    """The cards that `wanted` (plain) means: by the full name, without the memory size, by its end, by a part."""
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
    """As drivers and people write names: `NVIDIA GeForce RTX 4060 Laptop GPU`, `AMD Radeon RX 6600 (RADV NAVI23)`."""
    text = re.sub(r"\(.*?\)|nvidia|geforce|amd|radeon|intel|apple|graphics|gpu|\bgb\b", "", name.lower())
    return re.sub(r"[^a-z0-9.]", "", re.sub(r"(\d)gb\b", r"\1", text))


def _nearest(wanted: str) -> list[str]:
    import difflib

    by_name = {_plain(card.name): card.name for card in cards()}
    return [by_name[plain] for plain in difflib.get_close_matches(wanted, by_name, 3, 0.5)]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a card runs a model.

    Attributes:
        kv_type: with this KV cache all layers and the context asked for are on the card: "f16", else "q8_0", else "".
        largest_context: with all layers on the card and that KV cache (q8_0 where it does not fit); 0 for none.
        tps: expected tokens per second, plain.
        tps_mtp: with MTP drafting at MTP_ACCEPTANCE (0 without an MTP layer).
    """

    card: Card
    kv_type: str
    largest_context: int
    tps: float
    tps_mtp: float

    @property
    def fits(self) -> bool:
        return bool(self.kv_type)

    @property
    def best_tps(self) -> float:
        return max(self.tps, self.tps_mtp)

    @property
    def is_useful(self) -> bool:
        return self.fits and self.card.is_supported

    def as_json(self) -> dict[str, Any]:
        card = self.card
        return {
            "name": card.name,
            "vendor": card.vendor,
            "kind": card.kind,
            "memory_gb": card.memory_gb,
            "bandwidth_gbs": card.bandwidth_gbs,
            "bus_bits": card.bus_bits,
            "data_rate_gbps": card.data_rate_gbps,
            "backend": card.backend,
            "supported": card.is_supported,
            "fits": self.fits,
            "kv_type": self.kv_type,
            "largest_context": self.largest_context,
            "tps": round(self.tps, 1),
            "tps_mtp": round(self.tps_mtp, 1),
            "price_usd": card.price_usd or None,
            "price_date": card.price_date,
            "price_source": card.price_source,
            "source": card.source,
        }


def judge_cards(model: ModelSizes, n_ctx: int, chosen: Sequence[Card] | None = None) -> list[Verdict]:
    """A verdict on each of `chosen` (all of the catalogue), in their order.

    Raises:
        UsageError: a context llama.cpp would refuse.
    """
    holds = _Holds(model)
    verdicts = []
    for card in chosen if chosen is not None else cards():
        free_bytes = imagined_gpu(card.memory_bytes).free_bytes
        fitting = [kv_type for kv_type in _KV_TYPES if holds(free_bytes, kv_type, n_ctx)]
        kv_type = fitting[0] if fitting else _KV_TYPES[-1]
        largest = holds.largest_context(free_bytes, kv_type)
        verdicts.append(
            Verdict(card, fitting[0].name.lower() if fitting else "", largest, *expected_speed(model, card))
        )
    return verdicts


_KV_TYPES: Final = (GgmlType.F16, GgmlType.Q8_0)


class _Holds:
    """Whether so much free memory holds the whole model; the needs are worked out once for all cards."""

    def __init__(self, model: ModelSizes) -> None:
        self.model = model
        self.host = host_device()
        self.needs: dict[tuple[GgmlType, int], int] = {}

    def __call__(self, free_bytes: int, kv_type: GgmlType, n_ctx: int) -> bool:
        if (kv_type, n_ctx) not in self.needs:
            settings = RunSettings(n_ctx=n_ctx, type_k=kv_type, type_v=kv_type)
            plan = plan_model(self.model, settings, (imagined_gpu(GIB), self.host), -1)
            self.needs[kv_type, n_ctx] = plan.devices[0].needed_bytes
        return self.needs[kv_type, n_ctx] <= free_bytes

    def largest_context(self, free_bytes: int, kv_type: GgmlType) -> int:
        low, high = 0, self.model.geometry.context_length // CONTEXT_STEP + 1
        while low < high - 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self(free_bytes, kv_type, middle * CONTEXT_STEP) else (low, middle)
        return low * CONTEXT_STEP


def expected_speed(model: ModelSizes, card: Card) -> tuple[float, float]:
    """(plain, with MTP) tokens per second while decoding, from bytes read per token; 0 for what the file lacks."""
    (tree,) = predict_memory(model, RunSettings(n_ctx=_READ_AT))
    parts = {part.name: part for part in tree.parts}
    weights, kv = parts["weights"], parts["KV cache"]
    output = weights.find("output") or weights.find("input embedding")
    plain = weights.find("blocks") + output + kv.find("target")
    bytes_per_s = card.bandwidth_gbs * 1e9 * card.efficiency
    if not model.has_mtp:
        return bytes_per_s / plain, 0.0
    drafting = plain + weights.find("MTP") + output + kv.find("MTP")
    return bytes_per_s / plain, bytes_per_s * (1 + MTP_ACCEPTANCE) / drafting


@dataclass(frozen=True, slots=True)
class Expectation:
    """How fast a run will be: tokens per second on `card`, plain and with MTP (0 where it does not draft)."""

    card: Card
    tps: float
    tps_mtp: float

    def __str__(self) -> str:
        drafting = f", {self.tps_mtp:.0f} with MTP drafting" if self.tps_mtp else ""
        return f"about {self.tps:.0f} tok/s{drafting}, from the bandwidth of the {self.card.name}"


def expectation(plan: FitPlan) -> Expectation | None:
    """Of a plan with all layers on one card that the catalogue knows; None of any other."""
    if len(plan.devices) != 2 or plan.settings.n_gpu_layers < plan.n_layers or plan.settings.n_seq_max > 1:
        return None
    device = plan.devices[0].device
    try:
        card = find_card(device.description, device.total_bytes)
    except UsageError:
        return None
    plain, drafting = expected_speed(plan.model, card)
    return Expectation(card, plain, drafting if plan.runs_mtp else 0.0) if card.is_supported else None


@dataclass(frozen=True, slots=True)
class Filters:
    """What the user wants to see; None and "" mean everything."""

    budget_usd: float | None = None
    min_tps: float | None = None
    vendor: str = ""
    sort: str = "vram"

    def __post_init__(self) -> None:
        """Raises UsageError for an unknown vendor or order, or a negative amount."""
        if self.vendor and self.vendor not in VENDORS:
            raise UsageError(f"no vendor {self.vendor!r}", hint=f"one of: {', '.join(VENDORS)}")
        if self.sort not in SORTS:
            raise UsageError(f"cannot sort by {self.sort!r}", hint=f"one of: {', '.join(SORTS)}")
        if (self.budget_usd or 0) < 0 or (self.min_tps or 0) < 0:
            raise UsageError("a budget or a speed below zero", hint="for example --budget 300 --min-tps 30")


def select(verdicts: Sequence[Verdict], filters: Filters) -> list[Verdict]:
    """The verdicts that pass, sorted: by smallest memory, lowest price, highest speed, or most speed for the price."""

    def passes(verdict: Verdict) -> bool:
        card = verdict.card
        in_budget = filters.budget_usd is None or 0 < card.price_usd <= filters.budget_usd
        fast = filters.min_tps is None or (verdict.is_useful and verdict.best_tps >= filters.min_tps)
        return in_budget and fast and filters.vendor in ("", card.vendor)

    def order(verdict: Verdict) -> tuple[float, ...]:
        card = verdict.card
        price = card.price_usd or float("inf")
        return {
            "vram": (card.memory_gb, card.bandwidth_gbs),
            "price": (price, -verdict.best_tps),
            "speed": (-verdict.best_tps,),
            "value": (price / verdict.best_tps,),
        }[filters.sort]

    return sorted(filter(passes, verdicts), key=order)


def best_picks(verdicts: Sequence[Verdict], filters: Filters) -> list[tuple[Verdict, str]]:
    """Up to three cards to buy and why: most speed for the money, fastest, most memory, cheapest.

    Raises:
        UsageError: none passes the filters.
    """
    useful = [v for v in select(verdicts, filters) if v.is_useful and v.card.price_usd]
    if not useful:
        raise UsageError("no card with a known price passes", hint="look at: mimo-gguf gpus --sort price")
    winners: dict[str, list[str]] = {}
    for reason, order in _REASONS:
        best = max(useful, key=order)
        winners.setdefault(best.card.name, []).append(reason)
    by_name = {verdict.card.name: verdict for verdict in useful}
    return [(by_name[name], " and ".join(reasons)) for name, reasons in winners.items()][:3]


_REASONS: Final[tuple[tuple[str, Callable[[Verdict], tuple[float, ...]]], ...]] = (
    ("most speed for the money", lambda v: (v.best_tps / v.card.price_usd,)),
    ("fastest", lambda v: (v.best_tps,)),
    ("most memory, for long contexts and better file types", lambda v: (v.card.memory_gb, v.best_tps)),
    ("cheapest", lambda v: (-v.card.price_usd, v.best_tps)),
)
