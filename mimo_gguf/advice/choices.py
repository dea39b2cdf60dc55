"""A choice: a machine with the run that is planned on it, what it needs beside, how fast it is, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from mimo_gguf.advice import machines
from mimo_gguf.advice.machines import Figure, Machine
from mimo_gguf.advice.needs import Needs
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.kv_cache import can_hold_heads
from mimo_gguf.core.units import GIB
from mimo_gguf.fit.plan import FitPlan
from mimo_gguf.fit.solver import Candidate, Wishes, settings_for
from mimo_gguf.fit.speeds import MOST_TOGETHER, MTP_ACCEPTANCE, Speeds, card_rate, pass_seconds
from mimo_gguf.fit.weigh import plan_model
from mimo_gguf.hardware.cards import Card
from mimo_gguf.hardware.devices import Device, imagined_gpu

# A computer's RAM is part of the advice, so a plan for one that is bought is never short of it.
ANY_HOST: Final = Device("CPU", "host memory", "cpu", "CPU", 1 << 42, 1 << 42)
_READING_TPS: Final = 10  # tokens per second, somewhat more than people read


@dataclass(frozen=True, slots=True)
class Choice:
    """A machine, what it does, and what it takes.

    Attributes:
        why: one sentence.
        tps, tps_mtp: of one conversation, without drafts and with them; None if unknown, or without an MTP layer.
        tps_all: of all users together.
        bandwidth_gbs: what the memory must deliver, if there is no card.
        better_types: further file types that fit and are fast enough, with the tokens per second of all users.
        next_step: what the next larger machine gives; empty if there is none.
        times_as_fast: as what is there now, if that is known.
        price: of what is bought; None if it is not known, 0 for what costs nothing.
    """

    machine: Machine
    file_type: str
    plan: FitPlan
    why: str
    tps: Figure | None
    tps_mtp: Figure | None
    tps_all: Figure | None
    price: Figure | None
    price_date: str
    board_watts: Figure | None
    power_supply: Figure | None
    ram_gb: Figure
    kwh_per_million: Figure | None
    cost_per_million: Figure | None
    bandwidth_gbs: Figure | None = None
    better_types: tuple[tuple[str, Figure], ...] = ()
    next_step: str = ""
    times_as_fast: float | None = None

    @property
    def name(self) -> str:
        return self.machine.name

    @property
    def disk_gib(self) -> Figure:
        return machines.disk(self.plan)

    @property
    def speed(self) -> float:
        """Tokens per second of all users together; 0 if unknown."""
        return self.tps_all.value if self.tps_all else 0.0

    def tps_each(self, users: int) -> float | None:
        """Tokens per second for each of the users; None if unknown."""
        return self.tps_all.value / users if self.tps_all else None

    def as_json(self) -> dict[str, Any]:
        """The choice as a JSON document: every figure with its mark and source, null for what is not known."""
        s = self.plan.settings
        figures = {
            "price_usd": self.price, "tps": self.tps, "tps_mtp": self.tps_mtp, "tps_all_users": self.tps_all,
            "board_watts": self.board_watts, "power_supply_watts": self.power_supply, "ram_gb": self.ram_gb,
            "disk_gib": self.disk_gib, "kwh_per_million_tokens": self.kwh_per_million,
            "cost_per_million_tokens": self.cost_per_million, "bandwidth_gbs": self.bandwidth_gbs,
        }  # fmt: skip
        return {
            "kind": self.machine.kind,
            "name": self.name,
            "cards": [card.name for card in self.machine.cards],
            "why": self.why,
            "file_type": self.file_type,
            "n_ctx": s.n_ctx,
            "kv_type": s.type_k.name.lower(),
            "mtp": self.plan.runs_mtp,
            "gpu_layers": s.n_gpu_layers if len(self.plan.devices) > 1 else 0,
            "fits": self.plan.fits,
            "needed_bytes": self.plan.needed_bytes,
            **{name: figure and figure.as_json() for name, figure in figures.items()},
            "price_date": self.price_date or None,
            "better_types": [{"type": name, "tps_all_users": figure.as_json()} for name, figure in self.better_types],
            "next_step": self.next_step or None,
            "times_as_fast": self.times_as_fast and round(self.times_as_fast, 2),
        }


class Planner:
    """Plans runs for the needs of a user, each amount of memory only once."""

    def __init__(self, needs: Needs) -> None:
        self.needs = needs
        self._plans: dict[tuple[object, ...], FitPlan | None] = {}

    def plan(self, candidate: Candidate, memories: Sequence[int]) -> FitPlan | None:
        """The plan on cards with these memories, with an f16 cache, else q8_0; None if neither holds all layers."""
        key = candidate.name, *memories
        if key not in self._plans:
            gpus = [
                imagined_gpu(n_bytes, f"GPU{i}" if len(memories) > 1 else "GPU") for i, n_bytes in enumerate(memories)
            ]
            self._plans[key] = self.plan_on(candidate, (*gpus, ANY_HOST))
        return self._plans[key]

    def plan_on(self, candidate: Candidate, devices: Sequence[Device]) -> FitPlan | None:
        """The same on these devices, the host last."""
        for kv_type in (GgmlType.F16, GgmlType.Q8_0):
            if not can_hold_heads(kv_type, candidate.model.geometry):
                continue
            wishes = Wishes(n_ctx=self.needs.n_ctx, kv_type=kv_type, n_seq_max=self.needs.users)
            plan = plan_model(candidate.model, settings_for(candidate.model, wishes), devices, -1)
            if plan.fits and not plan.left_out:
                return replace(plan, file_type=candidate.name)
        return None


def choice_on(
    machine: Machine,
    plan: FitPlan,
    needs: Needs,
    *,
    rates: Sequence[float] | None = None,
    speeds: Speeds | None = None,
) -> Choice:
    """The choice of a machine and a plan on it, without a reason yet.

    Args:
        rates: bytes per second that decoding reads on each device of the plan, 0 if unknown; None takes the cards'.
        speeds: those measured on this machine; None computes them from the rates.
    """
    if rates is None:
        rates = [card_rate(card) for card in machine.cards]
        rates += [0.0] * (len(plan.devices) - len(rates))
    tps, tps_mtp, tps_all = _speeds(plan, rates, needs, speeds) if plan.fits else (None, None, None)
    cards = machine.cards
    watts = machines.board_watts(cards)
    kwh = machines.energy(watts, tps_all)
    return Choice(
        machine=machine,
        file_type=plan.file_type,
        plan=plan,
        why="",
        tps=tps,
        tps_mtp=tps_mtp,
        tps_all=tps_all,
        price=machines.price(cards),
        price_date=machines.price_date(cards),
        board_watts=watts,
        power_supply=machines.power_supply(cards),
        ram_gb=_ram(cards, plan),
        kwh_per_million=kwh,
        cost_per_million=machines.cost(kwh, needs.kwh_price),
        bandwidth_gbs=None if len(plan.devices) > 1 else _bandwidth(plan, needs),
    )


def _ram(cards: Sequence[Card], plan: FitPlan) -> Figure:
    if any(card.kind == "integrated" for card in cards):
        return Figure(cards[0].memory_gb, "published", cards[0].source)
    return machines.ram(plan)


def _speeds(
    plan: FitPlan, rates: Sequence[float], needs: Needs, here: Speeds | None
) -> tuple[Figure | None, Figure | None, Figure | None]:
    """The figures (plain, with MTP, all users together)."""
    seconds = pass_seconds(plan, rates)
    if here is None:
        if seconds is None:
            return None, None, None
        drafting = pass_seconds(plan, rates, drafting=True) if plan.runs_mtp else None
        mtp = (1 + MTP_ACCEPTANCE) / drafting if drafting else 0.0
        here = Speeds(1 / seconds, mtp, "estimated", "from the bandwidth, a cache of 2048 tokens and MTP at 70 %")
    plain = Figure(here.tps, here.mark, here.source)
    mtp_figure = Figure(here.tps_mtp, here.mark, here.source) if here.tps_mtp and plan.runs_mtp else None
    if needs.users == 1:
        return plain, mtp_figure, max(plain, mtp_figure or plain, key=lambda figure: figure.value)
    on_gpu = len(plan.devices) > 1 and plan.settings.n_gpu_layers == plan.n_layers
    together = min(needs.users, MOST_TOGETHER) if on_gpu else 1
    slower = _slower(plan, together)
    source = f"a pass reads the weights once for {together}; without drafts; {here.source}"
    return plain, mtp_figure, Figure(here.tps * together / slower, "estimated", source)


def _slower(plan: FitPlan, together: int) -> float:
    """How much longer a pass takes for several conversations, by the bytes that it reads."""
    rates = [1.0] * len(plan.devices)
    return (pass_seconds(plan, rates, users=together) or 1.0) / (pass_seconds(plan, rates) or 1.0)


def _bandwidth(plan: FitPlan, needs: Needs) -> Figure:
    """The GB/s that the memory must deliver for the speed that is wanted of a CPU, which gains nothing by batches."""
    wanted = needs.users * needs.min_tps if needs.min_tps else _READING_TPS
    seconds = pass_seconds(plan, [1e9] * len(plan.devices)) or 0.0
    source = f"{wanted:g} tok/s of a file of {plan.model.file_bytes / GIB:.1f} GiB, every weight read once"
    return Figure(wanted * seconds, "estimated", source)


def with_better_types(choice: Choice, planner: Planner, better: Sequence[Candidate]) -> Choice:
    """The choice with the better file types that its cards hold fast enough."""
    found = []
    for candidate in better:
        plan = planner.plan(candidate, choice.machine.memories)
        other = choice_on(choice.machine, plan, planner.needs) if plan else None
        if other and other.tps_all and planner.needs.are_met_at(other.tps_each(planner.needs.users)):
            found.append((candidate.name, other.tps_all))
    return replace(choice, better_types=tuple(found))
