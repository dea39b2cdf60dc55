"""Opening whatever a command accepts as SRC: a GGUF file, a checkpoint folder, or a Hub id."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Final

from mimo_gguf.conversion.checkpoint import Checkpoint, read_checkpoint
from mimo_gguf.conversion.checkpoint_source import (
    ConversionOptions,
    ConversionPlan,
    as_model_source,
    plan_conversion,
)
from mimo_gguf.conversion.hub import Download, HubId, fetch, find_repository, parse_hub_id
from mimo_gguf.conversion.remote.hollow import write_hollow
from mimo_gguf.conversion.remote.ranges import RangeReader
from mimo_gguf.conversion.remote.repository import RemoteFile
from mimo_gguf.conversion.remote.stream import DEFAULT_FETCHING, Fetching
from mimo_gguf.core.errors import HubError
from mimo_gguf.core.gguf_file import open_gguf
from mimo_gguf.core.model_source import ModelSource
from mimo_gguf.core.paths import path_kind


class Access(Enum):
    """What is wanted of a model on a hub.

    COPY: all of it on this machine, to be read in any order, as often as wanted.
    STREAM: its weights are fetched while they are read, once, without a copy. If there is a copy already, that is used.
    HEADERS: enough for planning, but not for reading rows: kilobytes.
    """

    COPY = "copy"
    STREAM = "stream"
    HEADERS = "headers"


@dataclass(frozen=True, slots=True)
class Reading:
    """How a model on a hub is read: what is wanted of it, and how weights are fetched that are streamed."""

    access: Access
    fetching: Fetching = DEFAULT_FETCHING


COPY: Final = Reading(Access.COPY)
STREAM: Final = Reading(Access.STREAM)
HEADERS: Final = Reading(Access.HEADERS)


def open_model(
    src: str,
    options: ConversionOptions | None = None,
    *,
    headers_only: bool = False,
    reading: Reading = COPY,
) -> ModelSource:
    """The model that `src` names, as a ModelSource; close it after use.

    Args:
        src: a .gguf file, a checkpoint folder, or `org/name[@revision]` on the Hub, after `modelscope:` on ModelScope.
        options: how a checkpoint is converted; a GGUF is not converted.
        headers_only: as `reading=HEADERS`.
        reading: how a model on a hub is read.

    Raises:
        GgufError: as `open_gguf`.
        HubError: as `fetch`.
        CheckpointError, UsageError: as `read_checkpoint` and `plan_conversion`.
    """
    if is_gguf(src):
        return open_gguf(src)
    with ExitStack() as stack:
        finder = Finder(stack, HEADERS if headers_only else reading)
        plan = plan_conversion(finder.checkpoint(src), options or ConversionOptions())
        source = stack.enter_context(finder.source(plan, src))
        return replace(source, close=stack.pop_all().close)


def is_gguf(src: str) -> bool:
    """Whether `src` names a GGUF file: any file, or a name that ends in .gguf."""
    return Path(src).suffix.lower() == ".gguf" or path_kind(src) == "file"


@dataclass(slots=True)
class Finder:
    """Finds checkpoints: folders, and models on a hub.

    Attributes:
        stack: removes the folders of hollow shards.
        arriving: the hollow shards that are to be streamed, and the files that they stand for.
    """

    stack: ExitStack
    reading: Reading = COPY
    arriving: dict[Path, RemoteFile] = field(default_factory=dict)

    def checkpoint(self, src: str) -> Checkpoint:
        """The checkpoint that `src` names.

        Raises:
            CheckpointError: as `read_checkpoint`.
            HubError: as `fetch`.
        """
        hub_id = None if path_kind(src) != "nothing" else parse_hub_id(src)
        if hub_id is None:
            return read_checkpoint(Path(src))
        try:
            download = self._fetch(hub_id)
        except HubError as error:
            if path_kind(Path(src).parent) != "folder":
                raise
            raise HubError(f"{error.message}; nor is there a folder {src} here", hint=error.hint) from error
        return read_checkpoint(download.folder, model_id=hub_id.model_id, revision=download.commit, page=download.page)

    def mtp_layers(self, src: str) -> Path:
        """The folder of further MTP layers that `src` names.

        Raises:
            HubError: as `fetch`.
        """
        hub_id = None if path_kind(src) != "nothing" else parse_hub_id(src)
        return Path(src) if hub_id is None else self._fetch(hub_id).folder

    def source(self, plan: ConversionPlan, label: str) -> ModelSource:
        """The conversion of what was found as a ModelSource; see `as_model_source`."""
        return as_model_source(plan, label, self.arriving, self.reading.fetching)

    def _fetch(self, hub_id: HubId) -> Download:
        access = self.reading.access
        if access is Access.COPY:
            return fetch(hub_id)
        reader = RangeReader(self.reading.fetching.patience)
        repository = find_repository(hub_id, reader)
        if access is Access.STREAM and repository.copy is not None:
            return Download(repository.copy, repository.commit, repository.page)
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        shards = write_hollow(repository, folder, reader)
        if access is Access.STREAM:
            self.arriving |= shards
        return Download(folder, repository.commit, repository.page)
