"""Runs a calibrated quantization: measures, solves, encodes, and writes with the ordinary writer.

Interrupted at any moment, the same call goes on where it was and gives the same bytes: every result lies whole in the
work folder, and the writer has its own journal. A work folder that the user did not name is removed when all files are
complete.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mimo_gguf.calibration.calibrated_source import calibrated_source
from mimo_gguf.calibration.encode import Outcome
from mimo_gguf.calibration.mix import mixed_types
from mimo_gguf.calibration.passes import Encoding, Wanted
from mimo_gguf.calibration.plan import RUN, CalibratedOutput, CalibrationPlan, sample_of, work_identity
from mimo_gguf.calibration.sensitivity import Costs, measure_costs
from mimo_gguf.calibration.solved_profile import profile_text
from mimo_gguf.calibration.type_plan import SolvedTypes, solve_types
from mimo_gguf.calibration.work import WorkFolder, held_work, open_work
from mimo_gguf.core.errors import DoesNotFit
from mimo_gguf.core.ggml_types import FLOAT_TYPES, GgmlType
from mimo_gguf.core.model_source import Metadata, MetaValue, float32, string, uint32
from mimo_gguf.core.output_file import atomic_output, check_free_space, check_output
from mimo_gguf.core.progress import Job, Progress, Silence
from mimo_gguf.core.threads import blas_threads
from mimo_gguf.core.units import format_size
from mimo_gguf.quantization.plan import OutputRequest, plan_quantization
from mimo_gguf.quantization.profiles import read_profile
from mimo_gguf.quantization.report import QuantizeReport
from mimo_gguf.quantization.run import run_quantization
from mimo_gguf.quantization.type_choice import EMBEDDING
from mimo_gguf.reference.model import ReferenceModel, open_reference


@dataclass(frozen=True, slots=True)
class CalibratedFile:
    """A finished file: what was written, its types with their prediction, and how each matrix was encoded.

    Attributes:
        profile: path of the solved types as a profile, beside the file; None if an earlier run had made the file.
    """

    written: QuantizeReport | None
    path: Path
    profile: Path | None
    solved: SolvedTypes | None
    outcomes: tuple[Outcome, ...] = field(repr=False, default=())

    @property
    def before(self) -> float | None:
        """The divergence predicted for the profile's own types with importance encoding; None if it is not known."""
        return None if self.solved is None else self.solved.before

    @property
    def after(self) -> float | None:
        """The divergence predicted for this file; None if it is not known."""
        return None if self.solved is None else self.solved.after

    @property
    def n_plain(self) -> int:
        """The matrices whose plain importance encoding was the better one, or the only one."""
        return sum(outcome.method == "importance" for outcome in self.outcomes)

    def as_json(self) -> dict[str, Any]:
        """The file as a JSON document."""
        return {
            "path": str(self.path),
            "was_complete": self.written is None,
            "written": None if self.written is None else self.written.as_json(),
            "profile": None if self.profile is None else str(self.profile),
            "predicted_before": self.before,
            "predicted_after": self.after,
            "matrices": [asdict(outcome) for outcome in self.outcomes],
        }


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """A finished calibration."""

    files: tuple[CalibratedFile, ...]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The report as a JSON document."""
        return {"files": [file.as_json() for file in self.files], "seconds": self.seconds}


def run_calibration(plan: CalibrationPlan, progress: Progress | None = None) -> CalibrationReport:
    """Makes every file of the plan. Without `force`, files that the same call has completed are left as they are.

    Raises:
        DoesNotFit: too little free memory (without `force`).
        OutputError: another file has an output's name, another run the work folder, or the disk is full or failing.
        UsageError: the bytes allowed are too few for the smallest types.
        WeightsError: Inf or NaN among the weights, or a source that changed while it was read.
    """
    started = time.perf_counter()
    progress = progress or Silence()
    pending = [output for output in plan.outputs if output.path not in plan.complete]
    made = {output.path: CalibratedFile(None, output.path, None, None) for output in plan.outputs}
    if pending:
        with held_work(plan.work), blas_threads(1):  # our own threads share the work: their number decides no bit
            made |= {file.path: file for file in _make(plan, pending, progress)}
    return CalibrationReport(tuple(made.values()), time.perf_counter() - started)


def _make(plan: CalibrationPlan, outputs: Sequence[CalibratedOutput], progress: Progress) -> list[CalibratedFile]:
    _check_places(plan, outputs)
    work, replaced = open_work(plan.work, work_identity(plan.source, plan.text, plan.options))
    if replaced:
        progress.note(f"{work.path}: an earlier run had another source, text or option; starting afresh")
    with open_reference(plan.source) as model:
        costs = _measure(plan, outputs, model, work, progress)
        solved = [solve_types(output.wanted, costs, output.budget_bytes) for output in outputs]
        for output, types in zip(outputs, solved, strict=True):
            if types.before is not None and types.after is not None:
                progress.note(
                    f"{output.name}: predicted divergence {types.after:.4f}, in place of {types.before:.4f} of "
                    f"{output.wanted.profile.name} with an importance matrix"
                )
        encoding = Encoding(
            model, plan.text.used, plan.text.held_out, _to_encode(plan, solved), work, plan.options.encode
        )
        outcomes = _encode(plan, encoding, _Gain(solved[0], outputs[0], costs), progress)
    plan.source.check_unchanged()
    made = {(outcome.tensor, outcome.ggml_type): outcome for outcome in outcomes}
    files = [
        _write(plan, output, types, made, encoding.statistics, work, progress)
        for output, types in zip(outputs, solved, strict=True)
    ]
    if plan.options.work is None:
        work.discard()
    return files


def _check_places(plan: CalibrationPlan, outputs: Sequence[CalibratedOutput]) -> None:
    """Raises OutputError or DoesNotFit before anything is computed that there would be no place for."""
    from mimo_gguf.hardware.devices import host_device

    for output in outputs:
        journal = output.path.with_name(f".{output.path.name}.journal")
        check_output(output.path, force=plan.quantize.force or journal.is_file())
    check_free_space(plan.work.parent, plan.disk_bytes + sum(output.budget_bytes for output in outputs))
    free = host_device().free_bytes
    if free < plan.memory_bytes and not plan.quantize.force:
        raise DoesNotFit(
            f"calibration needs about {format_size(plan.memory_bytes)} of memory, {format_size(free)} are free",
            hint="close other programs, use fewer --tokens, or add --force",
        )


def _measure(
    plan: CalibrationPlan,
    outputs: Sequence[CalibratedOutput],
    model: ReferenceModel,
    work: WorkFolder,
    progress: Progress,
) -> Costs:
    """The costs of every type that an output may use; none if nothing is to be solved."""
    if not any(output.wanted.solved for output in outputs):
        return {}
    choices = [choice for output in outputs for choice in output.wanted.choices]
    mixed = {ggml_type for choice in choices for ggml_type in mixed_types(choice.info.n_columns)}
    types = sorted(({choice.info.ggml_type for choice in choices} | mixed) - FLOAT_TYPES, key=int)
    stages = {"forward": 0, "head": 1, "backward": 1}  # backward is twice the work of forward
    n_bytes = max(1, _trunk_bytes(model))
    progress.start([Job("measuring what each type costs", 3 * n_bytes)])

    def report(stage: str, done: int, total: int) -> None:
        share = stages[stage] + (2 if stage == "backward" else 1) * done / total
        progress.update([int(share * n_bytes)], [0])

    try:
        return measure_costs(model, sample_of(plan.text), work, types, report, plan.options.encode.threads)
    finally:
        progress.finish()


def _trunk_bytes(model: ReferenceModel) -> int:
    return sum(tensor.info.n_bytes for tensor in model.source.tensors if tensor.info.name.startswith("blk."))


def _to_encode(plan: CalibrationPlan, solved: Sequence[SolvedTypes]) -> dict[str, tuple[GgmlType, ...]]:
    """The types that each matrix is encoded in: those of all files, except what the writer does by itself."""
    stored = {tensor.info.name: tensor.info.ggml_type for tensor in plan.source.tensors}
    wanted: dict[str, dict[GgmlType, None]] = {}
    for types in solved:
        for name, ggml_type in types.types.items():
            if name != EMBEDDING and ggml_type not in FLOAT_TYPES and ggml_type is not stored[name]:
                wanted.setdefault(name, {})[ggml_type] = None
    return {name: tuple(types) for name, types in wanted.items()}


@dataclass(slots=True)
class _Gain:
    """What the first file has gained so far: predicted divergence of the matrices that are done, before and after."""

    solved: SolvedTypes
    output: CalibratedOutput
    costs: Costs
    before: float = 0.0
    after: float = 0.0
    ratios: list[float] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.ratios.append(outcome.ratio)
        ggml_type = self.solved.types.get(outcome.tensor)
        by_type = self.costs.get(outcome.tensor)
        if by_type is None or ggml_type is None or ggml_type.name != outcome.ggml_type:
            return
        first = next(c.info.ggml_type for c in self.output.wanted.choices if c.info.name == outcome.tensor)
        self.before += by_type.get(first, 0.0)
        self.after += by_type.get(ggml_type, 0.0) * outcome.ratio

    def describe(self) -> str:
        if self.before > 0:
            return f"divergence of what is done: {self.after:.4f} in place of {self.before:.4f} by prediction"
        left = sum(self.ratios) / len(self.ratios) if self.ratios else 1.0
        return f"{left:.0%} of plain importance encoding's error is left"


def _encode(plan: CalibrationPlan, encoding: Encoding, gain: _Gain, progress: Progress) -> tuple[Outcome, ...]:
    """Encodes everything, and reports how far that is and what is gained."""
    done = _Done(plan, encoding.wanted, progress)
    progress.start([Job("calibrating", max(1, int(done.total)))])

    def on_outcome(outcome: Outcome, earlier: bool) -> None:
        gain.add(outcome)
        done.add(outcome, earlier)

    def on_step(step: str) -> None:
        progress.note(f"{step}; {gain.describe()}" if gain.ratios else step)

    encoding.on_outcome, encoding.on_step, encoding.on_pass = on_outcome, on_step, done.pass_share
    try:
        return encoding.run()
    finally:
        progress.finish()


class _Done:
    """How far encoding is, in bytes of the source's matrices: half for the text that passed, half for the codes."""

    def __init__(self, plan: CalibrationPlan, wanted: Wanted, progress: Progress) -> None:
        sizes = {tensor.info.name: tensor.info.n_bytes for tensor in plan.source.tensors}
        self._left = {name: sizes[name] for name in wanted}
        self._shares = {name: sizes[name] / len(types) for name, types in wanted.items()}
        self._progress = progress
        self._passed = ("", 0.0)
        self._done, self._earlier = 0.0, 0.0
        self.total = float(sum(self._left.values()))

    def add(self, outcome: Outcome, earlier: bool) -> None:
        """Counts a matrix in a type."""
        share = self._shares[outcome.tensor]
        self._left[outcome.tensor] -= int(share)
        self._done += share
        self._earlier += share if earlier else 0.0
        self._show()

    def pass_share(self, names: str, share: float) -> None:
        """Counts the part of the text that has passed the matrices whose names begin so."""
        self._passed = (names, share)
        self._show()

    def _show(self) -> None:
        names, share = self._passed
        passing = sum(n_bytes for name, n_bytes in self._left.items() if name.startswith(names)) if names else 0
        self._progress.update([int(self._done + share * passing / 2)], [int(self._earlier)])


def _write(
    plan: CalibrationPlan,
    output: CalibratedOutput,
    solved: SolvedTypes,
    made: Mapping[tuple[str, str], Outcome],
    statistics: str,
    work: WorkFolder,
    progress: Progress,
) -> CalibratedFile:
    """Writes one file, and beside it its types as a profile."""
    text = profile_text(output.wanted.profile, solved.mix, output.wanted.kept)
    profile = read_profile(work.save_text(f"{output.name}.toml", text))
    keys = [(n, t.name) for n, t in solved.types.items() if (n, t.name) in made]
    outcomes = tuple(made[key] for key in keys)
    types = {name: solved.types[name] for name, _ in keys}
    metadata = _metadata(plan, output, solved, outcomes, statistics)
    identity = f"{output.run} {statistics}"
    source = calibrated_source(plan.source, work, types, metadata, identity)
    kept = _keep_profile(output.path.with_suffix(".toml"), text, force=plan.quantize.force)
    options = replace(plan.quantize, importance=None, types=type(plan.quantize.types)(), allow_requantize=True)
    written = run_quantization(plan_quantization(source, [OutputRequest(profile, output.path)], options), progress)
    return CalibratedFile(written, output.path, kept, solved, outcomes)


def _keep_profile(path: Path, text: str, *, force: bool) -> Path:
    """Writes the solved types beside the file."""
    if path.is_file() and path.read_bytes() == text.encode():
        return path
    check_output(path, force=force)
    with atomic_output(path) as file:
        file.write(text.encode())
    return path


def _metadata(
    plan: CalibrationPlan,
    output: CalibratedOutput,
    solved: SolvedTypes,
    outcomes: Sequence[Outcome],
    statistics: str,
) -> Metadata:
    """What the file says about its calibration. Equal statistics and options make equal metadata."""
    p = "mimo_gguf.calibration."
    entries: dict[str, MetaValue] = {
        p + "base": string(output.wanted.profile.name),
        p + "mix": string(plan.options.mix),
        p + "text": string(plan.text.digest),
        p + "tokens": uint32(plan.text.n_tokens),
        p + "statistics": string(statistics),
        p + "damping": float32(max((outcome.damping for outcome in outcomes), default=0.0)),
        p + "passes": uint32(plan.options.encode.passes),
        p + "plain_matrices": uint32(sum(outcome.method == "importance" for outcome in outcomes)),
        RUN: string(output.run),
    }
    if solved.after is not None:
        entries[p + "predicted_divergence"] = float32(solved.after)
    return entries
