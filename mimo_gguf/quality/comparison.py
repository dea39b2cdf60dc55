"""Compares a new measurement with a certificate of the same file: figure by figure, within stated tolerances.

The text is the same, so nothing is drawn by chance a second time. Only arithmetic may differ: another number of threads
sums in another order, and another processor rounds activations in another way. Differences of that kind are far below
the standard error, which tells what another text would change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from mimo_gguf.quality.certificate import Certificate
from mimo_gguf.quality.divergence import Figure, Summary
from mimo_gguf.quality.report import Arithmetic, FileQuality

# Share of a standard error that a figure may differ by.
TOLERANCES: Final[dict[Arithmetic, float]] = {"float32": 0.1, "backend": 0.5}
RELATIVE: Final = 1e-4  # of the figure, in addition
ABSOLUTE: Final = 1e-5  # in addition: divergences of files that hardly differ from their base
TIES: Final = 2  # tokens, in addition for shares: two tokens may be equally likely
_OF_DIVERGENCE: Final = ("ln_ratio", "kl", "shift", "shift_rms", "same_top")
_SHARES: Final = ("same_top", "acceptance")


@dataclass(frozen=True, slots=True)
class ComparedFigure:
    """One figure of a certificate and of a new measurement.

    Attributes:
        kind: kind of text.
        name: of the figure; acceptance has the states of the MTP block behind it.
        allowed: by how much the two may differ.
    """

    kind: str
    name: str
    certified: Figure
    measured: Figure
    allowed: float

    @property
    def agrees(self) -> bool:
        """Whether the two differ by no more than is allowed."""
        return abs(self.certified.value - self.measured.value) <= self.allowed

    def as_json(self) -> dict[str, Any]:
        """The comparison as a JSON document."""
        return {
            "kind": self.kind, "figure": self.name, "certified": self.certified.value,
            "measured": self.measured.value, "allowed": self.allowed, "agrees": self.agrees,
        }  # fmt: skip


def compare_figures(certificate: Certificate, file: FileQuality) -> tuple[ComparedFigure, ...]:
    """Compares all figures that have a standard error, kind by kind. Both have the same kinds of text."""
    pairs = []
    for kind, certified in certificate.figures.items():
        pairs += [(kind, *pair) for pair in _pairs(certified, file.by_kind[kind])]
        pairs += [
            (kind, f"acceptance, {hidden}", of_kind[kind], file.acceptance[hidden][kind])
            for hidden, of_kind in certificate.acceptance.items()
        ]
    return tuple(
        ComparedFigure(kind, name, old, new, _allowed(name, old, certificate.arithmetic, file.by_kind[kind].n_tokens))
        for kind, name, old, new in pairs
    )


def _pairs(certified: Summary, measured: Summary) -> Iterator[tuple[str, Figure, Figure]]:
    yield "perplexity", certified.perplexity, measured.perplexity
    if certified.divergence is not None and measured.divergence is not None:
        for name in _OF_DIVERGENCE:
            yield name, getattr(certified.divergence, name), getattr(measured.divergence, name)


def _allowed(name: str, certified: Figure, arithmetic: Arithmetic, n_tokens: int) -> float:
    ties = TIES / n_tokens if name.startswith(_SHARES) else 0.0
    return TOLERANCES[arithmetic] * certified.error + RELATIVE * abs(certified.value) + ABSOLUTE + ties
