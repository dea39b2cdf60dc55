"""The verb `relabel`: an existing GGUF in another layout, its tensors byte for byte the same.

    plan_relabel, relabel     behind `mimo-gguf relabel`, with the defaults of the command

It joins conversion, which knows the layouts, and quantization, which writes files; they do not import each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimo_gguf.verb_arguments import destination_of, make_output_folder, part_bytes

if TYPE_CHECKING:
    from mimo_gguf.conversion.relabel import Relabelling
    from mimo_gguf.core.progress import Progress
    from mimo_gguf.quantization.plan import QuantizePlan
    from mimo_gguf.quantization.report import QuantizeReport

__all__ = ["RelabelPlan", "RelabelReport", "plan_relabel", "relabel"]


@dataclass(frozen=True, slots=True)
class RelabelPlan:
    """What a change of layout will write: the file in its new layout, and where it goes."""

    relabelling: Relabelling
    layout: str
    writing: QuantizePlan

    def as_json(self) -> dict[str, Any]:
        """The plan as a JSON document."""
        found = self.relabelling
        stated = {"from_layout": found.before, "layout": self.layout, "dropped": list(found.dropped)}
        return stated | self.writing.as_json()


@dataclass(frozen=True, slots=True)
class RelabelReport:
    """A finished change of layout: what was planned, and what was written."""

    plan: RelabelPlan
    written: QuantizeReport

    def as_json(self) -> dict[str, Any]:
        """The report as a JSON document."""
        return self.plan.as_json() | self.written.as_json()


def plan_relabel(
    file: str | Path,
    *,
    layout: str = "qwen2",
    out: str | Path | None = None,
    split_max_size: str | int | None = None,
) -> RelabelPlan:
    """Plans what `relabel` with the same arguments would write. Only the header is read.

    Raises:
        MimoGgufError: as `relabel`, except for errors that only the weights show.
    """
    with _planned(file, layout, out, None, split_max_size, force=False) as plan:
        return plan


def relabel(
    file: str | Path,
    *,
    layout: str = "qwen2",
    out: str | Path | None = None,
    threads: int | None = None,
    split_max_size: str | int | None = None,
    force: bool = False,
    on_plan: Callable[[RelabelPlan], None] | None = None,
    progress: Progress | None = None,
) -> RelabelReport:
    """Writes a GGUF in another layout, without the checkpoint. Every tensor that it keeps is the same, byte for byte.

    From "step35" to "qwen2" the MTP layers are left out, for engines that do not know step35. The way back is refused,
    because the MTP layers are not in the file. The output has checksums of its own, and room for a certificate; a
    certificate of the source is about other tensors and is left behind. An interrupted call can be repeated.

    Args:
        file: a GGUF file of any type, or any part of a split one.
        layout: the new layout; "qwen2" is the only one that a file can be changed to.
        out: NAME.gguf, or a folder that is made if it is missing; None means beside the file, as NAME-qwen2-TYPE.gguf.
        threads: copies at a time; None means one per core.
        split_max_size: bytes, or a text like "4GB"; larger outputs become llama.cpp's split files.
        force: whether an existing output is replaced.
        on_plan: called with the plan before anything is written.
        progress: receives how far the run is.

    Raises:
        UsageError: no such layout, one that the file has already, or one that needs tensors that it lacks.
        GgufError: no such file, or one that is not MiMo's.
        OutputError: the output exists already or cannot be written.
        WeightsError: weights with Inf or NaN.
    """
    from mimo_gguf.quantization.run import run_quantization

    with _planned(file, layout, out, threads, split_max_size, force=force) as plan:
        if on_plan is not None:
            on_plan(plan)
        make_output_folder(out, plan.writing.outputs[0].path)
        return RelabelReport(plan, run_quantization(plan.writing, progress))


@contextmanager
def _planned(
    file: str | Path,
    layout: str,
    out: str | Path | None,
    threads: int | None,
    split_max_size: str | int | None,
    *,
    force: bool,
) -> Iterator[RelabelPlan]:
    """Plans a change of layout; the file is open until the end of the `with` block."""
    from mimo_gguf.conversion.relabel import plan_relabelling
    from mimo_gguf.core.gguf_file import open_gguf
    from mimo_gguf.core.output_file import name_outputs
    from mimo_gguf.quantization.kept_types import keep_types, kept_search
    from mimo_gguf.quantization.plan import OutputRequest, QuantizeOptions, plan_quantization

    destination, part_size = destination_of(out), part_bytes(split_max_size)
    with open_gguf(file) as source:
        relabelling = plan_relabelling(source, layout)
        profile = keep_types(relabelling.source)
        (path,) = name_outputs(destination, Path(file).parent, f"{source.name}-{layout}", [profile.name])
        options = QuantizeOptions(n_threads=threads, split_max_bytes=part_size, force=force, search=kept_search(source))
        writing = plan_quantization(relabelling.source, [OutputRequest(profile, path)], options)
        yield RelabelPlan(relabelling, layout, writing)
