"""Does a file still say what its original says? Its weights tensor by tensor, and its predictions on a few texts.

Both models are computed in float32 by `reference`, so the answer is about the weights alone, and neither has to fit
into memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from mimo_gguf.core.errors import GgufError, WeightsError
from mimo_gguf.core.geometry import block_number
from mimo_gguf.core.model_source import TensorInfo
from mimo_gguf.core.progress import Job, Progress, Silence
from mimo_gguf.core.units import counted, listed
from mimo_gguf.quality.divergence import Divergence, Floats, compare_rows, summarize
from mimo_gguf.quality.texts import Tokens
from mimo_gguf.reference.forward import head_logits
from mimo_gguf.reference.model import ReferenceModel, open_reference
from mimo_gguf.reference.products import product_threads
from mimo_gguf.reference.run import WindowStates, run_windows
from mimo_gguf.reference.weight_errors import TensorError, counterpart, weight_errors

# What both models read: one text of each kind.
TEXTS: Final = (
    "<|im_start|>user\nWhy is the sky blue, and red in the evening?<|im_end|>\n<|im_start|>assistant\nThe air scatters "
    "short waves more than long ones. Seen away from the sun, the sky is full of scattered blue.",
    "The old lighthouse keeper climbed the stairs every evening, wound the clock, and wrote one line into the book: "
    "wind from the west, sea calm, nothing to report.",
    "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a\n\n\n"
    "print([fibonacci(n) for n in range(10)])  # [0, 1, 1, 2, 3, 5, 8, 13, 21, 34]\n",
    "A train leaves at 9:40 and arrives at 12:10. It drives 2.5 hours at 96 km/h, so the distance is 96 x 2.5 = 240 "
    "km. At 80 km/h it would take 240 / 80 = 3 hours.",
    "水在零度结冰，在一百度沸腾。山上的气压比较低，所以水在那里不到一百度就开了。",
    '{"name": "Ada Lovelace", "born": 1815, "fields": ["mathematics", "computing"], "notes": {"G": "an algorithm"}}',
)
_MOST_TOKENS: Final = 64  # of each text: all logits of both models are in memory

# Numbers of a geometry that are the same in a file and its original.
_SAME: Final = (
    "n_trunk", "embedding_length", "feed_forward_length", "head_count", "head_count_kv", "key_length", "value_length",
    "vocab_size", "rope_freq_base", "rms_epsilon",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Predictions:
    """How far a file's predictions are from the original's.

    Attributes:
        divergence: of the distributions of the next token.
        n_tokens: number of predictions compared.
        largest: the largest difference of a logit.
    """

    divergence: Divergence
    n_tokens: int
    largest: float

    def as_json(self) -> dict[str, Any]:
        """The figures as a JSON document."""
        return {
            "tokens": self.n_tokens,
            "kl": self.divergence.kl.value,
            "kl_max": self.divergence.kl_max,
            "same_top": self.divergence.same_top.value,
            "largest_logit_difference": self.largest,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """A file beside its original.

    Attributes:
        file, original: what the two are called.
        tensors: the errors of every tensor that both have, in the file's order.
        trunk: predictions of the next token.
        mtp: predictions of the MTP layer; None if only one of the two has it.
        notes: what could not be compared, in words.
    """

    file: str
    original: str
    tensors: tuple[TensorError, ...]
    trunk: Predictions
    mtp: Predictions | None
    notes: tuple[str, ...]

    @property
    def is_exact(self) -> bool:
        """Whether every weight that both have is the same."""
        return all(tensor.is_exact for tensor in self.tensors)

    @property
    def foreign(self) -> tuple[TensorError, ...]:
        """The tensors that are of other weights: they differ by far more than their types lose."""
        return tuple(tensor for tensor in self.tensors if tensor.is_foreign)

    @property
    def verdict(self) -> str:
        """The answer in words."""
        if self.foreign:
            names = listed([tensor.name for tensor in self.foreign])
            return f"not the original's weights: {names}"
        return (
            "the original's weights, bit for bit" if self.is_exact else "the original's weights, rounded to its types"
        )

    def as_json(self) -> dict[str, Any]:
        """The comparison as a JSON document."""
        return {
            "file": self.file,
            "original": self.original,
            "verdict": self.verdict,
            "same": not self.foreign,
            "exact": self.is_exact,
            "trunk": self.trunk.as_json(),
            "mtp": None if self.mtp is None else self.mtp.as_json(),
            "notes": list(self.notes),
            "tensors": [tensor.as_json() for tensor in self.tensors],
        }


def compare(
    file: str | Path,
    original: str | Path,
    *,
    texts: Sequence[str] = TEXTS,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Compares a GGUF file with the original that it was made from: every weight, and the predictions on a few texts.

    Args:
        file: a GGUF file, or any part of a split one.
        original: a checkpoint folder, a Hub id, or a GGUF file.
        texts: what both models read.
        threads: CPU threads; None means one per core.
        progress: receives how far it is.

    Raises:
        GgufError: a broken file, or two that are not of the same model.
        CheckpointError, HubError: no such checkpoint, or one that cannot be converted.
        WeightsError: weights or predictions that are NaN or infinite.
    """
    progress = progress or Silence()
    with product_threads(threads or 0), open_reference(file) as model, open_reference(original) as wanted:
        check_pair(model, wanted)
        windows = _windows(model, texts)
        common = [tensor.info for tensor in model.source.tensors if counterpart(tensor.info.name, wanted)]
        report = _Report(progress, common, model)
        tensors = tuple(report.weights(weight_errors(model, wanted, common)))
        _check_finite(tensors, model, wanted)
        mtp = bool(model.n_mtp_blocks and wanted.n_mtp_blocks)
        states = [run_windows(m, windows, mtp=mtp, on_progress=report.predictions(m)) for m in (wanted, model)]
        trunk = _compare_predictions(wanted, model, windows, states, mtp=False)
        drafts = _compare_predictions(wanted, model, windows, states, mtp=True) if mtp else None
        progress.finish()
        return Comparison(str(file), str(original), tensors, trunk, drafts, tuple(_notes(model, wanted)))


# ---- what can be compared


def check_pair(model: ReferenceModel, original: ReferenceModel) -> None:
    """Refuses two that cannot be a file and its original.

    Raises:
        GgufError: another geometry, another vocabulary, or a tensor of the trunk that only one of the two has.
    """
    fault = _geometry_fault(model, original) or _vocabulary_fault(model, original) or _tensor_fault(model, original)
    if fault is not None:
        raise GgufError(
            f"{model.source.label} was not made from {original.source.label}: {fault}",
            hint="give the checkpoint that the file was made from",
        )


def _geometry_fault(model: ReferenceModel, original: ReferenceModel) -> str | None:
    for field in _SAME:
        here, there = getattr(model.geometry, field), getattr(original.geometry, field)
        if np.float32(here) != np.float32(there):  # as GGUF stores real numbers
            words = "number of trunk blocks" if field == "n_trunk" else field.replace("_", " ")
            return f"its {words} is {here:.6g}, the original's {there:.6g}"
    return None


def _vocabulary_fault(model: ReferenceModel, original: ReferenceModel) -> str | None:
    here, there = (_tokens_of(each) for each in (model, original))
    if not here or not there or here == there:
        return None
    if len(here) != len(there):
        return f"its vocabulary has {len(here)} tokens, the original's {len(there)}"
    token = next(i for i, pair in enumerate(zip(here, there, strict=True)) if pair[0] != pair[1])
    return f"token {token} is {here[token]!r:.40} in its vocabulary, {there[token]!r:.40} in the original's"


def _tokens_of(model: ReferenceModel) -> list[str]:
    entry = model.source.metadata.get("tokenizer.ggml.tokens")
    return [] if entry is None else list(entry.value)


def _tensor_fault(model: ReferenceModel, original: ReferenceModel) -> str | None:
    for one, other, words in ((original, model, "it lacks"), (model, original, "the original lacks")):
        missing = [name for name in _trunk_names(one) if counterpart(name, other) is None]
        if missing:
            return f"{words} {listed(missing, most=2)}"
    return None


def _trunk_names(model: ReferenceModel) -> Iterable[str]:
    names = (tensor.info.name for tensor in model.source.tensors)
    return (name for name in names if (block_number(name) or 0) < model.n_trunk_blocks)


def _check_finite(tensors: Sequence[TensorError], model: ReferenceModel, original: ReferenceModel) -> None:
    """Raises WeightsError if a tensor of either model holds Inf or NaN."""
    for tensor in tensors:
        if not math.isfinite(tensor.signal_square):
            label, hint = original.source.label, "download the original again"
        elif not math.isfinite(tensor.error_square):
            label, hint = model.source.label, "quantize or download the file again"
        else:
            continue
        raise WeightsError(f"{label}: tensor {tensor.name} holds Inf or NaN", hint=hint)


def _notes(model: ReferenceModel, original: ReferenceModel) -> Iterable[str]:
    here, there = model.n_mtp_blocks, original.n_mtp_blocks
    if here != there:
        more, less = ("the original has", "the file") if there > here else ("the file has", "the original")
        yield f"{more} {counted(abs(here - there), 'MTP block')} that {less} lacks"
    quantized = sorted({t.info.ggml_type.name for t in original.source.tensors} - {"F32", "F16", "BF16"})
    if quantized:
        yield f"the original is quantized itself ({', '.join(quantized)})"


# ---- predictions


def _windows(model: ReferenceModel, texts: Sequence[str]) -> list[Tokens]:
    from mimo_gguf.llama.checkpoint_vocabulary import vocabulary_of

    vocabulary = vocabulary_of(model.source)
    most = min(_MOST_TOKENS, model.geometry.context_length)
    return [np.array(vocabulary.tokenize(text)[:most], np.int32) for text in texts]


def _compare_predictions(
    original: ReferenceModel,
    model: ReferenceModel,
    windows: Sequence[Tokens],
    states: Sequence[WindowStates],
    *,
    mtp: bool,
) -> Predictions:
    """Compares the predictions of all tokens that have a successor, the trunk's or the MTP layer's."""
    ahead = 2 if mtp else 1  # row p predicts token p + ahead
    targets = np.concatenate([window[ahead:] for window in windows])
    logits = []
    for each, of_each in zip((original, model), states, strict=True):
        rows = [rows[: max(0, len(w) - ahead)] for rows, w in zip(_rows(of_each, mtp), windows, strict=True)]
        logits.append(head_logits(each, np.concatenate(rows), mtp_block=each.n_trunk_blocks if mtp else None))
    scores = compare_rows(logits[0], logits[1], targets)
    divergence = summarize(scores).divergence
    assert divergence is not None
    np.subtract(logits[1], logits[0], out=logits[1])
    return Predictions(divergence, scores.n_tokens, float(max(logits[1].max(), -logits[1].min())))


def _rows(states: WindowStates, mtp: bool) -> Sequence[Floats]:
    return states.mtp if mtp else states.final


class _Report:
    """Tells how far a comparison is: the file's weights are read twice, the original's too."""

    def __init__(self, progress: Progress, tensors: Sequence[TensorInfo], model: ReferenceModel) -> None:
        self._progress = progress
        self._sizes = {info.name: info.n_bytes for info in tensors}
        self._model = model
        total = sum(self._sizes.values())
        self._done = [0, 0]
        progress.start([Job("weights", total), Job("predictions", 2 * total)])

    def weights(self, errors: Iterable[TensorError]) -> Iterable[TensorError]:
        """Passes the errors of tensors on, and counts them."""
        for error in errors:
            self._done[0] += self._sizes[error.name]
            self._progress.update(self._done, (0, 0))
            yield error

    def predictions(self, model: ReferenceModel) -> Callable[[int, int], None]:
        """The function that a run of one of the two models reports to; the original runs first."""
        return partial(self._predictions, sum(self._sizes.values()) if model is self._model else 0)

    def _predictions(self, before: int, done: int, total: int) -> None:
        self._done[1] = before + sum(self._sizes.values()) * done // max(1, total)
        self._progress.update(self._done, (0, 0))
