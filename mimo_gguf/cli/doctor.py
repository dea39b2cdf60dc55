"""`mimo-gguf doctor`: shows what is installed, what it sees of this machine, and what is wrong with it."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from mimo_gguf.cli import ui
from mimo_gguf.cli.defaults import Default, default_map, defaults_in_force, unknown_variables
from mimo_gguf.cli.options import Json
from mimo_gguf.core.config_file import config_path, read_config
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.units import format_size
from mimo_gguf.core.version import LLAMA_CPP_PYTHON, REINSTALL_LLAMA, __version__

if TYPE_CHECKING:
    from mimo_gguf.hardware.build import Build

_PACKAGES: Final = ("llama-cpp-python", "gguf", "numpy", "numba", "huggingface_hub", "safetensors", "jinja2")
_KERNEL_TYPES: Final = ("Q4_K", "Q6_K", "Q8_0")
_VARIABLES: Final = re.compile(
    r"(OMP|GOMP|KMP|GGML|LLAMA|HF|MIMO_GGUF|CUDA|NVIDIA|HIP|ROCR|NUMBA|XDG)_\w+|LD_LIBRARY_PATH|CMAKE_ARGS"
)
_SECRET: Final = re.compile(r"TOKEN|KEY|SECRET|PASSWORD", re.IGNORECASE)
_UNKNOWN: Final = "not installed"


@dataclass(frozen=True, slots=True)
class Kernels:
    """The kernels that quantize weights.

    Attributes:
        by_type: type name -> name and note of its kernel.
        problem: why no kernel can be used; empty if they can.
    """

    by_type: dict[str, str]
    problem: str = ""


def command(as_json: Json = False) -> None:
    """Show what is installed, what it sees of this machine, and what is wrong with it.

    Exit code 1 if llama.cpp cannot be used.
    """
    from mimo_gguf.hardware.build import graphics_adapters, look_at_build, why_no_gpu

    build, adapters = look_at_build(), graphics_adapters()
    versions, kernels = _versions(), _kernels()
    waits, amx = _about_processor(build)
    why, folders, variables = why_no_gpu(build, adapters), _cache_folders(), _variables(os.environ)
    settings, complaints = _settings()
    if as_json:
        memory = [asdict(device) for device in build.devices]
        ui.print_json(
            {
                "versions": versions,
                "llama.cpp": asdict(build) | {"devices": memory},
                "graphics_cards": adapters,
                "why_no_gpu": why,
                "threads_wait": waits,
                "amx": amx,
                "memory": _memory(),
                "kernels": asdict(kernels),
                "cache_folders": {str(folder): n_bytes for folder, n_bytes in folders.items()},
                "settings": [each.as_json() for each in settings],
                "environment": variables,
            }
        )
    else:
        ui.print_field("program", f"mimo-gguf {__version__}, Python {versions['python']}, {versions['system']}")
        ui.print_field("packages", ", ".join(f"{name} {versions[name]}" for name in _PACKAGES))
        for label, text in (*_about_build(build, why, waits, amx), *_about_kernels(kernels)):
            ui.print_field(label, text)
        for folder, n_bytes in folders.items():
            ui.print_field("cache", f"{folder}: {format_size(n_bytes)}")
        for line in _about_settings(settings):
            ui.print_field("settings", line)
        for name, value in variables.items():
            ui.print_field("environment", f" {name}={value}")
    for problem, hint in (*_problems(build, versions), *complaints, *unknown_variables(os.environ)):
        ui.print_warning(f"{problem}; {hint}")
    if build.problem:
        raise typer.Exit(1)


def _versions() -> dict[str, str]:
    from importlib import metadata  # it reads mail headers, whose parser takes 20 ms to import

    found = {"mimo-gguf": __version__, "python": platform.python_version(), "system": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = _UNKNOWN
    return found


def _about_processor(build: Build) -> tuple[str, str]:
    """How threads wait for each other, and how AMX is used; empty if llama.cpp cannot be used."""
    if build.problem:
        return "", ""
    from mimo_gguf.llama.amx import how_amx_is_used
    from mimo_gguf.llama.api import api, libraries_of
    from mimo_gguf.llama.waiting import how_threads_wait

    libraries = libraries_of(api())  # the OpenMP library is loaded with it
    return how_threads_wait(), how_amx_is_used(libraries)


def _about_build(build: Build, why: str, waits: str, amx: str) -> Iterator[tuple[str, str]]:
    if build.problem:
        yield "llama.cpp", "cannot be used"
    else:
        yield "llama.cpp", f"loads; ggml {build.ggml_version}, built with {', '.join(build.backends)}"
        yield "threads", f"wait for each other {waits}"
        if amx:
            yield "AMX", amx
    memory = _memory()
    yield "RAM", f"{format_size(memory['free_bytes'])} of {format_size(memory['total_bytes'])} free"
    for gpu in build.gpus:
        free = f"{format_size(gpu.free_bytes)} of {format_size(gpu.total_bytes)} free"
        yield "GPU", f"{gpu.name}: {gpu.description} ({gpu.backend}), {free}"
    if why:
        yield "GPU", f"none used: {why}"


def _memory() -> dict[str, int]:
    from mimo_gguf.hardware.devices import host_device

    host = host_device()
    return {"free_bytes": host.free_bytes, "total_bytes": host.total_bytes}


def _kernels() -> Kernels:
    """Loads the kernels of the usual types, which compares each with libggml."""
    try:
        from mimo_gguf.core.ggml_types import GgmlType, parse_ggml_type
        from mimo_gguf.quantization.kernels.registry import have_to_compile, kernel_for

        if have_to_compile():
            ui.print_note("compiling the quantization kernels, once: up to half a minute")
        found = [kernel_for(parse_ggml_type(name), GgmlType.BF16) for name in _KERNEL_TYPES]
    except Exception as error:  # whatever is broken here, the rest is still worth showing
        return Kernels({}, f"{type(error).__name__}: {error}")
    return Kernels({kernel.ggml_type.name: f"{kernel.name}; {kernel.note}" for kernel in found})


def _about_kernels(kernels: Kernels) -> Iterator[tuple[str, str]]:
    if kernels.problem:
        yield "kernels", f"cannot be used: {kernels.problem}"
    for kernel in dict.fromkeys(kernels.by_type.values()):
        yield "kernels", f"{', '.join(name for name, used in kernels.by_type.items() if used == kernel)}: {kernel}"


def _cache_folders() -> dict[Path, int]:
    """Finds the cache folders that exist, and the bytes in them. A folder inside another one is not listed."""
    from mimo_gguf.core.paths import program_cache
    from mimo_gguf.store.folder import models_folder

    folders = [program_cache()]
    with contextlib.suppress(UsageError):  # the configuration cannot be read, which is said elsewhere
        folders.append(models_folder())
    try:
        from mimo_gguf.quantization.kernels.jit import cache_folder

        folders.append(cache_folder().parent)
    except Exception:  # numba is missing or broken: no kernels are kept
        pass
    try:
        from mimo_gguf.conversion.hub import hub_cache_folder

        folders.append(hub_cache_folder())
    except ImportError:
        pass
    outer = [folder for folder in dict.fromkeys(folders) if not any(other in folder.parents for other in folders)]
    return {folder: _size(folder) for folder in outer if folder.is_dir()}


def _size(folder: Path) -> int:
    """The bytes of the files in `folder` and below. Links are not followed, so that each file counts once."""
    total = 0
    for inner, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(inner, name)).st_size  # noqa: PTH118 - a hundred thousand files
            except OSError:
                continue
    return total


def _settings() -> tuple[list[Default], list[tuple[str, str]]]:
    """The defaults that the user has set, and what is wrong with them: (what, what helps)."""
    try:
        config = read_config()
        default_map(config)
    except UsageError as error:
        return defaults_in_force({}, os.environ), [(error.message, error.hint or "")]
    return defaults_in_force(config, os.environ), []


def _about_settings(settings: Sequence[Default]) -> Iterator[str]:
    path = config_path()
    if not any(each.source == str(path) for each in settings):
        yield f"none in {path}" if path.exists() else f"{path} does not exist"
    for each in settings:
        yield f"{each.name} = {each.value}, from {each.source}"


def _variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that decide how this program runs. The value of a possible secret is not shown."""
    return {
        name: "(set)" if _SECRET.search(name) else value
        for name, value in sorted(environment.items())
        if _VARIABLES.fullmatch(name)
    }


def _problems(build: Build, versions: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Finds problems of the installation: (what is wrong, what helps)."""
    if build.problem:
        yield build.problem, build.hint
    if versions["llama-cpp-python"] not in (LLAMA_CPP_PYTHON, _UNKNOWN):
        yield f"llama-cpp-python is {versions['llama-cpp-python']}, made for {LLAMA_CPP_PYTHON}", REINSTALL_LLAMA
    if sys.maxsize < 1 << 32:
        yield "this Python is a 32-bit program", "install a 64-bit Python: models do not fit into 4 GiB"
