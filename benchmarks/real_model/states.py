"""What the MTP layer learns from: the trunk's states on texts and chats, 576 wide, in files of some megabytes.

For every token there are the state before the final norm, and the 32 likeliest next tokens with their log-
probabilities. For the start of the training there are sums of products, from which the best linear guess of the state
that enters the trunk's last block is solved. Files that exist are kept, so that a stopped run goes on.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.real_model.trunk import WIDTH, Trunk, rms, run_block, run_blocks

TOP = 32
TEXTS_A_FILE = 32

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Text:
    """Tokens of a window or a chat, with its kind and its part: "train" or "held"."""

    kind: str
    part: str
    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Seen:
    """What the trunk says of a text of n tokens.

    Attributes:
        kind, part: as of the text.
        ids: [n].
        states: [n, 576] before the final norm, bfloat16.
        top: [n, 32], the likeliest next tokens, the likeliest first.
        logp: [n, 32], their log-probabilities.
    """

    kind: str
    part: str
    ids: torch.Tensor
    states: torch.Tensor
    top: torch.Tensor
    logp: torch.Tensor


@dataclass(slots=True)
class Sums:
    """Sums for the weighted least squares of the state entering the last block on (normed state before, embedding).

    Attributes:
        inputs: [1152, 1152], of products of inputs with each other.
        outputs: [1152, 576], of products of inputs with what they are to give.
    """

    inputs: torch.Tensor
    outputs: torch.Tensor

    @classmethod
    def zero(cls) -> Sums:
        shapes = ((2 * WIDTH, 2 * WIDTH), (2 * WIDTH, WIDTH))
        return cls(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))

    def add(self, other: Sums) -> None:
        self.inputs += other.inputs
        self.outputs += other.outputs


def make_states(trunk: Trunk, texts: Sequence[Text], folder: Path, say: Say) -> None:
    """Writes the files that are missing in `folder`: held-out texts first, and in order of the hash of their tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = sorted(texts, key=lambda text: (text.part != "held", hashlib.sha256(str(text.ids).encode()).digest()))
    started, n_tokens = time.process_time(), 0
    for first in range(0, len(texts), TEXTS_A_FILE):
        path = folder / f"{first // TEXTS_A_FILE:04}.pt"
        if path.exists():
            continue
        seen, sums = [], Sums.zero()
        for text in texts[first : first + TEXTS_A_FILE]:
            seen.append(see(trunk, text, sums))
            n_tokens += len(text.ids)
        scratch = path.with_suffix(".partial")
        torch.save(
            {"seen": [_as_dict(each) for each in seen], "sums": [sums.inputs.float(), sums.outputs.float()]}, scratch
        )
        scratch.replace(path)
        took = f"{time.process_time() - started:.0f} s of CPU"
        say(f"{first + len(seen)} of {len(texts)} texts, {n_tokens} tokens, {took}")


@torch.no_grad()
def see(trunk: Trunk, text: Text, sums: Sums) -> Seen:
    """Runs the trunk on a text, and adds a training text's products to the sums."""
    ids = torch.tensor(text.ids)
    entering = run_blocks(trunk.blocks[:-1], trunk.embed(ids[None]))
    states = run_block(trunk.blocks[-1], entering)[0]
    top = trunk.logits(states).log_softmax(-1).topk(TOP, -1)
    states = states.to(torch.bfloat16)
    if text.part == "train":
        inputs = torch.cat((rms(states[:-1].float(), None), rms(trunk.embed(ids[1:]), None)), -1)
        wanted = entering[0, 1:]
        weight = wanted.pow(2).mean(-1, keepdim=True).rsqrt()
        inputs, wanted = inputs * weight, wanted * weight
        sums.add(Sums((inputs.T @ inputs).double(), (inputs.T @ wanted).double()))
    return Seen(text.kind, text.part, ids, states, top.indices.to(torch.int32), top.values.to(torch.float16))


def _as_dict(seen: Seen) -> dict[str, Any]:
    return {name: getattr(seen, name) for name in Seen.__slots__}


def read_states(folder: Path) -> tuple[list[Seen], Sums]:
    """Everything that `make_states` wrote into a folder."""
    seen, sums = [], Sums.zero()
    for file in _files(folder):
        seen += [Seen(**each) for each in file["seen"]]
        sums.add(Sums(*(part.double() for part in file["sums"])))
    return seen, sums


def _files(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("*.pt")):
        yield torch.load(path)
