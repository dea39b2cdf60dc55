"""The `mimo-gguf` program: the table of commands, and the one place that turns errors into exit codes.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 does not fit in memory, 4 the window was full while still thinking
(chat), 130 interrupted.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import typer
import typer.main

from mimo_gguf.cli import ui
from mimo_gguf.cli.defaults import declare_variables, default_map, origin_of
from mimo_gguf.core.config_file import read_config
from mimo_gguf.core.errors import MimoGgufError, OutputError, UsageError
from mimo_gguf.core.near_matches import near_matches
from mimo_gguf.core.version import __version__

# name -> panel of `mimo-gguf --help`. Each command is the function `command` in the module mimo_gguf.cli.<name>.
COMMANDS: Final[dict[str, str]] = {
    "convert": "Make",
    "quantize": "Make",
    "imatrix": "Make",
    "relabel": "Make",
    "inspect": "Look",
    "verify": "Look",
    "quality": "Look",
    "evaluate": "Look",
    "profiles": "Look",
    "fit": "Look",
    "gpus": "Look",
    "advise": "Look",
    "doctor": "Look",
    "chat": "Run",
    "serve": "Run",
    "batch": "Run",
    "bench": "Run",
    "models": "Run",
    "worker": "Run",
}


def build_app() -> typer.Typer:
    """Builds the typer application with every command of the table."""
    app = typer.Typer(
        name="mimo-gguf",
        help="MiMo-7B from Hugging Face safetensors to your GPU, with its multi-token-prediction (MTP) layer.",
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_global_options)
    for name, panel in COMMANDS.items():
        module = importlib.import_module(f"mimo_gguf.cli.{name.replace('-', '_')}")
        if hasattr(module, "app"):  # a command with commands of its own
            app.add_typer(module.app, name=name, rich_help_panel=panel)
        else:
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


def main(hear: Callable[[], None] | None = None) -> None:
    """Runs the command of `sys.argv` and ends the process with its exit code.

    Args:
        hear: lets Ctrl-C raise KeyboardInterrupt from now on; called where that is caught.
    """
    _open_streams()
    sys.excepthook = ui.print_traceback
    try:
        if hear is not None:
            hear()
        sys.exit(_run(sys.argv[1:] or ["--help"]))
    except MimoGgufError as error:
        ui.print_error(error)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        ui.print_note("interrupted")
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away: `mimo-gguf inspect ... | head`
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        ui.print_error(OutputError("the output: no space left on the device", hint="send it elsewhere"))
        os._exit(1)  # not sys.exit, which would write what stdout still holds


def _open_streams() -> None:
    """Opens the null device for streams that the shell closed (`>&-`), and lets stdout write every character.

    A character that its encoding lacks is spelled out in a pipe. On a terminal it is `?`, because columns are counted.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - as long as the process
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace" if sys.stdout.isatty() else "backslashreplace")


def _run(arguments: list[str]) -> int:
    """Runs a command and gives its exit code.

    Raises:
        UsageError: the arguments are not those of a command.
        MimoGgufError: from the command.
    """
    config = {} if arguments[0] in _WITHOUT_CONFIG else read_config()
    try:
        result = _program().main(
            arguments, prog_name="mimo-gguf", standalone_mode=False, default_map=default_map(config)
        )
        sys.stdout.flush()
    except _Misused as error:
        raise _usage_error(error, arguments, config) from None
    return result if isinstance(result, int) else 0


def _program() -> Any:
    """Makes the click command of the application, and adapts its parameters.

    Help is shown as it is written: `[default: f16]` is not markup for rich, and a flag has no `<bool>` after it. A `~`
    in a path is the home folder, even if quotes hid it from the shell.
    """
    program: Any = typer.main.get_command(build_app())
    declare_variables(program)
    root = program.context_class(program, **program.context_settings)
    for command in (program, *_commands(program)):
        context = root if command is program else command.context_class(command, parent=root)
        for parameter in (*command.params, command.get_help_option(context)):
            if (parameter.metavar or "").strip("[]") in _PATHS:
                parameter.callback = _with_home(parameter.callback)
            parameter.help = (parameter.help or "").replace("[", "\\[")
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
    return program


def _commands(group: Any) -> Iterator[Any]:
    """Every command of a group, and those of the groups among them."""
    for command in group.commands.values():
        yield command
        if hasattr(command, "commands"):
            yield from _commands(command)


def _usage_error(error: Any, arguments: list[str], config: Mapping[str, Any]) -> UsageError:
    """Turns click's error into ours. The hint is what the word may have meant, or else --help.

    A value that does not come from the command line is named with the variable or file it comes from.
    """
    text, _, _ = error.format_message().partition(" Did you mean ")
    text = _POSSIBLE.sub("", text).rstrip(".")
    command = f"mimo-gguf {arguments[0]}" if arguments[0] in COMMANDS else "mimo-gguf"
    guesses = _guesses(error, text)
    hint = f"{command} {' or '.join(guesses)}" if guesses else f"{command} --help"
    text = text[:1].lower() + text[1:]
    if origin := origin_of(getattr(error, "param", None), arguments[0], arguments, config):
        return UsageError(f"{origin}: {text}", hint="change it there; mimo-gguf doctor shows what is set")
    return UsageError(text, hint=hint)


def _guesses(error: Any, text: str) -> list[str]:
    """Finds the options or commands that a mistyped word may have meant, best first."""
    if option := getattr(error, "option_name", None):
        options = [name for parameter in error.ctx.command.params for name in parameter.opts] if error.ctx else []
        return near_matches(option, options)
    if found := _NO_COMMAND.match(text):
        word, names = found[1].lower(), getattr(error.ctx and error.ctx.command, "commands", COMMANDS)
        return [_MEANT[word]] if word in _MEANT else near_matches(word, names)
    return []


def _with_home(before: Callable[..., Any] | None) -> Callable[..., Any]:
    """Makes the callback of a parameter with paths: it replaces `~` by the home folder, and then calls `before`."""

    def expand(context: Any, parameter: Any, value: Any) -> Any:
        value = [_expanded(each) for each in value] if isinstance(value, list | tuple) else _expanded(value)
        return value if before is None else before(context, parameter, value)

    return expand


def _expanded(value: Any) -> Any:
    """Replaces the `~` of a path, or of what may be one; anything else stays as it is."""
    text = str(value)
    return type(value)(os.path.expanduser(text)) if text.startswith("~") else value  # noqa: PTH111 - may be a Hub id


_WITHOUT_CONFIG: Final = frozenset({"doctor", "--help", "-h", "--version"})  # they help to mend it
_Misused: Final[Any] = typer.BadParameter.__base__  # click's UsageError: some versions of typer have their own click
_POSSIBLE: Final = re.compile(r" \((Possible options|Did you mean).*\)$")
_NO_COMMAND: Final = re.compile(r"No such command '(.*)'", re.IGNORECASE)
_PATHS: Final = frozenset({"FILE", "DIR", "SRC", "OUT", "PROGRAM", "MODEL"})  # metavars of what may be a path
_MEANT: Final = {
    "version": "--version",
    "help": "--help",
    "run": "chat",
    "server": "serve",
    "info": "inspect",
    "download": "convert",
}
