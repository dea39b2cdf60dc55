"""What was trained for the model and is kept: the QKV biases and the MTP layer, both 576 wide, in one safetensors file.

The file holds `biases` [30 blocks, 960] (query, key, value; Hugging Face's order) and, with an MTP layer, its tensors
under MiMo's names. Its last norm has the trunk's gains times `final_ratio` [192], one for each three dimensions. So the
trunk's head serves it after any change of basis.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from benchmarks.real_model.geometry import ORIGINAL
from benchmarks.real_model.original import Array

KEPT = Path(__file__).parent / "weights" / "trained.safetensors"
N_BLOCKS = 30
QKV = ("q_proj", "k_proj", "v_proj")


def bare() -> dict[str, Array]:
    """Zero biases and no MTP layer: the original's function."""
    return biases_by_name(np.zeros((N_BLOCKS, sum(ORIGINAL.qkv_rows))))


def read_trained(path: Path) -> dict[str, Array]:
    """The trained tensors of a file under MiMo's names, as float64."""
    tensors = {name: tensor.to(torch.float64).numpy() for name, tensor in load_file(path).items()}
    return biases_by_name(tensors.pop("biases")) | tensors


def biases_by_name(biases: NDArray[np.float64]) -> dict[str, Array]:
    """Biases [blocks, 960] as the tensors of each block's projections."""
    ends = np.cumsum(ORIGINAL.qkv_rows)[:-1]
    return {
        f"model.layers.{number}.self_attn.{name}.bias": part
        for number, row in enumerate(biases)
        for name, part in zip(QKV, np.split(row, ends), strict=True)
    }


def biases_of(tensors: Mapping[str, Array]) -> Array:
    """Biases [blocks, 960] from the tensors of each block's projections."""
    names = [f"self_attn.{name}.bias" for name in QKV]
    return np.stack([np.concatenate([tensors[f"model.layers.{n}.{name}"] for name in names]) for n in range(N_BLOCKS)])


def has_mtp(tensors: Mapping[str, Array]) -> bool:
    """Whether an MTP layer is among the tensors."""
    return any(name.startswith("model.mtp_layers.") for name in tensors)
