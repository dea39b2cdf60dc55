"""The backward pass of a block against torch's autograd over the reference that the tests have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimo_gguf.calibration.backward import backward_block, forward_block, norm_backward, read_floats
from mimo_gguf.reference.forward import block, read_block
from mimo_gguf.reference.model import open_reference
from tests.checkpoints import CONFIG
from tests.tiny_models import random_state, write_checkpoint_of

torch = pytest.importorskip("torch")
N = 7


def test_gradients_are_those_of_autograd(tmp_path: Path) -> None:
    from tests.reference.mimo import Mimo

    state = random_state(CONFIG, n_mtp=1, seed=3)
    write_checkpoint_of(tmp_path / "hf", CONFIG, state)
    mimo = Mimo({**CONFIG, "num_nextn_predict_layers": 1})
    mimo.load_state_dict({name: torch.from_numpy(values) for name, values in state.items()})
    layer = mimo.model.layers[0]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, CONFIG["hidden_size"])).astype(np.float32)
    gradient = rng.standard_normal(x.shape).astype(np.float32)
    outputs: dict[str, Any] = {}
    modules = {
        "attn_q": layer.self_attn.q_proj, "attn_k": layer.self_attn.k_proj, "attn_v": layer.self_attn.v_proj,
        "attn_output": layer.self_attn.o_proj, "ffn_gate": layer.mlp.gate_proj, "ffn_up": layer.mlp.up_proj,
        "ffn_down": layer.mlp.down_proj,
    }  # fmt: skip
    for name, module in modules.items():

        def keep(_module: object, _inputs: object, output: object, name: str = name) -> None:
            output.retain_grad()  # type: ignore[attr-defined]
            outputs[name] = output

        module.register_forward_hook(keep)
    leaf = torch.from_numpy(x).requires_grad_(True)
    y = layer(leaf, torch.arange(N), None, "")
    y.backward(torch.from_numpy(gradient))

    with open_reference(tmp_path / "hf") as model:
        weights = read_floats(model, 0)
        done = forward_block(x, weights)
        at_input, at_outputs = backward_block(done, weights, gradient)
        ours = done.middle + done.inner @ weights.ffn_down.T
        assert np.allclose(ours, block(x, read_block(model, 0)), rtol=0, atol=1e-5)
    assert np.allclose(ours, y.detach().numpy(), rtol=0, atol=1e-5)
    assert np.allclose(at_input, leaf.grad.numpy(), rtol=1e-3, atol=1e-5)
    assert set(at_outputs) == set(done.inputs()) == set(modules)
    for name, output in outputs.items():
        assert np.allclose(at_outputs[name], output.grad.numpy(), rtol=1e-3, atol=1e-5), name


def test_gradient_through_the_norm_is_autograds() -> None:
    rng = np.random.default_rng(1)
    x, gains, gradient = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 24), (24,), (5, 24)))
    leaf = torch.from_numpy(x).requires_grad_(True)
    torch.nn.functional.rms_norm(leaf, (24,), torch.from_numpy(gains), 1e-5).backward(torch.from_numpy(gradient))
    assert np.allclose(norm_backward(x, gains, 1e-5, gradient), leaf.grad.numpy(), rtol=1e-4, atol=1e-6)
