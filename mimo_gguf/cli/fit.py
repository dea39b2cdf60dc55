"""`mimo-gguf fit`: what a run needs on this machine, or on a card you name, against what is free."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mimo_gguf.cli import ui
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.units import format_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mimo_gguf.runtime.devices import Device
    from mimo_gguf.runtime.fit import FitPlan
    from mimo_gguf.runtime.memory_model import Part


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A GGUF file; only its header is read.")],
    ctx: Annotated[int, typer.Option("--ctx", min=0, help="Tokens of context; 0: what it was trained for.")] = 8192,
    kv_type: Annotated[str, typer.Option("--kv-type", help="Type of the KV cache: f16, q8_0, q4_0, ...")] = "f16",
    ubatch: Annotated[int, typer.Option("--ubatch", min=1, help="Tokens computed at a time.")] = 512,
    mtp: Annotated[bool, typer.Option("--mtp/--no-mtp", help="Plan for drafting with the MTP layer.")] = True,
    flash_attn: Annotated[bool, typer.Option("--flash-attn/--no-flash-attn", help="Flash attention.")] = True,
    parallel: Annotated[int, typer.Option("--parallel", min=1, help="Conversations at once, sharing --ctx.")] = 1,
    gpu_layers: Annotated[
        int | None, typer.Option("--gpu-layers", min=-1, help="Layers on the GPU; -1 all. Default: as many as fit.")
    ] = None,
    vram: Annotated[
        list[str] | None,
        typer.Option("--vram", metavar="SIZE", help="Plan for a card of this size instead (8GiB); repeat for several."),
    ] = None,
    rpc: Annotated[
        list[str] | None, typer.Option("--rpc", metavar="HOST:PORT", help="Also use this worker; repeat for several.")
    ] = None,
    asked: Annotated[bool, typer.Option("--asked", help="Also ask llama.cpp itself, and compare.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Show what a run needs, part by part and device by device, against what is free.

    Nothing is loaded. Exit code 3 when it does not fit; the error names what would.
    """
    from mimo_gguf.runtime.fit import plan_fit

    devices = _devices(vram or [], rpc or [], asked=asked)
    plan = plan_fit(
        file,
        n_ctx=ctx,
        type_k=kv_type,
        type_v=kv_type,
        n_ubatch=ubatch,
        mtp=mtp,
        n_gpu_layers=gpu_layers,
        flash_attn=flash_attn,
        devices=devices,
        n_seq_max=parallel,
    )
    answers = _ask(plan) if asked else None
    if as_json:
        document = plan.as_json()
        if answers is not None:
            document["asked_bytes"] = answers
        ui.print_json(document)
    else:
        _print_plan(plan, answers)
    plan.require()


def _devices(vram: Sequence[str], rpc: Sequence[str], *, asked: bool) -> tuple[Device, ...]:
    from mimo_gguf.runtime.devices import add_workers, host_device, imagined_gpu, list_devices

    if vram and rpc:
        raise UsageError("--vram imagines a machine, --rpc names a real one", hint="give one of the two")
    if vram and asked:
        raise UsageError("llama.cpp cannot be asked about a card that is not here", hint="give --vram or --asked")
    if vram:
        names = ["GPU"] if len(vram) == 1 else [f"GPU{i}" for i in range(len(vram))]
        cards = (imagined_gpu(parse_size(size), name) for size, name in zip(vram, names, strict=True))
        return (*cards, host_device())
    if rpc:
        add_workers(rpc)
    return list_devices()


def _ask(plan: FitPlan) -> dict[str, int]:
    from mimo_gguf.runtime.memory_probe import ask_memory

    devices = [fit.device for fit in plan.devices]
    answers = ask_memory(plan.model.label, plan.settings, devices[:-1])
    return {device.name: answer.total for device, answer in zip(devices, answers, strict=True)}


_COUNTED_BY_LLAMA_CPP = ("weights", "KV cache", "compute buffers")


def _print_plan(plan: FitPlan, answers: dict[str, int] | None) -> None:
    first, _ = plan.summary()
    kind = f" ({plan.file_type})" if plan.file_type else ""
    ui.out.print(f"{Path(plan.model.label).name}{kind}: {first}", markup=False)
    ui.out.print()
    rows = [_row(path, plan) for path in _paths([fit.tree for fit in plan.devices])]
    if answers is not None:
        rows.append(("llama.cpp's own count", *(format_size(answers[fit.device.name]) for fit in plan.devices)))
        rows.append(("  difference", *(f"{_counted(fit.tree) - answers[fit.device.name]} B" for fit in plan.devices)))
    rows.append(("needed", *(format_size(fit.needed_bytes) for fit in plan.devices)))
    rows.append(("free", *(format_size(fit.free_bytes) for fit in plan.devices)))
    rows.append(("  of", *(format_size(fit.device.total_bytes) for fit in plan.devices)))
    ui.print_table(("", *(fit.device.name for fit in plan.devices)), rows)
    ui.out.print()
    _print_verdict(plan)


def _paths(trees: Sequence[Part]) -> Iterator[tuple[str, ...]]:
    """Names of the parts and their parts, in order, each once."""
    for name in dict.fromkeys(part.name for tree in trees for part in tree.parts):
        yield (name,)
        inner = [p.name for tree in trees for part in tree.parts if part.name == name for p in part.parts]
        for child in dict.fromkeys(inner):
            yield name, child


def _row(path: tuple[str, ...], plan: FitPlan) -> tuple[str, ...]:
    cells = []
    for fit in plan.devices:
        group = next((part for part in fit.tree.parts if part.name == path[0]), None)
        n_bytes = 0 if group is None else group.n_bytes if len(path) == 1 else group.find(path[1])
        cells.append(format_size(n_bytes) if n_bytes else "-")
    return ("  " * (len(path) - 1) + path[-1], *cells)


def _counted(tree: Part) -> int:
    return sum(part.n_bytes for part in tree.parts if part.name in _COUNTED_BY_LLAMA_CPP)


def _print_verdict(plan: FitPlan) -> None:
    if not plan.fits:
        for way in plan.ways_out:
            ui.out.print(f"would fit: {way.text}", markup=False)
        return
    spare = plan.tightest
    left = format_size(spare.free_bytes - spare.needed_bytes)
    ui.out.print(f"[good]fits[/good], with {left} to spare on {spare.device.name}")
    on_gpu, n_layers = plan.settings.n_gpu_layers, plan.n_layers
    if len(plan.devices) > 1 and on_gpu < n_layers:
        ui.out.print(f"but only {on_gpu} of {n_layers} layers are on the GPU: slower than with all of them")
