"""Files of data sets on the Hugging Face Hub, in its cache."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from mimo_gguf.conversion.hub import HubId, translated
from mimo_gguf.core.errors import HubError


def fetch_dataset(repository: str, revision: str | None, names: Sequence[str]) -> tuple[str, tuple[Path, ...]]:
    """Downloads files of a data set, unless they are in the cache. An interrupted download is resumed.

    Args:
        revision: the commit; None for the newest one. All files are of one commit.
        names: the files; `*` stands for any characters, slashes as well, and for every file that fits.

    Returns:
        The commit, and where the files are.

    Raises:
        HubError: no such data set or file, no access, no connection, or no space.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    commit, paths = revision, []
    with translated(HubId(repository, revision), of_data=True):
        for name in names:
            if "*" in name:
                commit, found = _fetch_fitting(repository, commit, name)
                paths += found
                continue
            try:
                path = Path(hf_hub_download(repository, name, repo_type="dataset", revision=commit))
            except RemoteEntryNotFoundError:
                raise HubError(f"{repository}: has no file {name}", hint="name its files in the task") from None
            commit = commit or path.parents[len(PurePosixPath(name).parts) - 1].name
            paths.append(path)
    return commit or "", tuple(paths)


def _fetch_fitting(repository: str, revision: str | None, pattern: str) -> tuple[str, list[Path]]:
    """Downloads the files that fit a pattern. Returns the commit, and where they are, sorted.

    Raises:
        HubError: none fits.
    """
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(repository, repo_type="dataset", revision=revision, allow_patterns=[pattern]))
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    found = [path for path in paths if fnmatch.fnmatchcase(path.relative_to(folder).as_posix(), pattern)]
    if not found:
        raise HubError(f"{repository}: has no file {pattern}", hint="name its files in the task")
    return folder.name, found
