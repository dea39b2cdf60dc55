"""Trains the tiny MiMo of `examples/mimo-tiny/`, trunk and MTP layer together, from generated dialogues.

    python -m examples.train_mimo_tiny [-o FOLDER] [--steps N] [--seed N] [--threads N]

It needs torch, tokenizers and safetensors, downloads nothing, and takes about 25 minutes of CPU time. The same seed,
number of threads, torch release and machine give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from examples.tiny_dialogues import Dialogue, make_dialogue, make_document, make_held_out
from examples.tiny_evaluation import evaluate
from examples.tiny_model_card import model_card
from examples.tiny_tokenizer import ADDED_TOKENS, train_tokenizer, write_tokenizer
from tests.reference.checkpoint_folder import load_checkpoint, mimo_config, randomize, write_checkpoint
from tests.reference.mimo import Mimo

VOCAB_ROWS = 1024
PADDING_ROWS = 15  # rows beyond the tokenizer's last id, as many as the published model has
BASE_TOKENS = VOCAB_ROWS - PADDING_ROWS - len(ADDED_TOKENS)
TOKENS_PER_BATCH = 1536
PEAK_RATE = 1.5e-3
PROMPT_WEIGHT = 0.15  # of a token that the model does not write itself
MTP_WEIGHT = 0.3
DOCUMENT_SHARE = 0.06


@dataclass(frozen=True, slots=True)
class Sample:
    """The token ids of one text, and for each the weight of its prediction in the loss."""

    ids: list[int]
    weights: list[float]


def main() -> None:
    arguments = argparse.ArgumentParser(description="Train the tiny MiMo of examples/mimo-tiny.")
    arguments.add_argument("-o", "--output", type=Path, default=Path(__file__).with_name("mimo-tiny"))
    arguments.add_argument("--steps", type=int, default=1750)
    arguments.add_argument("--seed", type=int, default=20)
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)

    started = time.process_time()
    tokenizer = make_tokenizer(options.seed)
    model = train(tokenizer, options.steps, options.seed)
    train_cpu_s = time.process_time() - started

    folder: Path = options.output
    write_checkpoint(folder, model, dtype=torch.bfloat16, shards=2)
    write_tokenizer(folder, tokenizer)
    write_generation_config(folder, model)
    held_out = make_held_out(random.Random(options.seed + 1), per_kind=20)
    write_held_out(folder.with_name(f"{folder.name}-heldout.jsonl"), held_out[:60])
    torch.set_num_threads(1)  # one token at a time is too little work to share
    figures = evaluate(load_checkpoint(folder), tokenizer, held_out)
    card = model_card(model, tokenizer, figures, steps=options.steps, seed=options.seed, train_cpu_s=train_cpu_s)
    (folder / "README.md").write_text(card, encoding="utf-8", newline="\n")
    print(card)


def make_tokenizer(seed: int) -> Tokenizer:
    rng = random.Random(seed)
    texts = [make_document(rng) for _ in range(200)]
    for _ in range(6000):
        texts += [message["content"] for message in make_dialogue(rng, held_out=False).finished()]
    return train_tokenizer(texts, BASE_TOKENS)


def train(tokenizer: Tokenizer, steps: int, seed: int) -> Mimo:
    """Trains with AdamW on the trunk's cross entropy plus `MTP_WEIGHT` times that of the MTP layer."""
    model = new_model(tokenizer, seed)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]  # norm gains stay as uneven as they begin
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98), eps=1e-8)
    batches = make_batches(tokenizer, random.Random(seed))
    started = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * rate_at(step, steps)
        trunk_loss, mtp_loss = losses(model, *next(batches), mtp_from=step % 2)
        optimizer.zero_grad()
        (trunk_loss + MTP_WEIGHT * mtp_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            passed_s = time.monotonic() - started
            print(f"step {step:5} trunk {trunk_loss:.4f} MTP {mtp_loss:.4f} {passed_s:.0f} s", flush=True)
    return model


def new_model(tokenizer: Tokenizer, seed: int) -> Mimo:
    bos, eos = tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|im_end|>")
    model = Mimo(mimo_config(vocab_size=VOCAB_ROWS, bos_token_id=bos, eos_token_id=eos))
    randomize(model, seed)
    with torch.no_grad():
        model.model.embed_tokens.weight *= 0.2
        model.model.norm.weight.pow_(1.25)  # uneven enough that states before and after it are different things
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
                parameter *= 0.4
    return model


def losses(model: Mimo, ids: Tensor, weights: Tensor, *, mtp_from: int) -> tuple[Tensor, Tensor]:
    """Computes the weighted cross entropy (trunk, MTP) over ids and weights of shape [B, T].

    The weight of an id is that of predicting it.

    The MTP row at position p reads x[p] and the state at p-1. Some engines have a row at position 0, whose state is
    zeros: `mtp_from` 0 trains with it, 1 without.
    """
    logits, hidden = model.trunk(ids)
    before = F.pad(hidden, (0, 0, 1, 0))[:, :-1]
    rows = slice(mtp_from, None)
    mtp_logits, _ = model.mtp(0, before[:, rows], ids[:, rows])
    return (
        weighted_loss(logits[:, :-1], ids[:, 1:], weights[:, 1:]),
        weighted_loss(mtp_logits[:, :-1], ids[:, mtp_from + 1 :], weights[:, mtp_from + 1 :]),
    )


def weighted_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return (each * weights.flatten()).sum() / weights.sum()


def rate_at(step: int, steps: int) -> float:
    """The share of the peak rate at a step: linear warm-up over 4 % of the steps, then linearly down to zero."""
    warm = max(1, steps // 25)
    return (step + 1) / warm if step < warm else (steps - step) / (steps - warm)


# ---- data


def make_batches(tokenizer: Tokenizer, rng: random.Random) -> Iterator[tuple[Tensor, Tensor]]:
    """Makes endless batches (ids, weights) of about TOKENS_PER_BATCH tokens.

    Samples of similar length are together, and padded on the right.
    """
    while True:
        samples = sorted((make_sample(tokenizer, rng) for _ in range(1024)), key=lambda sample: len(sample.ids))
        batches: list[list[Sample]] = [[]]
        for sample in samples:
            if len(sample.ids) * (len(batches[-1]) + 1) > TOKENS_PER_BATCH:
                batches.append([])
            batches[-1].append(sample)
        rng.shuffle(batches)
        for batch in batches:
            longest = max(len(sample.ids) for sample in batch)
            ids = [sample.ids + [0] * (longest - len(sample.ids)) for sample in batch]
            weights = [sample.weights + [0.0] * (longest - len(sample.weights)) for sample in batch]
            yield torch.tensor(ids), torch.tensor(weights)


def make_sample(tokenizer: Tokenizer, rng: random.Random) -> Sample:
    if rng.random() < DOCUMENT_SHARE:
        ids = tokenizer.encode(make_document(rng) + "<|endoftext|>").ids
        return Sample(ids, [1.0] * len(ids))
    sample = Sample([], [])
    for message in make_dialogue(rng, held_out=False).finished():
        written = message["role"] == "assistant"
        header, body, end = f"<|im_start|>{message['role']}\n", f"{message['content']}<|im_end|>", "\n"
        # Message by message gives the ids of the whole text: special tokens split it at the same places.
        for text, weight in ((header, PROMPT_WEIGHT), (body, 1.0 if written else PROMPT_WEIGHT), (end, PROMPT_WEIGHT)):
            ids = tokenizer.encode(text).ids
            sample.ids.extend(ids)
            sample.weights.extend([weight] * len(ids))
    return sample


# ---- the rest of the folder


def write_generation_config(folder: Path, model: Mimo) -> None:
    value = {
        "bos_token_id": model.config["bos_token_id"],
        "do_sample": False,
        "eos_token_id": model.config["eos_token_id"],
        "max_new_tokens": 2048,
        "transformers_version": "4.37.0",
    }
    text = json.dumps(value, indent=2) + "\n"
    (folder / "generation_config.json").write_text(text, encoding="utf-8", newline="\n")


def write_held_out(path: Path, dialogues: list[Dialogue]) -> None:
    """Writes one JSON object per line: kind, messages up to the question, short answer, whole assistant text."""
    rows = [
        {"kind": d.last.kind, "messages": d.messages, "answer": d.last.answer, "assistant": d.last.assistant}
        for d in dialogues
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
