"""Defaults of options that a user sets once: in the configuration file, or in variables of the environment.

An option on the command line wins over its variable, that over the command's table in the file, that over the file's
first lines, and that over the program's own default.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mimo_gguf.core.config_file import CONFIG_VARIABLE, config_path
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.near_matches import name_hint

_RUN: Final = ("chat", "serve", "bench")


@dataclass(frozen=True, slots=True)
class Setting:
    """An option that has a variable and a key in the configuration file.

    Attributes:
        name: the key, and the name of the option with "_" for "-".
        commands: the commands whose option it is.
        own_variable: the variable's name, if it is not `MIMO_GGUF_` and the key in capitals.
    """

    name: str
    commands: tuple[str, ...]
    own_variable: str = ""

    @property
    def variable(self) -> str:
        return self.own_variable or f"MIMO_GGUF_{self.name.upper()}"


SETTINGS: Final = (
    Setting("models_dir", (*_RUN, "batch", "models"), "MIMO_GGUF_MODELS"),
    Setting("yes", (*_RUN, "batch")),
    Setting("ctx", (*_RUN, "batch", "fit")),
    Setting("kv_type", (*_RUN, "batch", "fit")),
    Setting("mtp", (*_RUN, "batch", "fit")),
    Setting("gpu_layers", (*_RUN, "batch", "fit")),
    Setting("exact", (*_RUN, "batch", "fit")),
    Setting("rpc", (*_RUN, "batch", "fit")),
    Setting("threads", (*_RUN, "batch", "convert", "quantize", "imatrix", "quality", "verify")),
    Setting("ubatch", ("chat", "serve", "batch")),
    Setting("draft", ("chat", "serve", "batch")),
    Setting("always_draft", ("chat", "serve", "batch")),
    Setting("system", ("chat",)),
    Setting("think", ("chat",)),
    Setting("think_budget", ("chat",)),
    Setting("max_tokens", ("chat",)),
    Setting("temp", ("chat",)),
    Setting("top_p", ("chat",)),
    Setting("top_k", ("chat",)),
    Setting("min_p", ("chat",)),
    Setting("repeat_penalty", ("chat",)),
    Setting("host", ("serve",)),
    Setting("port", ("serve",)),
    Setting("parallel", ("serve", "fit")),
    Setting("kwh_price", ("advise",)),
    Setting("api_key", ("serve",)),
    Setting("api_key_file", ("serve",)),
)
# Variables that are no options.
OTHER_VARIABLES: Final = (CONFIG_VARIABLE, "MIMO_GGUF_KERNELS")
_SECRET: Final = frozenset({"api_key"})
_BY_NAME: Final = {setting.name: setting for setting in SETTINGS}


@dataclass(frozen=True, slots=True)
class Default:
    """A default that a user has set.

    Attributes:
        name: the setting, after `chat.` and the like if it is for one command.
        source: the variable or the file it comes from.
    """

    name: str
    value: Any
    source: str

    def as_json(self) -> dict[str, Any]:
        """The default as a JSON document."""
        return {"name": self.name, "value": self.value, "from": self.source}


def default_map(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The configuration file as typer's `default_map`: command -> parameter -> value.

    Raises:
        UsageError: a key that is not a setting, or a table that is not a command's.
    """
    commands = sorted({command for setting in SETTINGS for command in setting.commands})
    found: dict[str, dict[str, Any]] = {command: {} for command in commands}
    tables = {key: value for key, value in config.items() if isinstance(value, Mapping)}
    for key, value in config.items():
        if key not in tables:
            for command in _setting(key, list(_BY_NAME)).commands:
                found[command][_plain(key)] = value
    for command, table in tables.items():
        if command not in found:
            raise UsageError(
                f"{config_path()}: no command [{command}] with settings", hint=name_hint(command, commands)
            )
        names = [setting.name for setting in SETTINGS if command in setting.commands]
        for key, value in table.items():
            found[command][_setting(key, names, f"[{command}] ").name] = value
    return found


def _setting(key: str, names: Sequence[str], where: str = "") -> Setting:
    if _plain(key) not in names:
        raise UsageError(f"{config_path()}: {where}has no setting {key}", hint=name_hint(key, names))
    return _BY_NAME[_plain(key)]


def _plain(key: str) -> str:
    return key.replace("-", "_")


def declare_variables(program: Any) -> None:
    """Gives every option of the table its variable. The help does not name them, docs/install.md does."""
    for setting in SETTINGS:
        for command in setting.commands:
            for parameter in program.commands[command].params:
                if parameter.name == setting.name:
                    parameter.envvar = setting.variable
                    parameter.show_envvar = False


def defaults_in_force(config: Mapping[str, Any], environment: Mapping[str, str]) -> list[Default]:
    """Every default that a user has set and nothing hides, with where it comes from. Secrets are not shown."""
    found = []
    for setting in SETTINGS:
        if environment.get(setting.variable):
            found.append(Default(setting.name, _shown(setting.name, environment[setting.variable]), setting.variable))
            continue
        for where, table in [("", config), *((f"{c}.", config.get(c)) for c in setting.commands)]:
            for key, value in table.items() if isinstance(table, Mapping) else ():
                if _plain(key) == setting.name:
                    found.append(Default(where + setting.name, _shown(setting.name, value), str(config_path())))
    return found


def _shown(name: str, value: Any) -> Any:
    return "(set)" if name in _SECRET else value


def unknown_variables(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The variables `MIMO_GGUF_...` that mean nothing: (what is wrong, what helps)."""
    known = [*(setting.variable for setting in SETTINGS), *OTHER_VARIABLES]
    for name in sorted(environment):
        if name.startswith("MIMO_GGUF_") and name not in known:
            yield f"{name} is not a variable of this program", name_hint(name, known, "docs/install.md lists them")


def origin_of(parameter: Any, command: str, arguments: Sequence[str], config: Mapping[str, Any]) -> str:
    """Where the value of an option comes from if it is not the command line: the variable, or the file; else empty."""
    setting = _BY_NAME.get(str(getattr(parameter, "name", "")))
    options = [*getattr(parameter, "opts", ()), *getattr(parameter, "secondary_opts", ())]
    if setting is None or command not in setting.commands or any(_gives(word, options) for word in arguments):
        return ""
    if os.environ.get(setting.variable):
        return setting.variable
    tables = [config, config.get(command, {})]
    return str(config_path()) if any(setting.name in map(_plain, table) for table in tables) else ""


def _gives(word: str, options: Sequence[str]) -> bool:
    """Whether a word of the command line is one of these options, or one with its value: `--ctx=8192`, `-c8192`."""
    return any(
        re.match(rf"{re.escape(option)}($|=)" if option[:2] == "--" else re.escape(option), word) for option in options
    )
