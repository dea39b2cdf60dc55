"""A small byte-level BPE of exactly Qwen2's form, with its pre-tokenizer, its 22 added tokens and its files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# In the order of their ids, which come after the base vocabulary; true if the published tokenizer calls them special.
ADDED_TOKENS = {
    "<|endoftext|>": True, "<|im_start|>": True, "<|im_end|>": True, "<|object_ref_start|>": True,
    "<|object_ref_end|>": True, "<|box_start|>": True, "<|box_end|>": True, "<|quad_start|>": True,
    "<|quad_end|>": True, "<|vision_start|>": True, "<|vision_end|>": True, "<|vision_pad|>": True,
    "<|image_pad|>": True, "<|video_pad|>": True, "<tool_call>": False, "</tool_call>": False, "<|fim_prefix|>": False,
    "<|fim_middle|>": False, "<|fim_suffix|>": False, "<|fim_pad|>": False, "<|repo_name|>": False,
    "<|file_sep|>": False,
}  # fmt: skip
CHAT_TEMPLATE = Path(__file__).with_name("qwen2_chat_template.jinja")


def train_tokenizer(texts: Iterable[str], base_size: int) -> Tokenizer:
    """Trains merges on `texts` up to `base_size` base tokens; the added tokens come after them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)  # type: ignore[call-arg]
    trainer = trainers.BpeTrainer(
        vocab_size=base_size, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != base_size:
        raise RuntimeError(f"the texts gave {tokenizer.get_vocab_size()} base tokens, not {base_size}")
    for content, special in ADDED_TOKENS.items():
        token = AddedToken(content, normalized=False, special=special)
        _ = tokenizer.add_special_tokens([token]) if special else tokenizer.add_tokens([token])
    return tokenizer


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Writes tokenizer.json, vocab.json, merges.txt and tokenizer_config.json."""
    tokenizer.save(str(folder / "tokenizer.json"))
    model = json.loads(tokenizer.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    _write(folder / "merges.txt", "".join(f"{merge}\n" for merge in merges))
    _write(folder / "vocab.json", json.dumps(model["vocab"], ensure_ascii=False, separators=(",", ":")))
    _write(folder / "tokenizer_config.json", json.dumps(tokenizer_config(tokenizer), indent=2, ensure_ascii=False))


def tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Makes the published model's configuration with the ids of this vocabulary."""
    specials = [content for content, special in ADDED_TOKENS.items() if special]
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(content)): {
                "content": content,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": special,
            }
            for content, special in ADDED_TOKENS.items()
        },
        "additional_special_tokens": specials[1:],
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE.read_bytes().decode(),
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def render_chat(messages: Iterable[dict[str, str]], *, answer_next: bool) -> str:
    """Renders messages as the chat template does; they begin with a system message and use no tools."""
    text = "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages)
    return text + ("<|im_start|>assistant\n" if answer_next else "")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
