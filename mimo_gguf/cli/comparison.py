"""Shows a file beside its original, for `mimo-gguf verify --against`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from mimo_gguf.cli import ui

if TYPE_CHECKING:
    from mimo_gguf.quality.original import Comparison, Predictions
    from mimo_gguf.reference.weight_errors import TensorError

_COLUMNS: Final = ("type", "SNR", "worst", "rms error", "largest error")


def show(found: Comparison, *, tensors: bool, as_json: bool) -> None:
    """Prints a comparison: errors by kind of tensor, or of every tensor, and the predictions.

    Args:
        tensors: whether every tensor is listed.
        as_json: whether to print a JSON document instead.
    """
    if as_json:
        ui.print_json(found.as_json())
        return
    ui.print_field("file", found.file)
    ui.print_field("original", found.original)
    ui.print_line()
    if tensors:
        worst_first = sorted(found.tensors, key=lambda tensor: (tensor.snr_db, tensor.name))
        ui.print_table(("tensor", *_COLUMNS), [(tensor.name, *_cells([tensor])) for tensor in worst_first])
    else:
        ui.print_table(("tensors", "number", *_COLUMNS), _rows_by_kind(found))
    ui.print_line()
    ui.print_field("trunk", _predicted(found.trunk))
    if found.mtp is not None:
        ui.print_field("mtp", _predicted(found.mtp))
    for note in found.notes:
        ui.print_field("note", note)
    ui.print_field("result", found.verdict)


def _rows_by_kind(found: Comparison) -> Iterable[Sequence[str]]:
    """A row for the matrices of each kind and type, the worst first, and one for all vectors."""
    kinds: dict[tuple[str, str], list[TensorError]] = {}
    for tensor in found.tensors:
        kinds.setdefault((tensor.kind, tensor.ggml_type.name), []).append(tensor)
    for (kind, _), members in sorted(kinds.items(), key=lambda item: min(tensor.snr_db for tensor in item[1])):
        yield kind, str(len(members)), *_cells(members)


def _cells(tensors: Sequence[TensorError]) -> tuple[str, ...]:
    """The cells of `_COLUMNS` for tensors of one type, taken together."""
    from mimo_gguf.reference.weight_errors import snr_db

    error = sum(tensor.error_square for tensor in tensors)
    together = snr_db(sum(tensor.signal_square for tensor in tensors), error)
    return (
        tensors[0].ggml_type.name,
        _decibels(together),
        _decibels(min(tensor.snr_db for tensor in tensors)),
        _error(math.sqrt(error / sum(tensor.n_weights for tensor in tensors))),
        _error(max(tensor.largest for tensor in tensors)),
    )


def _decibels(value: float) -> str:
    return "exact" if value == math.inf else f"{value:.1f} dB"


def _error(value: float) -> str:
    return f"{value:.2e}" if value else "0"


def _predicted(predictions: Predictions) -> str:
    divergence = predictions.divergence
    return (
        f"same top token {100 * divergence.same_top.value:.1f} % of {predictions.n_tokens}, KL divergence "
        f"{divergence.kl.value:.4g} (largest {divergence.kl_max:.4g}), largest logit error {predictions.largest:.4g}"
    )
