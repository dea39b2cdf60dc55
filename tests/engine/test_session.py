"""The session: drafting that changes nothing but speed, exact rollback, prefix reuse, cancelling, a full window.

The drafter of some tests is told what the target will say, now and then, so that every mix of right and wrong drafts is
met.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from mimo_gguf.core.errors import UsageError
from mimo_gguf.engine.drafting import Drafter
from mimo_gguf.engine.sampling import Sampler, SamplingOptions
from mimo_gguf.engine.session import Session, SessionOptions
from mimo_gguf.engine.single import Cancelled, next_token, read_prompt
from mimo_gguf.engine.slot import WindowFull
from mimo_gguf.engine.state import load_state, save_state
from mimo_gguf.llama.api import LlamaContext, LlamaModel, api
from tests.devices import only_on_a_cpu
from tests.engine.oracle import Oracle

PROMPT = [int(token) for token in np.random.default_rng(0).integers(0, 256, 70)]
GREEDY = SamplingOptions(temperature=0)
OPTIONS = SessionOptions(n_ctx=256, n_threads=1, adaptive=False, n_batch=32, n_ubatch_mtp=16)
PLAIN = replace(OPTIONS, mtp=False)


def generate(session: Session, n: int, sampling: SamplingOptions = GREEDY, prompt: Sequence[int] = PROMPT) -> list[int]:
    read_prompt(session, prompt)
    with Sampler(session.model, sampling, prompt) as sampler:
        tokens = [next_token(session, sampler) for _ in range(n)]
    session.drop_unfinished(session.slot)
    return tokens


def plain_tokens(model: LlamaModel, n: int, sampling: SamplingOptions = GREEDY) -> list[int]:
    with Session(model, PLAIN) as session:
        return generate(session, n, sampling)


@pytest.mark.parametrize("n_draft", [1, 2, 3])
@pytest.mark.parametrize("share_wrong", [0.0, 0.3, 1.0])
def test_greedy_with_mtp_is_greedy_without(tiny: LlamaModel, n_draft: int, share_wrong: float) -> None:
    wanted = plain_tokens(tiny, 90)
    with Session(tiny, replace(OPTIONS, n_draft=n_draft)) as session:
        Oracle(session, {session.slot: PROMPT + wanted}, share_wrong)
        assert generate(session, 90) == wanted
        accepted = sum(session.stats.n_accepted)
        assert (accepted == 0) == (share_wrong == 1.0)
        if share_wrong == 0.0:
            assert session.stats.n_passes <= 90 // (1 + n_draft) + 2


@pytest.mark.parametrize("n_draft", [1, 2, 3])
def test_greedy_is_the_same_with_further_heads(three_heads: LlamaModel, n_draft: int) -> None:
    wanted = plain_tokens(three_heads, 60)
    for hidden in ("pre", "post"):
        with Session(three_heads, replace(OPTIONS, n_draft=n_draft, hidden=hidden)) as session:
            assert generate(session, 60) == wanted
            assert session.stats.n_drafted[0] > 50


def test_greedy_is_the_same_when_quantized(tiny_q8: LlamaModel) -> None:
    wanted = plain_tokens(tiny_q8, 90)
    with Session(tiny_q8, OPTIONS) as session:
        Oracle(session, {session.slot: PROMPT + wanted}, 0.4)
        assert generate(session, 90) == wanted
        assert 0 < session.stats.n_accepted[0] < session.stats.n_drafted[0]


def test_sampling_draws_the_same_tokens_with_mtp(tiny: LlamaModel) -> None:
    """One sampler, one draw per token: penalties, DRY and the random stream advance as without drafts."""
    for seed in range(6):
        sampling = SamplingOptions(
            temperature=0.9, top_p=0.9, top_k=50, min_p=0.01, typical_p=0.98, repeat_penalty=1.2, presence_penalty=0.3,
            frequency_penalty=0.2, dry_multiplier=0.8, seed=seed,
        )  # fmt: skip
        wanted = plain_tokens(tiny, 60, sampling)
        with Session(tiny, replace(OPTIONS, n_draft=1 + seed % 3)) as session:
            Oracle(session, {session.slot: PROMPT + wanted}, 0.3, seed)
            assert generate(session, 60, sampling) == wanted
            assert session.stats.n_accepted[0] > 0


def test_drafter_state_is_what_a_fresh_session_has(tiny: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """After any mix of accepted and rejected drafts the MTP rows equal those of a prefill of the same tokens."""
    wanted = plain_tokens(tiny, 60)
    seen: list[np.ndarray] = []
    propose = Drafter._proposal

    def spy(drafter: Drafter, row: int) -> int | None:
        seen.append(drafter.context.logits(row).copy())
        return propose(drafter, row)

    with Session(tiny, replace(OPTIONS, n_draft=2)) as session, Session(tiny, replace(OPTIONS, n_draft=2)) as fresh:
        Oracle(session, {session.slot: PROMPT + wanted}, 0.3)
        generate(session, 60)
        assert session.drafter is not None
        del session.drafter.draft  # the oracle leaves
        monkeypatch.setattr(Drafter, "_proposal", spy)
        assert generate(session, 5, prompt=session.slot.tokens) == generate(fresh, 5, prompt=session.slot.tokens[:-4])
    n = len(seen) // 2
    assert n >= 6
    np.testing.assert_allclose(np.stack(seen[:n]), np.stack(seen[n:]), atol=0.02)


@pytest.mark.parametrize("keep", [69, 66, 62, 33, 1])
def test_drafter_state_after_going_back(tiny: LlamaModel, monkeypatch: pytest.MonkeyPatch, keep: int) -> None:
    """The same, after a prompt that shares only its first `keep` tokens with what was evaluated."""
    seen: list[np.ndarray] = []
    propose = Drafter._proposal

    def spy(drafter: Drafter, row: int) -> int | None:
        seen.append(drafter.context.logits(row).copy())
        return propose(drafter, row)

    monkeypatch.setattr(Drafter, "_proposal", spy)
    branch = [*PROMPT[:keep], 3, 1, 4]
    with Session(tiny, OPTIONS) as session, Session(tiny, OPTIONS) as fresh:
        read_prompt(session, PROMPT)
        assert generate(session, 3, prompt=branch) == generate(fresh, 3, prompt=branch)
    np.testing.assert_allclose(seen[0], seen[len(seen) // 2], atol=0.02)


def test_rollback_is_exact(tiny: LlamaModel) -> None:
    """A session stopped anywhere goes on like a fresh one with the same history."""
    wanted = plain_tokens(tiny, 80)
    for stop in (1, 2, 7, 20, 33):
        with Session(tiny, replace(OPTIONS, n_draft=3)) as session:
            Oracle(session, {session.slot: PROMPT + wanted}, 0.25, stop)
            said = generate(session, stop)
            assert session.slot.tokens == (PROMPT + said)[: len(session.slot.tokens)]
            assert len(session.slot.tokens) >= len(PROMPT) + stop - 1
            assert session.target.last_position() == len(session.slot.tokens) - 1
            branch = PROMPT + said[: stop // 2] + [5, 6, 7]
            continued = generate(session, 20, prompt=branch)
        with Session(tiny, PLAIN) as fresh:
            assert continued == generate(fresh, 20, prompt=branch)


def test_prefix_is_reused_and_only_the_rest_evaluated(tiny: LlamaModel) -> None:
    with Session(tiny, OPTIONS) as session:
        assert read_prompt(session, PROMPT) == 0
        assert read_prompt(session, PROMPT) == len(PROMPT)  # the same again: logits are still there
        assert read_prompt(session, [*PROMPT, 1, 2, 3]) == len(PROMPT)
        assert session.stats.n_prompt == len(PROMPT) + 3
        assert read_prompt(session, [*PROMPT, 1, 9]) == len(PROMPT) + 1
        assert session.slot.tokens == [*PROMPT, 1, 9]
        # Further back the trunk's state is gone, so the last token kept is evaluated again.
        assert read_prompt(session, [*PROMPT[:20], 7]) == 19
        assert read_prompt(session, [8, *PROMPT]) == 0
    with Session(tiny, PLAIN) as session:
        read_prompt(session, [*PROMPT, 1, 2])
        assert read_prompt(session, [*PROMPT, 1, 9]) == len(PROMPT) + 1
        assert read_prompt(session, PROMPT) == len(PROMPT) - 1


def test_the_window_ends_cleanly(tiny: LlamaModel) -> None:
    with Session(tiny, replace(OPTIONS, n_draft=3)) as session:
        read_prompt(session, PROMPT)
        said: list[int] = []
        with Sampler(tiny, GREEDY) as sampler, pytest.raises(WindowFull):
            while True:
                said.append(next_token(session, sampler))
        assert len(PROMPT) + len(said) == session.window + 1  # the last one drawn found no room
        assert said == plain_tokens(tiny, len(said))
        session.drop_unfinished(session.slot)
        with pytest.raises(WindowFull):
            read_prompt(session, [1] * session.window)
        assert generate(session, 3)  # and life goes on


def test_cancel_leaves_a_whole_session(tiny: LlamaModel) -> None:
    wanted = plain_tokens(tiny, 20)
    for mtp in (True, False):
        with Session(tiny, replace(OPTIONS, mtp=mtp)) as session:

            def stop(done: int, _: int, session: Session = session) -> None:
                if done >= 32:
                    session.slot.cancel()

            with pytest.raises(Cancelled):
                read_prompt(session, PROMPT, on_read=stop)
            assert session.slot.tokens == PROMPT[:32]
            assert session.target.last_position() == 31
            assert generate(session, 20) == wanted
            read_prompt(session, PROMPT)
            with Sampler(tiny, GREEDY) as sampler:
                next_token(session, sampler)
                session.slot.cancel()
                with pytest.raises(Cancelled):
                    next_token(session, sampler)
            assert generate(session, 20) == wanted


def test_the_abort_callback_reaches_llama(tiny: LlamaModel) -> None:
    """A cancel that comes while a batch is computed stops that batch, on the CPU."""
    only_on_a_cpu("llama.cpp asks between two operations only on a CPU")
    with Session(tiny, OPTIONS) as session:
        asked = []

        def abort() -> bool:
            asked.append(True)
            return len(asked) > 3

        assert session.target.decode(session._batch.fill(PROMPT[:32], 0, n_outputs=1), abort) == 2
        assert session.target.last_position() == -1
        assert generate(session, 5) == plain_tokens(tiny, 5)


def test_inserted_tokens_are_as_if_drawn(tiny: LlamaModel) -> None:
    """Evaluated in place, and counted by the penalties."""
    penalized = SamplingOptions(temperature=0, repeat_penalty=1.5, presence_penalty=1.0, penalty_last_n=40)
    for sampling in (GREEDY, penalized):
        with Session(tiny, OPTIONS) as session, Session(tiny, PLAIN) as fresh:
            read_prompt(session, PROMPT)
            with Sampler(tiny, sampling, PROMPT) as sampler:
                said = [next_token(session, sampler) for _ in range(5)]
                likely = generate(fresh, 3, GREEDY, [*PROMPT, *said])  # what is not said again once it is counted
                session.insert(session.slot, likely, sampler)
                rest = [next_token(session, sampler) for _ in range(10)]
            assert rest == generate(fresh, 10, sampling, [*PROMPT, *said, *likely])


def test_drafting_can_be_switched(tiny: LlamaModel) -> None:
    wanted = plain_tokens(tiny, 60)
    with Session(tiny, OPTIONS) as session:
        read_prompt(session, PROMPT)
        said = []
        with Sampler(tiny, GREEDY) as sampler:
            for i in range(60):
                session.drafting_allowed = i // 20 != 1
                said.append(next_token(session, sampler))
        assert said == wanted
        assert 35 <= session.stats.n_drafted[0] <= 42


def test_the_mtp_blocks_do_nothing_while_nothing_is_drafted(tiny: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Afterwards they see what comes from there on, and only that."""
    wanted = plain_tokens(tiny, 90)
    with Session(tiny, OPTIONS) as session, Sampler(tiny, GREEDY) as sampler:
        assert session.drafter is not None
        decoded: list[int] = []
        context = session.drafter.context
        decode = context.decode
        monkeypatch.setattr(context, "decode", lambda batch: decoded.append(batch.n_tokens) or decode(batch))
        session.drafting_allowed = False
        read_prompt(session, PROMPT)
        said = [next_token(session, sampler) for _ in range(40)]
        assert decoded == [] and context.last_position() == -1
        session.drafting_allowed = True
        n = len(session.slot.tokens)
        said += [next_token(session, sampler) for _ in range(20)]
        assert first_position(context) == n + 1 and len(decoded) > 15
        session.drafting_allowed = False
        said += [next_token(session, sampler) for _ in range(20)]
        session.drafting_allowed = True
        said += [next_token(session, sampler) for _ in range(10)]
        assert first_position(context) > n + 40 and session.stats.n_drafted[0] > 20
        assert said == wanted


def first_position(context: LlamaContext) -> int:
    return int(api().llama_memory_seq_pos_min(context.memory, 0))


def test_going_back_or_on_while_nothing_is_drafted(tiny: LlamaModel, tmp_path: Path) -> None:
    """To a text of which the MTP blocks have seen all, a part, or nothing; saved and loaded, too."""
    branches = [PROMPT[:20], [*PROMPT[:50], 3, 1, 4], [*PROMPT, 1, 5, 9], [2, 6, 5], PROMPT]
    for branch in branches:
        with Session(tiny, PLAIN) as plain:
            wanted = generate(plain, 30, prompt=branch)
        for saved in (False, True):
            with Session(tiny, OPTIONS) as session, Session(tiny, OPTIONS) as other:
                read_prompt(session, PROMPT[:50])
                session.drafting_allowed = False
                generate(session, 10, prompt=PROMPT)
                if saved:
                    save_state(session, session.slot, "key", tmp_path / "talk.kv")
                    assert load_state(other, other.slot, "key", tmp_path / "talk.kv")
                    session = other
                session.drafting_allowed = True
                assert generate(session, 30, prompt=branch) == wanted
                assert session.stats.n_drafted[0] > 15


def test_unlikely_drafts_are_not_proposed(tiny: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly those drafts are made whose probability, computed here in float64, is at least the least wanted."""
    wanted = plain_tokens(tiny, 60)
    seen: list[float] = []
    propose = Drafter._proposal

    def spy(drafter: Drafter, row: int) -> int | None:
        logits = drafter.context.logits(row).astype(np.float64)
        seen.append(float(np.exp(logits.max() - np.logaddexp.reduce(logits))))
        return propose(drafter, row)

    monkeypatch.setattr(Drafter, "_proposal", spy)
    counts = []
    for p_min in (0.05, 0.5, 1.0):
        seen.clear()
        with Session(tiny, replace(OPTIONS, p_min=p_min)) as session:
            assert generate(session, 60) == wanted
            n_likely = sum(probability >= p_min for probability in seen)
            assert session.stats.n_drafted[0] in (n_likely, n_likely - 1)  # the last one was perhaps not tested
            assert (n_likely == 0) == (session.stats.acceptance is None)
        counts.append(n_likely)
        assert len(seen) > 30
    assert counts[0] > counts[1] > counts[2] == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"n_draft": 0}, {"n_draft": 9}, {"n_draft": 1.5}, {"p_min": 1.5}, {"p_min": float("nan")}, {"n_ctx": -1},
        {"n_ctx": 1 << 31}, {"n_batch": 0}, {"n_ubatch_mtp": 0}, {"n_threads": -1}, {"n_threads": 100_000},
        {"hidden": "past"},
    ],
)  # fmt: skip
def test_options_that_make_no_sense(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        replace(OPTIONS, **changes)


@pytest.mark.parametrize("kv_type", ["i32", "q4_k", "no_such"])
def test_a_cache_of_a_type_llama_has_none_of(tiny: LlamaModel, kv_type: str) -> None:
    """Given an integer type llama.cpp ends the process."""
    with pytest.raises(UsageError):
        Session(tiny, replace(OPTIONS, kv_type=kv_type))


@pytest.mark.many_passes
def test_memory_stays_flat_over_many_turns(tiny: LlamaModel) -> None:
    """150 short turns with regeneration and cancelling, then as many again: nothing is left behind."""

    def turns(session: Session, seed: int) -> None:
        rng = np.random.default_rng(seed)
        history = list(PROMPT)
        for turn in range(150):
            if len(history) > 150 or turn % 40 == 0:
                history = list(PROMPT)
            history += rng.integers(0, 256, 3).tolist()
            sampling = SamplingOptions(temperature=1.0, seed=turn, dry_multiplier=0.5, grammar='root ::= ("a" | "b")+')
            said = generate(session, int(rng.integers(1, 4)), sampling, history)
            if turn % 3:
                history += said

    process = psutil.Process()
    with Session(tiny, OPTIONS) as session:
        turns(session, 0)
        gc.collect()
        before = process.memory_info().rss
        turns(session, 1)
        gc.collect()
        assert process.memory_info().rss - before < 4 << 20
    for _ in range(20):  # contexts are freed, too
        Session(tiny, OPTIONS).close()
    before = process.memory_info().rss
    for _ in range(60):
        Session(tiny, OPTIONS).close()
    assert process.memory_info().rss - before < 4 << 20
