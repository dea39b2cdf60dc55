"""The step35 layout through llama.cpp against a torch reference: logits of the trunk and of every MTP layer.

Random tiny geometries in float32. The tolerance is 1e-4 at logits of standard deviation 3, and each way of getting the
layout wrong must exceed it. So the CPU computes, also if a GPU is there; `tests/gpu` asks that with another tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mimo_gguf.conversion.checkpoint_source import open_checkpoint
from mimo_gguf.core.model_source import Bytes, ModelSource, ReadRows, float32
from mimo_gguf.engine.drafting import Drafter, DraftRequest
from mimo_gguf.engine.session import Session, SessionOptions
from mimo_gguf.engine.single import read_prompt
from mimo_gguf.llama.api import ContextOptions, ModelOptions, load_model, open_context, open_mtp_context
from mimo_gguf.llama.batch import Batch
from tests.checkpoints import CONFIG
from tests.reference import Hidden, Mimo
from tests.tiny_models import State, random_state, write_checkpoint_of, write_gguf

TOLERANCE = 1e-4
ON_CPU = ModelOptions(n_gpu_layers=0, devices=())
N_TOKENS = 40
GEOMETRIES: list[dict[str, Any]] = [
    {"num_nextn_predict_layers": 1},
    {"num_nextn_predict_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 8},
    {"num_nextn_predict_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 3},
    {"num_nextn_predict_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4, "hidden_size": 96},
    {"num_nextn_predict_layers": 1, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32},
]
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    config: dict[str, Any]
    state: State
    tokens: list[int]

    @property
    def n_mtp(self) -> int:
        return int(self.config["num_nextn_predict_layers"])


def make_case(seed: int, **changes: Any) -> Case:
    config = {**CONFIG, **changes}
    state = random_state(config, n_mtp=config["num_nextn_predict_layers"], seed=seed)
    tokens = np.random.default_rng(seed).integers(0, config["vocab_size"], N_TOKENS).tolist()
    return Case(config, state, tokens)


@torch.no_grad()
def reference(case: Case) -> tuple[Logits, list[Logits]]:
    """Logits of the trunk [T, vocab] and of each MTP layer [T - 1, vocab], each fed the trunk's states."""
    model = Mimo(case.config)
    model.load_state_dict({name: torch.from_numpy(values) for name, values in case.state.items()})
    ids = torch.tensor(case.tokens)
    logits, hidden = model.trunk(ids)
    heads = [model.mtp(layer, hidden[:-1], ids[1:])[0].numpy() for layer in range(case.n_mtp)]
    return logits.numpy(), heads


def through_llama(
    path: Path,
    case: Case,
    states: Callable[[Logits], Logits] = lambda hidden: hidden,
    *,
    as_used: bool = False,
    loading: ModelOptions = ON_CPU,
) -> tuple[Logits, list[Logits]]:
    """The same from llama.cpp; `states` may tamper with what the MTP layers are fed.

    All in float32, or `as_used`: with flash attention and a cache in f16, as is the default.
    """
    n = len(case.tokens)
    options = ContextOptions(n_ctx=256, n_batch=64, n_ubatch=64, n_outputs_max=n, n_threads=1, flash_attn=as_used)
    if not as_used:
        options = replace(options, type_k=0, type_v=0)  # float32
    with (
        load_model(path, loading) as model,
        open_context(model, options) as target,
        open_mtp_context(target, n_outputs_max=n) as mtp,
    ):
        assert target.decode(Batch(n).fill(case.tokens, 0, n_outputs=n)) == 0
        trunk = np.stack([target.logits(row) for row in range(n)])
        hidden = states(target.hidden(n).copy())
        heads = []
        for layer in range(case.n_mtp):
            mtp.select_mtp_block(layer)
            mtp.forget(0)
            batch = Batch(n, model.n_embd)
            assert batch.hidden is not None
            batch.hidden[: n - 1] = hidden[:-1]
            assert mtp.decode(batch.fill(case.tokens[1:], 1, n_outputs=n - 1)) == 0
            heads.append(np.stack([mtp.logits(row) for row in range(n - 1)]))
    return trunk, heads


def write_model(folder: Path, case: Case, change: Callable[[ModelSource], ModelSource] = lambda source: source) -> Path:
    write_checkpoint_of(folder / "hf", case.config, case.state)
    with open_checkpoint(folder / "hf") as source:
        return write_gguf(change(source), folder / "model.gguf")


def difference(got: tuple[Logits, list[Logits]], wanted: tuple[Logits, list[Logits]]) -> tuple[float, float]:
    trunk = float(np.abs(got[0] - wanted[0]).max())
    return trunk, max(float(np.abs(a - b).max()) for a, b in zip(got[1], wanted[1], strict=True))


@pytest.mark.parametrize("seed", range(len(GEOMETRIES)))
def test_logits_equal_the_reference(seed: int, tmp_path: Path) -> None:
    case = make_case(seed, **GEOMETRIES[seed])
    wanted = reference(case)
    assert 1.5 < wanted[0].std() < 6 and all(1.0 < head.std() < 6 for head in wanted[1])
    path = write_model(tmp_path, case)
    trunk, mtp = difference(through_llama(path, case), wanted)
    assert trunk < TOLERANCE and mtp < TOLERANCE
    rounded = difference(through_llama(path, case, as_used=True), wanted)
    assert all(10 * TOLERANCE < moved < 2e-2 for moved in rounded)


def with_tensors(source: ModelSource, edit: dict[str, Callable[[dict[str, Logits]], Logits]]) -> ModelSource:
    """The source with some F32 tensors computed anew from all of them."""
    values: dict[str, Logits] = {}
    for tensor in source.tensors:
        raw = np.empty((tensor.info.n_rows, tensor.info.row_bytes), np.uint8)
        tensor.read_rows(0, tensor.info.n_rows, raw)
        values[tensor.info.name] = raw.view(np.float32)

    def reader(data: Logits) -> ReadRows:
        def read(first: int, last: int, out: Bytes) -> None:
            out[...] = np.ascontiguousarray(data[first:last]).view(np.uint8)

        return read

    def replaced(name: str) -> ReadRows:
        matching = [function for suffix, function in edit.items() if name.endswith(suffix)]
        prefix = name[: name.find(".", 4) + 1]
        local = {key.removeprefix(prefix): value for key, value in values.items()}
        return reader(matching[0](local | {"self": values[name]}) if matching else values[name])

    return replace(
        source, tensors=tuple(replace(tensor, read_rows=replaced(tensor.info.name)) for tensor in source.tensors)
    )


def with_eps(source: ModelSource) -> ModelSource:
    key = "step35.attention.layer_norm_rms_epsilon"
    return replace(source, metadata={**source.metadata, key: float32(1e-6)})


MISTAKES: dict[str, Callable[[ModelSource], ModelSource]] = {
    "halves unswapped": lambda source: with_tensors(
        source, {"nextn.eh_proj.weight": lambda t: np.roll(t["self"], t["self"].shape[1] // 2, axis=1)}
    ),
    "enorm and hnorm exchanged": lambda source: with_tensors(
        source,
        {
            "nextn.enorm.weight": lambda t: t["nextn.hnorm.weight"],
            "nextn.hnorm.weight": lambda t: t["nextn.enorm.weight"],
        },
    ),
    "biases dropped": lambda source: with_tensors(source, {".bias": lambda t: np.zeros_like(t["self"])}),
    "eps 1e-6": with_eps,
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_layout_is_noticed(mistake: str, tmp_path: Path) -> None:
    case = make_case(7)
    got = through_llama(write_model(tmp_path, case, MISTAKES[mistake]), case)
    trunk, mtp = difference(got, reference(case))
    assert mtp > 3 * TOLERANCE
    if mistake in ("biases dropped", "eps 1e-6"):
        assert trunk > 3 * TOLERANCE


def test_a_wrong_hidden_state_is_noticed(tmp_path: Path) -> None:
    case = make_case(8)
    path = write_model(tmp_path, case)
    wanted = reference(case)
    norm = case.state["model.norm.weight"]

    def after_norm(hidden: Logits) -> Logits:
        return hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + 1e-5) * norm

    for states in (after_norm, lambda hidden: np.roll(hidden, 1, axis=0), np.zeros_like):
        assert difference(through_llama(path, case, states), wanted)[1] > 3 * TOLERANCE


@pytest.mark.parametrize("hidden", ["pre", "post"])
def test_a_session_feeds_the_mtp_layer_as_the_reference(
    hidden: Hidden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through prefill in several batches and a draft, with the state before or after the trunk's norm."""
    case = make_case(9)
    model = Mimo(case.config)
    model.load_state_dict({name: torch.from_numpy(values) for name, values in case.state.items()})
    ids = torch.tensor(case.tokens)
    with torch.no_grad():
        wanted = model.mtp(0, model.trunk(ids)[1][:-1], ids[1:], hidden_kind=hidden)[0][-1].numpy()
    seen = []
    monkeypatch.setattr(Drafter, "_proposal", lambda drafter, row: seen.append(drafter.context.logits(row).copy()))
    options = SessionOptions(
        n_ctx=256, n_batch=16, n_ubatch_mtp=8, n_threads=1, kv_type="f32", flash_attn=False, hidden=hidden
    )
    with load_model(write_model(tmp_path, case), ON_CPU) as native, Session(native, options) as session:
        read_prompt(session, case.tokens[:-1])
        assert session.drafter is not None
        assert session.slot.mtp_rows is not None
        session.drafter.draft([DraftRequest(session.slot.mtp_rows, case.tokens[-1], 1)])
    assert np.abs(seen[0] - wanted).max() < TOLERANCE
