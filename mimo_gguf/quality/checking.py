"""Measures certified files again, with the settings of their certificates, and compares.

The verb is `check_quality`, behind `mimo-gguf quality FILE --check`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimo_gguf.conversion.open_model import open_model
from mimo_gguf.core.errors import GgufError, UsageError
from mimo_gguf.core.gguf_file import GgufFile, read_gguf
from mimo_gguf.core.paths import command_word
from mimo_gguf.core.stored_certificate import read_certificate
from mimo_gguf.core.tensor_table import digest_table_of
from mimo_gguf.quality.base import OnProgress
from mimo_gguf.quality.certificate import Certificate, read_certificate_json
from mimo_gguf.quality.comparison import ComparedFigure, compare_figures
from mimo_gguf.quality.measure import measure_quality
from mimo_gguf.quality.plan import QualityPlan
from mimo_gguf.quality.report import QualityReport
from mimo_gguf.quantization.source_digest import digest_source
from mimo_gguf.quantization.verification import verify_gguf


@dataclass(frozen=True, slots=True)
class QualityCheck:
    """A certificate, the new measurement, and how the two compare.

    Attributes:
        figures: every figure that has a standard error, for each kind of text.
    """

    path: Path
    certificate: Certificate
    report: QualityReport
    figures: tuple[ComparedFigure, ...]

    @property
    def agrees(self) -> bool:
        """Whether every figure agrees with the certificate's."""
        return all(figure.agrees for figure in self.figures)

    def as_json(self) -> dict[str, Any]:
        """The check as a JSON document."""
        return {
            "file": str(self.path), "agrees": self.agrees, "certificate": self.certificate.as_json(),
            "figures": [figure.as_json() for figure in self.figures],
        }  # fmt: skip


def certificate_of(path: Path) -> Certificate:
    """The certificate of a file, by its header alone.

    Raises:
        GgufError: the file cannot be read; it has no certificate, one that was changed, or one of another file.
    """
    model = read_gguf(path)
    stored, name = read_certificate(model), model.path.name
    hint = f"mimo-gguf quality {command_word(model.path)} --certify"
    if stored.document is None:
        problem = stored.problems[0] if stored.problems else f"{name}: has no certificate"
        raise GgufError(problem, hint=hint)
    if not stored.has_table(digest_table_of(model)):
        raise GgufError(f"{name}: its certificate is about another file, from which it was made", hint=hint)
    return read_certificate_json(stored.document, name)


def check_about_tensors(model: GgufFile, n_threads: int | None = None) -> None:
    """Raises GgufError if a file is damaged, or its certificate is about other tensors than it has."""
    found = verify_gguf(model.path, n_threads=n_threads)
    problems: Sequence[str] = (*found.problems, *found.certificate_problems)
    if problems:
        raise GgufError(problems[0], hint=f"mimo-gguf verify {command_word(model.path)}")


def check_same_base(certificate: Certificate, base: str, model: GgufFile, n_threads: int | None = None) -> None:
    """Raises UsageError if a base has other weights than the one that a certificate names."""
    assert certificate.base is not None
    chunk_weights = read_certificate(model).chunk_weights
    assert chunk_weights is not None
    with open_model(base) as source:
        if digest_source(source, chunk_weights, n_threads) != certificate.base.digest:
            raise UsageError(
                f"{base}: is not the base of the certificate, {certificate.base.label}", hint="--base SRC, the original"
            )


def check_same_texts(certificate: Certificate, plan: QualityPlan) -> None:
    """Raises UsageError if a planned measurement reads other texts than a certificate names."""
    planned, certified = plan.texts, certificate.texts
    if (planned.windows_digest, list(planned.kinds)) != (certified.windows_digest, list(certified.kinds)):
        names = ", ".join(certificate.texts.names)
        raise UsageError(
            f"the texts of the certificate ({names}) are others on this machine, so figures cannot be compared",
            hint="give the same texts with -f, in the same order",
        )


# ---- the verb


def check_quality(
    file: str | Path,
    *,
    base: str | Path | None = None,
    texts: str | Sequence[str] = (),
    work: str | Path | None = None,
    threads: int | None = None,
    gpu_layers: int | None = None,
    on_plan: Callable[[QualityPlan], None] | None = None,
    on_progress: OnProgress | None = None,
) -> QualityCheck:
    """Measures a certified file again, with the settings of its certificate, and compares all figures.

    Args:
        file: a GGUF file with a certificate, in it or beside it.
        base: where its base lies here; None: where the certificate says.
        texts: where its texts lie here, in the same order; none: where the certificate says.
        work, threads, gpu_layers, on_plan, on_progress: as in `measure_quality`.

    Raises:
        GgufError: there is no certificate, it was changed, or it is about other tensors; the file is damaged.
        UsageError: the base or the texts are not those of the certificate.
        MimoGgufError: as `measure_quality`.
    """
    model = read_gguf(file)
    certificate = certificate_of(model.path)
    check_about_tensors(model, threads)
    source = None if certificate.base is None else str(base or certificate.base.label)
    if source is not None:
        check_same_base(certificate, source, model, threads)

    def check_plan(plan: QualityPlan) -> None:
        check_same_texts(certificate, plan)
        if on_plan is not None:
            on_plan(plan)

    settings = certificate.texts
    report = measure_quality(
        model.path, base=source, texts=texts or settings.names, ctx=settings.n_ctx, tokens=settings.n_tokens or 0,
        arithmetic=certificate.arithmetic, hidden="both" if len(certificate.acceptance) > 1 else _hidden(certificate),
        mtp=None if certificate.acceptance else False, all_text=settings.all_text, work=work, threads=threads,
        gpu_layers=gpu_layers, on_plan=check_plan, on_progress=on_progress,
    )  # fmt: skip
    return QualityCheck(model.path, certificate, report, compare_figures(certificate, report.files[0]))


def _hidden(certificate: Certificate) -> str:
    return next(iter(certificate.acceptance), "pre")
