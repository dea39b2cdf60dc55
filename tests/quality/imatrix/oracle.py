"""Importance matrices by their definition: the torch reference runs, and the inputs of its matrices are squared."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.reference import Mimo, load_checkpoint

PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_proj": "nextn.eh_proj",
}
Sums = dict[str, tuple[NDArray[np.float64], int]]  # matrix -> sums of squares of its inputs, number of rows


def sums_by_torch(checkpoint: Path, windows: Iterable[NDArray[np.int32]]) -> Sums:
    """The sums of every matrix of a checkpoint: the trunk on whole windows, MTP layers on (x[p], h[p-1])."""
    model = load_checkpoint(checkpoint)
    sums: Sums = {}

    def add(name: str, rows: Tensor) -> None:
        before, n = sums.get(name, (np.zeros(rows.shape[-1]), 0))
        sums[name] = before + rows.double().square().sum(0).numpy(), n + len(rows)

    def watch(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            rows = inputs[0]
            if name.endswith("eh_proj.weight"):  # llama.cpp has the embedding's half first
                rows = torch.cat(rows.chunk(2, dim=-1)[::-1], dim=-1)
            add(name, output if name == "output.weight" else rows)

        return hook

    for path, module in model.named_modules():
        if path == "model.norm":
            module.register_forward_hook(watch("output.weight"))
        elif isinstance(module, nn.Linear) and path != "lm_head":
            module.register_forward_hook(watch(gguf_name(path, model)))
    with torch.no_grad():
        for window in windows:
            ids = torch.tensor(window, dtype=torch.long)
            _, states = model.trunk(ids)
            for layer in range(model.config["num_nextn_predict_layers"]):
                model.mtp(layer, states[:-1], ids[1:])
    return sums


def gguf_name(path: str, model: Mimo) -> str:
    found = re.fullmatch(r"model\.(layers|mtp_layers)\.(\d+)\.(.+)", path)
    assert found is not None, path
    first = model.config["num_hidden_layers"] if found[1] == "mtp_layers" else 0
    return f"blk.{first + int(found[2])}.{PARTS[found[3]]}.weight"
