"""Several conversations of different acceptance on made-up timings: who drafts, and what the sum of all gains by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mimo_gguf.engine import session as session_module
from mimo_gguf.engine.draft_control import DraftControl
from mimo_gguf.engine.draft_gate import FIRST_INTERVAL, LAST_INTERVAL, WARM_UP, RecentDrafts
from mimo_gguf.engine.drafting import DraftRequest
from mimo_gguf.engine.session import Session
from mimo_gguf.engine.slot import Slot
from mimo_gguf.llama.api import LlamaModel
from tests.engine.oracle import Oracle
from tests.engine.test_parallel import Server, Talk, alone, check_caches, together

Chance = Callable[[int], float]  # that a draft is right, by the number of the cycle


@dataclass
class Run:
    """What is to be expected of a simulation's decisions: tokens and seconds. And who drafted in which cycle."""

    n_tokens: float = 0.0
    seconds: float = 0.0
    drafted: list[list[int]] = field(default_factory=list)

    @property
    def speed(self) -> float:
        return self.n_tokens / self.seconds

    def share(self, conversation: int, first: int = 0) -> float:
        """The share of the cycles from `first` on in which a conversation drafted."""
        return float(np.mean([conversation in each for each in self.drafted[first:]]))


def always(share: float) -> Chance:
    return lambda cycle: share


def simulate(chances: Sequence[Chance], n_cycles: int, costs: tuple[float, float], seed: int = 0) -> Run:
    """Runs so many cycles. A plain one takes 1 second; with m drafting conversations costs[0] + costs[1] * m more."""
    rng, run = np.random.default_rng(seed), Run()
    control = DraftControl(n_drawing=len(chances))
    conversations = [RecentDrafts() for _ in chances]
    for cycle in range(n_cycles):
        for each in conversations:
            if not each.drafts:
                each.pass_by()
        drafting = [i for i, each in enumerate(conversations) if control.wants_draft() and each.drafts]
        right = {i: int(rng.random() < chances[i](cycle)) for i in drafting}
        seconds = 1.0 + bool(drafting) * costs[0] + len(drafting) * costs[1]
        run.n_tokens += len(chances) + sum(chances[i](cycle) for i in drafting)
        run.seconds += seconds
        for i in drafting:
            conversations[i].record(right[i])
        seconds *= rng.lognormal(0, 0.03) * (10 if rng.random() < 0.01 else 1)  # or a page fault
        n_tokens = len(chances) + sum(right.values())
        control.record(drafted=len(drafting), seconds=seconds, n_tokens=n_tokens, all_recent=conversations)
        run.drafted.append(drafting)
    return run


ON_CPU, ON_GPU = (0.03, 0.3), (0.1, 0.02)


@pytest.mark.parametrize("seed", range(3))
def test_one_stops_and_its_neighbour_goes_on(seed: int) -> None:
    run = simulate([always(0.9), always(0.05)], 2000, ON_CPU, seed=seed)
    assert run.share(0, 100) > 0.95
    assert run.share(1, 100) < 0.05


@pytest.mark.parametrize("costs", [ON_CPU, ON_GPU, (0.0, 0.15), (0.3, 0.01)])
@pytest.mark.parametrize(
    "shares", [(0.9, 0.05), (0.9, 0.9), (0.0, 0.1), (0.95, *[0.0] * 7), (*[0.9] * 7, 0.0), (0.9, 0.7, 0.5, 0.3, 0.1)]
)
def test_the_sum_is_never_slower(shares: tuple[float, ...], costs: tuple[float, float]) -> None:
    """Neither than without drafts, nor than with drafts of all, and measuring costs little."""
    run = simulate([always(share) for share in shares], 1200, costs)
    assert run.speed > 0.97 * max(plain(shares), all_draft(shares, costs))


def plain(shares: Sequence[float]) -> float:
    """Tokens per second without drafts."""
    return float(len(shares))


def all_draft(shares: Sequence[float], costs: tuple[float, float]) -> float:
    """Tokens per second if every conversation drafts."""
    return (len(shares) + sum(shares)) / (1 + costs[0] + len(shares) * costs[1])


def test_leaving_some_out_is_faster_than_all_or_none() -> None:
    """One good conversation among seven bad ones: all together lose, the good one alone gains."""
    shares, costs = (0.95, *[0.0] * 7), (0.0, 0.06)
    run = simulate([always(share) for share in shares], 2500, costs)
    assert all_draft(shares, costs) < 0.8 * plain(shares)
    assert run.speed > 1.03 * plain(shares)
    assert run.share(0, 100) > 0.95


def test_it_follows_a_conversation_whose_text_changes() -> None:
    """Prose in the middle third, code before and after."""
    changing: Chance = lambda cycle: 0.0 if 1000 <= cycle < 2000 else 0.9  # noqa: E731
    run = simulate([changing, always(0.9)], 3400, ON_CPU)
    thirds = [np.mean([0 in each for each in run.drafted[first:last]]) for first, last in
              ((100, 1000), (1050, 2000), (2800, 3400))]  # fmt: skip
    assert thirds[0] > 0.95 and thirds[1] < 0.15 and thirds[2] > 0.95
    assert run.share(1, 100) > 0.95


def test_it_is_tried_ever_more_rarely_and_its_text_is_seen_before() -> None:
    recent = RecentDrafts()
    pauses: list[int] = []
    for _ in range(7):
        while recent.worth > 0.5:
            recent.record(0)
        recent.leave_out()
        assert not recent.drafts and recent.worth == 0
        seen = []
        while not recent.drafts:
            seen.append(recent.wants_rows)
            recent.pass_by()
        pauses.append(len(seen))
        assert sum(seen) == WARM_UP and all(seen[-WARM_UP:])
        assert recent.worth == 1, "what came before says nothing any more"
    assert pauses[0] == FIRST_INTERVAL and pauses[1] == 2 * FIRST_INTERVAL and pauses[-1] == LAST_INTERVAL


def test_one_that_would_pay_is_called_back() -> None:
    """Left out among eight, where it did not pay; alone it is tried soon."""
    recent = RecentDrafts()
    recent.record(0)
    recent.leave_out()
    control = DraftControl(n_drawing=2)
    neighbour = RecentDrafts()
    for _ in range(20):  # another draft costs nothing here, so that few right ones are enough
        recent.record(1)
        for drafted in (0, 1, 2):
            control.record(drafted=drafted, seconds=1.2 if drafted else 1.0, n_tokens=3, all_recent=[recent, neighbour])
    for _ in range(WARM_UP):
        assert not recent.drafts
        recent.pass_by()
    assert recent.drafts


def test_one_that_is_alone_now_is_called_back() -> None:
    recent = RecentDrafts()
    recent.record(0)
    recent.leave_out()
    control, n_plain = DraftControl(n_drawing=1), 0
    while not recent.drafts:
        control.record(drafted=0, seconds=1.0, n_tokens=1, all_recent=[recent])
        recent.pass_by()
        n_plain += 1
    assert n_plain <= WARM_UP


class OneIsWrong(Oracle):
    """Every draft is right, except those for the conversation whose text begins with `wrong`."""

    wrong = 0

    def _answer(self, request: DraftRequest) -> list[int]:
        slot: Slot = self._session.slots[request.rows.seq_id]
        return [(t + (slot.tokens[0] == self.wrong)) % 256 for t in super()._answer(request)]


def test_in_a_session_only_the_one_with_wrong_drafts_stops(tiny: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each says what it says alone, to the token. A pass takes a second on this clock, and 0.3 more for each draft."""
    talks = [Talk([7, 8, 9], 220), Talk([40, 41], 120)]
    answers = alone(tiny, talks)
    now = [0.0]
    monkeypatch.setattr(session_module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    with Session(tiny, together(2, adaptive=True)) as session:
        decode = session.target.decode

        def timed(batch: Any, stop_when: Callable[[], bool] | None = None) -> int:
            now[0] += 1.0 + 0.3 * max(batch.n_tokens - 2, 0)
            return decode(batch, stop_when)

        session.target.decode = timed  # type: ignore[method-assign,assignment]
        oracle = OneIsWrong(session, {}, 0.0)
        oracle.wrong = talks[1].prompt[0]
        Server(session, oracle, answers).serve(talks)
        right, wrong = (slot.stats for slot in session.slots)
        assert [talk.said for talk in talks] == answers
        check_caches(session)
    assert right.acceptance is not None and right.acceptance > 0.97
    assert right.n_drafted[0] > 0.85 * right.n_passes
    assert wrong.acceptance == 0 and 3 <= wrong.n_drafted[0] < 0.1 * wrong.n_passes
    assert now[0] < 0.9 * min(220 * 1.0, 120 * 1.6), "without drafts, and with drafts of both"
