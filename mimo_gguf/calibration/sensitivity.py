"""Measures what each type costs each matrix: a pass of some 2000 tokens forward, and one of gradients backward.

Forward keeps the states between blocks in the work folder. Backward takes one block at a time, the last one first: it
computes the block anew, takes the gradient through it, and measures the block's matrices with the rows and gradients at
hand. Every block's result is stored, so a run that is interrupted goes on at its block.

The labels are drawn from the model's own distribution, not taken from the text: then the mean of g^2 is the Fisher
information, which is the curvature of the divergence. The draws have a fixed seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.calibration.backward import (
    PARTS,
    BlockFloats,
    backward_block,
    forward_block,
    norm_backward,
    read_floats,
)
from mimo_gguf.calibration.costs import embedding_costs, matrix_costs, sample_rows
from mimo_gguf.calibration.work import WorkFolder
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.threads import in_threads
from mimo_gguf.reference.forward import block, embed, final_norm, read_block
from mimo_gguf.reference.model import EMBEDDING, FINAL_NORM, HEAD, ReferenceModel
from mimo_gguf.reference.products import Matrix

Floats = NDArray[np.float32]
Costs = dict[str, dict[GgmlType, float]]
# Called with a stage, how many of its steps are done, and how many there are.
Report = Callable[[str, int, int], None]

_TOP_ROWS, _OTHER_ROWS = 32, 32  # sampled of each matrix
_TOP_WORDS, _OTHER_WORDS = 1500, 500  # of the head: a few rows have most of the probability
_SEED: Final = 5
_EMBEDDING_TOKENS: Final = 2048
_HEAD_ROWS: Final = 256  # tokens whose logits a thread computes at a time


@dataclass(frozen=True, slots=True)
class _Sweep:
    model: ReferenceModel
    tokens: NDArray[np.int32]
    work: WorkFolder
    types: tuple[GgmlType, ...]
    report: Report
    n_threads: int

    @property
    def n_blocks(self) -> int:
        return self.model.n_trunk_blocks


def measure_costs(
    model: ReferenceModel,
    tokens: NDArray[np.int32],
    work: WorkFolder,
    types: Sequence[GgmlType],
    report: Report = lambda stage, done, total: None,
    n_threads: int = 1,
) -> Costs:
    """The cost of each type for each matrix of the trunk, the embedding and the head, as plain encoding leaves it.

    Args:
        tokens: int32 [windows, n], the sample.
        types: the types to measure; a matrix whose rows a type's blocks do not divide has no cost for it.
        n_threads: windows and matrices that are worked on at the same time; it changes no bit if BLAS has one thread.

    Raises:
        CheckpointError, GgufError: weights that cannot be read.
        OutputError: the work folder cannot be written.
    """
    sweep = _Sweep(model, tokens, work, tuple(types), report, n_threads)
    missing = [name for name in _results(sweep) if not _is_measured(sweep, name)]
    if missing:
        _forward(sweep)
        _measure_head(sweep)
        for number in reversed(range(sweep.n_blocks)):
            _measure_block(sweep, number)
        _measure_embedding(sweep)
    costs: Costs = {}
    for name in _results(sweep):
        costs |= _read_costs(work.load_json(name))
    return costs


def _results(sweep: _Sweep) -> list[str]:
    return ["costs/embedding.json", *(f"costs/{b}.json" for b in range(sweep.n_blocks)), "costs/head.json"]


def _is_measured(sweep: _Sweep, name: str) -> bool:
    if not sweep.work.has(name):
        return False
    return {ggml_type.name for ggml_type in sweep.types} <= set(sweep.work.load_json(name)["types"])


def _save_costs(sweep: _Sweep, name: str, costs: Mapping[str, Mapping[GgmlType, float]]) -> None:
    table = {tensor: {t.name: cost for t, cost in by_type.items()} for tensor, by_type in costs.items()}
    sweep.work.save_json(name, {"types": [t.name for t in sweep.types], "costs": table})


def _read_costs(document: Any) -> Costs:
    return {
        tensor: {GgmlType[name]: float(cost) for name, cost in by_type.items()}
        for tensor, by_type in document["costs"].items()
    }


def _forward(sweep: _Sweep) -> None:
    """Stores the states before each block and after the last, float32 [windows, n, n_embd]."""
    work, n_blocks = sweep.work, sweep.n_blocks
    if not work.has("sample/0.npy"):
        rows = embed(sweep.model, sweep.tokens.reshape(-1))
        work.save_array("sample/0.npy", rows.reshape(*sweep.tokens.shape, -1))
    for number in range(n_blocks):
        sweep.report("forward", number, n_blocks)
        if not work.has(f"sample/{number + 1}.npy"):
            weights = read_block(sweep.model, number)
            states = work.load_array(f"sample/{number}.npy")
            after = in_threads(sweep.n_threads, partial(block, weights=weights), states)
            work.save_array(f"sample/{number + 1}.npy", np.stack(after))


def _measure_head(sweep: _Sweep) -> None:
    """Measures the head, and stores the gradient at the trunk's last states."""
    if _is_measured(sweep, "costs/head.json") and sweep.work.has(f"gradient/{sweep.n_blocks}.npy"):
        return
    sweep.report("head", 0, 1)
    model = sweep.model
    states = sweep.work.load_array(f"sample/{sweep.n_blocks}.npy")
    flat: Floats = states.reshape(-1, states.shape[-1])
    rows = final_norm(model, flat)
    probability = _probabilities(sweep, rows)
    squares = np.einsum("ij,ij->j", probability, probability, dtype=np.float64)
    spread = (np.sum(probability, axis=0, dtype=np.float64) - squares) / len(probability)  # mean of p (1 - p)
    labels = _drawn(probability)
    probability[np.arange(len(labels)), labels] -= 1  # now the gradient at the logits
    at_rows = _back_through_head(sweep, probability)
    del probability
    gains = model.vector(FINAL_NORM)
    gradient = norm_backward(flat, gains, model.geometry.rms_epsilon, at_rows)
    sweep.work.save_array(f"gradient/{sweep.n_blocks}.npy", gradient.reshape(states.shape))
    costs: Costs = {}
    if model.has(HEAD):
        sample = sample_rows(spread, _TOP_WORDS, _OTHER_WORDS, _SEED)
        weights = _picked(model, HEAD, sample.rows)
        costs[HEAD] = matrix_costs(weights, rows, spread, sample, sweep.types)
    _save_costs(sweep, "costs/head.json", costs)


def _measure_block(sweep: _Sweep, number: int) -> None:
    """Measures the matrices of a block, and stores the gradient at its input."""
    work = sweep.work
    if _is_measured(sweep, f"costs/{number}.json") and work.has(f"gradient/{number}.npy"):
        return
    sweep.report("backward", sweep.n_blocks - 1 - number, sweep.n_blocks)
    weights = read_floats(sweep.model, number)
    states, gradients = work.load_array(f"sample/{number}.npy"), work.load_array(f"gradient/{number + 1}.npy")
    passed = in_threads(sweep.n_threads, partial(_through_window, weights), zip(states, gradients, strict=True))
    n_tokens = states.shape[0] * states.shape[1]

    def cost(part: str) -> dict[GgmlType, float]:
        inputs = np.concatenate([window.inputs[part] for window in passed])
        squares: NDArray[np.float64] = sum((window.squares[part] for window in passed[1:]), passed[0].squares[part])
        return _part_costs(sweep, weights, part, inputs, squares / n_tokens)

    costs = dict(zip(map(weights.name, PARTS), in_threads(sweep.n_threads, cost, PARTS), strict=True))
    work.save_array(f"gradient/{number}.npy", np.stack([window.before for window in passed]))
    _save_costs(sweep, f"costs/{number}.json", costs)


@dataclass(frozen=True, slots=True)
class _Window:
    """What a block does with one window: the gradient before it, its matrices' inputs, and their outputs' squares.

    The squares are sums over the window's tokens of the squared gradient at each output, float64 [rows].
    """

    before: Floats
    inputs: Mapping[str, Floats]
    squares: Mapping[str, NDArray[np.float64]]


def _through_window(weights: BlockFloats, window: tuple[Floats, Floats]) -> _Window:
    """Passes the states of a window forward through a block, and the gradient after it back."""
    x, gradient = window
    done = forward_block(x, weights)
    before, at_outputs = backward_block(done, weights, gradient)
    squares = {part: np.einsum("ij,ij->j", g, g, dtype=np.float64) for part, g in at_outputs.items()}
    return _Window(before, done.inputs(), squares)


def _part_costs(
    sweep: _Sweep, weights: BlockFloats, part: str, inputs: Floats, sensitivity: NDArray[np.float64]
) -> dict[GgmlType, float]:
    matrix: Floats = getattr(weights, part)
    sample = sample_rows(sensitivity, _TOP_ROWS, _OTHER_ROWS, _SEED + weights.number)
    return matrix_costs(matrix[sample.rows], inputs, sensitivity, sample, sweep.types)


def _measure_embedding(sweep: _Sweep) -> None:
    if _is_measured(sweep, "costs/embedding.json"):
        return
    gradient = sweep.work.load_array("gradient/0.npy")
    sensitivity = np.einsum("wij,wij->j", gradient, gradient, dtype=np.float64) / (gradient.size // gradient.shape[-1])
    tokens = sweep.tokens.reshape(-1)[:_EMBEDDING_TOKENS]
    rows = embed(sweep.model, tokens)
    _save_costs(sweep, "costs/embedding.json", {EMBEDDING: embedding_costs(rows, sensitivity, sweep.types)})


def _probabilities(sweep: _Sweep, rows: Floats) -> Floats:
    """The probabilities [n, vocabulary] that the head gives for its rows [n, n_embd]."""
    model = sweep.model
    logits = np.empty((len(rows), model.geometry.vocab_size), np.float32)
    for first, part in model.chunks(model.head_name()):
        matrix, columns = model.products.prepare(part), slice(first, first + len(part))

        def multiply(some: slice, matrix: Matrix = matrix, columns: slice = columns) -> None:
            logits[some, columns] = matrix.product(rows[some])

        in_threads(sweep.n_threads, multiply, _pieces(len(rows)))
    in_threads(sweep.n_threads, lambda some: _softmax(logits[some]), _pieces(len(rows)))
    return logits


def _back_through_head(sweep: _Sweep, at_logits: Floats) -> Floats:
    """The gradient [n, n_embd] at the head's rows, from the one at the logits [n, vocabulary]."""
    model = sweep.model
    at_rows = np.zeros((len(at_logits), model.geometry.embedding_length), np.float32)
    for first, part in model.chunks(model.head_name()):
        columns = slice(first, first + len(part))

        def add(some: slice, part: Floats = part, columns: slice = columns) -> None:
            at_rows[some] += at_logits[some, columns] @ part

        in_threads(sweep.n_threads, add, _pieces(len(at_rows)))
    return at_rows


def _pieces(n: int) -> list[slice]:
    return [slice(first, min(first + _HEAD_ROWS, n)) for first in range(0, n, _HEAD_ROWS)]


def _softmax(logits: Floats) -> Floats:
    """Turns logits [n, vocabulary] into probabilities, in place."""
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return logits


def _drawn(probability: Floats) -> NDArray[np.intp]:
    """One label for each row, drawn from its distribution with a fixed seed."""
    points = np.random.default_rng(_SEED).random(len(probability))
    labels = np.empty(len(probability), np.intp)
    for i, row in enumerate(probability):
        sums = np.cumsum(row, dtype=np.float64)
        labels[i] = min(int(np.searchsorted(sums, points[i] * sums[-1], side="right")), len(row) - 1)
    return labels


def _picked(model: ReferenceModel, name: str, rows: NDArray[np.intp]) -> Floats:
    """Some rows of a matrix that is too large to be in memory at once, in the order asked for."""
    picked: Floats = np.empty((len(rows), model.geometry.embedding_length), np.float32)
    for first, part in model.chunks(name):
        inside = (rows >= first) & (rows < first + len(part))
        picked[inside] = part[rows[inside] - first]
    return picked
