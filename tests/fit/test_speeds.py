"""Expected speeds: the same by plan and by card, and as measured here if they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mimo_gguf.core.geometry import STEP35
from mimo_gguf.core.units import GIB
from mimo_gguf.fit import speeds
from mimo_gguf.fit.plan import FitPlan
from mimo_gguf.fit.speeds import MTP_ACCEPTANCE, card_rate, card_speeds, pass_seconds, plan_place, speeds_here
from mimo_gguf.fit.verdicts import expectation, judge_cards
from mimo_gguf.fit.weigh import plan_model
from mimo_gguf.hardware.cards import find_card
from mimo_gguf.hardware.devices import Device, host_device, imagined_gpu
from mimo_gguf.hardware.kept_speeds import KeptSpeed, keep_speed, shapes_of
from mimo_gguf.memory.run import RunSettings
from tests import full_size

SIZES = full_size.sizes(STEP35, "Q4_K_M")
CARD = find_card("RTX 4060")


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


def real(name: str = "NVIDIA GeForce RTX 4060", gib: int = 8) -> Device:
    """A card as if it were in this machine."""
    return replace(imagined_gpu(gib * GIB, "CUDA0", name), pointer=1)


def plan_on(*gpus: Device, **settings: object) -> FitPlan:
    return plan_model(SIZES, RunSettings(n_ctx=4096, **settings), (*gpus, host_device()))  # type: ignore[arg-type]


def kept(plan: FitPlan, **changes: object) -> KeptSpeed:
    speed = KeptSpeed(
        place=plan_place(plan), model="MiMo-7B-RL-Q4_K_M.gguf", file_type="Q4_K_M", shapes=shapes_of(plan.model),
        tps=37.0, tps_mtp=52.0, n_draft=1, read_bytes=4_200_000_000, date="2026-11-28", llama_cpp="0c1e57098",
    )  # fmt: skip
    return replace(speed, **changes)  # type: ignore[arg-type]


def test_a_pass_on_one_card_takes_what_the_card_is_said_to_take() -> None:
    plan, rate = plan_on(imagined_gpu(8 * GIB)), card_rate(CARD)
    plain, drafting = pass_seconds(plan, [rate, 0]), pass_seconds(plan, [rate, 0], drafting=True)
    assert plain and drafting
    assert (1 / plain, (1 + MTP_ACCEPTANCE) / drafting) == pytest.approx(card_speeds(SIZES, CARD), rel=1e-4)


def test_two_cards_take_turns_and_users_share_the_weights() -> None:
    one = plan_on(imagined_gpu(8 * GIB))
    two = plan_on(imagined_gpu(4 * GIB, "GPU0"), imagined_gpu(4 * GIB, "GPU1"))
    assert two.fits and all(fit.memory.weights.blocks for fit in two.devices[:-1])
    plain = pass_seconds(one, [1e9, 0])
    assert plain == pytest.approx(pass_seconds(two, [1e9, 1e9, 0]), rel=1e-3)
    slower = pass_seconds(two, [1e9, 5e8, 0])
    assert plain and slower and plain < slower < 2 * plain
    four = plan_model(SIZES, RunSettings(n_ctx=4 * 4096, n_seq_max=4), (imagined_gpu(12 * GIB), host_device()))
    together = pass_seconds(four, [1e9, 0], users=4)
    assert together and plain < together < 1.3 * plain


def test_without_a_rate_that_counts_nothing_is_known() -> None:
    partly = plan_model(SIZES, RunSettings(n_ctx=4096), (imagined_gpu(4 * GIB), host_device()), 20)
    assert pass_seconds(partly, [1e9, 0]) is None and pass_seconds(partly, [1e9, 1e9]) is not None
    assert pass_seconds(plan_on(), [0]) is None


def test_a_measured_speed_is_used_on_the_same_card_alone() -> None:
    plan = plan_on(real())
    before = expectation(plan)
    assert before is not None and before.mark == "estimated" and before.card == CARD
    keep_speed(kept(plan))
    found = expectation(plan)
    assert found is not None and (found.tps, found.tps_mtp, found.mark) == (37.0, 52.0, "measured")
    words = "measured here on 2026-11-28 with MiMo-7B-RL-Q4_K_M.gguf"
    assert str(found) == f"37 tok/s, 52 with MTP drafting, {words}"
    assert found.as_json() == {"card": "RTX 4060", "tps": 37.0, "tps_mtp": 52.0, "mark": "measured", "source": words}
    for other in (
        plan_on(imagined_gpu(8 * GIB, description="NVIDIA GeForce RTX 4060")),  # not this machine
        plan_on(real("NVIDIA GeForce RTX 4070", 12)),
        plan_on(real(gib=16)),
        plan_on(real(), n_seq_max=2),
        plan_model(SIZES, RunSettings(n_ctx=4096), (real(), host_device()), 20),  # partly on the CPU
        plan_on(),
    ):
        again = expectation(other)
        assert again is None or again.mark == "estimated", other.devices
    plain = expectation(plan_on(real(), mtp=False))
    assert plain is not None and (plain.tps, plain.tps_mtp) == (37.0, 0.0)


def test_a_speed_of_another_driver_is_not_used() -> None:
    plan = plan_on(real())
    keep_speed(kept(plan, place=replace(plan_place(plan), driver="NVIDIA 1.0")))
    assert speeds_here(plan) is None


def test_another_file_is_estimated_from_the_bytes_that_were_read() -> None:
    plan = plan_on(real(gib=12))
    keep_speed(kept(plan))
    large = full_size.sizes(STEP35, "Q8_0")
    found = expectation(plan_model(large, RunSettings(n_ctx=4096), (real(gib=12), host_device())))
    assert found is not None and found.mark == "estimated" and "estimated from MiMo-7B-RL-Q4_K_M.gguf" in str(found)
    plain, _ = card_speeds(large, CARD)
    mine, _ = card_speeds(SIZES, CARD)
    assert found.tps / 37.0 == pytest.approx(plain / mine, rel=0.1)
    assert found.tps_mtp / found.tps == pytest.approx(52 / 37)
    keep_speed(kept(plan, read_bytes=3_000_000))  # a toy, which says nothing about a large one
    other = expectation(plan_model(large, RunSettings(n_ctx=4096), (real(gib=12), host_device())))
    assert other is not None and other.source == "" and other.tps == plain


def test_the_cpu_alone_has_a_speed_once_it_was_measured() -> None:
    plan = plan_on()
    assert expectation(plan) is None
    keep_speed(kept(plan, tps=6.25, tps_mtp=0.0))
    found = expectation(plan)
    assert found is not None and found.card is None
    assert str(found) == "6.2 tok/s, measured here on 2026-11-28 with MiMo-7B-RL-Q4_K_M.gguf"


def test_a_verdict_on_the_card_that_is_here_is_as_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_speed(kept(plan_on(real())))
    monkeypatch.setattr(speeds, "list_devices", lambda: (real(), host_device()))
    here, other = judge_cards(SIZES, 4096, [CARD, find_card("RTX 4070")])
    assert (here.tps, here.tps_mtp, here.speed_mark) == (37.0, 52.0, "measured")
    assert other.speed_mark == "estimated" and other.tps == card_speeds(SIZES, other.card)[0]
    assert here.as_json()["speed_source"].startswith("measured here")
    monkeypatch.setattr(speeds, "list_devices", lambda: (real("NVIDIA GeForce RTX 4070", 12), host_device()))
    assert {verdict.speed_mark for verdict in judge_cards(SIZES, 4096, [CARD, other.card])} == {"estimated"}
