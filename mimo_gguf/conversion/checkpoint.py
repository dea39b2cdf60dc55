"""A Hugging Face checkpoint folder: its configuration files and the table of every tensor in its shards."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mimo_gguf.conversion.safetensors_file import StoredWeights, read_header
from mimo_gguf.core.errors import CheckpointError
from mimo_gguf.core.paths import path_kind

INDEX_NAME: Final = "model.safetensors.index.json"
SINGLE_NAME: Final = "model.safetensors"

_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint as it lies on disk.

    Attributes:
        folder: where the files are.
        model_id: `org/name` where it came from the Hub (or lies in its cache), else the folder's name.
        revision: commit on the Hub, where it came from there.
        config: config.json.
        weights: every tensor of every shard, by its Hugging Face name.
    """

    folder: Path
    model_id: str
    revision: str | None
    config: Mapping[str, Any]
    weights: Mapping[str, StoredWeights]

    @property
    def name(self) -> str:
        """The model's name without the organisation, fit for a file name."""
        return self.model_id.rsplit("/", 1)[-1] or "model"

    @property
    def shards(self) -> tuple[Path, ...]:
        return tuple(sorted({weights.path for weights in self.weights.values()}))


def read_checkpoint(folder: Path, *, model_id: str | None = None, revision: str | None = None) -> Checkpoint:
    """Reads the configuration and all shard headers of `folder`; no weights.

    Raises:
        CheckpointError: not a folder, no config.json, no weights, a shard missing, truncated or at odds with the index.
    """
    if path_kind(folder) != "folder":
        raise _no_folder(folder)
    config = read_json(folder / "config.json", "it has no config.json, so it is no Hugging Face checkpoint")
    if model_id is None:
        model_id, revision = _identity(folder)
    return Checkpoint(folder, model_id, revision, config, read_weights(folder))


def _no_folder(folder: Path) -> CheckpointError:
    kind = path_kind(folder)
    if kind == "file" and folder.suffix.lower() == ".gguf":
        return CheckpointError(f"{folder}: is a GGUF file already", hint=f"mimo-gguf quantize {folder} --type Q4_K_M")
    what = "no such folder" if kind == "nothing" else "is a file, not a checkpoint folder"
    return CheckpointError(f"{folder}: {what}", hint="give a folder with config.json, or a Hub id like org/name")


def _identity(folder: Path) -> tuple[str, str | None]:
    """Id and revision of a snapshot in the Hub's cache, whose folder is named after the commit; else the folder's name.

    Layout of the cache: https://huggingface.co/docs/huggingface_hub/guides/manage-cache.
    """
    full = folder.absolute()
    if full.parent.name == "snapshots" and full.parents[1].name.startswith("models--"):
        return full.parents[1].name.removeprefix("models--").replace("--", "/"), full.name
    return os.fsencode(folder.resolve().name).decode("utf-8", "replace"), None


def read_text(path: Path) -> str:
    """The UTF-8 text in `path`.

    Raises:
        CheckpointError: unreadable, or not UTF-8.
    """
    try:
        if path_kind(path) in ("folder", "special"):  # a pipe would be waited for
            raise CheckpointError(f"{path}: not a file", hint="download the checkpoint again")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}", hint="check the file's permissions") from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: not UTF-8 text", hint="download this file again") from None


def _is_missing(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    except OSError:  # a folder that may not be looked into, say: reading will tell
        return False
    return False


def read_json(path: Path, if_missing: str) -> dict[str, Any]:
    """The JSON object in `path`; every text in it can be written as UTF-8.

    Raises:
        CheckpointError: missing (`if_missing` says what that means), unreadable, or not a JSON object.
    """
    if _is_missing(path):
        raise CheckpointError(f"{path.parent}: {if_missing}", hint="give the folder that has it, or download it again")
    text = read_text(path)
    try:
        value = json.loads(text)
        if _SURROGATE.search(text):  # half a character, which JSON can say and UTF-8 cannot
            json.dumps(value, ensure_ascii=False).encode()
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}", hint="download this file again") from None
    except RecursionError:
        raise CheckpointError(f"{path}: not valid JSON: nested too deeply", hint="download this file again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: a JSON {type(value).__name__}, not an object", hint="download this file again")
    return value


def read_weights(folder: Path) -> dict[str, StoredWeights]:
    """The tensors of all shards of `folder`, checked against the index where there is one.

    Raises:
        CheckpointError: as `read_checkpoint`.
    """
    index_path = folder / INDEX_NAME
    if index_path.is_file():
        weight_map = read_weight_map(index_path)
        _refuse_strangers(folder, set(weight_map.values()))
        return _read_indexed(folder, weight_map)
    shards = sorted(folder.glob("*.safetensors"))
    if len(shards) > 1 and folder / SINGLE_NAME in shards:
        shards = [folder / SINGLE_NAME]
    if not shards:
        raise CheckpointError(
            f"{folder}: no .safetensors files{_other_weights(folder)}", hint="download the checkpoint again, all of it"
        )
    if len(shards) > 1:
        raise CheckpointError(
            f"{folder}: {len(shards)} .safetensors files but no {INDEX_NAME}", hint="download the index file too"
        )
    return read_header(shards[0])


def read_weight_map(index_path: Path) -> dict[str, str]:
    """Which shard each tensor lies in, by the index.

    Raises:
        CheckpointError: no index, or one that names anything but files beside it.
    """
    weight_map = read_json(index_path, "no index").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_path}: no weight_map in it", hint="download this file again")
    for name, shard in weight_map.items():
        # A plain file name: an index must not lead out of its folder.
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{index_path}: tensor {name} lies in {shard!r}, no file name", hint="download it again"
            )
    return weight_map


def _refuse_strangers(folder: Path, named: set[str]) -> None:
    strangers = sorted(path.name for path in folder.glob("model-*-of-*.safetensors") if path.name not in named)
    if strangers:
        raise CheckpointError(
            f"{folder}: {_some(strangers)} not in {INDEX_NAME}", hint="two downloads are mixed; start with a new folder"
        )


def _read_indexed(folder: Path, weight_map: Mapping[str, str]) -> dict[str, StoredWeights]:
    missing = sorted({shard for shard in weight_map.values() if not (folder / shard).is_file()})
    if missing:
        raise CheckpointError(f"{folder}: {_some(missing)} missing", hint="download the checkpoint again; it resumes")
    weights: dict[str, StoredWeights] = {}
    for shard in sorted(set(weight_map.values())):
        found = read_header(folder / shard)
        expected = {name for name, where in weight_map.items() if where == shard}
        for names, what in ((expected - found.keys(), "lacks"), (found.keys() - expected, "holds, against the index,")):
            if names:
                raise CheckpointError(
                    f"{folder / shard}: {what} {_some(sorted(names))}", hint="shard and index are of two models"
                )
        weights.update(found)
    return weights


def _other_weights(folder: Path) -> str:
    others = [path.name for pattern in ("*.bin", "*.pth", "*.gguf") for path in sorted(folder.glob(pattern))]
    return f" (only {_some(others)})" if others else ""


def _some(names: Iterable[str], most: int = 4) -> str:
    """`a, b, c, d and 7 more`."""
    names = list(names)
    text = ", ".join(names[:most])
    return f"{text} and {len(names) - most} more" if len(names) > most else text
