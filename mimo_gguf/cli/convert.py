"""`mimo-gguf convert`: a Hugging Face checkpoint becomes a GGUF with its MTP layers."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mimo_gguf.cli import ui
from mimo_gguf.cli.options import DryRun, Force, Json, Mtp, OneType, Out, Quiet, SplitMaxSize, Threads
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.units import format_count, format_size

if TYPE_CHECKING:
    from mimo_gguf.conversion.checkpoint_source import ConversionPlan
    from mimo_gguf.quantization.plan import QuantizePlan


def command(
    src: Annotated[
        str, typer.Argument(metavar="SRC", help="A checkpoint folder, or a Hub id: org/name or org/name@revision.")
    ],
    out: Out = None,
    ftype: OneType = None,
    layout: Annotated[
        str | None,
        typer.Option(metavar="LAYOUT", help="step35: trunk and MTP (default where there is MTP). qwen2: trunk alone."),
    ] = None,
    mtp: Mtp = None,
    mtp_layers: Annotated[
        str | None,
        typer.Option("--mtp-layers", metavar="DIR", help="Add the further heads of a MiMo-7B-MTPs folder or Hub id."),
    ] = None,
    threads: Threads = None,
    split_max_size: SplitMaxSize = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Convert a MiMo checkpoint to GGUF, its multi-token-prediction (MTP) layers kept.

    Lossless by default, in memory bounded by a few rows, resumable: after a crash run the same command again.
    """
    from mimo_gguf.cli.progress import open_progress
    from mimo_gguf.conversion.checkpoint_source import ConversionOptions, as_model_source, plan_conversion
    from mimo_gguf.conversion.open_model import find_checkpoint, find_mtp_layers
    from mimo_gguf.core.output_file import make_folder, name_outputs, parse_destination, parse_part_size
    from mimo_gguf.quantization.plan import OutputRequest, QuantizeOptions, plan_quantization
    from mimo_gguf.quantization.profiles import load_profile
    from mimo_gguf.quantization.run import run_quantization

    # What is wrong in these is told before 15 GB are downloaded.
    profile = load_profile(ftype) if ftype is not None else None
    destination = parse_destination(out) if out is not None else None
    part_bytes = parse_part_size(split_max_size) if split_max_size else None
    with ExitStack() as stack:
        heads = find_mtp_layers(mtp_layers, stack, headers_only=dry_run) if mtp_layers is not None else None
        checkpoint = find_checkpoint(src, stack, headers_only=dry_run)
        conversion = plan_conversion(checkpoint, ConversionOptions(layout, mtp is not False, heads))
        if mtp and not conversion.n_mtp:
            raise UsageError(f"{src}: has no MTP layer", hint="leave --mtp out")
        profile = profile or load_profile(conversion.float_type.name)
        (path,) = name_outputs(destination, Path(), checkpoint.name, [profile.name])
        source = stack.enter_context(as_model_source(conversion, src))
        options = QuantizeOptions(n_threads=threads, split_max_bytes=part_bytes, force=force)
        plan = plan_quantization(source, [OutputRequest(profile, path)], options)
        if not as_json:
            _print_plan(conversion, plan)
        _warn_of_rounding(conversion, profile.name)
        if dry_run:
            if as_json:
                ui.print_json(_conversion_json(conversion) | plan.as_json())
            return
        if destination is None or not destination.is_file:
            make_folder(path.parent)
        with open_progress(quiet=quiet or as_json) as progress:
            report = run_quantization(plan, progress)
    if as_json:
        ui.print_json(_conversion_json(conversion) | report.as_json())
    else:
        ui.print_report(report)


def _print_plan(conversion: ConversionPlan, plan: QuantizePlan) -> None:
    (output,) = plan.outputs
    ui.print_field("model", f"{conversion.checkpoint.model_id}, {conversion.recipe.family}")
    ui.print_field("layout", _layout_line(conversion))
    ui.print_field("tensors", _tensors_line(conversion, output.n_parameters))
    for reason, count in Counter(tensor.reason for tensor in conversion.dropped).items():
        ui.print_field("dropped", f"{count} tensor{'s' if count > 1 else ''}: {reason}")
    parts = f" in {len(output.parts)} parts" if len(output.parts) > 1 else ""
    ui.print_field("output", f"{output.parts[0].path}, {output.profile.name}, {format_size(output.n_bytes)}{parts}")


def _layout_line(conversion: ConversionPlan) -> str:
    if conversion.n_mtp:
        return f"{conversion.layout}, with {conversion.n_mtp} MTP layer{'s' if conversion.n_mtp > 1 else ''}"
    return f"{conversion.layout}, without MTP"


def _tensors_line(conversion: ConversionPlan, n_parameters: int) -> str:
    mapped = conversion.mapping.mapped
    text = f"{len(mapped)}, {format_count(n_parameters)} parameters"
    return text + "".join(f"; {tensor.transform} on {tensor.hf}" for tensor in mapped if tensor.transform)


def _warn_of_rounding(conversion: ConversionPlan, ftype: str) -> None:
    """Says so where the type was chosen for the user and some matrices of a mixed checkpoint do not fit in it."""
    others = [f"{count} in {kind.name}" for kind, count in conversion.matrix_types if kind.name != ftype]
    if ftype == conversion.float_type.name and others and ftype != "F32":
        ui.print_warning(f"the checkpoint mixes types ({', '.join(others)}): {ftype} rounds these, --type F32 does not")


def _conversion_json(conversion: ConversionPlan) -> dict[str, Any]:
    return {
        "model": conversion.checkpoint.model_id,
        "revision": conversion.checkpoint.revision,
        "layout": conversion.layout,
        "n_mtp": conversion.n_mtp,
        "recipe": conversion.recipe.path.name,
        "mapped": [
            {"from": tensor.hf, "to": tensor.gguf, "transform": tensor.transform}
            for tensor in conversion.mapping.mapped
        ],
        "dropped": [{"from": tensor.hf, "reason": tensor.reason} for tensor in conversion.dropped],
    }
