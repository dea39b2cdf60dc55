"""Folders that look like checkpoints but are something else: the name of each kind, and what to do with it.

People give LoRA adapters, quantized models and unfinished training states. A list of missing tensors would not help
them, so these tables recognise the kind first: by files, by config.json, by tensor names.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mimo_gguf.conversion.checkpoint_files import read_optional_json
from mimo_gguf.core.errors import CheckpointError
from mimo_gguf.core.paths import command_word

_ADAPTER_FILES: Final = ("adapter_config.json", "adapter_model.*")
_ORIGINAL_HINT: Final = "convert the original checkpoint in BF16, then choose a size: mimo-gguf quantize"
_SAVE_HINT: Final = "save it as safetensors: model.save_pretrained(FOLDER) in transformers, then convert that folder"


@dataclass(frozen=True, slots=True)
class _FileKind:
    """A kind of folder without safetensors weights, recognised by the files in it."""

    globs: tuple[str, ...]
    what: str
    hint: str


_FILE_KINDS: Final = (
    _FileKind(("*.gguf",), "a folder of GGUF files", "give the file itself: mimo-gguf quantize {0} --type Q4_K_M"),
    _FileKind(("*.onnx", "onnx/*.onnx"), "an ONNX export", "convert the checkpoint it was exported from"),
    _FileKind(("weights*.npz",), "weights of MLX (.npz)", "convert the checkpoint they were made from"),
    _FileKind(("pytorch_model*.bin", "consolidated*.pth"), "weights pickled by PyTorch (.bin, .pth)", _SAVE_HINT),
    _FileKind(("tf_model*.h5", "flax_model*.msgpack"), "weights of TensorFlow or Flax", _SAVE_HINT),
    _FileKind(
        ("*.distcp", "*/*.distcp", "global_step*", "*model_states.pt", "zero_to_fp32.py"),
        "the state of a training run (FSDP or DeepSpeed)",
        "merge its shards first, as the trainer's manual says, and save them with save_pretrained",
    ),
    _FileKind(("*.pt", "*.pth", "*.ckpt", "*.bin"), "weights pickled by PyTorch", _SAVE_HINT),
)


@dataclass(frozen=True, slots=True)
class _NameKind:
    """A kind of checkpoint, recognised by the names of its tensors."""

    pattern: re.Pattern[str]
    what: str
    hint: str


_NAME_KINDS: Final = (
    _NameKind(
        re.compile(r"\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)\b"),
        "a LoRA adapter, not a model",
        "merge it into its base model first (peft: merge_and_unload, then save_pretrained)",
    ),
    _NameKind(re.compile(r"\.base_layer\."), "a model with an unmerged adapter in it", "merge it: merge_and_unload"),
    _NameKind(re.compile(r"\.(qweight|qzeros|g_idx)$"), "quantized already (GPTQ or AWQ)", _ORIGINAL_HINT),
    _NameKind(re.compile(r"\.weight\.(absmax|quant_map|quant_state)|\.SCB$"), "quantized already (bitsandbytes)",
              _ORIGINAL_HINT),
    _NameKind(re.compile(r"\.(weight_scale_inv|weight_scale|input_scale|weight_packed|weight_zero_point)$"),
              "quantized already (FP8 or compressed-tensors)", _ORIGINAL_HINT),
    _NameKind(re.compile(r"\.(scales|biases)$"), "quantized already (MLX)", _ORIGINAL_HINT),
    _NameKind(re.compile(r"\.(W_q|weight_scales?|_data|_scale|_qdata|_zero_point)$"), "quantized already",
              _ORIGINAL_HINT),
)  # fmt: skip

# Another prefix of the embedding's name: where it comes from, and what to do.
_EMBEDDING: Final = "embed_tokens.weight"
_PREFIXES: Final[Mapping[str, tuple[str, str]]] = {
    "module.": ("the wrapper of parallel training", "save model.module instead of model"),
    "_orig_mod.": ("the wrapper of torch.compile", "save model._orig_mod instead of model"),
    "base_model.model.": ("the wrapper of an adapter (peft)", "merge it: merge_and_unload, then save_pretrained"),
    "": ("a model saved without its head (AutoModel)", "save it from AutoModelForCausalLM"),
}
_INNER_MODEL: Final = ("the text model inside a larger one", "save that inner model alone, and convert its folder")

# config.json's words for "these weights are quantized".
_QUANTIZED_KEYS: Final = ("quantization_config", "quantization", "compression_config")


def check_folder(folder: Path) -> None:
    """Raises CheckpointError if `folder` has no safetensors weights, but files of a known other kind."""
    if any(path.name.split(".")[0] != "adapter_model" for path in folder.glob("*.safetensors*")):
        return
    if any(_first(folder, glob) for glob in _ADAPTER_FILES):
        raise CheckpointError(
            f"{folder}: a LoRA adapter{_base_of(folder)}, not a whole model",
            hint="merge it into its base model first (peft: merge_and_unload, then save_pretrained), and convert that",
        )
    for kind in _FILE_KINDS:
        found = next((path for glob in kind.globs if (path := _first(folder, glob)) is not None), None)
        if found is not None:
            raise CheckpointError(
                f"{folder}: {kind.what}, not a safetensors checkpoint: it holds {found.relative_to(folder)} "
                "and no .safetensors files",
                hint=kind.hint.format(command_word(found)),
            )


def check_not_quantized(config: Mapping[str, Any], where: str) -> None:
    """Raises CheckpointError if config.json says that the weights are quantized."""
    for key in _QUANTIZED_KEYS:
        if stated := config.get(key):
            raise CheckpointError(
                f"{where}: quantized already: {key} in config.json{_method(stated)}", hint=_ORIGINAL_HINT
            )


def check_names(names: Collection[str], where: str) -> None:
    """Raises CheckpointError if tensors are named as in a known kind of checkpoint that is not a plain model."""
    for kind in _NAME_KINDS:
        if (name := next((name for name in names if kind.pattern.search(name)), None)) is not None:
            raise CheckpointError(f"{where}: {kind.what}: it holds the tensor {name}", hint=kind.hint)
    embedding = _strange_embedding(names)
    if embedding is not None:
        before = embedding.removesuffix(_EMBEDDING)
        what, hint = _PREFIXES.get(before.removesuffix("model."), _INNER_MODEL)
        raise CheckpointError(f"{where}: {what}: its tensors are named {embedding} and so on", hint=hint)


def _strange_embedding(names: Iterable[str]) -> str | None:
    """The embedding's name if it is not the usual one; None if it is, or if there is no embedding."""
    found = [name for name in names if name.endswith(_EMBEDDING)]
    return None if f"model.{_EMBEDDING}" in found else min(found, key=len, default=None)


def _base_of(folder: Path) -> str:
    try:
        base = read_optional_json(folder / "adapter_config.json").get("base_model_name_or_path")
    except CheckpointError:
        return ""
    return f" for {base}" if isinstance(base, str) and base else ""


def _method(stated: Any) -> str:
    """The method of quantization as a suffix of a message: ` (gptq, 4 bits)`; empty if unknown."""
    if not isinstance(stated, Mapping):
        return ""
    method = stated.get("quant_method") or stated.get("quantization_method") or stated.get("quant_type")
    bits = stated.get("bits") or stated.get("w_bit")
    parts = [method if isinstance(method, str) else "", f"{bits} bits" if isinstance(bits, int) else ""]
    text = ", ".join(part for part in parts if part)
    return f" ({text})" if text else ""


def _first(folder: Path, glob: str) -> Path | None:
    return min(folder.glob(glob), default=None)
