"""A certificate: what was measured of a file, with which texts, base, programs and arithmetic, and every figure.

It is a value that is written as JSON and read again. Where it is stored, and how it is tied to the tensors of its file,
is the business of core/stored_certificate.py and quantization/certificates.py. Numbers are kept to seven digits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mimo_gguf.core.errors import GgufError
from mimo_gguf.core.version import LLAMA_CPP_COMMIT, __version__
from mimo_gguf.quality.divergence import Divergence, Figure, Summary
from mimo_gguf.quality.report import ALL, Arithmetic, BaseWay, FileQuality, KindInfo, QualityReport

if TYPE_CHECKING:
    from mimo_gguf.engine.drafting import HiddenState
    from mimo_gguf.quality.plan import QualityPlan

_FORMAT: Final = "mimo-gguf certificate 1"
_PERCENTILES: Final = ("kl_percentiles", "shift_percentiles")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Versions:
    """The programs that measured."""

    mimo_gguf: str
    llama_cpp: str
    numpy: str


@dataclass(frozen=True, slots=True)
class CertifiedBase:
    """The base that the file was compared with.

    Attributes:
        label: what the user called it.
        digest: of its weights. A file that was quantized from it has the same as `mimo_gguf.source.digest`.
        way: how its predictions came; see `BaseInfo`.
    """

    label: str
    digest: str
    way: BaseWay


@dataclass(frozen=True, slots=True)
class CertifiedTexts:
    """The texts, as they have to be given to read them again.

    Attributes:
        names: as given with `-f`.
        digest: SHA-256 of the documents that were chosen from.
        windows_digest: SHA-256 of the tokens that were read.
        n_ctx: tokens of a window, of which the second half is judged.
        n_tokens: tokens asked for; None means all.
        all_text: whether documents for calibration were read, too.
        kinds: kind of text -> what was read of it.
    """

    names: tuple[str, ...]
    digest: str
    windows_digest: str
    n_ctx: int
    n_tokens: int | None
    all_text: bool
    kinds: dict[str, KindInfo]


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was measured of one file.

    Attributes:
        arithmetic: "backend" judges what the user gets from llama.cpp, which rounds activations; "float32" judges the
            weights alone.
        backend: the devices and threads that computed.
        figures: kind of text -> figures; `ALL` is the last.
        acceptance: states that the MTP block was given -> kind of text -> share of its drafts that the trunk accepts.
    """

    versions: Versions
    arithmetic: Arithmetic
    backend: str
    base: CertifiedBase | None
    texts: CertifiedTexts
    figures: dict[str, Summary]
    acceptance: dict[HiddenState, dict[str, Figure]]

    def as_json(self) -> dict[str, Any]:
        """The certificate as a JSON document."""
        return {
            "format": _FORMAT,
            "versions": asdict(self.versions),
            "arithmetic": self.arithmetic,
            "backend": self.backend,
            "base": None if self.base is None else asdict(self.base),
            "texts": asdict(self.texts) | {"names": list(self.texts.names)},
            "figures": {kind: _summary_json(summary) for kind, summary in self.figures.items()},
            "acceptance": {
                hidden: {kind: _pair(figure) for kind, figure in kinds.items()}
                for hidden, kinds in self.acceptance.items()
            },
        }


def certify(plan: QualityPlan, report: QualityReport, file: FileQuality, base_digest: str) -> Certificate:
    """The certificate of one file of a finished measurement.

    Args:
        base_digest: of the base's weights; of no meaning without a base.
    """
    import numpy as np

    texts = report.texts
    return Certificate(
        versions=Versions(__version__, LLAMA_CPP_COMMIT, np.__version__),
        arithmetic=report.arithmetic,
        backend=report.backend,
        base=None if report.base is None else CertifiedBase(report.base.label, base_digest, report.base.way),
        texts=CertifiedTexts(
            texts.names, texts.digest, texts.windows_digest, report.n_ctx, plan.options.n_tokens,
            plan.options.all_text, dict(texts.kinds),
        ),
        figures=dict(file.by_kind),
        acceptance=dict(file.acceptance),
    )  # fmt: skip


# ---- figures as JSON


def _short(value: float) -> float:
    return float(f"{value:.7g}")


def _pair(figure: Figure) -> list[float]:
    return [_short(figure.value), _short(figure.error)]


def _summary_json(summary: Summary) -> dict[str, Any]:
    found = summary.divergence
    return {
        "n_tokens": summary.n_tokens,
        "perplexity": _pair(summary.perplexity),
        "divergence": None
        if found is None
        else {field.name: _number_json(getattr(found, field.name)) for field in fields(found)},
    }


def _number_json(value: Any) -> Any:
    if isinstance(value, Figure):
        return _pair(value)
    if isinstance(value, dict):
        return {f"{percent:g}": _short(number) for percent, number in value.items()}
    return _short(value)


# ---- and back


def read_certificate_json(document: Mapping[str, Any], where: Path | str) -> Certificate:
    """The certificate that a JSON document is; unknown keys beside ours are left alone.

    Raises:
        GgufError: it is not a certificate that this version can read.
    """
    try:
        certificate = _certificate(document)
        if document["format"] != _FORMAT or not _is_of_its_texts(certificate):
            raise ValueError
        return certificate
    except (KeyError, TypeError, ValueError, AttributeError):
        raise GgufError(
            f"{where}: its certificate has a form that this version cannot read",
            hint="measure it again, with mimo-gguf quality --certify",
        ) from None


def _is_of_its_texts(certificate: Certificate) -> bool:
    """Whether there are figures of each kind of text that was read, and of no other."""
    kinds = [*certificate.texts.kinds, ALL]
    all_figures: list[Collection[str]] = [certificate.figures, *certificate.acceptance.values()]
    return all(list(figures) == kinds for figures in all_figures)


def _certificate(document: Mapping[str, Any]) -> Certificate:
    base, texts = document["base"], document["texts"]
    kinds = {kind: KindInfo(**_counts(info)) for kind, info in texts["kinds"].items()}
    return Certificate(
        versions=Versions(**{key: str(value) for key, value in document["versions"].items()}),
        arithmetic=_one_of(document["arithmetic"], ("backend", "float32")),
        backend=str(document["backend"]),
        base=None
        if base is None
        else CertifiedBase(
            str(base["label"]),
            str(base["digest"]),
            _one_of(base["way"], ("in step", "states", "block by block")),
        ),
        texts=CertifiedTexts(
            names=tuple(map(str, texts["names"])),
            digest=str(texts["digest"]),
            windows_digest=str(texts["windows_digest"]),
            n_ctx=int(texts["n_ctx"]),
            n_tokens=None if texts["n_tokens"] is None else int(texts["n_tokens"]),
            all_text=bool(texts["all_text"]),
            kinds=kinds,
        ),
        figures=_of_kinds(document["figures"], _summary),
        acceptance={
            _one_of(hidden, ("pre", "post")): _of_kinds(of_kind, _figure)
            for hidden, of_kind in document["acceptance"].items()
        },
    )


def _counts(info: Mapping[str, Any]) -> dict[str, int]:
    return {key: int(value) for key, value in info.items()}


def _one_of(value: Any, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise ValueError
    return value


def _of_kinds(values: Mapping[str, Any], make: Callable[[Any], T]) -> dict[str, T]:
    return {kind: make(value) for kind, value in values.items()}


def _figure(pair: Any) -> Figure:
    value, error = pair
    return Figure(float(value), float(error))


def _summary(document: Mapping[str, Any]) -> Summary:
    found = document["divergence"]
    return Summary(
        int(document["n_tokens"]), _figure(document["perplexity"]), None if found is None else _divergence(found)
    )


def _divergence(document: Mapping[str, Any]) -> Divergence:
    values: dict[str, Any] = {}
    for field in fields(Divergence):
        value = document[field.name]
        if field.name in _PERCENTILES:
            values[field.name] = {float(percent): float(number) for percent, number in value.items()}
        else:
            values[field.name] = float(value) if field.name == "kl_max" else _figure(value)
    return Divergence(**values)
