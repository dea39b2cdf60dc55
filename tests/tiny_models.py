"""Tiny MiMo models with random weights as GGUF files, made by the real conversion from a checkpoint folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimo_gguf import convert
from mimo_gguf.core.gguf_header import lay_out
from mimo_gguf.core.model_source import ModelSource
from tests.checkpoints import CONFIG, tensor_shapes, write_safetensors, write_tokenizer

State = dict[str, NDArray[np.float32]]


def random_state(config: Mapping[str, Any], *, n_mtp: int = 1, seed: int = 0) -> State:
    """Weights that make every part matter: gains away from 1, biases away from 0, logits of scale 3."""
    rng = np.random.default_rng(seed)
    state = {}
    for name, shape in tensor_shapes(config, n_mtp).items():
        values = rng.standard_normal(shape)
        if name.endswith("norm.weight"):
            values = rng.uniform(0.4, 1.6, shape)
        elif name.endswith(".bias"):
            values *= 0.5
        elif "embed_tokens" in name:
            values *= 0.05  # small, so that the epsilon of the norms can be told
        else:
            values *= (3.0 if name == "lm_head.weight" else 1.0) / np.sqrt(shape[-1])
        state[name] = values.astype(np.float32)
    return state


def write_checkpoint_of(folder: Path, config: Mapping[str, Any], state: State) -> None:
    """A checkpoint folder in float32 that holds exactly `state`."""
    import json

    folder.mkdir(parents=True, exist_ok=True)
    table = {name: ("F32", values.shape, values.nbytes) for name, values in state.items()}
    write_safetensors(folder / "model.safetensors", table, {name: values.tobytes() for name, values in state.items()})
    (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": "float32"}))
    write_tokenizer(folder)


def write_gguf(source: ModelSource, path: Path) -> Path:
    """The source as it is, without quantizing anything."""
    layout = lay_out(source.metadata, [tensor.info for tensor in source.tensors])
    with path.open("wb") as file:
        file.write(layout.header)
        for tensor, offset in zip(source.tensors, layout.offsets, strict=True):
            rows = np.empty((tensor.info.n_rows, tensor.info.row_bytes), np.uint8)
            tensor.read_rows(0, tensor.info.n_rows, rows)
            file.seek(offset)
            file.write(rows.tobytes())
        file.truncate(layout.n_bytes)
    return path


def make_model(folder: Path, *, n_mtp: int = 1, seed: int = 0, state: State | None = None, **config: Any) -> Path:
    """A random tiny MiMo in float32: the GGUF's path. `state` gives the weights, `config` overrides sizes."""
    full = {**CONFIG, "num_nextn_predict_layers": n_mtp, **config}
    write_checkpoint_of(folder / "hf", full, random_state(full, n_mtp=n_mtp, seed=seed) if state is None else state)
    convert(folder / "hf", out=folder / "model.gguf", types="F32", force=True)
    return folder / "model.gguf"


def quantized(path: Path, name: str) -> Path:
    """The model at `path` quantized by llama.cpp's own quantizer to the file type `name` ("Q4_0", "Q8_0", ...)."""
    import ctypes

    from mimo_gguf.llama.api import api

    module = api()
    params = module.llama_model_quantize_default_params()
    params.ftype = getattr(module, f"LLAMA_FTYPE_{'ALL' if name == 'F32' else 'MOSTLY'}_{name}")
    params.nthread = 2
    out = path.with_name(f"{path.stem}-{name}.gguf")
    assert module.llama_model_quantize(str(path).encode(), str(out).encode(), ctypes.byref(params)) == 0
    return out
