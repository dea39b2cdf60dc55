"""Log-likelihoods over HTTP are those of a float32 torch reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mimo_gguf.engine.session import SessionOptions
from mimo_gguf.runtime.llm import LLM
from tests.checkpoints import CONFIG
from tests.devices import on_gpu
from tests.reference import Mimo
from tests.server.serving import serving
from tests.tiny_models import make_model, random_state

TOLERANCE, ON_GPU = 1e-3, 2e-2


def test_echo_gives_the_references_log_likelihoods(tmp_path: Path) -> None:
    config = {**CONFIG, "num_nextn_predict_layers": 1}
    state = random_state(config, seed=3)
    ids = np.random.default_rng(3).integers(0, config["vocab_size"], 90).tolist()
    model = Mimo(config)
    model.load_state_dict({name: torch.from_numpy(values) for name, values in state.items()})
    with torch.no_grad():
        logits, _ = model.trunk(torch.tensor(ids))
    wanted = torch.log_softmax(logits.double(), -1)[range(len(ids) - 1), ids[1:]].numpy()
    best = torch.log_softmax(logits.double(), -1).max(-1).values[:-1].numpy()
    options = SessionOptions(n_threads=1, n_prompt_rows=32, flash_attn=False)  # which rounds to f16 on a CPU
    path = make_model(tmp_path, state=state)
    with LLM(path, max_model_len=256, kv_cache_dtype="float32", options=options) as llm, serving(llm) as server:
        body = {"prompt": ids, "echo": True, "logprobs": 1, "max_tokens": 0}
        scores = server.post("/v1/completions", body).json()["choices"][0]["logprobs"]
    near = ON_GPU if on_gpu() else TOLERANCE
    assert scores["token_logprobs"][0] is None and np.ptp(wanted) > 3, "a model whose tokens are not all alike"
    assert scores["token_logprobs"][1:] == pytest.approx(wanted.tolist(), abs=near)
    assert [max(top.values()) for top in scores["top_logprobs"][1:]] == pytest.approx(best.tolist(), abs=near)
