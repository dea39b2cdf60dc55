"""The way from the original to the trained biases and the MTP layer, step by step, each with its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.real_model.chats import HELD, Chat, answer, read_chats, training_prompts, write_chats
from benchmarks.real_model.folder import write_checkpoint
from benchmarks.real_model.mtp_layer import first_guess, layer_tensors, read_layer
from benchmarks.real_model.original import Array, open_original
from benchmarks.real_model.states import Text, make_states, read_states
from benchmarks.real_model.texts import (
    KINDS,
    Document,
    collect,
    fetch_packages,
    pieces,
    read_documents,
    write_documents,
)
from benchmarks.real_model.tokenizer import make_tokenizer
from benchmarks.real_model.train_biases import WINDOW, Material, train_biases
from benchmarks.real_model.train_mtp import train_mtp
from benchmarks.real_model.trained import bare, biases_by_name, biases_of, read_trained
from benchmarks.real_model.trunk import Trunk

N_TOKENS = 512  # of a window
LONGEST_ANSWER = 180
BIAS_STEPS = 10
BIAS_WINDOWS = 20  # of a kind
MTP_STEPS = 300
WINDOWS = {"prose": 230, "code": 170, "manual": 170}  # kind -> windows that the MTP layer learns from
HELD_WINDOWS = 4  # of a kind
N_CHATS = 72
JUDGED_CHATS = 4  # held-out chats that biases are judged on

Tensors = dict[str, Array]


def train_all(original: Path, folder: Path, start: Path | None) -> None:
    """Makes `folder`/trained.safetensors; every step that has left its file in the folder is taken as done.

    Args:
        original: the original GGUF.
        folder: where every step leaves its file.
        start: biases and MTP layer to train further; None begins with zeros and with the trunk's last block.
    """
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    documents = make_documents(folder)
    chats = make_chats(original, folder)
    first = None if start is None else read_trained(start)
    biases = make_biases(original, folder, documents, chats, first)
    trunk = Trunk(open_original(original, biases_by_name(biases)))
    make_states(trunk, texts_to_see(original, documents, chats), folder / "states", say)
    make_mtp(trunk, biases, folder, first)


def say(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)


def make_documents(folder: Path) -> list[Document]:
    """All documents, collected once."""
    path = folder / "documents.jsonl"
    if not path.exists():
        fetch_packages(folder / "packages")
        write_documents(path, collect(folder / "packages"))
    return read_documents(path)


def make_chats(original: Path, folder: Path) -> list[Chat]:
    """Answers of the model without biases, by its own GGUF in MiMo's layout, as Q8_0."""
    from mimo_gguf import convert

    path = folder / "chats.jsonl"
    if not path.exists():
        checkpoint, model = folder / "bare", folder / "bare-Q8_0.gguf"
        if not checkpoint.exists():
            write_checkpoint(checkpoint, open_original(original, bare()), "widened", mtp=False)
        if not model.exists():
            convert(checkpoint, out=model, types=["Q8_0"])
        held = answer(str(model), HELD, "held", LONGEST_ANSWER, greedy=True)
        write_chats(path, held + answer(str(model), training_prompts()[:N_CHATS], "train", LONGEST_ANSWER))
    return read_chats(path)


def make_biases(
    original: Path, folder: Path, documents: Sequence[Document], chats: Sequence[Chat], first: Tensors | None
) -> Array:
    """The biases [30, 960]."""
    path = folder / "biases.npy"
    if not path.exists():
        opened = open_original(original, bare())
        material = Material(
            {kind: windows(opened.fields, documents, kind, "train", BIAS_WINDOWS) for kind in KINDS},
            [chat for chat in chats if chat.part == "train"],
            {kind: [ids[:WINDOW] for ids in windows(opened.fields, documents, kind, "held", 2)] for kind in KINDS},
            [chat for chat in chats if chat.part == "held"][:JUDGED_CHATS],
        )
        start = biases_of(bare() if first is None else first)
        np.save(path, train_biases(Trunk(opened), start, material, BIAS_STEPS, say))
    return np.load(path)


def windows(
    fields: Mapping[str, Any], documents: Sequence[Document], kind: str, part: str, most: int
) -> list[list[int]]:
    """Windows of 512 tokens of documents of one kind and part, `most` at most."""
    tokenizer = make_tokenizer(fields)
    found: list[list[int]] = []
    for piece in pieces(documents, kind, part):
        ids = tokenizer.encode(piece).ids
        if len(ids) >= N_TOKENS and len(found) < most:
            found.append(ids[:N_TOKENS])
        if len(found) == most:
            break
    return found


def texts_to_see(original: Path, documents: Sequence[Document], chats: Sequence[Chat]) -> list[Text]:
    """What the trunk's states are taken on: windows of documents, and chats."""
    fields = dict(open_original(original, {}).fields)
    texts = [Text("chat", chat.part, chat.ids) for chat in chats]
    for kind, n_windows in WINDOWS.items():
        for part, most in (("held", HELD_WINDOWS), ("train", n_windows)):
            texts += [Text(kind, part, ids) for ids in windows(fields, documents, kind, part, most)]
    return texts


def make_mtp(trunk: Trunk, biases: Array, folder: Path, first: Tensors | None) -> None:
    """Trains the MTP layer, and writes it with the biases."""
    from safetensors.torch import save_file

    texts, sums = read_states(folder / "states")
    layer = first_guess(trunk, sums) if first is None else read_layer(trunk, first)
    layer = train_mtp(trunk, layer, texts, MTP_STEPS, say)
    tensors = {"biases": torch.from_numpy(biases).to(torch.bfloat16), **layer_tensors(layer)}
    save_file(tensors, folder / "trained.safetensors", {"format": "pt"})
