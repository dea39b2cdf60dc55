"""Checkpoints on the Hugging Face Hub, through huggingface_hub: only the files that a conversion needs.

An interrupted download is resumed. If only sizes are needed, only the headers are read (kilobytes).
"""

from __future__ import annotations

import contextlib
import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mimo_gguf.conversion.checkpoint import INDEX_NAME, SINGLE_NAME, read_weight_map
from mimo_gguf.core.errors import HubError, first_line
from mimo_gguf.core.near_matches import name_hint
from mimo_gguf.core.published_model import PUBLISHED_IDS

if TYPE_CHECKING:
    from huggingface_hub.utils._safetensors import SafetensorsFileMetadata

# The files of a checkpoint without its weights.
SMALL_FILES: Final = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "adapter_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "README.md",
    INDEX_NAME,
)
_MODEL_ID: Final = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")


class HubUnreachable(HubError):
    """The Hub does not answer, or must not be asked."""


@dataclass(frozen=True, slots=True)
class HubId:
    """The name of a model on the Hub: `org/name[@revision]`."""

    model_id: str
    revision: str | None

    def __str__(self) -> str:
        return self.model_id + (f"@{self.revision}" if self.revision else "")


def parse_hub_id(text: str) -> HubId | None:
    """The Hub id in `text`, or None if it does not have that form, or names a GGUF file."""
    match = None if text.lower().endswith(".gguf") else _MODEL_ID.fullmatch(text)
    return HubId(match["id"], match["revision"]) if match else None


@dataclass(frozen=True, slots=True)
class Download:
    """The folder of a downloaded checkpoint, and its commit."""

    folder: Path
    commit: str


def fetch(hub_id: HubId) -> Download:
    """Downloads what a conversion needs into the Hub cache, if it is not there yet.

    The small files come first, then the shards that the index names. An interrupted download is resumed.

    Raises:
        HubError: no such repository or revision, no access, no connection, or no space.
    """
    from huggingface_hub import snapshot_download

    with translated(hub_id):
        folder = Path(snapshot_download(hub_id.model_id, revision=hub_id.revision, allow_patterns=list(SMALL_FILES)))
        # The commit just resolved, so that both steps are of one state of the repository.
        snapshot_download(hub_id.model_id, revision=folder.name, allow_patterns=_shard_names(folder))
    return Download(folder, folder.name)


def is_cached(hub_id: HubId) -> bool:
    """Whether everything that `fetch` downloads is in the Hub's cache. The Hub is not asked."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id.model_id, revision=hub_id.revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return False
    return (folder / "config.json").is_file() and all((folder / name).is_file() for name in _shard_names(folder))


def fetch_headers(hub_id: HubId, folder: Path) -> Download:
    """Puts the small files and *hollow* shards into `folder`: shards with their true header and size, but no data.

    They are enough to plan a conversion, its sizes and its memory. Some hundred kilobytes are read instead of 15 GB.

    Raises:
        HubError: as `fetch`.
    """
    from huggingface_hub import HfApi, snapshot_download

    with translated(hub_id):
        cached = Path(snapshot_download(hub_id.model_id, revision=hub_id.revision, allow_patterns=list(SMALL_FILES)))
        for name in SMALL_FILES:
            if (cached / name).is_file():
                (folder / name).write_bytes((cached / name).read_bytes())
        for shard in _shard_names(folder):
            header = HfApi().parse_safetensors_file_metadata(hub_id.model_id, shard, revision=cached.name)
            _write_hollow(folder / shard, header)
    return Download(folder, cached.name)


def _shard_names(folder: Path) -> list[str]:
    if not (folder / INDEX_NAME).is_file():
        return [SINGLE_NAME]
    return sorted(set(read_weight_map(folder / INDEX_NAME).values()))


def _write_hollow(path: Path, header: SafetensorsFileMetadata) -> None:
    entries = {
        name: {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": list(tensor.data_offsets)}
        for name, tensor in header.tensors.items()
    }
    text = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(file.tell() + max((tensor.data_offsets[1] for tensor in header.tensors.values()), default=0))


@contextlib.contextmanager
def translated(hub_id: HubId) -> Iterator[None]:
    """Turns huggingface_hub's errors into a HubError with a hint."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise HubError(f"{hub_id}: access must be granted first", hint="hf auth login, then accept its terms") from None
    except errors.RepositoryNotFoundError:
        known = [name for name in PUBLISHED_IDS if name != hub_id.model_id]
        raise HubError(
            f"{hub_id}: no such folder here, and no such model on the Hub",
            hint=name_hint(hub_id.model_id, known, "check the name; hf auth login if private"),
        ) from None
    except errors.RevisionNotFoundError:
        raise HubError(f"{hub_id}: no such revision", hint="leave @revision out for the newest") from None
    except (errors.HfHubHTTPError, errors.SafetensorsParsingError, errors.HFValidationError) as error:
        raise HubError(f"{hub_id}: {first_line(error)}", hint="run it again, it resumes") from None
    except errors.OfflineModeIsEnabled:
        raise HubUnreachable(
            f"{hub_id}: HF_HUB_OFFLINE forbids to ask the Hub", hint="unset it, or give a file or folder that is here"
        ) from None
    except (errors.LocalEntryNotFoundError, errors.HTTPError) as error:  # type: ignore[attr-defined]
        raise HubUnreachable(
            f"{hub_id}: the Hub could not be reached: {first_line(error)}",
            hint="check the connection; run it again, it resumes",
        ) from None
    except OSError as error:
        raise HubError(f"{hub_id}: {first_line(error)}", hint="free some space or set HF_HOME; it resumes") from None


def hub_cache_folder() -> Path:
    """The folder of the Hub's cache, which need not exist; HF_HUB_CACHE and HF_HOME decide.

    Raises:
        ImportError: huggingface_hub is not installed.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)
