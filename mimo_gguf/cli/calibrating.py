"""The part of `mimo-gguf quantize` that calibrates: its options, what fits a card, and what is shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mimo_gguf.cli import ui
from mimo_gguf.core.errors import DoesNotFit, UsageError
from mimo_gguf.core.units import counted, format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mimo_gguf.calibration.calibrate import CalibratedFile, CalibrationReport
    from mimo_gguf.calibration.estimate import TimeExpected
    from mimo_gguf.calibration.plan import CalibrationPlan
    from mimo_gguf.core.progress import Progress

_USUAL_TYPE = "Q4_K_M"  # whose head and embedding a file for a card has, if no type is named
_USUAL_CTX = 8192

Mix = Annotated[
    str | None,
    typer.Option("--mix", metavar="WHAT", help="solve: types solved; free: head and embedding, too; profile: its own."),
]
MostBytes = Annotated[
    str | None, typer.Option("--bytes", metavar="SIZE", help="The best file of at most this size, like 4.4GiB.")
]
BitsPerWeight = Annotated[
    float | None, typer.Option("--bpw", metavar="BITS", help="The best file of at most so many bits per weight.")
]
ForCard = Annotated[
    str | None, typer.Option("--for", metavar="CARD", help="The best file that fits a card (see gpus) with --ctx.")
]


@dataclass(frozen=True, slots=True)
class CalibrationWishes:
    """The options that only calibration has, as they were given."""

    texts: Sequence[str]
    tokens: int | None
    mix: str | None
    most_bytes: str | None
    bpw: float | None
    card: str | None
    ctx: int | None
    work: Path | None

    def check(self, *, calibrate: bool, imatrix: Path | None, search: str) -> None:
        """Raises UsageError for options that do not go together."""
        given = {
            "--text": self.texts, "--tokens": self.tokens, "--mix": self.mix, "--bytes": self.most_bytes,
            "--bpw": self.bpw, "--for": self.card, "--ctx": self.ctx, "--work": self.work,
        }  # fmt: skip
        if not calibrate and (names := [name for name, value in given.items() if value]):
            raise UsageError(f"{names[0]} is about calibration", hint="add --calibrate")
        if calibrate and imatrix is not None:
            raise UsageError("--calibrate measures the importance itself", hint="leave --imatrix out")
        if calibrate and search != "llama.cpp":
            raise UsageError("--calibrate searches in its own way", hint="leave --search out")
        if self.ctx is not None and self.card is None:
            raise UsageError("--ctx is the context that a card has to hold", hint='--for "RTX 3060 12GB" --ctx 16384')
        sizes = [name for name in ("--bytes", "--bpw", "--for") if given[name]]
        if len(sizes) > 1:
            raise UsageError(f"{' and '.join(sizes)} both say how large the file may be", hint="give one of them")


def run_calibrated(
    src: str, wishes: CalibrationWishes, shared: dict[str, Any], progress: Progress, *, dry_run: bool, as_json: bool
) -> None:
    """Plans or runs a calibration, and shows it.

    Args:
        shared: the arguments that an ordinary quantization has, too.
    """
    from mimo_gguf.calibrated import calibrate, plan_calibrate

    most_bytes: str | int | None = wishes.most_bytes
    if wishes.card is not None:
        types = [str(name) for name in shared["types"]]
        most_bytes = _bytes_for(wishes.card, src, types[0] if types else _USUAL_TYPE, wishes.ctx or _USUAL_CTX)
        shared = {**shared, "types": shared["types"] or [_USUAL_TYPE]}
    own: dict[str, Any] = {
        "texts": wishes.texts, "tokens": wishes.tokens, "mix": wishes.mix, "most_bytes": most_bytes, "bpw": wishes.bpw,
        "work": wishes.work,
    }  # fmt: skip
    if dry_run:
        plan, expected = plan_calibrate(src, **shared, **own)
        ui.print_json(plan.as_json() | {"expected": expected.as_json()}) if as_json else _print_plan(plan, expected)
        return
    report = calibrate(src, **shared, **own, on_plan=_print_notes, progress=progress)
    ui.print_json(report.as_json()) if as_json else print_report(report)


def _bytes_for(card: str, src: str, file_type: str, n_ctx: int) -> int:
    """The most bytes of a file's tensors with which all layers and a context fit a card.

    Raises:
        UsageError: no such card.
        DoesNotFit: there is no room for weights at all.
    """
    from mimo_gguf.cli.candidates import choose_devices, find_candidates
    from mimo_gguf.core.ggml_types import GgmlType
    from mimo_gguf.fit.weigh import plan_model
    from mimo_gguf.memory.run import session_settings

    devices = choose_devices([], [card], [], instead="give the file's size: --bytes 4.4GiB")
    (candidate,), _ = find_candidates(src, [file_type], auto=False)
    settings = session_settings(n_ctx=n_ctx, type_k=GgmlType.F16, type_v=GgmlType.F16, flash_attn=True, mtp=True)
    plan = plan_model(candidate.model, settings, devices, -1)
    spare = min(fit.spare_bytes for fit in (plan.devices[:-1] or plan.devices))
    most = candidate.model.file_bytes + spare
    if most <= 0:
        raise DoesNotFit(f"{card}: a context of {n_ctx} tokens leaves no room for weights", hint="a smaller --ctx")
    ui.print_note(f"{card} with a context of {n_ctx}: room for {format_size(most)} of weights")
    return most


def _print_notes(plan: CalibrationPlan) -> None:
    for note in plan.notes:
        ui.print_warning(note)


def _print_plan(plan: CalibrationPlan, expected: TimeExpected) -> None:
    ui.print_field("source", f"{plan.source.label}, {counted(len(plan.source.tensors), 'tensor')}")
    ui.print_field("text", f"{plan.text.n_tokens} tokens to encode with, {plan.text.n_held_out} to judge by")
    ui.print_table(
        ("output", "tensors at most", "solved matrices"),
        [
            (str(output.path), format_size(output.budget_bytes), str(len(output.wanted.solved)))
            for output in plan.outputs
        ],
    )
    ui.print_field("work", f"{plan.work}: up to {format_size(plan.disk_bytes)}")
    ui.print_field("memory", f"about {format_size(plan.memory_bytes)}")
    ui.print_field("time", f"about {format_duration(expected.total_s)}: {expected.describe()}")
    for path in plan.complete:
        ui.print_note(f"{path}: complete already")
    _print_notes(plan)


def print_report(report: CalibrationReport) -> None:
    """Prints each file: its bytes, what it is predicted to gain, and how its matrices were encoded."""
    for file in report.files:
        _print_file(file)
    ui.print_field("time", format_duration(report.seconds))


def _print_file(file: CalibratedFile) -> None:
    if file.written is None:
        ui.print_field("complete", f"{file.path}, by an earlier run", style="good")
        return
    (output,) = file.written.outputs
    size = f"{format_size(output.n_bytes)}, {output.bits_per_weight:.2f} bits per weight"
    ui.print_field("written", f"{output.paths[0]}: {output.profile}, {size}", style="good")
    if file.before is not None and file.after is not None:
        ui.print_field(
            "predicted", f"divergence {file.after:.4f}, in place of {file.before:.4f} with an importance matrix"
        )
    left = 100 * sum(outcome.ratio for outcome in file.outcomes) / max(1, len(file.outcomes))
    encoded = counted(len(file.outcomes), "matrix", "matrices")
    ui.print_field("encoded", f"{encoded}; {left:.0f} % of plain importance encoding's error is left")
    if file.n_plain:
        ui.print_field(
            "plain", f"{counted(file.n_plain, 'matrix', 'matrices')} without feedback, which is better there"
        )
    ui.print_field("types", f"{file.profile}: the solved profile, to read, edit and give back with --profile")
