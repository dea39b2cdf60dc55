"""SmolLM2's vocabulary and merges as a checkpoint's tokenizer files.

Text is split as Qwen2 splits it, as in MiMo, unless the original's way is asked for. Code costs a fifth more bits so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTROL = 3  # the type of a special token in a GGUF
ENDS = [2, 0]  # <|im_end|>, <|endoftext|>


def make_tokenizer(fields: Mapping[str, Any], *, qwen2: bool = True) -> Tokenizer:
    """The tokenizer, from a GGUF's metadata; `qwen2=False` splits as SmolLM2 does (single digits, then GPT-2's way)."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(line.split(" ")) for line in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, merges))
    first: Any = pre_tokenizers.Digits(individual_digits=True)
    if qwen2:
        tokenizer.normalizer = normalizers.NFC()
        first = pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated")
    then = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not qwen2)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, then])
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(tokens[n], normalized=False, special=True) for n in special_tokens(fields)]
    tokenizer.add_special_tokens(special)
    wrong = [token for n, token in enumerate(tokens) if tokenizer.token_to_id(token) != n]
    if wrong:
        raise ValueError(f"the token {wrong[0]!r} has another id than in the GGUF")
    return tokenizer


def special_tokens(fields: Mapping[str, Any]) -> list[int]:
    """Ids of the special tokens."""
    return [n for n, kind in enumerate(fields["tokenizer.ggml.token_type"]) if kind == CONTROL]


def write_tokenizer(folder: Path, fields: Mapping[str, Any]) -> None:
    """Writes tokenizer.json, vocab.json, merges.txt, tokenizer_config.json and generation_config.json."""
    tokenizer = make_tokenizer(fields)
    tokenizer.save(str(folder / "tokenizer.json"))
    model = json.loads(tokenizer.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("".join(f"{merge}\n" for merge in merges), encoding="utf-8")
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    tokens = fields["tokenizer.ggml.tokens"]
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(n): {"content": tokens[n]} | flags for n in special_tokens(fields)},
        "additional_special_tokens": [tokens[1], tokens[2]],
        "bos_token": None,
        "chat_template": fields["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "eos_token": tokens[2],
        "errors": "replace",
        "model_max_length": fields["llama.context_length"],
        "pad_token": tokens[0],
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    generation = {"bos_token_id": 0, "do_sample": False, "eos_token_id": ENDS, "max_new_tokens": 2048}
    for name, value in (("tokenizer_config", config), ("generation_config", generation)):
        text = json.dumps(value, indent=2, ensure_ascii=False)
        (folder / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")
