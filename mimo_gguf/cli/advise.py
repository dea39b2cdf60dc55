"""`mimo-gguf advise`: what to buy for a budget, or what this machine can do and which single change helps most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mimo_gguf.cli import ui
from mimo_gguf.cli.options import Budget, CatalogueFile, Ctx, Json, MinTps, OneType
from mimo_gguf.core.units import GIB, counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mimo_gguf.advice.choices import Choice
    from mimo_gguf.advice.machines import Figure
    from mimo_gguf.advice.needs import Needs
    from mimo_gguf.advice.run import Advice


def command(
    file: CatalogueFile = None,
    ftype: OneType = None,
    ctx: Ctx = None,
    users: Annotated[int, typer.Option("--users", metavar="N", help="Conversations at a time, each with --ctx.")] = 1,
    min_tps: MinTps = None,
    budget: Budget = None,
    have: Annotated[
        list[str] | None,
        typer.Option("--have", metavar="NAME", help="A card that is there [default: this machine's]; repeatable."),
    ] = None,
    kwh_price: Annotated[
        float | None, typer.Option("--kwh-price", metavar="PRICE", help="Price of a kWh, for the cost of energy.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what to buy for a budget; or what this machine can do, and which single change helps most.

    Speeds are as measured here if bench --save has measured them, else computed. Prices are those at launch.
    """
    from mimo_gguf.advice.run import advise

    advice = advise(
        file, ftype=ftype, ctx=ctx, users=users, min_tps=min_tps, budget=budget, have=have or (), kwh_price=kwh_price
    )
    for note in advice.notes:
        ui.print_note(note)
    if as_json:
        ui.print_json(advice.as_json())
    else:
        print_advice(advice)


def print_advice(advice: Advice) -> None:
    """Prints the advice: what is there, then every choice with all its figures."""
    ui.print_line(f"{advice.model}, {', '.join(_wishes(advice.needs))}")
    if advice.now is not None:
        _print_choice(f"now: {advice.now.name}", advice.now, advice.needs)
        ui.print_line()
        best = advice.best
        ui.print_line(f"What helps most: {best.name}." if best else "No single change of a known price helps clearly.")
    for number, choice in enumerate(advice.choices, 1):
        _print_choice(f"{number}. {choice.name}", choice, advice.needs)
    ui.print_line()
    ui.print_note("prices are those at launch, of cards alone, but of whole computers with unified memory")
    ui.print_note("--json has the source of every figure")


def _wishes(needs: Needs) -> Iterator[str]:
    yield f"{counted(needs.users, 'user')} with a context of {needs.ctx}{' each' if needs.users > 1 else ''}"
    if needs.min_tps:
        yield f"at least {needs.min_tps:g} tok/s{' each' if needs.users > 1 else ''}"
    if needs.budget_usd is not None:
        yield f"up to {needs.budget_usd:g} USD"


def _print_choice(title: str, choice: Choice, needs: Needs) -> None:
    ui.print_line()
    ui.print_line(title, style="heading")
    for label, text in rows(choice, needs):
        ui.print_field(f"  {label}", text, width=12, style="note")


def rows(choice: Choice, needs: Needs) -> Iterator[tuple[str, str]]:
    """The (label, text) rows of a choice. What is not known is said to be so."""
    from mimo_gguf.advice.machines import HERE

    yield "why", choice.why
    yield "run", _run(choice, needs)
    if choice.plan.fits:
        yield "speed", _speed(choice, needs)
    if choice.machine.kind != HERE:
        yield "price", _price(choice)
    if choice.machine.cards:
        yield "power", _power(choice)
        yield "energy", _energy(choice)
    yield "computer", _marked((choice.ram_gb, "{} GB of RAM"), (choice.disk_gib, "{} GiB of disk"))
    if choice.better_types:
        names = ", ".join(f"{name} at {number(figure.value)} tok/s" for name, figure in choice.better_types)
        yield "holds", f"also {names} (estimated)"
    if choice.next_step:
        yield "next step", choice.next_step


def _run(choice: Choice, needs: Needs) -> str:
    from mimo_gguf.advice.choices import ANY_HOST

    plan, s = choice.plan, choice.plan.settings
    where = "" if len(plan.devices) == 1 else f", {s.n_gpu_layers} of {plan.n_layers} layers on the GPU"
    contexts = f"{needs.users} x " if needs.users > 1 else ""
    cache = f"{s.type_k.name.lower()} cache, MTP {'on' if plan.runs_mtp else 'off'}"
    first = plan.devices[0]
    shown = f"{first.needed_bytes / GIB:.1f}"
    if first.free_bytes < ANY_HOST.free_bytes:
        shown += f" of {first.free_bytes / GIB:.1f}"
    return f"{choice.file_type}, context {contexts}{needs.ctx}, {cache}{where}; {shown} GiB on {first.device.name}"


def _speed(choice: Choice, needs: Needs) -> str:
    if choice.tps is None:
        if choice.bandwidth_gbs is None:
            return "not known"
        return f"not known; {choice.bandwidth_gbs.source.partition(' of ')[0]} needs " + _marked(
            (choice.bandwidth_gbs, "{} GB/s of memory bandwidth")
        )
    parts = [(choice.tps, "{} tok/s"), (choice.tps_mtp, "{} with MTP")]
    if needs.users > 1:
        parts.append((choice.tps_all, f"{{}} for all {needs.users} users together"))
    text = _marked(*((figure, words) for figure, words in parts if figure is not None))
    mark, source = choice.tps.mark, choice.tps.source
    if not source.startswith(mark):
        return text
    before, _, behind = text.rpartition(f"({mark})")  # the source says the mark, too
    return f"{before}({source}){behind}"


def _price(choice: Choice) -> str:
    if choice.price is None:
        return "not known"
    if not choice.price.value:
        return "nothing"
    date = f" at launch in {choice.price_date}" if choice.price_date else ", without a date"
    return f"{number(choice.price.value)} USD{date} (published)"


def _power(choice: Choice) -> str:
    watts = "power not known" if choice.board_watts is None else _marked((choice.board_watts, "{} W"))
    if choice.power_supply is not None:
        return f"{watts}, power supply of " + _marked((choice.power_supply, "{} W"))
    return f"{watts}, its own power supply" if choice.machine.cards[0].kind == "integrated" else watts


def _energy(choice: Choice) -> str:
    if choice.kwh_per_million is None:
        return "not known"
    parts = [(choice.kwh_per_million, "{} kWh per million tokens")]
    if choice.cost_per_million is not None:
        parts.append((choice.cost_per_million, f"{{}} {choice.cost_per_million.source}"))
    return _marked(*parts)


def _marked(*parts: tuple[Figure, str]) -> str:
    """The figures in words, with their mark behind them: once if it is the same for all."""
    marks = {figure.mark for figure, _ in parts}
    if len(marks) == 1:
        return ", ".join(words.format(number(figure.value)) for figure, words in parts) + f" ({marks.pop()})"
    return ", ".join(f"{words.format(number(figure.value))} ({figure.mark})" for figure, words in parts)


def number(value: float) -> str:
    """A number as the screen shows it: with two digits behind the point below one, with one below ten."""
    if value == int(value):
        return f"{value:.0f}"
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 10 else f"{value:.0f}"
