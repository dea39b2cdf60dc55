"""Cards judged: which run the model, how fast, and which to buy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.geometry import STEP35
from mimo_gguf.core.units import GIB
from mimo_gguf.fit.speeds import card_speeds
from mimo_gguf.fit.verdicts import (
    Expectation,
    Filters,
    Verdict,
    best_picks,
    expectation,
    judge_cards,
    select,
)
from mimo_gguf.fit.weigh import plan_model
from mimo_gguf.hardware.cards import cards, find_card
from mimo_gguf.hardware.devices import host_device, imagined_gpu
from mimo_gguf.memory.run import RunSettings
from tests import full_size


@pytest.fixture(scope="module")
def verdicts() -> list[Verdict]:
    return judge_cards(full_size.sizes(STEP35, "Q4_K_M"), 8192)


def test_a_plan_on_a_known_card_has_an_card_speeds() -> None:
    """There is a speed only if all layers are on one supported card, and one with MTP only if the run drafts."""
    sizes = full_size.sizes(STEP35, "Q4_K_M")
    card = find_card("RTX 4060")

    def expected(name: str, gib: float, **changes: Any) -> Expectation | None:
        devices = (imagined_gpu(int(gib * GIB), description=name), host_device())
        return expectation(plan_model(sizes, RunSettings(n_ctx=4096, **changes), devices))

    found = expected("NVIDIA GeForce RTX 4060", 8)
    assert found == Expectation(card, *card_speeds(sizes, card))
    assert str(found) == "about 41 tok/s, 61 with MTP drafting, from the bandwidth of the RTX 4060"
    plain = expected("NVIDIA GeForce RTX 4060", 8, mtp=False)
    assert plain is not None and plain.tps == found.tps and not plain.tps_mtp
    for name, gib in (("", 8), ("RTX 4060", 4), ("Tesla K80 (each half)", 12)):
        assert expected(name, gib) is None
    assert expected("RTX 4060", 8, n_seq_max=2) is None


def test_a_verdict_agrees_with_the_plan(verdicts: list[Verdict]) -> None:
    sizes = full_size.sizes(STEP35, "Q4_K_M")
    for name in ("GTX 1050 Ti", "RTX 2060 6GB", "RTX 4060", "RX 7800 XT"):
        verdict = next(v for v in verdicts if v.card.name == name)
        devices = (imagined_gpu(verdict.card.memory_bytes), host_device())
        plain = plan_model(sizes, RunSettings(n_ctx=8192), devices, -1)
        assert (verdict.kv_type == "f16") == plain.devices[0].fits, name
    by_memory = sorted((v for v in verdicts if v.card.vendor != "apple"), key=lambda v: v.card.memory_gb)
    fits = [v.fits for v in by_memory]
    assert fits == sorted(fits)  # more memory never holds less


def test_speed_follows_bandwidth_and_bytes() -> None:
    small, large = full_size.sizes(STEP35, "Q4_K_M"), full_size.sizes(STEP35, "Q8_0")
    slow, fast = find_card("RTX 4060"), find_card("RTX 4090")
    ratio = card_speeds(small, fast)[0] / card_speeds(small, slow)[0]
    assert ratio == pytest.approx(fast.bandwidth_gbs / slow.bandwidth_gbs)
    assert card_speeds(small, fast)[0] > 1.5 * card_speeds(large, fast)[0]
    plain, drafting = card_speeds(small, fast)
    assert 1.3 < drafting / plain < 1.6
    assert card_speeds(full_size.sizes("qwen2", "Q4_K_M"), fast)[1] == 0


def test_filters_and_orders(verdicts: list[Verdict]) -> None:
    memory = [v.card.memory_gb for v in select(verdicts, Filters())]
    assert memory == sorted(memory) and len(memory) == len(cards())
    cheap = select(verdicts, Filters(budget_usd=200, sort="price"))
    assert cheap and all(0 < v.card.price_usd <= 200 for v in cheap)
    fast = select(verdicts, Filters(min_tps=60, vendor="amd", sort="speed"))
    assert fast and all(v.best_tps >= 60 and v.card.vendor == "amd" and v.fits for v in fast)
    assert [v.best_tps for v in fast] == sorted((v.best_tps for v in fast), reverse=True)
    for bad in ({"vendor": "3dfx"}, {"sort": "beauty"}, {"budget_usd": -1.0}):
        with pytest.raises(UsageError):
            Filters(**bad)


def test_the_best_picks_are_what_they_are_called(verdicts: list[Verdict]) -> None:
    picks = best_picks(verdicts, Filters(budget_usd=300))
    assert 2 <= len(picks) <= 3
    able = [v for v in verdicts if v.is_useful and 0 < v.card.price_usd <= 300]
    for verdict, reason in picks:
        assert verdict in able
        if "fastest" in reason:
            assert verdict.best_tps == max(v.best_tps for v in able)
        if "memory" in reason:
            assert verdict.card.memory_gb == max(v.card.memory_gb for v in able)
        if "money" in reason:
            assert verdict.best_tps / verdict.card.price_usd == max(v.best_tps / v.card.price_usd for v in able)
    with pytest.raises(UsageError):
        best_picks(verdicts, Filters(budget_usd=10))


def test_of_equals_the_cheapest_is_picked(verdicts: list[Verdict]) -> None:
    best = next(verdict for verdict in verdicts if verdict.card.name == "RTX 4090")
    dear, cheap = (
        replace(best, card=replace(best.card, name=name, price_usd=price)) for name, price in (("A", 900), ("B", 700))
    )
    for order in ([dear, cheap], [cheap, dear]):
        assert [verdict.card.name for verdict, _ in best_picks(order, Filters())] == ["B"]
