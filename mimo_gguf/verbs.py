"""The verbs: what can be done with a model's files, one public function each, with the defaults of the commands.

    plan_convert,  convert     a checkpoint becomes GGUF files, its MTP layers kept
    plan_quantize, quantize    any model becomes GGUF files of other types
    verify                     a GGUF file is compared with what was written
    compare                    a GGUF file is compared with the original it was made from
    inspect                    a GGUF file's header is described
    measure_quality            GGUF files are judged, alone or beside what they were made from
    check_quality              files with a certificate are measured again, and compared with it
    plan_fit                   the memory that a run needs is computed, device by device
    advise                     hardware is chosen for a budget, or for what is there
    serve                      a model answers over HTTP, as OpenAI's API does
    plan_batch, batch          a model answers a file of requests, in OpenAI's batch form
    evaluate                   a model is asked the problems of benchmarks, and its answers are graded
    imatrix                    how much each column of a model's matrices is used is measured on texts
    plan_relabel,  relabel     a GGUF file is written in another layout, its tensors the same

A `plan_...` function reads headers only and writes nothing: it is the `--dry-run` of its command. A command parses its
arguments, calls one of these functions, and shows what it returns. Conversion and quantization do not import each
other; they meet here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimo_gguf.verb_arguments import (
    Names,
    destination_of,
    make_output_folder,
    part_bytes,
    profiles_of,
    quantize_options,
    reading_of,
    type_options,
)

if TYPE_CHECKING:
    from mimo_gguf.advice.run import advise
    from mimo_gguf.conversion.checkpoint_source import ConversionPlan
    from mimo_gguf.conversion.open_model import Reading
    from mimo_gguf.core.inspection import Inspection
    from mimo_gguf.core.progress import Progress
    from mimo_gguf.evaluation.run import evaluate
    from mimo_gguf.fit.weigh import plan_fit
    from mimo_gguf.quality.checking import check_quality
    from mimo_gguf.quality.imatrix.run import imatrix
    from mimo_gguf.quality.measure import measure_quality
    from mimo_gguf.quality.original import compare
    from mimo_gguf.quantization.estimate import TimeExpected
    from mimo_gguf.quantization.plan import QuantizeOptions, QuantizePlan
    from mimo_gguf.quantization.report import QuantizeReport
    from mimo_gguf.quantization.verification import Verification
    from mimo_gguf.relabelled import plan_relabel, relabel
    from mimo_gguf.server.offline import batch, plan_batch
    from mimo_gguf.server.start import serve

__all__ = [
    "ConvertPlan",
    "ConvertReport",
    "QuantizePreview",
    "advise",
    "batch",
    "check_quality",
    "compare",
    "convert",
    "evaluate",
    "imatrix",
    "inspect",
    "measure_quality",
    "plan_batch",
    "plan_convert",
    "plan_fit",
    "plan_quantize",
    "plan_relabel",
    "quantize",
    "relabel",
    "serve",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Loads the verbs that live in folders of their own when they are first used."""
    if name in _ELSEWHERE:
        from importlib import import_module

        return getattr(import_module(_ELSEWHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_ELSEWHERE = {
    "advise": "mimo_gguf.advice.run",
    "batch": "mimo_gguf.server.offline",
    "plan_batch": "mimo_gguf.server.offline",
    "check_quality": "mimo_gguf.quality.checking",
    "compare": "mimo_gguf.quality.original",
    "evaluate": "mimo_gguf.evaluation.run",
    "imatrix": "mimo_gguf.quality.imatrix.run",
    "measure_quality": "mimo_gguf.quality.measure",
    "serve": "mimo_gguf.server.start",
    "plan_fit": "mimo_gguf.fit.weigh",
    "plan_relabel": "mimo_gguf.relabelled",
    "relabel": "mimo_gguf.relabelled",
}


# ---- convert


@dataclass(frozen=True, slots=True)
class ConvertPlan:
    """What a conversion will write: how the checkpoint maps to tensors, and the files that they go to."""

    conversion: ConversionPlan
    writing: QuantizePlan

    @property
    def rounding(self) -> str | None:
        """A line about what is rounded although the user chose no type, or None.

        A checkpoint may mix types; without a choice the output has the most frequent one.
        """
        (first, *others) = self.writing.outputs
        name, kinds = first.profile.name, self.conversion.matrix_types
        rounded = [f"{count} in {kind.name}" for kind, count in kinds if kind.name != name]
        if others or name != self.conversion.float_type.name or name == "F32" or not rounded:
            return None
        return f"the checkpoint mixes types ({', '.join(rounded)}): {name} rounds these, --type F32 does not"

    def as_json(self) -> dict[str, Any]:
        """The plan as a JSON document."""
        return self.conversion.as_json() | self.writing.as_json()


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """A finished conversion: how the checkpoint was mapped, and what was written."""

    conversion: ConversionPlan
    written: QuantizeReport

    def as_json(self) -> dict[str, Any]:
        """The report as a JSON document."""
        return self.conversion.as_json() | self.written.as_json()


def plan_convert(
    src: str | Path,
    *,
    out: str | Path | None = None,
    types: Names = (),
    layout: str | None = None,
    mtp: bool | None = None,
    mtp_layers: str | Path | None = None,
    split_max_size: str | int | None = None,
) -> ConvertPlan:
    """Plans what `convert` with the same arguments would write. For a Hub id only headers are downloaded.

    Raises:
        MimoGgufError: as `convert`, except for errors that only the weights show.
    """
    with _planned_conversion(src, out, types, layout, mtp, mtp_layers, split_max_size) as plan:
        return plan


def convert(
    src: str | Path,
    *,
    out: str | Path | None = None,
    types: Names = (),
    layout: str | None = None,
    mtp: bool | None = None,
    mtp_layers: str | Path | None = None,
    threads: int | None = None,
    split_max_size: str | int | None = None,
    keep_checkpoint: bool = False,
    read_ahead: str | int | None = None,
    connections: int | None = None,
    force: bool = False,
    on_plan: Callable[[ConvertPlan], None] | None = None,
    progress: Progress | None = None,
) -> ConvertReport:
    """Converts a checkpoint to GGUF files, its MTP layers kept: all types in one read.

    An interrupted call can be repeated: it goes on where it stopped.

    Args:
        src: a checkpoint folder, or `org/name[@revision]` on the Hub, after `modelscope:` on ModelScope; it is read
            while it is downloaded.
        out: NAME.gguf, or a folder that is made if it is missing; None means the current folder.
        types: file types, or TOML files of profiles; without any, the checkpoint's own float type, which is lossless.
        layout: "step35" (trunk and MTP) or "qwen2" (trunk alone); None means step35 if there are MTP layers.
        mtp: False leaves the MTP layers out; True refuses a checkpoint without them; None keeps those there are.
        mtp_layers: a MiMo-7B-MTPs folder or Hub id whose further layers are added.
        threads: number of kernels at once; None means one per core.
        split_max_size: bytes, or a text like "4GB"; larger outputs become llama.cpp's split files.
        keep_checkpoint: whether a downloaded checkpoint is kept in the Hub's cache.
        read_ahead: memory for what has been downloaded and not yet read, in bytes or as a text; None means 128 MiB.
        connections: downloads at a time; None means 4.
        force: whether existing outputs are replaced.
        on_plan: called with the plan before anything is written.
        progress: receives how far the run is.

    Raises:
        UsageError: arguments that contradict each other or the checkpoint, or a type that does not exist.
        CheckpointError, HubError: no such checkpoint, or one that cannot be converted.
        OutputError: an output exists already or cannot be written.
        WeightsError: weights with Inf or NaN, or too large for the type.
    """
    from mimo_gguf.quantization.plan import QuantizeOptions
    from mimo_gguf.quantization.run import run_quantization

    options = QuantizeOptions(n_threads=threads, split_max_bytes=part_bytes(split_max_size), force=force)
    reading = reading_of(keep_checkpoint, read_ahead, connections)
    with _planned_conversion(src, out, types, layout, mtp, mtp_layers, split_max_size, options, reading) as plan:
        if on_plan is not None:
            on_plan(plan)
        make_output_folder(out, plan.writing.outputs[0].path)
        return ConvertReport(plan.conversion, run_quantization(plan.writing, progress))


@contextmanager
def _planned_conversion(
    src: str | Path,
    out: str | Path | None,
    types: Names,
    layout: str | None,
    mtp: bool | None,
    mtp_layers: str | Path | None,
    split_max_size: str | int | None,
    options: QuantizeOptions | None = None,
    reading: Reading | None = None,
) -> Iterator[ConvertPlan]:
    """Plans a conversion; its source is open until the end of the `with` block.

    Args:
        reading: how a model on a hub is read; None means its headers only.
    """
    from mimo_gguf.conversion.checkpoint_source import ConversionOptions, plan_conversion
    from mimo_gguf.conversion.open_model import HEADERS, Finder
    from mimo_gguf.core.errors import UsageError
    from mimo_gguf.core.output_file import name_outputs
    from mimo_gguf.quantization.plan import OutputRequest, QuantizeOptions, plan_quantization
    from mimo_gguf.quantization.profiles import load_profile

    # Errors in these come before 15 GB are downloaded.
    profiles, destination = profiles_of(types), destination_of(out)
    options = options or QuantizeOptions(split_max_bytes=part_bytes(split_max_size))
    with ExitStack() as stack:
        finder = Finder(stack, reading or HEADERS)
        heads = None if mtp_layers is None else finder.mtp_layers(str(mtp_layers))
        checkpoint = finder.checkpoint(str(src))
        conversion = plan_conversion(checkpoint, ConversionOptions(layout, mtp is not False, heads))
        if mtp and not conversion.n_mtp:
            raise UsageError(f"{src}: has no MTP layer", hint="leave --mtp out")
        profiles = profiles or (load_profile(conversion.float_type.name),)
        paths = name_outputs(destination, Path(), checkpoint.name, [profile.name for profile in profiles])
        source = stack.enter_context(finder.source(conversion, str(src)))
        requests = [OutputRequest(profile, path) for profile, path in zip(profiles, paths, strict=True)]
        yield ConvertPlan(conversion, plan_quantization(source, requests, options))


# ---- quantize


@dataclass(frozen=True, slots=True)
class QuantizePreview:
    """What a quantization would do, and what it would find.

    Attributes:
        expected: the time that it will take on this machine.
        free_bytes: free space on the disk of the outputs.
        complete: outputs that an earlier run has completed already.
        existing: other files that have the names of outputs.
    """

    plan: QuantizePlan
    expected: TimeExpected
    free_bytes: int
    complete: tuple[Path, ...]
    existing: tuple[Path, ...]

    def as_json(self) -> dict[str, Any]:
        """The preview as a JSON document."""
        return {
            **self.plan.as_json(),
            "expected": self.expected.as_json(),
            "free_bytes": self.free_bytes,
            "complete": list(map(str, self.complete)),
            "existing": list(map(str, self.existing)),
        }


def plan_quantize(
    src: str | Path,
    *,
    types: Names = (),
    out: str | Path | None = None,
    mtp_type: str | None = None,
    tensor_types: str | Sequence[str] = (),
    output_type: str | None = None,
    token_embedding_type: str | None = None,
    imatrix: str | Path | None = None,
    search: str = "llama.cpp",
    allow_requantize: bool = False,
    threads: int | None = None,
    split_max_size: str | int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> QuantizePreview:
    """Plans what `quantize` with the same arguments would write, and estimates the time.

    For a Hub id only headers are downloaded.

    Raises:
        MimoGgufError: as `quantize`, except for errors that only the weights show.
    """
    from mimo_gguf.core.output_file import free_bytes
    from mimo_gguf.core.paths import path_kind
    from mimo_gguf.quantization.estimate import estimate_time
    from mimo_gguf.quantization.output_state import is_complete

    options = quantize_options(
        type_options(mtp_type, tensor_types, output_type, token_embedding_type),
        imatrix, allow_requantize, threads, split_max_size, force, search,
    )  # fmt: skip
    with _planned_quantization(src, types, out, options) as plan:
        complete = tuple(o.path for o in plan.outputs if not force and is_complete(o, plan.source))
        parts = (part.path for output in plan.outputs if output.path not in complete for part in output.parts)
        return QuantizePreview(
            plan=plan,
            expected=estimate_time(plan, weights_here=path_kind(src) != "nothing", progress=progress),
            free_bytes=free_bytes(plan.outputs[0].path.parent),
            complete=complete,
            existing=tuple(path for path in parts if path_kind(path) != "nothing"),
        )


def quantize(
    src: str | Path,
    *,
    types: Names = (),
    out: str | Path | None = None,
    mtp_type: str | None = None,
    tensor_types: str | Sequence[str] = (),
    output_type: str | None = None,
    token_embedding_type: str | None = None,
    imatrix: str | Path | None = None,
    search: str = "llama.cpp",
    allow_requantize: bool = False,
    threads: int | None = None,
    split_max_size: str | int | None = None,
    keep_checkpoint: bool = False,
    read_ahead: str | int | None = None,
    connections: int | None = None,
    force: bool = False,
    on_plan: Callable[[QuantizePlan], None] | None = None,
    progress: Progress | None = None,
) -> QuantizeReport:
    """Quantizes a model: any number of file types in one read, byte for byte what llama.cpp makes.

    An interrupted call can be repeated: it goes on where it stopped.

    Args:
        src: a GGUF file, a checkpoint folder, or a model on the Hub or on ModelScope, as for `convert`.
        types: file types like "Q4_K_M", or TOML files of profiles.
        out: NAME.gguf, or a folder that is made if it is missing; None means a GGUF's own folder, or the current one.
        mtp_type: type of the MTP layers; "same" treats them as the file's other layers.
        tensor_types: PATTERN=TYPE for tensors whose name matches the regular expression; the first match decides.
        output_type, token_embedding_type: types of these two matrices.
        imatrix: an importance matrix made by llama-imatrix.
        search: "llama.cpp" for its blocks, byte for byte; "wide" for smaller errors in blocks of the same types.
        allow_requantize: whether a file that is quantized already may be quantized again.
        threads: number of kernels at once; None means one per core.
        split_max_size: bytes, or a text like "2GB"; larger outputs become llama.cpp's split files.
        keep_checkpoint, read_ahead, connections: as for `convert`.
        force: whether existing outputs are replaced.
        on_plan: called with the plan before anything is written.
        progress: receives how far the run is.

    Raises:
        UsageError: no type, one that does not exist or needs an importance matrix, or options that match nothing.
        GgufError, CheckpointError, HubError: no such model, or one that cannot be read.
        OutputError: an output exists already or cannot be written.
        WeightsError: weights with Inf or NaN, or too large for the type; importance values that spoil a matrix.
    """
    from mimo_gguf.quantization.run import run_quantization

    options = quantize_options(
        type_options(mtp_type, tensor_types, output_type, token_embedding_type),
        imatrix, allow_requantize, threads, split_max_size, force, search,
    )  # fmt: skip
    reading = reading_of(keep_checkpoint, read_ahead, connections)
    with _planned_quantization(src, types, out, options, reading) as plan:
        if on_plan is not None:
            on_plan(plan)
        make_output_folder(out, plan.outputs[0].path)
        return run_quantization(plan, progress)


@contextmanager
def _planned_quantization(
    src: str | Path, types: Names, out: str | Path | None, options: QuantizeOptions, reading: Reading | None = None
) -> Iterator[QuantizePlan]:
    """Plans a quantization as `_planned_conversion` does a conversion."""
    from mimo_gguf.conversion.open_model import HEADERS, is_gguf, open_model
    from mimo_gguf.core.output_file import name_outputs
    from mimo_gguf.quantization.kernel_loading import LLAMA_CPP
    from mimo_gguf.quantization.plan import OutputRequest, plan_quantization

    profiles, destination = profiles_of(types), destination_of(out)
    ending = "" if options.search == LLAMA_CPP else f"-{options.search}"
    with open_model(str(src), reading=reading or HEADERS) as source:
        beside = Path(src).parent if is_gguf(str(src)) else Path()
        paths = name_outputs(destination, beside, source.name, [profile.name + ending for profile in profiles])
        requests = [OutputRequest(profile, path) for profile, path in zip(profiles, paths, strict=True)]
        yield plan_quantization(source, requests, options)


# ---- verify, inspect


def verify(file: str | Path, *, threads: int | None = None, progress: Progress | None = None) -> Verification:
    """Checks a GGUF file against its checksums: any flipped bit, missing or added byte is found.

    The SHA-256 that the Hub shows is computed as well, and added to checksums that lack it.

    Args:
        file: a GGUF file, or any part of a split one.
        threads: number of threads; None means one per core.
        progress: receives how far the reading is.

    Raises:
        GgufError: no such file, one whose header cannot be read, or checksums that were changed.
    """
    from mimo_gguf.quantization.verification import verify_gguf

    return verify_gguf(Path(file), progress, threads)


def inspect(file: str | Path) -> Inspection:
    """Describes a GGUF file: layout, MTP, types, sizes. Only its header is read.

    Args:
        file: a GGUF file, or any part of a split one.

    Raises:
        GgufError: no such file, or not a GGUF file.
    """
    from mimo_gguf.core.gguf_file import read_gguf
    from mimo_gguf.core.inspection import inspect_gguf

    return inspect_gguf(read_gguf(Path(file)))
