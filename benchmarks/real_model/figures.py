"""Measures what became of the original: divergence in llama.cpp, and how answers end.

    python -m benchmarks.real_model.figures divergence BASE.gguf FILE.gguf --texts FOLDER
    python -m benchmarks.real_model.figures ends FILE.gguf...

FOLDER is that of `train`: its held-out documents and chats are the texts. BASE may be the original's own GGUF, which is
measured with its weights as float32. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.real_model.chats import HELD, answer, read_chats
from benchmarks.real_model.original import MEMBER, write_float
from benchmarks.real_model.texts import KINDS, pieces, read_documents

N_TOKENS = 512
WINDOWS_A_KIND = 2
NOT_COUNTED = 8  # first tokens of a window
LONGEST_ANSWER = 180


@dataclass(frozen=True, slots=True)
class Divergence:
    """A file against its base on one kind of text.

    Attributes:
        kind: the kind of text.
        n_tokens: tokens judged.
        kl: mean divergence in nats.
        same_top: share of tokens of which both think the same one likeliest.
        perplexity, base_perplexity: of the file and of its base.
    """

    kind: str
    n_tokens: int
    kl: float
    same_top: float
    perplexity: float
    base_perplexity: float


@dataclass(frozen=True, slots=True)
class Ends:
    """How greedy answers to the held-out prompts end.

    Attributes:
        model: the file.
        asked, ended: prompts, and answers that ended by themselves.
        mean_tokens: mean length of those that ended.
        lengths: tokens of each answer.
    """

    model: str
    asked: int
    ended: int
    mean_tokens: float
    lengths: Sequence[int]


class Scorer:
    """A GGUF in llama.cpp that gives log-probabilities [tokens, vocabulary] of a window."""

    def __init__(self, path: str) -> None:
        import llama_cpp

        flags = {"n_ctx": N_TOKENS, "n_batch": N_TOKENS, "n_ubatch": N_TOKENS, "n_threads": 1, "n_threads_batch": 1}
        self.llm = llama_cpp.Llama(path, **flags, n_gpu_layers=0, logits_all=True, verbose=False)

    def tokenize(self, text: str) -> list[int]:
        return [int(token) for token in self.llm.tokenize(text.encode(), add_bos=False, special=False)]

    def log_probabilities(self, ids: Sequence[int]) -> NDArray[np.float32]:
        self.llm.reset()
        self.llm.eval(list(ids))
        scores = np.array(self.llm.scores[: len(ids)], np.float32)
        scores -= scores.max(-1, keepdims=True)
        return np.asarray(scores - np.log(np.exp(scores).sum(-1, keepdims=True)))


def as_float(model: str) -> str:
    """The path of a model; for the original, that of a copy beside it with its weights as float32."""
    path = Path(model)
    if path.name != Path(MEMBER).name:
        return model
    copy = path.with_name("original-F32.gguf")
    if not copy.exists():
        write_float(path, copy)
    return str(copy)


def held_windows(folder: Path, scorer: Scorer) -> Iterator[tuple[str, list[int]]]:
    """Windows of held-out documents, and of held-out chats one after the other, each with its kind."""
    documents = read_documents(folder / "documents.jsonl")
    for kind in KINDS:
        windows = (scorer.tokenize(piece)[:N_TOKENS] for piece in pieces(documents, kind, "held"))
        whole = (ids for ids in windows if len(ids) == N_TOKENS)
        yield from ((kind, next(whole)) for _ in range(WINDOWS_A_KIND))
    chats = [token for chat in read_chats(folder / "chats.jsonl") if chat.part == "held" for token in chat.ids]
    yield from (("chat", chats[n * N_TOKENS : (n + 1) * N_TOKENS]) for n in range(WINDOWS_A_KIND))


def compare(base: Scorer, file: Scorer, windows: Iterator[tuple[str, list[int]]]) -> list[Divergence]:
    """The divergence of a file from its base, by kind and in all."""
    rows: dict[str, list[NDArray[np.float64]]] = {}
    for kind, ids in windows:
        wanted, got = base.log_probabilities(ids)[:-1], file.log_probabilities(ids)[:-1]
        at = np.arange(len(ids) - 1), np.array(ids[1:])
        kl = (np.exp(wanted) * (wanted - got)).sum(-1)
        same = wanted.argmax(-1) == got.argmax(-1)
        found = np.stack([kl, same, -got[at], -wanted[at]])[:, NOT_COUNTED:].astype(np.float64)
        rows.setdefault(kind, []).append(found)
        rows.setdefault("all", []).append(found)
    results = []
    for kind, parts in rows.items():
        kl, same, nll, base_nll = np.concatenate(parts, 1)
        perplexities = float(np.exp(nll.mean())), float(np.exp(base_nll.mean()))
        results.append(Divergence(kind, len(kl), float(kl.mean()), float(same.mean()), *perplexities))
    return results


def ends(model: str) -> Ends:
    """Answers the held-out prompts greedily."""
    chats = answer(model, HELD, "held", LONGEST_ANSWER, greedy=True)
    lengths = [len(chat.ids) - chat.n_prompt for chat in chats]
    of_ended = [length for length, chat in zip(lengths, chats, strict=True) if chat.ended]
    return Ends(model, len(chats), len(of_ended), float(np.mean(of_ended)) if of_ended else 0.0, lengths)


def main() -> None:
    """Measures, and prints a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("divergence", "ends"))
    parser.add_argument("models", nargs="+")
    parser.add_argument("--texts", type=Path)
    arguments = parser.parse_args()
    found: list[Divergence] | list[Ends]
    if arguments.what == "ends":
        found = [ends(model) for model in arguments.models]
        for end in found:
            print(f"{end.model}: {end.ended} of {end.asked} ended, after {end.mean_tokens:.0f} tokens on average")
    else:
        if len(arguments.models) != 2 or arguments.texts is None:
            sys.exit("give two files, and --texts FOLDER")
        base, file = (Scorer(as_float(model)) for model in arguments.models)
        found = compare(base, file, held_windows(arguments.texts, file))
        for each in found:
            print(
                f"{each.kind:8} {each.n_tokens} tokens, divergence {each.kl:.6f}, same top {100 * each.same_top:.2f} %"
            )
    print(json.dumps([asdict(each) for each in found]))


if __name__ == "__main__":
    main()
