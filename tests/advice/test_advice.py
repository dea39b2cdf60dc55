"""Advice: no budget makes the best choice worse, what is advised meets the needs by the planner, measured counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimo_gguf.advice import here, run
from mimo_gguf.advice.budget import STEP_UP, buyable, choose_to_buy, worth
from mimo_gguf.advice.choices import Choice, Planner
from mimo_gguf.advice.machines import CPU, REST_WATTS, TWO_CARDS, UNIFIED
from mimo_gguf.advice.needs import Needs
from mimo_gguf.advice.run import Advice, advise
from mimo_gguf.core.errors import DoesNotFit, UsageError
from mimo_gguf.core.units import GIB
from mimo_gguf.fit.solver import Wishes, settings_for
from mimo_gguf.fit.speeds import card_speeds
from mimo_gguf.fit.weigh import plan_model
from mimo_gguf.hardware.cards import cards, find_card
from mimo_gguf.hardware.devices import Device, imagined_gpu
from mimo_gguf.hardware.kept_speeds import KeptSpeed, keep_speed, place_of, shapes_of, speeds_file
from mimo_gguf.hardware.nvml import NvidiaCard
from mimo_gguf.store.choosing import TYPES, candidates_of

KNOWN = CANDIDATES, _ = candidates_of(None, [], TYPES)
SMALL, *BETTER = CANDIDATES
PLANNER = Planner(Needs(users=2, ctx=8192, min_tps=20))
HOST = Device("CPU", "host memory", "cpu", "CPU", 30 * GIB, 32 * GIB)


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a card, with 30 GiB free, on which nothing was measured."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(run, "list_devices", lambda: (HOST,))
    monkeypatch.setattr(run, "host_device", lambda: HOST)
    monkeypatch.setattr(
        run, "candidates_of", lambda src, types, usual: candidates_of(src, types, usual) if types else KNOWN
    )


@pytest.fixture(scope="module")
def everything() -> list[Choice]:
    """What can be bought for these needs, worked out once."""
    return list(buyable(SMALL, PLANNER))


def best_for(budget: float, everything: list[Choice]) -> Choice | None:
    PLANNER.needs = replace(PLANNER.needs, budget_usd=budget)
    module = "mimo_gguf.advice.budget"
    with mock.patch(f"{module}.buyable", return_value=everything), mock.patch(f"{module}.cpu_alone", return_value=()):
        try:
            return choose_to_buy(SMALL, [], PLANNER)[0]
        except DoesNotFit:
            return None


@settings(deadline=None, max_examples=60)
@given(st.floats(1, 5000), st.floats(1, 5000))
def test_a_larger_budget_never_gives_a_worse_best_choice(everything: list[Choice], one: float, other: float) -> None:
    smaller, larger = best_for(min(one, other), everything), best_for(max(one, other), everything)
    if smaller is not None:
        assert larger is not None and worth(larger) >= worth(smaller)
        assert smaller.price is not None and smaller.price.value <= min(one, other)


def test_what_is_advised_meets_the_needs_by_the_plan_of_fit() -> None:
    """`fit --gpu CARD --ctx ALL --parallel USERS` plans the same need, and says that it fits."""
    advice = advise(budget=2000, users=4, ctx=16384, min_tps=15)
    bought = [choice for choice in advice.choices if choice.machine.kind != CPU]
    assert len(bought) >= 3
    for choice in bought:
        s = choice.plan.settings
        wishes = Wishes(n_ctx=4 * 16384, kv_type=s.type_k, n_seq_max=4)
        gpus = [imagined_gpu(card.memory_bytes, f"GPU{i}") for i, card in enumerate(choice.machine.cards)]
        plan = plan_model(SMALL.model, settings_for(SMALL.model, wishes), (*gpus, HOST), None)
        assert plan.fits and plan.settings.n_gpu_layers == plan.n_layers
        assert list(plan.needed_bytes.values()) == list(choice.plan.needed_bytes.values()), choice.name
        assert choice.tps_all and choice.tps_all.value / 4 >= 15
        assert choice.price and choice.price.value == sum(c.price_usd for c in choice.machine.cards) <= 2000
        assert choice.ram_gb.value >= choice.plan.devices[-1].needed_bytes / GIB
        assert choice.disk_gib.value * GIB == SMALL.model.file_bytes


def test_speeds_of_one_user_are_those_of_gpus() -> None:
    advice = advise(budget=900)
    for choice in advice.choices:
        if len(choice.machine.cards) == 1 and choice.plan.settings.type_k.name == "F16":
            plain, drafting = card_speeds(SMALL.model, choice.machine.cards[0])
            assert choice.tps and choice.tps_mtp and choice.tps_all
            assert (choice.tps.value, choice.tps_mtp.value) == pytest.approx((plain, drafting), rel=1e-3)
            assert choice.tps_all.value == choice.tps_mtp.value


def test_each_choice_is_what_its_reason_says() -> None:
    advice = advise(budget=700, kwh_price=0.3)
    affordable = [c for c in buyable(SMALL, Planner(Needs())) if c.price and c.price.value <= 700]
    reasons = ("the fastest within the budget", "the cheapest that does what is asked", "the most speed for the money")
    by_reason = {reason: c for reason in reasons for c in advice.choices if reason in c.why.lower()}
    assert by_reason["the fastest within the budget"].speed == max(c.speed for c in affordable)
    cheapest = by_reason["the cheapest that does what is asked"].price
    assert cheapest and cheapest.value == min(c.price.value for c in affordable if c.price)
    value = by_reason["the most speed for the money"]
    assert value.price
    assert value.speed / value.price.value == max(c.speed / c.price.value for c in affordable if c.price)
    kinds = [c.machine.kind for c in advice.choices]
    assert UNIFIED in kinds and kinds[-1] == CPU
    for choice in advice.choices:
        if choice.kwh_per_million and choice.board_watts and choice.cost_per_million:
            joules = choice.board_watts.value / choice.speed * 1e6
            assert choice.kwh_per_million.value == pytest.approx(joules / 3.6e6)
            assert choice.cost_per_million.value == pytest.approx(0.3 * joules / 3.6e6)
        if choice.next_step and choice.price:
            name, _, rest = choice.next_step.partition(" for ")
            assert find_card(name).price_usd == float(rest.split()[0]) > choice.price.value


def test_two_cards_are_advised_where_one_is_too_small() -> None:
    """16 conversations of 8192 tokens need 20 GiB: no single card below 900 USD holds them as fast as two do."""
    advice = advise(budget=1000, users=16, ftype="Q6_K")
    (pair,) = [choice for choice in advice.choices if choice.machine.kind == TWO_CARDS][:1]
    card = pair.machine.cards[0]
    assert Planner(advice.needs).plan(candidates_of(None, ["Q6_K"], ())[0][0], [card.memory_bytes]) is None
    assert pair.price and pair.price.value == 2 * card.price_usd
    assert pair.board_watts is None or pair.board_watts.value == 2 * card.board_watts


def test_nothing_for_the_budget_says_what_the_cheapest_is() -> None:
    with pytest.raises(DoesNotFit) as caught:
        advise(budget=20)
    budget = float(str(caught.value.hint).rpartition(" ")[2])
    assert advise(budget=budget).best is not None
    with pytest.raises(DoesNotFit):
        advise(budget=budget - 1)
    with pytest.raises(DoesNotFit, match="no card of a known price"):
        advise(budget=1e6, min_tps=1e5)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"budget": 0}, "buys nothing"), ({"budget": -5}, "buys nothing"), ({"budget": float("nan")}, "buys nothing"),
        ({"have": ["Voodoo 2"]}, "no card"), ({"have": [""]}, "no card"), ({"ftype": "Q99"}, "Q99"),
        ({"ctx": 40000}, "40000"), ({"ctx": -1}, "-1"), ({"users": 0}, "--users 0"), ({"users": 999}, "--users 999"),
        ({"min_tps": -1}, "--min-tps"), ({"min_tps": float("nan")}, "nan"), ({"kwh_price": -0.1}, "--kwh-price"),
    ],
)  # fmt: skip
def test_wrong_wishes_are_told(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        advise(**wrong)
    assert caught.value.hint


def test_the_model_s_own_context() -> None:
    assert advise(budget=900, ctx=0).needs.ctx == SMALL.model.geometry.context_length


# ---- from what is there


@pytest.fixture
def no_other_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the catalogue out of the changes, where it only takes time."""
    monkeypatch.setattr(here, "buyable", lambda *_: iter(()))


def names(advice: Advice) -> list[str]:
    return [choice.name for choice in advice.choices]


def test_a_card_that_is_there() -> None:
    advice = advise(have=["RTX 3060 12GB"])
    assert advice.now is not None and advice.now.plan.fits and advice.now.file_type == "Q8_0"
    assert advice.best is not None and advice.best.name == "Q4_K_M instead of Q8_0"
    assert advice.best.times_as_fast == pytest.approx(advice.best.speed / advice.now.speed)
    assert not advice.notes
    for choice in advice.choices[1:]:
        assert (
            choice.price
            and choice.speed >= STEP_UP * advice.now.speed
            and "instead of the RTX 3060 12GB" in choice.name
        )
    cheap = advise(have=["RTX 3060 12GB"], budget=600).choices
    assert cheap and all(choice.price and choice.price.value <= 600 for choice in cheap)


def test_a_name_that_leaves_the_size_open_is_told(no_other_cards: None) -> None:
    assert "taking the RTX 3060 8GB" in advise(have=["RTX 3060"]).notes[0]


def test_a_second_card_is_named_if_one_is_too_small(no_other_cards: None) -> None:
    advice = advise(have=["GTX 1070"], users=4, ftype="Q8_0")
    assert advice.now is not None and advice.now.plan.settings.n_gpu_layers < advice.now.plan.n_layers
    assert "a second GTX 1070" in names(advice) and all("gain" not in choice.why for choice in advice.choices)
    assert advise(have=["GTX 1070"], users=4, ftype="Q8_0", budget=900).choices == ()  # its price is not known
    assert "a second RTX 3090" not in names(advise(have=["RTX 3090"]))


def test_a_laptop_s_card_is_not_exchanged() -> None:
    others = [name for name in names(advise(have=["RTX 4090 Laptop"])) if " instead of Q8_0" not in name]
    assert others and all("another computer" in name for name in others)


def test_the_memory_of_a_cpu_serves_all_users() -> None:
    def bandwidth(**needs: Any) -> float:
        cpu = advise(budget=900, **needs).choices[-1]
        assert cpu.machine.kind == CPU and cpu.bandwidth_gbs
        return cpu.bandwidth_gbs.value

    assert bandwidth(users=3, min_tps=4, ctx=2048) == pytest.approx(3 * bandwidth(min_tps=4, ctx=2048), rel=0.01)


def test_a_card_that_nothing_drives_is_said_to_be_so(no_other_cards: None) -> None:
    advice = advise(have=["Tesla K20X"])
    assert "Kepler" in advice.notes[0] and advice.now is not None and advice.now.machine.cards == ()


def test_this_machine_without_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    advice = advise()
    assert advice.now is not None and advice.now.tps is None and "bench MODEL --save" in advice.now.why
    assert advice.best is not None and advice.best.name == "Q4_K_M instead of Q8_0" and advice.best.times_as_fast
    small = replace(HOST, free_bytes=2 * GIB)
    monkeypatch.setattr(run, "list_devices", lambda: (small,))
    advice = advise()
    assert advice.now is not None and not advice.now.plan.fits and "are missing on CPU" in advice.now.why
    assert names(advice)[-1] == "more RAM"


def test_a_card_that_llama_cpp_does_not_use_costs_nothing(
    monkeypatch: pytest.MonkeyPatch, no_other_cards: None
) -> None:
    unused = NvidiaCard("NVIDIA GeForce RTX 4060", "1", 7 * GIB, 8 * GIB, ())
    monkeypatch.setattr(here, "nvidia_cards", lambda: (unused,))
    advice = advise()
    assert advice.best is not None and advice.best.name == "llama.cpp with CUDA, for the RTX 4060"
    assert advice.best.price and advice.best.price.value == 0


def test_what_was_measured_here_is_used(monkeypatch: pytest.MonkeyPatch, no_other_cards: None) -> None:
    card = replace(imagined_gpu(12 * GIB, "CUDA0", "NVIDIA GeForce RTX 3060"), pointer=1)
    monkeypatch.setattr(run, "list_devices", lambda: (card, HOST))
    speed = KeptSpeed(
        place=place_of([card], -1), model="mine.gguf", file_type="Q8_0", shapes=shapes_of(CANDIDATES[-1].model),
        tps=29.0, tps_mtp=40.0, n_draft=1, read_bytes=8_000_000_000, date="2026-11-28", llama_cpp="0c1e57098",
    )  # fmt: skip
    keep_speed(speed)
    now = advise().now
    assert now is not None and now.tps and now.tps_mtp and now.file_type == "Q8_0"
    assert (now.tps.value, now.tps_mtp.value, now.tps.mark) == (29.0, 40.0, "measured")
    smaller = advise().best
    assert smaller is not None and smaller.tps and smaller.tps.mark == "estimated" and smaller.tps.value > 29
    together = advise(users=2).now
    assert together is not None and together.tps_all and together.tps_all.mark == "estimated"
    assert 29 < together.tps_all.value < 58
    monkeypatch.setattr(run, "list_devices", lambda: (replace(card, description="NVIDIA GeForce RTX 3080"), HOST))
    other = advise().now
    assert other is not None and other.tps and other.tps.mark == "estimated" and "mine.gguf" not in other.tps.source
    speeds_file().write_text("{")
    assert "not valid JSON" in advise().notes[-1]


def test_the_estimated_power_supply_is_in_the_middle_of_the_stated_ones() -> None:
    above = sorted(c.power_supply_watts - c.board_watts for c in cards() if c.power_supply_watts)
    assert abs(above[len(above) // 2] - REST_WATTS) <= 10
