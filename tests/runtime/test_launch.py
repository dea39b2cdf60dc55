"""Starting by the plan: what is chosen is what runs, pins are kept, and a failed allocation means one step down."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mimo_gguf.core.errors import BackendError, DoesNotFit, UsageError
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.gguf_file import read_gguf
from mimo_gguf.core.units import GIB, MIB
from mimo_gguf.engine.session import Session, SessionOptions
from mimo_gguf.fit.breakdown import context_options, read_memory
from mimo_gguf.fit.plan import FitPlan
from mimo_gguf.fit.solver import Wishes
from mimo_gguf.hardware.devices import CPU, Device
from mimo_gguf.runtime import launch as launching
from mimo_gguf.runtime.launch import choose_plan, next_smaller
from mimo_gguf.runtime.model import Model
from tests.memory.agreement import as_asked
from tests.tiny_models import make_model

THREADS = SessionOptions(n_threads=1)


def host(free: int) -> tuple[Device, ...]:
    return (Device("CPU", "host memory", CPU, "CPU", free, free),)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a long window, so that there is something to choose."""
    return make_model(tmp_path_factory.mktemp("launch"), max_position_embeddings=32768, head_dim=32)


def test_what_is_chosen_is_what_runs(path: Path) -> None:
    heard: list[FitPlan] = []
    with Model.load(path, options=THREADS, devices=host(8 * GIB), on_plan=heard.append) as model:
        assert heard == [model.plan] and model.launch_note == ""
        assert model.session.window == 16384 and model.has_mtp
    with Model.load(path, n_ctx=512, mtp=False, kv_type="q8_0", n_ubatch=64, options=THREADS) as model:
        assert model.session.window == 512 and not model.has_mtp
        assert (model.session.options.kv_type, model.session.target.options.n_ubatch) == ("q8_0", 64)


def test_several_conversations_run_as_planned(path: Path) -> None:
    """The contexts made are those the plan was made for: cells, rows of logits, micro-batches, of target and MTP."""
    options = SessionOptions(n_threads=1, n_parallel=40, n_draft=2, flash_attn=True)
    with Model.load(path, n_ctx=10_000, options=options, devices=host(8 * GIB)) as model:
        assert model.plan is not None and model.session.drafter is not None
        planned, target = model.plan.settings, model.session.target
        asked = replace(context_options(planned), n_threads=1)
        assert (target.n_cells, target.options) == (planned.n_cells, asked)
        drafting = model.session.drafter.context
        assert (drafting.options.n_ubatch, drafting.n_outputs_max) == (planned.mtp_n_ubatch, 40)
    assert choose_plan(read_gguf(path), Wishes(n_seq_max=2), host(8 * GIB)).settings.n_ctx == 2 * 16384


@pytest.mark.parametrize("n_ubatch", [1, 8, 16, 32, 33, 63, 64, 65])
@pytest.mark.parametrize("n_parallel", [1, 12])
def test_small_micro_batches_run_as_planned(path: Path, n_ubatch: int, n_parallel: int) -> None:
    """Both contexts take at a time what the plan says, and need for it what llama.cpp counts."""
    options = SessionOptions(n_threads=1, n_parallel=n_parallel, flash_attn=True)
    with Model.load(path, n_ctx=4096, n_ubatch=n_ubatch, options=options, devices=host(8 * GIB)) as model:
        assert model.plan is not None and model.session.drafter is not None
        planned = model.plan.settings
        assert model.session.target.options == replace(context_options(planned), n_threads=1)
        assert model.session.drafter.context.options.n_ubatch == planned.mtp_n_ubatch
    (asked,) = read_memory(path, planned)
    assert asked == as_asked(model.plan.devices[0].memory)


def test_a_cache_in_f32_is_one(path: Path) -> None:
    """ggml's number of F32 is 0, which must not count as nothing asked for."""
    with Model.load(path, n_ctx=512, kv_type="f32", options=THREADS, devices=host(8 * GIB)) as model:
        assert model.plan is not None and model.plan.settings.type_k is model.plan.settings.type_v is GgmlType.F32
        assert model.session.target.options.type_k == model.session.target.options.type_v == 0
        kv_cache = model.plan.devices[0].memory.kv_cache
    with Model.load(path, n_ctx=512, kv_type="f16", options=THREADS, devices=host(8 * GIB)) as model:
        assert model.plan is not None and kv_cache.n_bytes == 2 * model.plan.devices[0].memory.kv_cache.n_bytes


def test_an_empty_name_of_a_type_is_a_mistake(path: Path) -> None:
    with pytest.raises(UsageError, match="no KV cache of type"):
        Model.load(path, kv_type="", devices=host(8 * GIB))
    with pytest.raises(UsageError, match="at least 1"):
        Model.load(path, n_ubatch=0, devices=host(8 * GIB))


def test_less_memory_means_a_smaller_window(path: Path) -> None:
    file = read_gguf(path)
    assert choose_plan(file, Wishes(n_ctx=0), host(8 * GIB)).settings.n_ctx == 32768
    need = choose_plan(file, Wishes(), host(8 * GIB)).needed_bytes["CPU"]
    plan = choose_plan(file, Wishes(mtp=True), host(need - MIB))
    assert plan.fits and plan.settings != choose_plan(file, Wishes(mtp=True), host(8 * GIB)).settings


def test_refusal(path: Path) -> None:
    with pytest.raises(DoesNotFit) as caught:
        Model.load(path, n_ctx=32768, devices=host(64 * MIB))
    assert caught.value.exit_code == 3 and caught.value.hint


def test_one_step_down_when_memory_runs_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first context of the planned size fails as llama.cpp fails; the next smaller plan runs, and it is said."""
    tried = []

    def session(native: Any, options: SessionOptions) -> Session:
        tried.append(options)
        if len(tried) == 1:
            raise BackendError(f"{path}: llama.cpp cannot make a context of 1 tokens: failed to allocate buffer")
        return Session(native, options)

    monkeypatch.setattr(launching, "Session", session)
    with Model.load(path, options=THREADS, devices=host(8 * GIB)) as model:
        assert len(tried) == 2 and model.session.options != tried[0]
        assert "failed to allocate buffer" in model.launch_note and "report" in model.launch_note
        assert model.plan is not None and model.plan.settings.n_ctx == model.session.window
    tried.clear()
    with pytest.raises(BackendError):  # nothing is left to choose
        Model.load(path, n_ctx=8192, kv_type="f16", mtp=True, n_ubatch=512, options=THREADS, devices=host(8 * GIB))
    assert len(tried) == 1


def test_other_failures_are_not_tried_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Session:
        raise BackendError("/memory/alloc.gguf: llama.cpp cannot make a context of 1 tokens: no such type")

    monkeypatch.setattr(launching, "Session", refuse)
    with pytest.raises(BackendError, match="no such type"):
        Model.load(path, options=THREADS, devices=host(8 * GIB))


def test_the_next_smaller_plan_fits_in_less(path: Path) -> None:
    file = read_gguf(path)
    plan = choose_plan(file, Wishes(), host(8 * GIB))
    smaller = next_smaller(file, plan, Wishes())
    assert smaller is not None and smaller.needed_bytes["CPU"] < plan.needed_bytes["CPU"]
    pinned = Wishes(n_ctx=plan.settings.n_ctx, kv_type=plan.settings.type_k, mtp=True, n_ubatch=512)
    assert next_smaller(file, plan, pinned) is None


def test_an_absent_layer_is_not_promised(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no MTP"):
        choose_plan(read_gguf(make_model(tmp_path, n_mtp=0)), Wishes(mtp=True), host(8 * GIB))
