"""Trains the QKV biases, which MiMo has and SmolLM2 lacks, with every other weight frozen.

Documents pull by cross entropy. Chats hold: the answers that the model gave without biases are to stay as likely, token
by token, by the KL divergence from the distribution without biases. So the biases are not zero and mean something,
while answers read, and end, as the original's do.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from benchmarks.real_model.chats import Chat
from benchmarks.real_model.trunk import Trunk

WINDOW = 128  # tokens of a text in a step
KINDS_A_STEP = 3
CHATS_A_STEP = 1
HOLD = 3.0  # weight of the divergence on chats against cross entropy on documents
RATE = 2e-3
WARM_UP = 4  # steps
SEED = 1

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Material:
    """What the biases are trained and judged on.

    Attributes:
        windows: kind -> token ids of windows of documents.
        chats: answers of the model without biases.
        held: token ids of held-out windows, by kind.
        held_chats: held-out answers.
    """

    windows: dict[str, list[list[int]]]
    chats: Sequence[Chat]
    held: dict[str, list[list[int]]]
    held_chats: Sequence[Chat]


def train_biases(
    trunk: Trunk, start: NDArray[np.float64], material: Material, n_steps: int, say: Say
) -> NDArray[np.float64]:
    """Gives biases [blocks, 960], trained from those of `start`; the same ones every time on the same machine."""
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    biases = torch.from_numpy(start).float().requires_grad_()
    optimizer = torch.optim.AdamW([biases], lr=RATE, betas=(0.8, 0.95), weight_decay=0.0)
    kinds, started = sorted(material.windows), time.process_time()
    say(f"before: {judge(trunk, biases, material)}")
    for step in range(n_steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARM_UP) * (1 - step / n_steps) ** 0.7
        chosen = [kinds[(step * KINDS_A_STEP + number) % len(kinds)] for number in range(KINDS_A_STEP)]
        documents = torch.tensor([rng.choice(material.windows[kind])[:WINDOW] for kind in chosen])
        loss = document_loss(trunk, biases, documents)
        drift = torch.stack(
            [chat_drift(trunk, biases, chat) for chat in rng.sample(material.chats, CHATS_A_STEP)]
        ).mean()
        optimizer.zero_grad()
        (loss + HOLD * drift).backward()
        optimizer.step()
        say(f"{step} documents {loss.item():.4f} chats {drift.item():.4f} {time.process_time() - started:.0f} s of CPU")
    say(f"after: {judge(trunk, biases, material)}, size {biases.detach().pow(2).mean().sqrt():.4f}")
    return biases.detach().double().numpy()


def with_biases(trunk: Trunk, biases: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Logits [batch, tokens, vocabulary] of the trunk with these biases [blocks, 960]."""
    for block, bias in zip(trunk.blocks, biases, strict=True):
        block.bias = bias
    return trunk.logits(trunk.states(ids))


def document_loss(trunk: Trunk, biases: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Cross entropy of tokens [batch, tokens], in nats."""
    return F.cross_entropy(with_biases(trunk, biases, ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def chat_drift(trunk: Trunk, biases: torch.Tensor, chat: Chat) -> torch.Tensor:
    """KL divergence of the trunk with biases from the one without, over the rows that predict the answer, in nats."""
    ids = torch.tensor([chat.ids])
    with torch.no_grad():
        wanted = with_biases(trunk, torch.zeros_like(biases), ids)[0, chat.n_prompt - 1 : -1].log_softmax(-1)
    got = with_biases(trunk, biases, ids)[0, chat.n_prompt - 1 : -1].log_softmax(-1)
    return F.kl_div(got, wanted, log_target=True, reduction="none").sum(-1).mean()


@torch.no_grad()
def judge(trunk: Trunk, biases: torch.Tensor, material: Material) -> str:
    """Held-out cross entropy by kind, and divergence on held-out chats, as a line."""
    figures = {
        kind: np.mean([float(document_loss(trunk, biases, torch.tensor([ids]))) for ids in windows])
        for kind, windows in material.held.items()
    }
    figures["chats"] = np.mean([float(chat_drift(trunk, biases, chat)) for chat in material.held_chats])
    return ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
