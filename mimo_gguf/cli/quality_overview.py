"""Shows several files side by side: a table, and the points of the picture of `mimo-gguf quality --plot`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mimo_gguf.cli import ui
from mimo_gguf.cli.picture import check_picture
from mimo_gguf.cli.quality_plot import EXAMPLE, PlottedFile, draw
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.units import format_size, listed

if TYPE_CHECKING:
    from mimo_gguf.quality.divergence import Figure
    from mimo_gguf.quality.report import FileQuality, QualityReport

# how a key of a file's metadata begins -> the series that the file is drawn in
_SERIES: Final = (("mimo_gguf.calibration.", "calibrated"), ("quantize.imatrix.", "with importance matrix"))
_PLAIN: Final = "without importance matrix"


def print_overview(report: QualityReport) -> None:
    """Prints a row for each file with the figures of all texts together, the smallest file first."""
    columns = ["file", "size", "perplexity"]
    has_base, has_drafts = report.base is not None, any(file.acceptance for file in report.files)
    columns += ["divergence", "same top"] if has_base else []
    columns += ["drafts"] if has_drafts else []
    ui.print_table(tuple(columns), [_row(file, has_base=has_base, has_drafts=has_drafts) for file in _ordered(report)])


def _ordered(report: QualityReport) -> list[FileQuality]:
    return sorted(report.files, key=lambda file: file.size_bytes)


def _row(file: FileQuality, *, has_base: bool, has_drafts: bool) -> tuple[str, ...]:
    kind, summary = list(file.by_kind.items())[-1]
    places = max(0, 4 - len(f"{summary.perplexity.value:.0f}"))
    cells = [file.path.name, format_size(file.size_bytes), _with_error(summary.perplexity, places)]
    if has_base:
        found = summary.divergence
        cells += [_with_error(found.kl, 5), f"{100 * found.same_top.value:.2f} %"] if found else ["", ""]
    if has_drafts:
        drafts = next(iter(file.acceptance.values()), None)
        cells.append(f"{100 * drafts[kind].value:.2f} %" if drafts else "")
    return tuple(cells)


def _with_error(figure: Figure, places: int) -> str:
    return f"{figure.value:.{places}f} ± {figure.error:.{places}f}"


# ---- the picture


def check_plot(path: Path, base: str | None) -> None:
    """Refuses a picture that cannot be drawn, before anything is measured.

    Raises:
        UsageError: there is no base, so no divergence; or a name under which no picture can be written.
        MimoGgufError: matplotlib is not installed.
    """
    if base is None:
        raise UsageError("--plot draws the divergence from a base", hint=f"--base SRC {EXAMPLE}")
    check_picture(path, example=EXAMPLE)


def plot_report(report: QualityReport, path: Path) -> None:
    """Draws all files of a report; a note names those whose divergence is zero."""
    title = f"{report.arithmetic} arithmetic, {', '.join(report.texts.kinds)}"
    left_out = draw(plotted_files(report.files), path, title=title)
    if left_out:
        ui.print_note(f"without a place in the picture, because they do not differ from the base: {listed(left_out)}")


def plotted_files(files: Sequence[FileQuality]) -> list[PlottedFile]:
    """A point for each file, named after its type, or after the file if several have its type."""
    made = [(file, _series(file)) for file in files]
    names = Counter((file.file_type, series) for file, series in made)
    points = []
    for file, series in made:
        found = list(file.by_kind.values())[-1].divergence
        if found is not None:
            label = file.file_type if names[file.file_type, series] == 1 else file.path.stem
            points.append(PlottedFile(label, series, file.size_bytes, found.kl.value, found.kl.error))
    return points


def _series(file: FileQuality) -> str:
    from mimo_gguf.core.gguf_file import read_gguf

    keys = tuple(read_gguf(file.path).metadata)
    return next((name for start, name in _SERIES if any(key.startswith(start) for key in keys)), _PLAIN)
