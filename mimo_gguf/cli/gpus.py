"""`mimo-gguf gpus`: shows which graphics cards run the model, and how well."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from mimo_gguf.cli import ui
from mimo_gguf.cli.loading import note_damaged_speeds
from mimo_gguf.cli.options import Budget, CatalogueFile, Ctx, Json, MinTps, OneType
from mimo_gguf.core.units import format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mimo_gguf.core.model_sizes import ModelSizes
    from mimo_gguf.fit.verdicts import Verdict

_TYPE: Final = "Q4_K_M"
_CTX: Final = 8192


def command(
    ftype: OneType = None,
    ctx: Ctx = None,
    budget: Budget = None,
    min_tps: MinTps = None,
    vendor: Annotated[str, typer.Option("--vendor", metavar="NAME", help="nvidia, amd, intel or apple.")] = "",
    sort: Annotated[str, typer.Option("--sort", metavar="BY", help="vram, price, speed or value.")] = "vram",
    best: Annotated[bool, typer.Option("--best", help="Three cards to buy, and why.")] = False,
    src: CatalogueFile = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option("--gpu", metavar="NAME", help="Only this card; with --plot its line. Repeatable."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw memory against context: a .png or .svg.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show which graphics cards run it: fits or not, largest context, tokens per second, price.

    Speeds are computed from bandwidth and bytes read per token; prices are of the date shown.
    """
    from mimo_gguf.fit.speeds import MTP_ACCEPTANCE
    from mimo_gguf.fit.verdicts import Filters, best_picks, judge_cards, select
    from mimo_gguf.hardware.cards import find_card, find_cards

    if plot is not None:
        from mimo_gguf.cli.candidates import USUAL_TYPES
        from mimo_gguf.cli.gpus_plot import draw, need_curves

        chosen_cards = [find_card(name) for name in gpu or ("RTX 3060 12GB",)]
        draw(need_curves([(name, _model(src, name)) for name in USUAL_TYPES]), chosen_cards, plot)
        ui.print_note(f"written to {plot}")
        return
    filters = Filters(budget, min_tps, vendor.lower(), sort)
    model = _model(src, ftype or _TYPE)
    ctx = (_CTX if ctx is None else ctx) or model.geometry.context_length
    note_damaged_speeds()
    verdicts = judge_cards(model, ctx, find_cards(gpu) if gpu else None)
    if best:
        picks = best_picks(verdicts, filters)
        if as_json:
            ui.print_json([verdict.as_json() | {"why": why} for verdict, why in picks])
            return
        for verdict, why in picks:
            ui.out.print(f"[heading]{verdict.card.name}[/heading]: {why}")
            for line in _lines(verdict):
                ui.print_line(f"  {line}")
        return
    chosen = select(verdicts, filters)
    if as_json:
        ui.print_json([verdict.as_json() for verdict in chosen])
        return
    about = f"{Path(model.label).name}, {format_size(model.file_bytes)}, context {ctx}"
    ui.print_line(f"{about}, MTP at {MTP_ACCEPTANCE:.0%} acceptance")
    if not chosen:
        ui.print_note("no card passes: a larger --budget, a lower --min-tps, another --vendor")
        return
    _print_cards(chosen)


def _model(src: str | None, ftype: str) -> ModelSizes:
    from mimo_gguf.cli.candidates import find_candidates

    is_file = src is not None and src.lower().endswith(".gguf")
    return find_candidates(src, [] if is_file else [ftype], auto=False)[0][0].model


def _print_cards(verdicts: Sequence[Verdict]) -> None:
    ui.print_table(
        ("card", "GB", "GB/s", "fits", "context", "tok/s", "MTP", "USD", "launch"),
        [
            (
                verdict.card.name,
                f"{verdict.card.memory_gb:g}",
                f"{verdict.card.bandwidth_gbs:.0f}",
                _fits(verdict),
                str(verdict.largest_context or "-") if verdict.card.is_supported else "-",
                f"{verdict.tps:.0f}{'*' * bool(verdict.speed_source)}" if verdict.is_useful else "-",
                f"{verdict.tps_mtp:.0f}" if verdict.is_useful and verdict.tps_mtp else "-",
                f"{verdict.card.price_usd:.0f}" if verdict.card.price_usd else "-",
                verdict.card.price_date or "-",
            )
            for verdict in verdicts
        ],
    )
    for verdict in verdicts:
        if verdict.speed_source:
            ui.print_note(f"* {verdict.card.name}: {verdict.speed_source}")
    if any(verdict.card.price_date for verdict in verdicts):
        ui.print_note("USD: the price at launch, in the month beside it; without a month, the published list's price")
    if any(not verdict.card.is_supported for verdict in verdicts):
        ui.print_note("too old: no backend of a current llama.cpp drives it (Kepler and Fermi need CUDA 11 or older)")


def _fits(verdict: Verdict) -> str:
    if not verdict.card.is_supported:
        return "too old"
    return {"f16": "yes", "": "no"}.get(verdict.kv_type, f"{verdict.kv_type} KV")


def _lines(verdict: Verdict) -> tuple[str, str]:
    card = verdict.card
    mtp = f", {verdict.tps_mtp:.0f} with MTP" if verdict.tps_mtp else ""
    cache = f" with a {verdict.kv_type} cache" if verdict.kv_type != "f16" else ""
    date = f" at launch in {card.price_date}" if card.price_date else ""
    return (
        f"context up to {verdict.largest_context}{cache}, about {verdict.tps:.0f} tok/s{mtp}",
        f"{card.memory_gb:g} GB, {card.backend}, {card.price_usd:.0f} USD{date}",
    )
