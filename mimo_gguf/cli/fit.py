"""`mimo-gguf fit`: compares the memory that a run needs, here or on a card you name, with what is free."""

from __future__ import annotations

import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mimo_gguf.cli import ui
from mimo_gguf.cli.candidates import USUAL_TYPES, choose_devices, find_candidates
from mimo_gguf.cli.loading import note_damaged_speeds, print_advice
from mimo_gguf.cli.options import Auto, Ctx, Exact, GpuLayers, Json, KvType, Mtp, Parallel, Rpc, Types, Ubatch
from mimo_gguf.core.errors import DoesNotFit, UsageError
from mimo_gguf.core.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mimo_gguf.core.model_source import Metadata
    from mimo_gguf.fit.plan import FitPlan
    from mimo_gguf.fit.solver import Candidate, Solution, Wishes
    from mimo_gguf.hardware.devices import Device
    from mimo_gguf.hardware.nvml import OtherUse


def command(
    src: Annotated[
        str | None,
        typer.Argument(
            metavar="SRC",
            show_default=False,
            help="A GGUF, a checkpoint folder or a Hub id; only headers are read. Without it: MiMo-7B as published.",
        ),
    ] = None,
    ftype: Types = None,
    ctx: Ctx = None,
    kv_type: KvType = None,
    ubatch: Ubatch = None,
    mtp: Mtp = None,
    flash_attn: Annotated[bool, typer.Option("--flash-attn/--no-flash-attn", help="Flash attention.")] = True,
    parallel: Parallel = 1,
    gpu_layers: GpuLayers = None,
    exact: Exact = False,
    auto: Auto = False,
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            "--gpu", metavar="NAME", help="Plan for this card (see gpus) [default: auto, this machine]; repeatable."
        ),
    ] = None,
    vram: Annotated[
        list[str] | None, typer.Option("--vram", metavar="SIZE", help="Plan for a card of this size; repeatable.")
    ] = None,
    rpc: Rpc = None,
    asked: Annotated[bool, typer.Option("--asked", help="Also ask llama.cpp itself, and compare.")] = False,
    as_json: Json = False,
) -> None:
    """Show what a run needs, part by part and device by device, against what is free.

    Nothing is loaded. The exit code is 3 if it does not fit; the error names settings that would.
    """
    from mimo_gguf.core.kv_cache import parse_kv_type
    from mimo_gguf.fit.refusal import check_fit, plan_json
    from mimo_gguf.fit.solver import Wishes, solve

    devices = choose_devices(vram or [], gpu or [], rpc or [], asked=asked)
    candidates, metadata = find_candidates(src, ftype or [], auto=auto)
    if asked and src is None:
        raise UsageError("llama.cpp is asked about a file", hint="mimo-gguf fit FILE --asked")
    if asked and (auto or len(candidates) > 1):
        hint = "leave --auto or --asked out" if auto else f"--asked --type {candidates[0].name}"
        raise UsageError("llama.cpp is asked about one plan, not a choice", hint=hint)
    wishes = Wishes(
        n_ctx=parallel * candidates[0].model.geometry.context_length if ctx == 0 else ctx,
        kv_type=None if kv_type is None else parse_kv_type(kv_type),
        mtp=mtp,
        n_ubatch=ubatch,
        n_gpu_layers=gpu_layers,
        n_seq_max=parallel,
        flash_attn=flash_attn,
        exact=exact,
    )
    if auto:
        _show_solution(solve(candidates, devices, wishes), wishes, src, rpc or [], as_json=as_json)
        return
    plans = [_plan(candidate, candidates, devices, wishes) for candidate in candidates]
    print_advice(plans[0], gpu_layers)
    note_damaged_speeds()
    if len(plans) > 1:
        _show_comparison(plans, as_json=as_json)
        return
    answers = _ask(plans[0], metadata) if asked else None
    others = _others(devices)
    if as_json:
        programs = {name: [asdict(use) for use in uses] for name, uses in others.items()}
        asked_bytes = {"asked_bytes": answers} if answers else {}
        ui.print_json(plan_json(plans[0]) | _expected_json(plans[0]) | {"other_programs": programs} | asked_bytes)
    else:
        print_plan(plans[0], answers)
        for name, uses in others.items():
            ui.print_line(f"also on {name}: {', '.join(map(str, uses))}")
    check_fit(plans[0])


def _others(devices: Sequence[Device]) -> dict[str, tuple[OtherUse, ...]]:
    """Finds the other programs on each device, by its name; warns of cards that llama.cpp does not use."""
    from mimo_gguf.hardware.devices import loading_problem
    from mimo_gguf.hardware.nvml import nvidia_cards, other_uses, unused_cards

    if not any(device.pointer or not device.is_gpu for device in devices[:1]):
        return {}  # an imagined machine
    if problem := loading_problem():
        ui.print_warning(f"planned for the CPU alone: {problem.message}; {problem.hint}")
    cards = nvidia_cards()
    for card in unused_cards(devices, cards):
        ui.print_warning(
            f"{card.name} with {format_size(card.total_bytes)} is in this machine, but the installed llama.cpp was "
            "built without CUDA; docs/install.md has the line that builds it in"
        )
    uses = {device.name: other_uses(device, cards) for device in devices}
    return {name: found for name, found in uses.items() if found}


def _plan(candidate: Candidate, candidates: Sequence[Candidate], devices: Sequence[Device], wishes: Wishes) -> FitPlan:
    from mimo_gguf.fit.solver import settings_for
    from mimo_gguf.fit.ways_out import smaller_types
    from mimo_gguf.fit.weigh import plan_model

    if wishes.mtp and not candidate.model.has_mtp:
        raise UsageError(f"{candidate.model.label}: has no MTP layer", hint="leave --mtp out")
    known = {other.name: other.model for other in candidates if other.model.file_bytes < candidate.model.file_bytes}
    smaller = tuple(reversed(known.items())) or smaller_types(candidate.model)
    plan = plan_model(candidate.model, settings_for(candidate.model, wishes), devices, wishes.n_gpu_layers)
    return replace(plan, file_type=candidate.name, smaller=smaller)


def _ask(plan: FitPlan, metadata: Metadata) -> dict[str, int]:
    from mimo_gguf.fit.asked import ask_memory, header_only_file

    devices = [fit.device for fit in plan.devices]
    if Path(plan.model.label).is_file():
        answers = ask_memory(plan.model.label, plan.settings, devices[:-1])
    else:
        with header_only_file(metadata, plan.model.tensors) as path:
            answers = ask_memory(path, plan.settings, devices[:-1])
    return {device.name: answer.n_bytes for device, answer in zip(devices, answers, strict=True)}


def _show_solution(solution: Solution, wishes: Wishes, src: str | None, rpc: Sequence[str], *, as_json: bool) -> None:
    from mimo_gguf.fit.refusal import check_fit
    from mimo_gguf.fit.verdicts import expectation

    print_advice(solution.plan, wishes.n_gpu_layers)
    note_damaged_speeds()
    if as_json:
        ui.print_json(solution.as_json() | _expected_json(solution.plan))
    else:
        name = Path(solution.plan.model.label).name
        ui.print_field("choice", name if name == solution.file_type else f"{name} ({solution.file_type})")
        ui.print_field("run", solution.plan.summary()[0])
        ui.print_field("memory", solution.plan.summary()[1])
        if expected := expectation(solution.plan):
            ui.print_field("speed", str(expected))
        for text in solution.gave_up:
            ui.print_field("given up", text)
        for text in solution.next_steps:
            ui.print_field("next step", text)
        if solution.plan.fits:
            for label, line in _command_lines(solution, src, rpc):
                ui.print_field(label, line)
    check_fit(solution.plan)


def _expected_json(plan: FitPlan) -> dict[str, Any]:
    from mimo_gguf.fit.verdicts import expectation

    expected = expectation(plan)
    return {"expected": expected and expected.as_json()}


def _command_lines(solution: Solution, src: str | None, rpc: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The (label, command) lines that make the file, if it does not exist yet, and that run it with this plan."""
    from mimo_gguf.core.published_model import PUBLISHED_ID

    plan, s = solution.plan, solution.plan.settings
    src = src or PUBLISHED_ID
    file = plan.model.label
    if file != src:  # the file has still to be made
        verb = "quantize" if src.lower().endswith(".gguf") else "convert"
        file = str(Path(src).parent / Path(file).name) if verb == "quantize" else Path(file).name
        yield "to make it", f"mimo-gguf {verb} {shlex.quote(src)} --type {solution.file_type}"
    if s.n_seq_max > 1:
        return  # chat has one conversation
    words = ["mimo-gguf", "chat", shlex.quote(file), "--ctx", str(s.n_ctx)]
    if s.type_k.name != "F16":
        words += ["--kv-type", s.type_k.name.lower()]
    if plan.model.has_mtp and not s.mtp:
        words.append("--no-mtp")
    if s.is_exact:
        words.append("--exact")
    elif s.n_ubatch != 512:
        words += ["--ubatch", str(s.n_ubatch)]
    words += [word for endpoint in rpc for word in ("--rpc", endpoint)]
    yield "to run it", " ".join(words)


def _show_comparison(plans: Sequence[FitPlan], *, as_json: bool) -> None:
    from mimo_gguf.fit.refusal import plan_json
    from mimo_gguf.fit.weigh import largest_context, plan_model

    contexts = []
    for plan in plans:
        whole = plan_model(plan.model, plan.settings, [fit.device for fit in plan.devices], -1)
        contexts.append(largest_context(whole, plan.model.geometry.context_length))
    if as_json:
        ui.print_json([plan_json(plan) | {"largest_context": n} for plan, n in zip(plans, contexts, strict=True)])
    else:
        ui.print_line(f"context {plans[0].settings.n_ctx}, MTP {'on' if plans[0].runs_mtp else 'off'}")
        names = [fit.device.name for fit in plans[0].devices]
        rows = [
            (
                plan.file_type,
                format_size(plan.model.file_bytes),
                *(format_size(fit.needed_bytes) for fit in plan.devices),
                f"{plan.settings.n_gpu_layers} of {plan.n_layers}" if len(names) > 1 else "-",
                "yes" if plan.fits else "no",
                str(n_ctx or "-"),
            )
            for plan, n_ctx in zip(plans, contexts, strict=True)
        ]
        rows.append(("free", "", *(format_size(fit.free_bytes) for fit in plans[0].devices), "", "", ""))
        ui.print_table(("type", "file", *names, "GPU layers", "fits", "max context"), rows)
    if not any(plan.fits for plan in plans):
        raise DoesNotFit(
            "none of these types fits", hint=f"smaller settings: mimo-gguf fit ... --auto --type {USUAL_TYPES[0]}"
        )


def print_plan(plan: FitPlan, answers: dict[str, int] | None = None) -> None:
    """Prints the plan part by part, a column per device.

    Args:
        answers: device name -> the bytes that llama.cpp itself counts.
    """
    first, _ = plan.summary()
    kind = f" ({plan.file_type})" if plan.file_type not in ("", Path(plan.model.label).name) else ""
    ui.print_line(f"{Path(plan.model.label).name}{kind}: {first}")
    ui.print_line()
    rows = list(_rows(plan))
    if answers is not None:
        rows.append(("llama.cpp's own count", *(format_size(answers[fit.device.name]) for fit in plan.devices)))
        rows.append(
            ("  difference", *(f"{fit.memory.counted_bytes - answers[fit.device.name]} B" for fit in plan.devices))
        )
    rows.append(("needed", *(format_size(fit.needed_bytes) for fit in plan.devices)))
    rows.append(("free", *(format_size(fit.free_bytes) for fit in plan.devices)))
    rows.append(("  of", *(format_size(fit.device.total_bytes) for fit in plan.devices)))
    ui.print_table(("", *(fit.device.name for fit in plan.devices)), rows)
    ui.print_line()
    _print_verdict(plan)


def _rows(plan: FitPlan) -> Iterator[tuple[str, ...]]:
    """Makes a row for each part that any device has, the parts of a group below it, with a column per device."""
    columns = [fit.memory.rows() for fit in plan.devices]
    for path in columns[0]:
        if any(column[path] for column in columns):
            cells = (format_size(column[path]) if column[path] else "-" for column in columns)
            yield "  " * (len(path) - 1) + path[-1], *cells


def _print_verdict(plan: FitPlan) -> None:
    from mimo_gguf.fit.verdicts import expectation
    from mimo_gguf.fit.ways_out import find_ways_out

    for gpu in (fit.device for fit in plan.devices[:-1] if fit.device.description):
        ui.print_line(f"{gpu.name} is {gpu.description}")
    for note in plan.notes():
        ui.print_line(note)
    if not plan.fits:
        for way in find_ways_out(plan):
            ui.print_line(f"would fit: {way.text}")
        return
    spare = plan.tightest
    left = format_size(spare.spare_bytes)
    ui.out.print(f"[good]fits[/good], with {left} to spare on {spare.device.name}")
    on_gpu, n_layers = plan.settings.n_gpu_layers, plan.n_layers
    if len(plan.devices) > 1 and on_gpu < n_layers:
        ui.out.print(f"but only {on_gpu} of {n_layers} layers are on the GPU: slower than with all of them")
    if expected := expectation(plan):
        ui.print_line(str(expected))
