"""How far a model's predictions are from a base's: per token, and summed up as llama-perplexity sums up.

Definitions are those of llama-perplexity's `--kl-divergence`, which compares each token's whole distribution:
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/tools/perplexity/perplexity.cpp
It keeps the base's log-probabilities in 16 bits and leaves out tokens less likely than e^-16; nothing is rounded or
left out here. Logits are read once, in pieces that stay in a core's cache, so a vocabulary of 151680 tokens costs
little time and no memory. Exponentials are in float32, sums and everything else in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.core.errors import WeightsError

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int32]
Bools = NDArray[np.bool_]

_PIECE: Final = 1 << 18  # logits at a time: 1 MiB of each model


@dataclass(frozen=True, slots=True)
class TokenScores:
    """The figures of each judged token, arrays [n]; those of the base are None without a base.

    Attributes:
        nll: minus the logarithm of the probability that the model gives to the token that comes.
        p: that probability.
        top: the model's most likely token.
        base_nll, base_p: the same of the base.
        kl: the Kullback-Leibler divergence of the model's distribution from the base's, in nats.
        same_top: whether both have the same most likely token.
    """

    nll: Doubles
    p: Doubles
    top: Ints
    base_nll: Doubles | None = None
    base_p: Doubles | None = None
    kl: Doubles | None = None
    same_top: Bools | None = None

    @property
    def n_tokens(self) -> int:
        return len(self.nll)

    @classmethod
    def joined(cls, parts: Sequence[TokenScores]) -> TokenScores:
        """The scores of several pieces of text, one after the other; all with a base, or all without one."""
        columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(cls)}
        joined: dict[str, Any] = {
            name: None if column[0] is None else np.concatenate(column) for name, column in columns.items()
        }
        return cls(**joined)


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value and its standard error."""

    value: float
    error: float


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far a model is from its base.

    Attributes:
        base_perplexity: the base's perplexity.
        ln_ratio: logarithm of (perplexity / base's perplexity); its error knows that both read the same text.
        kl: mean divergence in nats.
        kl_percentiles: percent -> the divergence that so many percent of the tokens do not exceed.
        kl_max: the largest divergence.
        shift: mean of (probability of the token that comes, minus the base's).
        shift_rms: root of the mean square of that shift.
        shift_percentiles: percent -> shift.
        same_top: share of the tokens at which both have the same most likely token.
    """

    base_perplexity: Figure
    ln_ratio: Figure
    kl: Figure
    kl_percentiles: dict[float, float]
    kl_max: float
    shift: Figure
    shift_rms: Figure
    shift_percentiles: dict[float, float]
    same_top: Figure


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of a text: its judged tokens, the perplexity, and the divergence from the base if there is one."""

    n_tokens: int
    perplexity: Figure
    divergence: Divergence | None


KL_PERCENTS: Final = (50.0, 90.0, 95.0, 99.0, 99.9)
SHIFT_PERCENTS: Final = (0.1, 1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9)


# ---- per token


def compare_rows(
    base_logits: Floats, logits: Floats, targets: Ints, *, executor: Executor | None = None, n_threads: int = 1
) -> TokenScores:
    """Compares two models at each token.

    Args:
        base_logits, logits: float32 [n, n_vocab] of the base and of the model.
        targets: the token that comes after each row, int [n].
        executor: threads to share the rows among; numpy works in several threads at once.
        n_threads: number of threads.

    Raises:
        WeightsError: logits that are NaN or infinite.
    """
    return _in_threads(
        lambda rows: _compare(base_logits[rows], logits[rows], targets[rows]), logits, executor, n_threads
    )


def score_rows(logits: Floats, targets: Ints, *, executor: Executor | None = None, n_threads: int = 1) -> TokenScores:
    """Scores one model at each token, as `compare_rows` without a base."""
    return _in_threads(lambda rows: _score(logits[rows], targets[rows]), logits, executor, n_threads)


def top_tokens(logits: Floats) -> Ints:
    """The most likely token of each row, the first of equals."""
    return np.asarray(logits.argmax(axis=-1), np.int32)


def _in_threads(
    call: Callable[[slice], TokenScores], logits: Floats, executor: Executor | None, n_threads: int
) -> TokenScores:
    """Calls a function for slices of rows that fit into a cache, and joins what it gives."""
    n, n_vocab = logits.shape
    step = max(1, _PIECE // n_vocab)
    slices = [slice(first, min(first + step, n)) for first in range(0, n, step)] or [slice(0, 0)]
    if executor is None or n_threads < 2:
        return TokenScores.joined([call(rows) for rows in slices])

    def run(mine: Sequence[slice]) -> list[TokenScores]:
        return [call(rows) for rows in mine]

    each = -(-len(slices) // n_threads)
    shares = [slices[i : i + each] for i in range(0, len(slices), each)]
    return TokenScores.joined([part for share in executor.map(run, shares) for part in share])


def _score(logits: Floats, targets: Ints) -> TokenScores:
    _, _, log_sum = _exponentials(logits, np.empty_like(logits), "the file's")
    nll = log_sum - _at(logits, targets)
    return TokenScores(nll, np.exp(-nll), top_tokens(logits))


def _compare(base_logits: Floats, logits: Floats, targets: Ints) -> TokenScores:
    buffer, powers = np.empty_like(logits), np.empty_like(logits)
    _, _, log_sum = _exponentials(logits, buffer, "the file's")
    powers, power_sum, base_log_sum = _exponentials(base_logits, powers, "the base's")
    nll, base_nll = log_sum - _at(logits, targets), base_log_sum - _at(base_logits, targets)
    # Near 0, where float32 is fine, the differences are summed: less by their offset, which is added again in float64.
    offset = (base_log_sum - log_sum).astype(np.float32)
    np.subtract(base_logits, logits, out=buffer)
    buffer -= offset[:, None]
    np.multiply(buffer, powers, out=buffer)
    kl = buffer.sum(axis=-1, dtype=np.float64) / power_sum + (offset - (base_log_sum - log_sum))
    top = top_tokens(logits)
    return TokenScores(nll, np.exp(-nll), top, base_nll, np.exp(-base_nll), kl, top == top_tokens(base_logits))


def _exponentials(logits: Floats, out: Floats, whose: str) -> tuple[Floats, Doubles, Doubles]:
    """e^(logits - largest) in `out`, their sums, and the logarithms of the sums of e^logits, for each row.

    Raises:
        WeightsError: logits that are NaN or infinite.
    """
    largest = logits.max(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        np.subtract(logits, largest, out=out)
        np.exp(out, out=out)
        sums = out.sum(axis=-1, dtype=np.float64)
    if not (np.isfinite(sums).all() and np.isfinite(largest).all()):
        raise WeightsError(
            f"{whose} predictions are NaN or infinite", hint="make the file again from weights without NaN"
        )
    return out, sums, largest[:, 0].astype(np.float64) + np.log(sums)


def _at(logits: Floats, targets: Ints) -> Doubles:
    return np.take_along_axis(logits, targets[:, None].astype(np.intp), axis=-1)[:, 0].astype(np.float64)


# ---- in all


def summarize(scores: TokenScores) -> Summary:
    """The figures of all tokens together.

    Raises:
        ValueError: there is no token.
    """
    if not scores.n_tokens:
        raise ValueError("no tokens to sum up")
    ln = mean_of(scores.nll)
    perplexity = _exp(ln)
    if scores.kl is None or scores.base_nll is None or scores.base_p is None or scores.same_top is None:
        return Summary(scores.n_tokens, perplexity, None)
    shift = scores.p - scores.base_p
    square = mean_of(shift**2)
    rms = float(np.sqrt(square.value))
    divergence = Divergence(
        base_perplexity=_exp(mean_of(scores.base_nll)),
        # The variance of a difference: var(a) + var(b) - 2 cov(a, b), as the tool computes it.
        ln_ratio=mean_of(scores.nll - scores.base_nll),
        kl=mean_of(scores.kl),
        kl_percentiles=_percentiles(scores.kl, KL_PERCENTS),
        kl_max=float(scores.kl.max()),
        shift=mean_of(shift),
        shift_rms=Figure(rms, 0.5 / rms * square.error if rms else 0.0),
        shift_percentiles=_percentiles(shift, SHIFT_PERCENTS),
        same_top=share_of(scores.same_top),
    )
    return Summary(scores.n_tokens, perplexity, divergence)


def mean_of(values: Doubles) -> Figure:
    """The mean, and the standard error of the mean."""
    n, mean = len(values), float(values.mean())
    return Figure(mean, float(np.sqrt(np.square(values - mean).mean() / (n - 1))) if n > 1 else 0.0)


def share_of(hits: Bools) -> Figure:
    """The share of hits among all, and its standard error."""
    n, share = len(hits), float(hits.mean())
    return Figure(share, float(np.sqrt(share * (1 - share) / (n - 1))) if n > 1 else 0.0)


def _exp(logarithm: Figure) -> Figure:
    value = float(np.exp(logarithm.value))
    return Figure(value, value * logarithm.error)


def _percentiles(values: Doubles, percents: Iterable[float]) -> dict[float, float]:
    """Percent -> value, interpolated between the two nearest of the sorted values."""
    percents = tuple(percents)
    return dict(zip(percents, map(float, np.percentile(values, percents)), strict=True))
