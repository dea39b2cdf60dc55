"""A Hugging Face checkpoint folder: its configuration files and the table of every tensor in its shards."""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mimo_gguf.conversion import foreign
from mimo_gguf.conversion.checkpoint_files import read_json
from mimo_gguf.conversion.safetensors_file import StoredWeights, read_header
from mimo_gguf.core.errors import CheckpointError
from mimo_gguf.core.paths import command_word, path_kind
from mimo_gguf.core.units import listed

INDEX_NAME: Final = "model.safetensors.index.json"
SINGLE_NAME: Final = "model.safetensors"
# A plain file name: an index must not lead out of its folder.
_SHARD_NAME: Final = re.compile(r"[^/\\\x00-\x1f]+\.safetensors")
_SHARDS: Final = "model-*-of-*.safetensors"
_LONGEST_NAME: Final = 255  # bytes; no system allows more


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint as it lies on disk.

    Attributes:
        folder: where the files are.
        model_id: `org/name` if it came from the Hub or lies in its cache; otherwise the folder's name.
        revision: the commit on the Hub, if it came from there.
        config: config.json.
        weights: every tensor of every shard, by its Hugging Face name.
        page: its web page, if it came from another hub than Hugging Face's.
    """

    folder: Path
    model_id: str
    revision: str | None
    config: Mapping[str, Any]
    weights: Mapping[str, StoredWeights]
    page: str | None = None

    @property
    def name(self) -> str:
        """The model's name without the organisation, fit for a file name."""
        return self.model_id.rsplit("/", 1)[-1] or "model"

    @property
    def shards(self) -> tuple[Path, ...]:
        return tuple(sorted({weights.path for weights in self.weights.values()}))


def read_checkpoint(
    folder: Path, *, model_id: str | None = None, revision: str | None = None, page: str | None = None
) -> Checkpoint:
    """Reads the configuration and all shard headers of `folder`, but no weights.

    Raises:
        CheckpointError: not a folder, no config.json, no weights, a shard missing, truncated or at odds with the index.
    """
    if path_kind(folder) != "folder":
        raise _not_a_folder(folder)
    foreign.check_folder(folder)
    config = read_json(folder / "config.json", "it has no config.json, so it is not a Hugging Face checkpoint")
    foreign.check_not_quantized(config, str(folder))
    if model_id is None:
        model_id, revision = _identity(folder)
    return Checkpoint(folder, model_id, revision, config, read_weights(folder), page)


def _not_a_folder(folder: Path) -> CheckpointError:
    kind = path_kind(folder)
    if kind == "file" and folder.suffix.lower() == ".gguf":
        hint = f"mimo-gguf quantize {command_word(folder)} --type Q4_K_M"
        return CheckpointError(f"{folder}: is a GGUF file already", hint=hint)
    if kind == "nothing" and folder.suffix.lower() == ".gguf":
        return CheckpointError(f"{folder}: no such file", hint="check the path; convert takes a checkpoint folder")
    what = "no such folder" if kind == "nothing" else "is a file, not a checkpoint folder"
    return CheckpointError(f"{folder}: {what}", hint="give a folder with config.json, or a Hub id like org/name")


def _identity(folder: Path) -> tuple[str, str | None]:
    """The id and the revision of the checkpoint in `folder`; outside the Hub's cache, the folder's name and None.

    Layout of the cache: https://huggingface.co/docs/huggingface_hub/guides/manage-cache.
    """
    full = folder.absolute()
    if full.parent.name == "snapshots" and full.parents[1].name.startswith("models--"):
        return full.parents[1].name.removeprefix("models--").replace("--", "/"), full.name
    return os.fsencode(folder.resolve().name).decode("utf-8", "replace"), None


def read_weights(folder: Path) -> dict[str, StoredWeights]:
    """The tensors of all shards of `folder`, checked against the index if there is one.

    Raises:
        CheckpointError: as `read_checkpoint`.
    """
    index_path = folder / INDEX_NAME
    has_single = path_kind(folder / SINGLE_NAME) == "file"
    weight_map = {} if path_kind(index_path) == "nothing" else read_weight_map(index_path)
    others = {path.name for path in folder.glob(_SHARDS)} | set(weight_map.values()) - {SINGLE_NAME}
    if has_single and others:
        raise CheckpointError(
            f"{folder}: two sets of weights: {SINGLE_NAME}, and the shards {listed(sorted(others))}",
            hint=f"move one set away; transformers would read {SINGLE_NAME}",
        )
    if not weight_map:
        return read_header(folder / SINGLE_NAME if has_single else _only_shard(folder))
    _check_no_strangers(folder, set(weight_map.values()))
    return _read_indexed(folder, weight_map)


def _only_shard(folder: Path) -> Path:
    shards = sorted(path for path in folder.glob("*.safetensors") if path_kind(path) == "file")
    if not shards:
        raise CheckpointError(f"{folder}: no .safetensors files", hint="download the checkpoint again, all of it")
    if len(shards) > 1:
        raise CheckpointError(
            f"{folder}: {len(shards)} .safetensors files but no {INDEX_NAME}", hint="download the index file too"
        )
    return shards[0]


def read_weight_map(index_path: Path) -> dict[str, str]:
    """The file name of each tensor's shard, from the index.

    Raises:
        CheckpointError: there is no index, or it names anything but files beside it.
    """
    weight_map = read_json(index_path, "no index").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_path}: no weight_map in it", hint="download this file again")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard) or len(os.fsencode(shard)) > _LONGEST_NAME:
            raise CheckpointError(
                f"{index_path}: tensor {reprlib.repr(name)} lies in {reprlib.repr(shard)}, not a file name",
                hint="download it again",
            )
    return weight_map


def _check_no_strangers(folder: Path, named: set[str]) -> None:
    """Raises CheckpointError if there are shards that the index does not name."""
    strangers = sorted(path.name for path in folder.glob(_SHARDS) if path.name not in named)
    if strangers:
        raise CheckpointError(
            f"{folder}: {listed(strangers)} not in {INDEX_NAME}",
            hint="two downloads are mixed; start with a new folder",
        )


def _read_indexed(folder: Path, weight_map: Mapping[str, str]) -> dict[str, StoredWeights]:
    missing = sorted({shard for shard in weight_map.values() if path_kind(folder / shard) != "file"})
    if missing:
        raise CheckpointError(f"{folder}: {listed(missing)} missing", hint="download the checkpoint again; it resumes")
    expected: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        expected.setdefault(shard, set()).add(name)
    weights: dict[str, StoredWeights] = {}
    for shard in sorted(expected):
        found = read_header(folder / shard)
        lacking, extra = expected[shard] - found.keys(), found.keys() - expected[shard]
        for names, what in ((lacking, "lacks"), (extra, "holds, against the index,")):
            if names:
                raise CheckpointError(
                    f"{folder / shard}: {what} {listed(sorted(names))}", hint="shard and index are of two models"
                )
        weights.update(found)
    return weights
