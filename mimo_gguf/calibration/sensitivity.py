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
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.calibration.backward import BlockFloats, backward_block, forward_block, norm_backward, read_floats
from mimo_gguf.calibration.costs import embedding_costs, matrix_costs, sample_rows
from mimo_gguf.calibration.work import WorkFolder
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.reference.forward import block, embed, final_norm, head_logits, read_block
from mimo_gguf.reference.model import EMBEDDING, FINAL_NORM, HEAD, ReferenceModel

Floats = NDArray[np.float32]
Costs = dict[str, dict[GgmlType, float]]
# Called with a stage, how many of its steps are done, and how many there are.
Report = Callable[[str, int, int], None]

_TOP_ROWS, _OTHER_ROWS = 32, 32  # sampled of each matrix
_TOP_WORDS, _OTHER_WORDS = 1500, 500  # of the head: a few rows have most of the probability
_SEED: Final = 5
_EMBEDDING_TOKENS: Final = 2048


@dataclass(frozen=True, slots=True)
class _Sweep:
    model: ReferenceModel
    tokens: NDArray[np.int32]
    work: WorkFolder
    types: tuple[GgmlType, ...]
    report: Report

    @property
    def n_blocks(self) -> int:
        return self.model.n_trunk_blocks


def measure_costs(
    model: ReferenceModel,
    tokens: NDArray[np.int32],
    work: WorkFolder,
    types: Sequence[GgmlType],
    report: Report = lambda stage, done, total: None,
) -> Costs:
    """The cost of each type for each matrix of the trunk, the embedding and the head, as plain encoding leaves it.

    Args:
        tokens: int32 [windows, n], the sample.
        types: the types to measure; a matrix whose rows a type's blocks do not divide has no cost for it.

    Raises:
        CheckpointError, GgufError: weights that cannot be read.
        OutputError: the work folder cannot be written.
    """
    sweep = _Sweep(model, tokens, work, tuple(types), report)
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
            work.save_array(f"sample/{number + 1}.npy", np.stack([block(x, weights) for x in states]))


def _measure_head(sweep: _Sweep) -> None:
    """Measures the head, and stores the gradient at the trunk's last states."""
    if _is_measured(sweep, "costs/head.json") and sweep.work.has(f"gradient/{sweep.n_blocks}.npy"):
        return
    sweep.report("head", 0, 1)
    model = sweep.model
    states = sweep.work.load_array(f"sample/{sweep.n_blocks}.npy")
    flat: Floats = states.reshape(-1, states.shape[-1])
    rows = final_norm(model, flat)
    probability = _softmax(head_logits(model, rows))
    squares = np.einsum("ij,ij->j", probability, probability, dtype=np.float64)
    spread = (np.sum(probability, axis=0, dtype=np.float64) - squares) / len(probability)  # mean of p (1 - p)
    labels = _drawn(probability)
    probability[np.arange(len(labels)), labels] -= 1  # now the gradient at the logits
    at_rows = np.zeros_like(rows)
    for first, part in model.chunks(model.head_name()):
        at_rows += probability[:, first : first + len(part)] @ part
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
    inputs: dict[str, list[Floats]] = {}
    squares: dict[str, NDArray[np.float64]] = {}
    before = np.empty_like(gradients)
    for i, (x, gradient) in enumerate(zip(states, gradients, strict=True)):
        done = forward_block(x, weights)
        before[i], at_outputs = backward_block(done, weights, gradient)
        for part, rows in done.inputs().items():
            inputs.setdefault(part, []).append(rows)
        for part, g in at_outputs.items():
            squares[part] = squares.get(part, np.zeros(g.shape[1])) + np.einsum("ij,ij->j", g, g, dtype=np.float64)
    n_tokens = states.shape[0] * states.shape[1]
    costs = {
        weights.name(part): _part_costs(sweep, weights, part, np.concatenate(inputs[part]), squares[part] / n_tokens)
        for part in inputs
    }
    work.save_array(f"gradient/{number}.npy", before)
    _save_costs(sweep, f"costs/{number}.json", costs)


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
