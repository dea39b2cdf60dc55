"""Verdicts on the cards of the catalogue (`gpus.csv`): whether they run the model, with how much context, how fast.

Decoding one token reads every weight once. So tokens per second are memory bandwidth over bytes read, times the share
of the bandwidth that llama.cpp's kernels reach (`Card.efficiency`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.kv_cache import CONTEXT_STEP, can_hold_heads
from mimo_gguf.core.model_sizes import ModelSizes
from mimo_gguf.core.near_matches import name_hint
from mimo_gguf.core.units import GIB
from mimo_gguf.fit.plan import FitPlan
from mimo_gguf.fit.speeds import Mark, Speeds, card_of, card_speeds, cards_here, speeds_here
from mimo_gguf.fit.weigh import plan_model
from mimo_gguf.hardware.cards import VENDORS, Card, cards
from mimo_gguf.hardware.devices import host_device, imagined_gpu
from mimo_gguf.memory.run import RunSettings

SORTS: Final = ("vram", "price", "speed", "value")


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a card runs a model.

    Attributes:
        kv_type: the KV cache with which all layers and the given context fit on the card: "f16", else "q8_0", else "".
        largest_context: with all layers on the card and that KV cache (q8_0 if `kv_type` is empty); 0 if none fits.
        tps: expected tokens per second without drafting.
        tps_mtp: the same with MTP drafting at MTP_ACCEPTANCE; 0 without an MTP layer.
        speed_source: where both are from if not from the bandwidth: what was measured on this machine.
    """

    card: Card
    kv_type: str
    largest_context: int
    tps: float
    tps_mtp: float
    speed_mark: Mark = "estimated"
    speed_source: str = ""

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
            "speed_mark": self.speed_mark,
            "speed_source": self.speed_source or None,
            "board_watts": card.board_watts or None,
            "power_supply_watts": card.power_supply_watts or None,
            "power_source": card.power_source or None,
            "price_usd": card.price_usd or None,
            "price_date": card.price_date,
            "price_source": card.price_source,
            "source": card.source,
        }


def judge_cards(model: ModelSizes, n_ctx: int, chosen: Sequence[Card] | None = None) -> list[Verdict]:
    """A verdict on each of `chosen`, in that order; None means the whole catalogue.

    The speeds of this machine's cards are those that `bench --save` measured, if it did.

    Raises:
        UsageError: llama.cpp would refuse the context.
    """
    holds = _Holds(model)
    kv_types = [kind for kind in _KV_TYPES if can_hold_heads(kind, model.geometry)]
    measured = cards_here(model)
    verdicts = []
    for card in chosen if chosen is not None else cards():
        free_bytes = imagined_gpu(card.memory_bytes).free_bytes
        fitting = [kv_type for kv_type in kv_types if holds(free_bytes, kv_type, n_ctx)]
        kv_type = fitting[0] if fitting else kv_types[-1]
        largest = holds.largest_context(free_bytes, kv_type)
        here = measured.get(card.name) or Speeds(*card_speeds(model, card), "estimated", "")
        fits = fitting[0].name.lower() if fitting else ""
        verdicts.append(Verdict(card, fits, largest, here.tps, here.tps_mtp, here.mark, here.source))
    return verdicts


_KV_TYPES: Final = (GgmlType.F16, GgmlType.Q8_0)


class _Holds:
    """Whether a given free memory holds the whole model; the needs are worked out once for all cards."""

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


@dataclass(frozen=True, slots=True)
class Expectation:
    """The expected tokens per second of a run, plain and with MTP (0 if it does not draft).

    Attributes:
        card: the card that holds all layers; None for another run whose speed was measured here.
        source: how it was measured here, or with what it is estimated; empty if from the bandwidth of the card.
    """

    card: Card | None
    tps: float
    tps_mtp: float
    mark: Mark = "estimated"
    source: str = ""

    def __str__(self) -> str:
        about = "about " if self.mark == "estimated" else ""
        drafting = f", {_rounded(self.tps_mtp)} with MTP drafting" if self.tps_mtp else ""
        return f"{about}{_rounded(self.tps)} tok/s{drafting}, {self._origin}"

    @property
    def _origin(self) -> str:
        return self.source or f"from the bandwidth of the {self.card.name if self.card else 'card'}"

    def as_json(self) -> dict[str, Any]:
        """The expectation as a JSON document."""
        return {
            "card": self.card and self.card.name,
            "tps": round(self.tps, 1),
            "tps_mtp": round(self.tps_mtp, 1),
            "mark": self.mark,
            "source": self._origin,
        }


def _rounded(tps: float) -> str:
    return f"{tps:.0f}" if tps >= 10 else f"{tps:.1f}"


def expectation(plan: FitPlan) -> Expectation | None:
    """The expected speed of a plan: as measured on this machine, else from the bandwidth of a card with all layers.

    None for any other plan, and for several conversations.
    """
    if plan.settings.n_seq_max > 1:
        return None
    is_whole = len(plan.devices) == 2 and plan.settings.n_gpu_layers >= plan.n_layers
    card = card_of(plan.devices[0].device) if is_whole else None
    if here := speeds_here(plan):
        return Expectation(card, here.tps, here.tps_mtp if plan.runs_mtp else 0.0, here.mark, here.source)
    if card is None:
        return None
    plain, drafting = card_speeds(plan.model, card)
    return Expectation(card, plain, drafting if plan.runs_mtp else 0.0)


@dataclass(frozen=True, slots=True)
class Filters:
    """The cards that the user wants to see; None and "" mean all."""

    budget_usd: float | None = None
    min_tps: float | None = None
    vendor: str = ""
    sort: str = "vram"

    def __post_init__(self) -> None:
        """Raises UsageError for an unknown vendor or order, or an amount that is not a number from 0 up."""
        if self.vendor and self.vendor not in VENDORS:
            raise UsageError(f"no vendor {self.vendor!r}", hint=name_hint(self.vendor, VENDORS))
        if self.sort not in SORTS:
            raise UsageError(f"cannot sort by {self.sort!r}", hint=name_hint(self.sort, SORTS))
        for what, amount in (("a budget", self.budget_usd), ("a speed", self.min_tps)):
            if amount is not None and not 0 <= amount < float("inf"):  # also refuses NaN
                raise UsageError(f"{amount:g} is not {what}", hint="for example --budget 300 --min-tps 30")


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
    """Up to three cards to buy, each with the reason: most speed for the money, fastest, most memory, cheapest.

    Raises:
        UsageError: no card passes the filters.
    """
    useful = [v for v in select(verdicts, filters) if v.is_useful and v.card.price_usd and v.card.kind != "integrated"]
    if not useful:
        raise UsageError("no card with a known price passes", hint="look at: mimo-gguf gpus --sort price")
    winners: dict[str, list[str]] = {}
    for reason, order in _REASONS:
        best = max(useful, key=order)
        winners.setdefault(best.card.name, []).append(reason)
    by_name = {verdict.card.name: verdict for verdict in useful}
    return [(by_name[name], " and ".join(reasons)) for name, reasons in winners.items()][:3]


# Why a card is picked, and what is compared for it; of equals the cheapest.
_REASONS: Final[tuple[tuple[str, Callable[[Verdict], tuple[float, ...]]], ...]] = (
    ("most speed for the money", lambda v: (v.best_tps / v.card.price_usd, -v.card.price_usd)),
    ("fastest", lambda v: (v.best_tps, -v.card.price_usd)),
    (
        "most memory, for long contexts and better file types",
        lambda v: (v.card.memory_gb, v.best_tps, -v.card.price_usd),
    ),
    ("cheapest", lambda v: (-v.card.price_usd, v.best_tps)),
)
