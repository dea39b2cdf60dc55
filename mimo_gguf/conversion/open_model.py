"""Opening whatever a command accepts as SRC: a GGUF file, a checkpoint folder, or a Hub id."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from mimo_gguf.conversion.checkpoint import Checkpoint, read_checkpoint
from mimo_gguf.conversion.checkpoint_source import (
    ConversionOptions,
    as_model_source,
    plan_conversion,
)
from mimo_gguf.conversion.hub import Download, HubId, fetch, fetch_headers, parse_hub_id
from mimo_gguf.core.errors import HubError
from mimo_gguf.core.gguf_file import open_gguf
from mimo_gguf.core.model_source import ModelSource
from mimo_gguf.core.paths import path_kind


def open_model(src: str, options: ConversionOptions | None = None, *, headers_only: bool = False) -> ModelSource:
    """The model that `src` names, as a ModelSource; close it after use.

    Args:
        src: a .gguf file, a checkpoint folder, or `org/name[@revision]` on the Hub.
        options: how a checkpoint is converted; a GGUF is not converted.
        headers_only: whether to fetch only headers for a Hub id: enough for planning, but not for reading rows.

    Raises:
        GgufError: as `open_gguf`.
        HubError: as `fetch`.
        CheckpointError, UsageError: as `read_checkpoint` and `plan_conversion`.
    """
    if is_gguf(src):
        return open_gguf(src)
    with ExitStack() as stack:
        plan = plan_conversion(find_checkpoint(src, stack, headers_only=headers_only), options or ConversionOptions())
        source = stack.enter_context(as_model_source(plan, src))
        return replace(source, close=stack.pop_all().close)


def is_gguf(src: str) -> bool:
    """Whether `src` names a GGUF file: any file, or a name that ends in .gguf."""
    return Path(src).suffix.lower() == ".gguf" or path_kind(src) == "file"


def find_checkpoint(src: str, stack: ExitStack, *, headers_only: bool = False) -> Checkpoint:
    """The checkpoint that `src` names: a folder, or a Hub id, which is downloaded.

    Args:
        stack: removes the folder of hollow shards into which `headers_only` downloads.

    Raises:
        CheckpointError: as `read_checkpoint`.
        HubError: as `fetch`.
    """
    hub_id = None if path_kind(src) != "nothing" else parse_hub_id(src)
    if hub_id is None:
        return read_checkpoint(Path(src))
    try:
        download = _fetch(hub_id, stack, headers_only=headers_only)
    except HubError as error:
        if path_kind(Path(src).parent) != "folder":
            raise
        raise HubError(f"{error.message}; nor is there a folder {src} here", hint=error.hint) from error
    return read_checkpoint(download.folder, model_id=hub_id.model_id, revision=download.commit)


def find_mtp_layers(src: str, stack: ExitStack, *, headers_only: bool = False) -> Path:
    """The folder of further MTP layers that `src` names, downloaded if it is a Hub id.

    Raises:
        HubError: as `fetch`.
    """
    hub_id = None if path_kind(src) != "nothing" else parse_hub_id(src)
    return Path(src) if hub_id is None else _fetch(hub_id, stack, headers_only=headers_only).folder


def _fetch(hub_id: HubId, stack: ExitStack, *, headers_only: bool) -> Download:
    if headers_only:
        return fetch_headers(hub_id, Path(stack.enter_context(tempfile.TemporaryDirectory())))
    return fetch(hub_id)
