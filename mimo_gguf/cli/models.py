"""`mimo-gguf models`: shows the models in the models folder, and removes what is not needed."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from mimo_gguf.cli import ui
from mimo_gguf.cli.options import Json, ModelsDir, Yes
from mimo_gguf.core.errors import OutputError, UsageError
from mimo_gguf.core.near_matches import name_hint
from mimo_gguf.core.units import counted, format_size

if TYPE_CHECKING:
    from mimo_gguf.store.folder import KeptModel

Name = Annotated[str, typer.Argument(metavar="NAME", help="A model's name, as the list shows it, or its file's.")]

app = typer.Typer(invoke_without_command=True)


@app.callback()
def command(context: typer.Context, models_dir: ModelsDir = None, as_json: Json = False) -> None:
    """Show the models that chat, serve and bench have made or downloaded: sizes, and when each was last used."""
    from mimo_gguf.store.folder import models_folder

    context.obj = models_folder(models_dir)
    if context.invoked_subcommand is None:
        print_list(context, as_json)


@app.command("list", hidden=True)
def print_list(context: typer.Context, as_json: Json = False) -> None:
    """Show the models; the same as the command without a word."""
    from mimo_gguf.store.folder import kept_models

    models = kept_models(context.obj)
    if as_json:
        ui.print_json({"folder": str(context.obj), "models": [model.as_json() for model in models]})
    elif not models:
        ui.print_line(f"no models in {context.obj}; mimo-gguf chat XiaomiMiMo/MiMo-7B-RL makes the first")
    else:
        now = time.time()
        ui.print_table(
            ("name", "size", "last used", "file"),
            [
                (
                    model.name,
                    format_size(model.n_bytes),
                    _ago(now - model.used_at) if model.is_complete else "unfinished",
                    model.path.name,
                )
                for model in models
            ],
        )
        ui.print_line(f"{format_size(sum(model.n_bytes for model in models))} in {context.obj}")


@app.command("path")
def print_path(context: typer.Context, name: Name) -> None:
    """Print where a model's file is."""
    (model,) = _find(context.obj, [name])
    if not model.is_complete:
        raise UsageError(f"{model.name}: is unfinished", hint=f"mimo-gguf chat {model.name}")
    ui.out.print(Text(ui.harmless(str(model.path))))


@app.command("rm")
def remove(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Names, as the list shows them.")],
) -> None:
    """Remove models, or what interrupted runs left of them. A checkpoint folder or the Hub's cache is not touched."""
    for model in _find(context.obj, names):
        _remove(model, context.obj)


@app.command("prune")
def prune(
    context: typer.Context,
    unused: Annotated[
        int | None, typer.Option("--unused", min=0, metavar="DAYS", help="Also models that were not used for so long.")
    ] = None,
    yes: Yes = False,
) -> None:
    """Remove what interrupted runs left, and models that were not used for a while, after asking."""
    from mimo_gguf.store.folder import kept_models

    before = float("-inf") if unused is None else time.time() - 86400 * unused
    models = [model for model in kept_models(context.obj) if not model.is_complete or model.used_at < before]
    if not models:
        ui.print_line("nothing to remove")
        return
    for model in models:
        why = f"last used {_ago(time.time() - model.used_at)}" if model.is_complete else "unfinished"
        ui.print_line(f"{model.name}: {format_size(model.n_bytes)}, {why}")
    what = f"remove {counted(len(models), 'model')}, {format_size(sum(model.n_bytes for model in models))}?"
    if not yes and not sys.stdin.isatty():
        raise UsageError(what, hint="add --yes to remove them")
    if not yes and not typer.confirm(what, err=True):
        raise typer.Exit(1)
    for model in models:
        try:
            _remove(model, context.obj)
        except OutputError as error:  # one is being made just now, the others can go
            ui.print_warning(error.message)


def _find(folder: Path, names: Sequence[str]) -> list[KeptModel]:
    """The models with these names.

    Raises:
        UsageError: there is none, or a name fits several.
    """
    from mimo_gguf.store.folder import kept_models

    models, found = kept_models(folder), []
    for name in names:
        fitting = [model for model in models if model.answers_to(name)]
        if not fitting:
            there = list(dict.fromkeys(model.name for model in models))
            raise UsageError(f"{name}: no such model in {folder}", hint=name_hint(name, there, "mimo-gguf models"))
        if len(fitting) > 1:
            raise UsageError(
                f"{name}: is the name of several", hint=f"one of: {', '.join(m.path.name for m in fitting)}"
            )
        found += fitting
    return found


def _remove(model: KeptModel, folder: Path) -> None:
    from mimo_gguf.store.folder import remove_model

    try:
        remove_model(model, folder)
    except BlockingIOError:
        raise OutputError(f"{model.name}: another process is making it", hint="wait for it, or stop it") from None
    except OSError as error:
        raise OutputError(f"{model.path}: {error.strerror or error}", hint="remove it by hand") from None
    ui.print_line(f"removed {model.name}, {format_size(model.n_bytes)}")


def _ago(seconds: float) -> str:
    """A time that has passed, in its largest unit: `3 days ago`."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            return f"{counted(int(seconds // length), unit)} ago"
    return "just now"
