"""Speeds that `bench --save` measured on this machine, kept in one small file of the user's data.

A speed counts only where it was measured: on the same devices with the same driver. So the file may travel with a home
folder, or a card may be exchanged, and nothing wrong is shown.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from mimo_gguf.core.digests import SHAPES
from mimo_gguf.core.documents import DocumentKind
from mimo_gguf.core.errors import BackendError, OutputError
from mimo_gguf.core.file_lock import held
from mimo_gguf.core.model_sizes import ModelSizes
from mimo_gguf.core.output_file import atomic_output, check_folder, make_folder
from mimo_gguf.core.paths import path_kind, program_data
from mimo_gguf.core.units import MIB, counted
from mimo_gguf.hardware.devices import Device, ggml_devices
from mimo_gguf.hardware.nvml import nvidia_driver
from mimo_gguf.llama.api import default_threads

ALL_LAYERS: Final = -1
_FILE: Final = "speeds.json"
_VERSION: Final = 1
_MOST: Final = 200  # speeds that are kept, the newest
_DOCUMENT: Final = DocumentKind(OutputError, "the next mimo-gguf bench --save writes it anew", most_bytes=1 << 20)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a speed was measured.

    Attributes:
        devices: those that hold layers: a card by its driver's name with its memory, the CPU by its name with its
            threads.
        driver: version of the cards' driver; empty for the CPU alone.
        n_gpu_layers: layers on the cards, ALL_LAYERS for all of them.
    """

    devices: tuple[str, ...]
    driver: str
    n_gpu_layers: int


@dataclass(frozen=True, slots=True)
class KeptSpeed:
    """The speeds of one file at one place.

    Attributes:
        model: the file's name.
        shapes: digest of the tensors' names, shapes and types: files that are alike in these are equally fast.
        tps: tokens per second without drafts.
        tps_mtp: the same with `n_draft` drafts, the best number of those measured; 0 if none was.
        read_bytes: weights read for a token without drafts.
        date: of the measurement, like 2026-11-28.
    """

    place: Place
    model: str
    file_type: str
    shapes: str
    tps: float
    tps_mtp: float
    n_draft: int
    read_bytes: int
    date: str
    llama_cpp: str

    @property
    def key(self) -> tuple[object, ...]:
        """What a newer measurement of the same replaces."""
        return self.place, self.file_type, self.shapes


@dataclass(frozen=True, slots=True)
class KeptSpeeds:
    """What the file holds, and why it cannot be used if it cannot (then no speed is known)."""

    speeds: tuple[KeptSpeed, ...] = ()
    problem: str = ""


def speeds_file() -> Path:
    """Where the speeds are kept."""
    return program_data() / _FILE


def place_of(devices: Sequence[Device], n_gpu_layers: int) -> Place:
    """The place that these devices of this machine are. Only those with layers belong to it."""
    gpus = [device for device in devices if device.is_gpu]
    names = tuple(
        f"{device.description or device.name}, {device.total_bytes // MIB} MiB" if device.is_gpu else _cpu()
        for device in devices
    )
    return Place(names, _driver(gpus), n_gpu_layers)


def _cpu() -> str:
    """The CPU by its name, with the threads that a run has unless it is told otherwise."""
    try:
        names = [device.description for device in ggml_devices() if not device.is_gpu]
    except BackendError:
        names = []
    return f"{names[0] if names else platform.machine()}, {counted(default_threads(), 'thread')}"


def _driver(gpus: Sequence[Device]) -> str:
    """The version of the driver: NVIDIA's own, or that of the system, which brings the others."""
    if not gpus:
        return ""
    if any("nvidia" in gpu.description.lower() or gpu.backend == "CUDA" for gpu in gpus):
        return f"NVIDIA {nvidia_driver() or 'unknown'}"
    release = re.match(r"\d+(\.\d+)?", platform.release())
    return f"{platform.system()} {release[0] if release else platform.release()}"


def shapes_of(model: ModelSizes) -> str:
    """The digest by which a kept speed knows a model of the same speed."""
    lines = sorted(f"{info.name} {info.ggml_type.name} {info.shape}" for info in model.tensors)
    return SHAPES.hex("\n".join(lines).encode())


def read_speeds() -> KeptSpeeds:
    """The kept speeds; none if there is no file. A damaged file is said to be so, and holds none."""
    path = speeds_file()
    if path_kind(path) == "nothing":
        return KeptSpeeds()
    try:
        return KeptSpeeds(tuple(_speeds(_DOCUMENT.read_json(path), path)))
    except OutputError as error:
        return KeptSpeeds(problem=f"{error.message}; speeds measured here are not used")


def check_can_keep() -> None:
    """Raises OutputError if no speed could be kept: the folder cannot be made or written."""
    make_folder(speeds_file().parent)
    check_folder(speeds_file().parent)


def keep_speed(speed: KeptSpeed) -> Path:
    """Adds a speed to the file, in place of an older one of the same; gives the file.

    A damaged file is put aside as `speeds.json.damaged`.

    Raises:
        OutputError: it cannot be written.
    """
    check_can_keep()
    path = speeds_file()
    try:
        with held(path.with_suffix(".lock"), on_wait=lambda: None):
            kept = read_speeds()
            if kept.problem:
                path.replace(path.with_name(path.name + ".damaged"))
            others = [each for each in kept.speeds if each.key != speed.key]
            document = {"version": _VERSION, "speeds": [asdict(each) for each in [*others, speed][-_MOST:]]}
            with atomic_output(path) as file:
                file.write(json.dumps(document, indent=1).encode() + b"\n")
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}", hint="check the folder, or set XDG_DATA_HOME") from None
    return path


def _speeds(document: Any, path: Path) -> list[KeptSpeed]:
    if not isinstance(document, dict) or not isinstance(document.get("speeds"), list):
        raise _DOCUMENT.fail(path, "not a file of speeds")
    if document.get("version") != _VERSION:
        raise _DOCUMENT.fail(path, f"of version {document.get('version')!r:.20}, not {_VERSION}")
    return [_speed(entry, path) for entry in document["speeds"]]


def _speed(entry: Any, path: Path) -> KeptSpeed:
    """One speed of the file.

    Raises:
        OutputError: a field is missing, of another type, or not a number that a speed can be.
    """
    try:
        values = {field.name: entry[field.name] for field in fields(KeptSpeed) if field.name != "place"}
        where = entry["place"]
        place = Place(tuple(map(str, where["devices"])), str(where["driver"]), int(where["n_gpu_layers"]))
        speed = KeptSpeed(place=place, **values)
        is_sound = (
            all(isinstance(getattr(speed, name), str) for name in ("model", "file_type", "shapes", "date", "llama_cpp"))
            and all(isinstance(getattr(speed, name), int) for name in ("n_draft", "read_bytes"))
            and 0 < float(speed.tps) < 1e6
            and 0 <= float(speed.tps_mtp) < 1e6
            and speed.read_bytes > 0
        )
    except (KeyError, TypeError, ValueError):
        is_sound = False
    if not is_sound:
        raise _DOCUMENT.fail(path, "an entry is not a speed")
    return speed
