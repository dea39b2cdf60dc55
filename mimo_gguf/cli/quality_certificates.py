"""Shows certificates: that one was written, what one says, and how a new measurement compares with one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mimo_gguf.cli import ui
from mimo_gguf.core.units import counted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mimo_gguf.quality.certificate import Certificate
    from mimo_gguf.quality.certifying import CertifiedFile
    from mimo_gguf.quality.checking import QualityCheck
    from mimo_gguf.quality.comparison import ComparedFigure
    from mimo_gguf.quality.divergence import Figure

_ROW: Final = "{:<10}{:<18}{:>22}{:>14}{:>13}"


def print_certified(certified: CertifiedFile) -> None:
    """Says where a certificate was written."""
    for note in certified.notes:
        ui.print_note(f"{certified.path.name}: {note}")
    where = f"beside it, in {certified.beside.name}" if certified.notes else f"in it, and in {certified.beside.name}"
    ui.print_note(f"{certified.path.name}: certified; the certificate is {where}")


def certificate_fields(document: dict[str, Any], where: Path | str) -> list[tuple[str, str]]:
    """A certificate in a few lines, each with its label.

    Raises:
        GgufError: this version cannot read it.
    """
    from mimo_gguf.quality.certificate import read_certificate_json
    from mimo_gguf.quality.report import ALL

    certificate = read_certificate_json(document, where)
    summary, found = certificate.figures[ALL], certificate.figures[ALL].divergence
    figures = [f"perplexity {_figure(summary.perplexity, 3)}"]
    if found is not None:
        figures = [f"divergence {_figure(found.kl, 5)}", f"same top token {100 * found.same_top.value:.2f} %", *figures]
    figures += [
        f"drafts {100 * of_kind[ALL].value:.1f} %{f' ({hidden})' if len(certificate.acceptance) > 1 else ''}"
        for hidden, of_kind in certificate.acceptance.items()
    ]
    rows = [("quality", ", ".join(figures))]
    if certificate.base is not None:
        rows.append(("beside", certificate.base.label))
    judged = f"{counted(summary.n_tokens, 'token')} in windows of {certificate.texts.n_ctx}"
    rows.append(("judged", f"{judged}: {', '.join(certificate.texts.kinds)}"))
    rows.append(("computed", f"{certificate.arithmetic}, {certificate.backend}; {_programs(certificate)}"))
    return rows


def _programs(certificate: Certificate) -> str:
    versions = certificate.versions
    return f"mimo-gguf {versions.mimo_gguf}, llama.cpp {versions.llama_cpp[:9]}, numpy {versions.numpy}"


def _figure(figure: Figure, places: int) -> str:
    return f"{figure.value:.{places}f} ± {figure.error:.{places}f}"


def check_files(files: Sequence[Path], given: dict[str, Any], *, as_json: bool, quiet: bool) -> bool:
    """Measures certified files again and shows how they compare; whether all agree.

    Args:
        given: arguments of `check_quality` that the user gave.
    """
    from mimo_gguf.cli.quality_screen import showing
    from mimo_gguf.verbs import check_quality

    checks = []
    for file in files:
        with showing(quiet=quiet or as_json) as screen:
            checks.append(check_quality(file, **given, on_progress=screen.update))
        if not as_json:
            print_check(checks[-1])
    if as_json:
        ui.print_json([check.as_json() for check in checks])
    return all(check.agrees for check in checks)


def print_check(check: QualityCheck) -> None:
    """Prints each figure of a certificate beside the new one, those of all texts and those that do not agree."""
    from mimo_gguf.quality.report import ALL

    ui.print_field("file", str(check.path))
    ui.print_field("certified", _programs(check.certificate))
    ui.print_line()
    ui.print_line(_ROW.format("text", "figure", "certified", "now", "may differ"), style="heading")
    for figure in check.figures:
        if figure.kind == ALL or not figure.agrees:
            ui.print_line(_row(figure), style="" if figure.agrees else "error")
    differing = [figure for figure in check.figures if not figure.agrees]
    ui.print_line()
    n_all = counted(len(check.figures), "figure")
    ui.print_field("result", f"{len(differing)} of {n_all} differ" if differing else f"all {n_all} agree")


def _row(figure: ComparedFigure) -> str:
    return _ROW.format(
        figure.kind[:9], figure.name[:17], _figure(figure.certified, 5), f"{figure.measured.value:.5f}",
        f"{figure.allowed:.5f}",
    )  # fmt: skip
