"""The `mimo-gguf` program: the table of commands, and the one place that turns errors into exit codes.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 does not fit in memory, 130 interrupted.
"""

from __future__ import annotations

import importlib
import sys
from typing import Final

import typer

from mimo_gguf import __version__
from mimo_gguf.cli import ui
from mimo_gguf.core.errors import MimoGgufError

# name -> panel of `mimo-gguf --help`. Each command is the function `command` in the module mimo_gguf.cli.<name>.
COMMANDS: Final[dict[str, str]] = {
    "convert": "Make",
    "quantize": "Make",
    "inspect": "Look",
    "verify": "Look",
    "profiles": "Look",
    "fit": "Look",
    "gpus": "Look",
    "chat": "Run",
    "bench": "Run",
    "worker": "Run",
}


def build_app() -> typer.Typer:
    """The typer application with every command of the table."""
    app = typer.Typer(
        name="mimo-gguf",
        help="MiMo-7B from Hugging Face safetensors to your GPU, with its multi-token-prediction (MTP) layer.",
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_global_options)
    for name, panel in COMMANDS.items():
        module = importlib.import_module(f"mimo_gguf.cli.{name.replace('-', '_')}")
        app.command(name=name, rich_help_panel=panel)(module.command)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"mimo-gguf {__version__}")
        raise typer.Exit


def _global_options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and stop."
    ),
) -> None:
    """MiMo-7B from Hugging Face safetensors to your GPU, with its multi-token-prediction (MTP) layer."""


def main() -> None:
    """Entry point of the console script."""
    try:
        build_app()()
    except MimoGgufError as error:
        ui.print_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        ui.print_note("interrupted")
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away: `mimo-gguf inspect ... | head`
        sys.stderr.close()
        sys.exit(1)


if __name__ == "__main__":
    main()
