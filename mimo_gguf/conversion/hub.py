"""Checkpoints on the Hugging Face Hub and on ModelScope: only the files that a conversion needs.

A checkpoint can be downloaded as a whole. Or only its small files are, and its shards are described: then they can be
planned with, and fetched while they are read.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from mimo_gguf.conversion.checkpoint import INDEX_NAME
from mimo_gguf.conversion.hub_bars import reporting_bar
from mimo_gguf.conversion.remote.copying import copy_repository
from mimo_gguf.conversion.remote.hollow import shard_names
from mimo_gguf.conversion.remote.modelscope import modelscope_repository
from mimo_gguf.conversion.remote.ranges import RangeReader, network_errors
from mimo_gguf.conversion.remote.repository import RemoteFile, Repository, parse_digest
from mimo_gguf.core.errors import HubError, first_line
from mimo_gguf.core.near_matches import name_hint
from mimo_gguf.core.published_model import PUBLISHED_IDS

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
MODELSCOPE: Final = "modelscope:"
_MODEL_ID: Final = re.compile(
    r"(?P<site>modelscope:)?(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?"
)


Site = Literal["huggingface", "modelscope"]


class HubUnreachable(HubError):
    """The Hub does not answer, or must not be asked."""


@dataclass(frozen=True, slots=True)
class HubId:
    """The name of a model on a hub: `org/name[@revision]`, or `modelscope:org/name[@revision]`."""

    model_id: str
    revision: str | None
    site: Site = "huggingface"

    def __str__(self) -> str:
        before = MODELSCOPE if self.site == "modelscope" else ""
        return before + self.model_id + (f"@{self.revision}" if self.revision else "")


def parse_hub_id(text: str) -> HubId | None:
    """The Hub id in `text`, or None if it does not have that form, or names a GGUF file."""
    match = None if text.lower().endswith(".gguf") else _MODEL_ID.fullmatch(text)
    return HubId(match["id"], match["revision"], "modelscope" if match["site"] else "huggingface") if match else None


@dataclass(frozen=True, slots=True)
class Download:
    """The folder of a downloaded checkpoint, its commit, and the model's page if it is not on the Hugging Face Hub."""

    folder: Path
    commit: str
    page: str | None = None


def fetch(hub_id: HubId) -> Download:
    """Downloads what a conversion needs into a cache, if it is not there yet.

    The small files come first, then the shards that the index names. An interrupted download is resumed.

    Raises:
        HubError: no such repository or revision, no access, no connection, or no space.
    """
    if hub_id.site == "modelscope":
        repository = find_repository(hub_id, RangeReader())
        return Download(copy_repository(repository), repository.commit, repository.page)
    from huggingface_hub import snapshot_download

    with translated(hub_id):
        folder = _fetch_small_files(hub_id)
        # The commit just resolved, so that both steps are of one state of the repository.
        snapshot_download(hub_id.model_id, revision=folder.name, allow_patterns=shard_names(folder))
    return Download(folder, folder.name)


def is_cached(hub_id: HubId) -> bool:
    """Whether everything that `fetch` downloads is in the Hub's cache. The Hub is not asked."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id.model_id, revision=hub_id.revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return False
    return (folder / "config.json").is_file() and all((folder / name).is_file() for name in shard_names(folder))


def find_repository(hub_id: HubId, reader: RangeReader) -> Repository:
    """The repository at its newest commit, or at the revision's. Its small files are downloaded, its shards described.

    If all of the checkpoint is in the Hub's cache already, `copy` of the repository says where.

    Raises:
        HubError: as `fetch`.
    """
    if hub_id.site == "modelscope":
        return modelscope_repository(hub_id.model_id, hub_id.revision, SMALL_FILES, reader)
    with translated(hub_id):
        folder = _fetch_small_files(hub_id)
        is_whole = all((folder / name).is_file() for name in shard_names(folder))

    def list_weights(names: Sequence[str]) -> list[RemoteFile]:
        with translated(hub_id):
            return [_describe_file(hub_id.model_id, name, folder.name, reader) for name in names]

    return Repository(
        label=str(hub_id),
        model_id=hub_id.model_id,
        commit=folder.name,
        page=None,
        small_files={name: (folder / name).read_bytes for name in SMALL_FILES if (folder / name).is_file()},
        list_weights=list_weights,
        copy=folder if is_whole else None,
    )


def _fetch_small_files(hub_id: HubId) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            hub_id.model_id,
            revision=hub_id.revision,
            allow_patterns=list(SMALL_FILES),
            tqdm_class=reporting_bar(),  # kilobytes: a bar would be gone before it is read
        )
    )


def _describe_file(model_id: str, name: str, commit: str, reader: RangeReader) -> RemoteFile:
    """A file of the Hub, by its headers; of a large one the ETag is its SHA-256."""
    from huggingface_hub import HfFileMetadata, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    url = hf_hub_url(model_id, name, revision=commit)

    def ask() -> HfFileMetadata:
        with network_errors(name):
            return get_hf_file_metadata(url)

    stated = reader.persist(name, ask)
    if stated.size is None:
        raise HubError(f"{name}: the Hub does not state its size", hint="--keep-checkpoint downloads it as a whole")
    return RemoteFile(name, url, stated.size, parse_digest(stated.etag), build_hf_headers())


@contextlib.contextmanager
def translated(hub_id: HubId, *, of_data: bool = False) -> Iterator[None]:
    """Turns huggingface_hub's errors into a HubError with a hint; `of_data` says that the id is of a data set."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise HubError(f"{hub_id}: access must be granted first", hint="hf auth login, then accept its terms") from None
    except errors.RepositoryNotFoundError:
        if of_data:
            raise HubError(
                f"{hub_id}: no such data set on the Hub", hint="check the name; hf auth login if private"
            ) from None
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
