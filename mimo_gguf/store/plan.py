"""The plan for a model that is not here yet: what is downloaded, what is written, and how long that takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mimo_gguf.conversion.hub_repository import HubFile, HubRepository
from mimo_gguf.core.errors import OutputError
from mimo_gguf.core.output_file import free_bytes
from mimo_gguf.core.paths import is_writable
from mimo_gguf.core.units import format_duration, format_size
from mimo_gguf.fit.plan import FitPlan
from mimo_gguf.store.folder import companions, occupied_bytes
from mimo_gguf.store.names import ModelName

_HINT: Final = "choose another disk: --models-dir DIR, or the variable MIMO_GGUF_MODELS"
_USUAL_BYTES_PER_S: Final = 12.5e6  # 100 Mbit/s


@dataclass(frozen=True, slots=True)
class MakingPlan:
    """What making or downloading a model takes.

    Attributes:
        name: the model with its type, as it can be typed.
        is_chosen: whether the type was chosen by the plan, not by the user.
        path: the file that there will be; of a split one the first part.
        written_bytes: its size.
        download_bytes: bytes that come from the Hub.
        computing_s: seconds of quantizing.
        fit: how it will run.
        notes: what the user should know about the model itself, in words.
        source: what `open_model` opens; unused if there are `files`.
        repository, files: what is downloaded as it is, if the Hub has the GGUF.
    """

    name: ModelName
    is_chosen: bool
    path: Path
    written_bytes: int
    download_bytes: int
    computing_s: float
    fit: FitPlan
    source: str = ""
    repository: HubRepository | None = None
    files: tuple[HubFile, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def file_type(self) -> str:
        return self.name.file_type or ""

    @property
    def title(self) -> str:
        """The model in a few words: `XiaomiMiMo/MiMo-7B-RL as Q4_K_M, the best type that fits`."""
        kind = f"as {self.file_type}" if self.file_type else "as it is"
        best = (
            "" if not self.is_chosen else ", the best type that fits" if self.fit.fits else ", although it does not fit"
        )
        return f"{self.name.source} {kind}{best}"

    @property
    def download_s(self) -> float:
        """Seconds of downloading at 100 Mbit/s: how fast the network is shows only later."""
        return self.download_bytes / _USUAL_BYTES_PER_S

    def lines(self) -> tuple[tuple[str, str], ...]:
        """What is downloaded, what is written, and how long that takes: three lines, each with its label."""
        free = format_size(free_bytes(self.path.parent))
        times = [f"{format_duration(self.download_s)} of downloading at 100 Mbit/s"] if self.download_bytes else []
        times += [f"{format_duration(self.computing_s)} of quantizing"] if self.computing_s else []
        goes_on = "; if it is interrupted, the same command goes on" if self.download_bytes else ""
        return (
            ("download", (format_size(self.download_bytes) if self.download_bytes else "nothing") + goes_on),
            ("write", f"{format_size(self.written_bytes)}: {self.path}; {free} are free"),
            ("time", f"{', '.join(times) or 'seconds'}{', at the same time' if len(times) > 1 else ''}"),
        )

    def as_json(self) -> dict[str, Any]:
        """The plan as a JSON document."""
        return {
            "name": str(self.name), "source": self.name.source, "type": self.file_type, "path": str(self.path),
            "download_bytes": self.download_bytes, "written_bytes": self.written_bytes,
            "computing_s": self.computing_s, "notes": list(self.notes),
        }  # fmt: skip


def check_room(plan: MakingPlan) -> None:
    """Refuses a plan whose bytes have no room, before anything is downloaded.

    Raises:
        OutputError: the models folder cannot be written, or its disk is too full.
    """
    place = plan.path.parent
    if not is_writable(place):
        raise OutputError(f"{place}: cannot be written", hint=_HINT)
    begun = sum(map(occupied_bytes, companions(plan.path))) if place.is_dir() else 0
    needed, free = max(plan.written_bytes - begun, 0), free_bytes(place)
    if free < needed:
        text = f"{place}: {format_size(needed)} needed, {format_size(free)} free on this disk"
        raise OutputError(text, hint=_HINT)
