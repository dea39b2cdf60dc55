"""Scores of answers, and the comparison of two models that were asked the same.

The mean over k answers of each problem (avg@k) estimates pass@1. Its standard error is that of the mean over problems,
because a problem's answers are not independent: Miller, Adding Error Bars to Evals, arXiv 2411.00640.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb, sqrt
from statistics import NormalDist, fmean, stdev
from typing import Any, Final

_INTERVAL: Final = 0.95
_WIDTH: Final = NormalDist().inv_cdf((1 + _INTERVAL) / 2)


@dataclass(frozen=True, slots=True)
class Graded:
    """An answer with its grade.

    Attributes:
        problem, repeat: which answer it is.
        score: 0 to 1; None if there is no answer but an error.
        is_cut: whether it reached the token limit before its end.
        n_tokens: tokens that were generated.
        seconds: time for prompt and answer; None if the server does not say.
    """

    problem: str
    repeat: int
    score: float | None
    is_cut: bool = False
    n_tokens: int = 0
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """The score of a model in a task.

    Attributes:
        n_problems, n_answers: how many were graded.
        n_failed: errors instead of answers; they are in no other figure.
        score: mean over problems of the mean over their answers, 0 to 1; None without answers.
        error: its standard error; None for fewer than two problems.
        n_cut: answers that reached the token limit.
        tokens: tokens of an answer, on average.
        seconds: seconds of an answer while others were being answered, on average.
    """

    n_problems: int
    n_answers: int
    n_failed: int
    score: float | None
    error: float | None
    n_cut: int
    tokens: float | None
    seconds: float | None

    def as_json(self) -> dict[str, Any]:
        """The score as a JSON document."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, value: Any) -> Score:
        """The score in a document that `as_json` made. Raises ValueError if it is not one."""
        try:
            return cls(**{name: value[name] for name in cls.__slots__})
        except (KeyError, TypeError):
            raise ValueError("not a score") from None


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a model's answers differ from another's to the same problems with the same seeds.

    Attributes:
        n_problems: the problems that both answered.
        difference: mean over problems of the difference of their scores; below zero is worse.
        low, high: its 95 % interval, 1.96 standard errors on both sides.
        n_better, n_worse: problems with a better and a worse score.
        p: two-sided probability of a split at least as uneven if both models were equally good: the exact sign test,
            which is McNemar's exact test if each problem was answered once.
    """

    n_problems: int
    difference: float
    low: float
    high: float
    n_better: int
    n_worse: int
    p: float

    def as_json(self) -> dict[str, Any]:
        """The comparison as a JSON document."""
        return {name: getattr(self, name) for name in self.__slots__}


def score_of(answers: Sequence[Graded]) -> Score:
    """The score of a model's answers."""
    given = [each for each in answers if each.score is not None]
    means = list(_by_problem(given).values())
    seconds = [each.seconds for each in given if each.seconds is not None]
    return Score(
        n_problems=len(means), n_answers=len(given), n_failed=len(answers) - len(given),
        score=fmean(means) if means else None, error=_error(means), n_cut=sum(each.is_cut for each in given),
        tokens=fmean(each.n_tokens for each in given) if given else None, seconds=fmean(seconds) if seconds else None,
    )  # fmt: skip


def compare(answers: Sequence[Graded], base: Sequence[Graded]) -> Comparison | None:
    """Compares answers with those of a base; None if the two have fewer than two problems in common.

    Only answers that both have count: the same problem, and the same repeat, which has the same seed.
    """
    ours, theirs = ({(a.problem, a.repeat): a for a in each if a.score is not None} for each in (answers, base))
    common = ours.keys() & theirs.keys()
    mine, other = (_by_problem([each[key] for key in sorted(common)]) for each in (ours, theirs))
    differences = [mine[name] - other[name] for name in mine]
    error = _error(differences)
    if error is None:
        return None
    difference = fmean(differences)
    n_better, n_worse = sum(each > 0 for each in differences), sum(each < 0 for each in differences)
    return Comparison(
        len(differences), difference, difference - _WIDTH * error, difference + _WIDTH * error, n_better, n_worse,
        sign_test(n_better, n_worse),
    )  # fmt: skip


def sign_test(n_better: int, n_worse: int) -> float:
    """The two-sided exact binomial probability of a split at least as uneven, if both sides are equally likely."""
    n, few = n_better + n_worse, min(n_better, n_worse)
    return min(1.0, float(2 * sum(comb(n, k) for k in range(few + 1)) / 2**n))


def _by_problem(answers: Sequence[Graded]) -> Mapping[str, float]:
    found: defaultdict[str, list[float]] = defaultdict(list)
    for each in answers:
        found[each.problem].append(each.score or 0.0)
    return {name: fmean(scores) for name, scores in found.items()}


def _error(values: Sequence[float]) -> float | None:
    return stdev(values) / sqrt(len(values)) if len(values) > 1 else None
