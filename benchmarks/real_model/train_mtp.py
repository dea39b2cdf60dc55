"""Trains the MTP layer on the frozen trunk by distillation.

The layer sees the trunk's state of a token and the embedding of the next one, and is to say what the trunk will say of
the token after that. It learns the trunk's own distribution: cross entropy against the 32 likeliest tokens, among these
and 2048 others, and a little of the state itself.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.real_model.mtp_layer import MtpLayer
from benchmarks.real_model.states import Seen
from benchmarks.real_model.trunk import WIDTH, Trunk, rms

TOKENS_A_STEP = 2048
SAME_LENGTH = 32  # texts whose lengths lie in the same range of so many tokens go together
N_FREQUENT = N_DRAWN = 1024  # other tokens, in whose midst the likeliest ones are to stand out
STATE_WEIGHT = 0.1
RATE = 6e-4
LAST_RATE = 0.02  # of the first
WARM_UP = 20  # steps
DECAY = 0.02  # of matrices
SEED = 11
NOT_COUNTED = 8  # first tokens of a text

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts side by side, the shorter ones filled up.

    Attributes:
        before: [texts, tokens, 576], the trunk's state of the token before; zeros before the first.
        ids: [texts, tokens].
        counts: [texts, tokens], which places are learned from.
        wanted: [texts, tokens, 576], the trunk's state.
        top, logp: [texts, tokens, 32], its likeliest tokens and their log-probabilities.
    """

    before: torch.Tensor
    ids: torch.Tensor
    counts: torch.Tensor
    wanted: torch.Tensor
    top: torch.Tensor
    logp: torch.Tensor


def make_batch(texts: Sequence[Seen]) -> Batch:
    """A batch of texts."""
    longest = max(len(text.ids) for text in texts)

    def stack(rows: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack([F.pad(row, (0, 0) * (row.ndim - 1) + (0, longest - len(row))) for row in rows])

    counts = stack([torch.ones(len(text.ids)) for text in texts]).bool()
    counts[:, 0] = False
    wanted = stack([text.states for text in texts]).float()
    return Batch(
        before=F.pad(wanted[:, :-1], (0, 0, 1, 0)),
        ids=stack([text.ids for text in texts]),
        counts=counts,
        wanted=wanted,
        top=stack([text.top for text in texts]).long(),
        logp=stack([text.logp for text in texts]).float(),
    )


def batches(texts: Sequence[Seen], rng: random.Random) -> Iterator[list[Seen]]:
    """Training texts of about the same length, in another order each time through, without end."""
    while True:
        waiting: dict[int, list[Seen]] = {}
        for text in rng.sample(texts, len(texts)):
            key = len(text.ids) // SAME_LENGTH
            group = waiting.setdefault(key, [])
            group.append(text)
            if sum(len(each.ids) for each in group) >= TOKENS_A_STEP:
                yield waiting.pop(key)
        yield from waiting.values()


def train_mtp(trunk: Trunk, layer: MtpLayer, texts: Sequence[Seen], n_steps: int, say: Say) -> MtpLayer:
    """Trains the layer in place; the same way every time on the same machine."""
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    learned = [text for text in texts if text.part == "train"]
    frequent = torch.bincount(torch.cat([text.ids for text in learned])).argsort(descending=True)[:N_FREQUENT]
    weights = [weight.requires_grad_() for weight in layer.trainable()]
    groups = [
        {"params": [weight for weight in weights if weight.ndim == 2], "weight_decay": DECAY},
        {"params": [weight for weight in weights if weight.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98))
    source, started = batches(learned, rng), time.process_time()
    n_tokens = sum(len(text.ids) for text in learned)
    say(f"{n_tokens} tokens, {n_steps} steps; before: {agreements(trunk, layer, texts)}")
    for step in range(n_steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARM_UP) * max(LAST_RATE, 1 - step / n_steps)
        tokens_loss, state_loss = losses(trunk, layer, make_batch(next(source)), frequent)
        optimizer.zero_grad()
        (tokens_loss + STATE_WEIGHT * state_loss).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if step % 20 == 19:
            took = f"{time.process_time() - started:.0f} s of CPU"
            say(f"{step + 1} tokens {tokens_loss.item():.3f} state {state_loss.item():.3f} {took}")
        if step % 100 == 99:
            say(f"{step + 1}: {agreements(trunk, layer, texts, most=6)}")
    say(f"after: {agreements(trunk, layer, texts)}")
    return layer


def losses(trunk: Trunk, layer: MtpLayer, batch: Batch, frequent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy against the trunk's likeliest tokens, in nats, and the mean square error of the normed state."""
    got = layer(batch.before, trunk.embed(batch.ids))[batch.counts]
    top, logp, wanted = batch.top[batch.counts], batch.logp[batch.counts], batch.wanted[batch.counts]
    near = torch.bmm(trunk.embedding[top], got[:, :, None])[:, :, 0]
    n_vocab = len(trunk.embedding)
    others = torch.cat((frequent, torch.randint(0, n_vocab, (N_DRAWN,)))).unique()
    far = F.linear(got, trunk.embedding[others])
    is_near = torch.zeros(len(got), n_vocab, dtype=torch.bool).scatter_(1, top, True)[:, others]
    scores = torch.cat((near, far.masked_fill(is_near, -1e9)), 1).log_softmax(-1)
    share = logp.exp()
    tokens_loss = -(share * scores[:, : top.shape[1]]).sum(-1).mean() / share.sum(-1).mean()
    state_loss = (got / layer.trunk_gain - rms(wanted, torch.ones(WIDTH))).pow(2).mean()
    return tokens_loss, state_loss


@torch.no_grad()
def agreements(trunk: Trunk, layer: MtpLayer, texts: Sequence[Seen], most: int | None = None) -> str:
    """How often the layer's likeliest token is the trunk's, on held-out texts, by kind, as a line.

    Args:
        trunk: for its embedding and its head.
        layer: the layer.
        texts: texts of both parts.
        most: texts of a kind, at most.
    """
    hits: dict[str, list[torch.Tensor]] = {}
    for text in texts:
        of_kind = hits.setdefault(text.kind, [])
        if text.part == "held" and (most is None or len(of_kind) < most):
            batch = make_batch([text])
            got = F.linear(layer(batch.before, trunk.embed(batch.ids))[0], trunk.embedding).argmax(-1)
            of_kind.append((got == text.top[:, 0])[NOT_COUNTED:])
    hits["all"] = [each for of_kind in hits.values() for each in of_kind]
    return ", ".join(f"{kind} {100 * torch.cat(each).float().mean():.1f} %" for kind, each in hits.items() if each)
