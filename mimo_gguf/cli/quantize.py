"""`mimo-gguf quantize`: one read of a model becomes files of any types."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mimo_gguf.cli import ui
from mimo_gguf.cli.options import DryRun, Force, Json, MtpType, Out, Quiet, SplitMaxSize, Threads, Types
from mimo_gguf.core.units import format_duration, format_size

if TYPE_CHECKING:
    from mimo_gguf.core.ggml_types import GgmlType
    from mimo_gguf.quantization.estimate import TimeExpected
    from mimo_gguf.quantization.plan import OutputPlan, QuantizePlan
    from mimo_gguf.quantization.profiles import MtpRule
    from mimo_gguf.quantization.type_choice import TypeOptions


def command(
    src: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="A GGUF file, a checkpoint folder, or a Hub id (org/name, org/name@revision)."
        ),
    ],
    ftype: Types = None,
    profile: Annotated[
        list[Path] | None, typer.Option("--profile", metavar="FILE", help="A profile of your own (TOML); repeatable.")
    ] = None,
    out: Out = None,
    mtp_type: MtpType = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option("--tensor-type", metavar="PATTERN=TYPE", help="Type of tensors whose name matches; repeatable."),
    ] = None,
    output_type: Annotated[
        str | None, typer.Option("--output-type", metavar="TYPE", help="Type of the output matrix.")
    ] = None,
    token_embedding_type: Annotated[
        str | None, typer.Option("--token-embedding-type", metavar="TYPE", help="Type of the token embedding.")
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Importance matrix made by llama-imatrix (either format).")
    ] = None,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Quantize a file again that is quantized already.")
    ] = False,
    threads: Threads = None,
    split_max_size: SplitMaxSize = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Quantize a model: any number of file types in one read, byte for byte what llama.cpp makes.

    Resumable: after a crash or Ctrl-C run the same command again.
    """
    from mimo_gguf.cli.progress import open_progress
    from mimo_gguf.conversion.open_model import is_gguf, open_model
    from mimo_gguf.core.output_file import (
        free_bytes,
        make_folder,
        name_outputs,
        parse_destination,
        parse_part_size,
    )
    from mimo_gguf.core.paths import path_kind
    from mimo_gguf.quantization.estimate import estimate_time
    from mimo_gguf.quantization.importance import read_importance
    from mimo_gguf.quantization.plan import OutputRequest, QuantizeOptions, plan_quantization
    from mimo_gguf.quantization.profiles import load_profile
    from mimo_gguf.quantization.run import run_quantization

    profiles = [load_profile(name) for name in [*(ftype or []), *map(str, profile or [])]]
    destination = parse_destination(out) if out is not None else None
    options = QuantizeOptions(
        types=_type_options(mtp_type, tensor_type or [], output_type, token_embedding_type),
        importance=read_importance(imatrix) if imatrix else None,
        n_threads=threads,
        split_max_bytes=parse_part_size(split_max_size) if split_max_size else None,
        force=force,
        allow_requantize=allow_requantize,
    )
    with open_model(src, headers_only=dry_run) as source:
        beside = Path(src).parent if is_gguf(src) else Path()
        paths = name_outputs(destination, beside, source.name, [chosen.name for chosen in profiles])
        plan = plan_quantization(source, list(map(OutputRequest, profiles, paths)), options)
        if dry_run:
            expected = estimate_time(plan, weights_here=path_kind(src) != "nothing")
            place = Place(free_bytes(paths[0].parent), *_present(plan))
            document = {**plan.as_json(), "expected": expected.as_json(), **asdict(place)}
            ui.print_json(document) if as_json else _print_plan(plan, expected, place)
            return
        if destination is None or not destination.is_file:
            make_folder(paths[0].parent)
        with open_progress(quiet=quiet or as_json) as progress:
            report = run_quantization(plan, progress)
    ui.print_json(report.as_json()) if as_json else ui.print_report(report)


def _type_options(
    mtp: str | None, tensor_types: list[str], output_type: str | None, token_embedding_type: str | None
) -> TypeOptions:
    from mimo_gguf.quantization.profiles import parse_weight_type
    from mimo_gguf.quantization.type_choice import TypeOptions, parse_tensor_type

    def optional(name: str | None) -> GgmlType | None:
        return parse_weight_type(name) if name else None

    return TypeOptions(
        mtp=_mtp_rule(mtp) if mtp else None,
        tensor_types=tuple(parse_tensor_type(text) for text in tensor_types),
        output_type=optional(output_type),
        token_embedding_type=optional(token_embedding_type),
    )


def _mtp_rule(text: str) -> MtpRule:
    from mimo_gguf.quantization.profiles import SAME, MtpRule, parse_weight_type

    return MtpRule(None if text.lower() == SAME else parse_weight_type(text))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run would write: bytes free on its disk, outputs it would find complete, other files in their place."""

    free_bytes: int
    complete: list[str]
    existing: list[str]


def _present(plan: QuantizePlan) -> tuple[list[str], list[str]]:
    from mimo_gguf.core.paths import path_kind
    from mimo_gguf.quantization.output_state import is_complete

    complete = [output.path for output in plan.outputs if not plan.options.force and is_complete(output, plan.source)]
    parts = (part.path for output in plan.outputs if output.path not in complete for part in output.parts)
    return list(map(str, complete)), [str(path) for path in parts if path_kind(path) != "nothing"]


def _print_plan(plan: QuantizePlan, expected: TimeExpected, place: Place) -> None:
    read_bytes = sum(tensor.info.n_bytes for tensor in plan.source.tensors)
    ui.print_field("source", f"{plan.source.label}, {len(plan.source.tensors)} tensors, {format_size(read_bytes)}")
    ui.print_table(
        ("output", "size", "bits per weight", "types"),
        [(str(path), size, bits, types) for output in plan.outputs for path, size, bits, types in _plan_rows(output)],
    )
    total = sum(output.n_bytes for output in plan.outputs)
    ui.print_field("to write", f"{format_size(total)} ({total} bytes); {format_size(place.free_bytes)} free there")
    reading = "" if expected.reading_s is None else f", at the same time reading {format_duration(expected.reading_s)}"
    ui.print_field(
        "time",
        f"about {format_duration(expected.total_s)}: computing {format_duration(expected.computing_s)} on "
        f"{expected.n_threads} thread{'s' * (expected.n_threads > 1)}{reading}",
    )
    ui.print_notes([(output.profile.name, output.notes) for output in plan.outputs])
    if place.free_bytes < total:
        ui.print_warning("the disk has not that much free")
    for path in place.complete:
        ui.print_note(f"{path}: complete already")
    if place.existing and not plan.options.force:
        ui.print_warning(f"{', '.join(place.existing)}: there already; a run needs --force, or another place with -o")


def _plan_rows(output: OutputPlan) -> list[tuple[str, str, str, str]]:
    rows = []
    for part in output.parts:
        counts = Counter(tensor.info.ggml_type.name for tensor in output.tensors[part.first : part.last])
        types = ", ".join(f"{name} x{count}" for name, count in counts.most_common())
        rows.append((str(part.path), format_size(part.layout.n_bytes), f"{output.bits_per_weight:.2f}", types))
    return rows
