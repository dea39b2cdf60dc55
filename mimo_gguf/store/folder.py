"""The models folder: where the file of a name belongs, what is there, and when it was last used.

hub/XiaomiMiMo--MiMo-7B-RL/MiMo-7B-RL-Q4_K_M.gguf       made of that model, or downloaded as it is
local/home/me/MiMo-7B-SFT/MiMo-7B-SFT-Q6_K.gguf         made of the checkpoint in /home/me/MiMo-7B-SFT
hub/XiaomiMiMo--MiMo-7B-RL/.MiMo-7B-RL-Q4_K_M.gguf.used  empty; its time is when the model was last used
"""

from __future__ import annotations

import glob
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mimo_gguf.core.config_file import config_path, read_config
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.file_lock import held
from mimo_gguf.core.gguf_file import SPLIT_NAME
from mimo_gguf.core.paths import program_cache, program_data
from mimo_gguf.store.names import ModelName, file_type_of

MAKING: Final = ".making.lock"  # held by the process that makes a model at a place
MODELS_VARIABLE: Final = "MIMO_GGUF_MODELS"
_LOCAL: Final = "local"
_HUB: Final = "hub"
_UNFINISHED: Final = re.compile(r"\.(?P<name>.+\.gguf)\.(?:journal|partial|download)")


def models_folder(given: str | Path | None = None) -> Path:
    """The folder of the models: `given`, `MIMO_GGUF_MODELS`, the configuration's `models_dir`, or in the user's data.

    Earlier versions kept models in the user's cache. If only that folder exists, it is used.

    Raises:
        UsageError: the configuration cannot be read, or its `models_dir` is not a text.
    """
    if chosen := given or os.environ.get(MODELS_VARIABLE) or read_config().get("models_dir"):
        if not isinstance(chosen, str | Path):
            raise UsageError(f"{config_path()}: models_dir is {chosen!r:.60}", hint='models_dir = "/data/models"')
        return Path(chosen).expanduser()
    usual, earlier = program_data() / "models", program_cache() / "models"
    return earlier if earlier.is_dir() and not usual.is_dir() else usual


def place_of(name: ModelName, folder: Path) -> Path:
    """The folder, within the models folder, of the files of a checkpoint folder or of a model on the Hub."""
    if name.kind == "hub":
        shop, _, model = name.source.rpartition(":")
        return folder / (shop or _HUB) / model.replace("/", "--")
    path = Path(name.source).resolve()
    return folder.joinpath(_LOCAL, path.drive.replace(":", ""), *path.parts[1:])


def source_of(place: Path, folder: Path) -> str:
    """What the files at a place were made of: the opposite of `place_of`."""
    first, *rest = place.relative_to(folder).parts
    if first != _LOCAL:
        return ("" if first == _HUB else f"{first}:") + "/".join(rest).replace("--", "/")
    drive = f"{rest.pop(0)}:" if os.name == "nt" and rest else ""
    return str(Path(drive + os.sep, *rest))


def complete_files(place: Path) -> list[Path]:
    """The complete models at a place, sorted by name; of a split one the first part."""
    found = []
    for path in sorted(place.glob("*.gguf")):
        split = SPLIT_NAME.fullmatch(path.name)
        if split is not None and (int(split["part"]) != 1 or len(parts_of(path)) != int(split["count"])):
            continue
        if not path.with_name(f".{path.name}.journal").exists():
            found.append(path)
    return found


def parts_of(path: Path) -> list[Path]:
    """The parts of a split file that are there, given one of them; a file that is not split is its only part."""
    split = SPLIT_NAME.fullmatch(path.name)
    if split is None:
        return [path]
    return sorted(path.parent.glob(f"{glob.escape(split['stem'])}-{'[0-9]' * 5}-of-{split['count']}.gguf"))


@dataclass(frozen=True, slots=True)
class KeptModel:
    """A model in the models folder.

    Attributes:
        source: the Hub id or folder it is from.
        path: the file, of a split one the first part; of an unfinished one the file that it will become.
        n_bytes: the bytes on the disk.
        is_complete: False for what an interrupted run left, from which the same command goes on.
        used_at: seconds since 1970 of its last use.
    """

    source: str
    path: Path
    n_bytes: int
    is_complete: bool
    used_at: float

    @property
    def name(self) -> str:
        """The name by which it can be run: `org/name:Q4_K_M`."""
        file_type = file_type_of(self.path)
        return self.source + (f":{file_type}" if file_type else "")

    def answers_to(self, text: str) -> bool:
        """Whether `text` is its name, the name of its file, with or without the ending, or the path."""
        names = (self.name, self.path.name, self.path.stem)
        return text.lower() in (name.lower() for name in names) or Path(text) == self.path

    def as_json(self) -> dict[str, Any]:
        """The model as a JSON document."""
        return {
            "name": self.name, "source": self.source, "type": file_type_of(self.path), "path": str(self.path),
            "bytes": self.n_bytes, "complete": self.is_complete, "used_at": self.used_at,
        }  # fmt: skip


def kept_models(folder: Path) -> list[KeptModel]:
    """Every model in the models folder, complete or not, by source and name."""
    places = sorted({path.parent for pattern in ("*.gguf", ".*.gguf.*") for path in folder.rglob(pattern)})
    return [model for place in places if place != folder for model in _at(place, folder)]


def _at(place: Path, folder: Path) -> Iterator[KeptModel]:
    parts = place.relative_to(folder).parts
    if len(parts) < 2 or any(part.endswith(".gguf.download") for part in parts):
        return
    source, complete = source_of(place, folder), complete_files(place)
    matches = (_UNFINISHED.fullmatch(path.name) for path in place.iterdir())
    begun = {place / match["name"] for match in matches if match}
    begun = (begun | {parts_of(path)[0] for path in place.glob("*.gguf")}) - set(complete)
    for path in sorted([*complete, *begun]):
        mine = list(companions(path))
        n_bytes = sum(occupied_bytes(each) for each in mine)
        yield KeptModel(source, path, n_bytes, path in complete, _used_at(path, mine))


def companions(path: Path) -> Iterator[Path]:
    """Everything at a model's place that belongs to it: its parts, checksums, time of use, and what is unfinished."""
    split = SPLIT_NAME.fullmatch(path.name)
    stem = rf"{re.escape(split['stem'])}-\d{{5}}-of-{split['count']}\.gguf" if split else re.escape(path.name)
    mine = re.compile(rf"\.?{stem}(?:\..+)?")
    for each in sorted(path.parent.iterdir()):
        if mine.fullmatch(each.name):
            yield each


def mark_used(path: Path) -> None:
    """Notes that a model is used now. A folder that cannot be written keeps no times."""
    try:
        stamp = _stamp(path)
        stamp.touch()
        os.utime(stamp)
    except OSError:
        pass


def remove_model(model: KeptModel, folder: Path) -> None:
    """Removes a model with everything that belongs to it, and the folders that are empty then.

    Raises:
        BlockingIOError: a process is making a model at this place.
        OSError: something cannot be removed.
    """
    place = model.path.parent
    with held(place / MAKING):
        for path in companions(model.path):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    while place != folder and not any(place.iterdir()):
        place.rmdir()
        place = place.parent


def _stamp(path: Path) -> Path:
    return path.with_name(f".{path.name}.used")


def _used_at(path: Path, mine: list[Path]) -> float:
    """The time of the stamp; without one, of the newest of the model's files."""
    stamp = _stamp(path)
    return max((each.stat().st_mtime for each in ([stamp] if stamp.exists() else mine)), default=0.0)


def occupied_bytes(path: Path) -> int:
    """The bytes that a file, or everything in a folder, occupies; a file with holes counts what is written."""
    files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    return sum(min(st.st_size, getattr(st, "st_blocks", 1 << 62) * 512) for st in map(os.stat, files))
