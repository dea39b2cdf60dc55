"""Files of data sets on the Hugging Face Hub, in its cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from mimo_gguf.conversion.hub import HubId, translated
from mimo_gguf.core.errors import HubError


def fetch_dataset(repository: str, revision: str | None, names: Sequence[str]) -> tuple[str, tuple[Path, ...]]:
    """Downloads files of a data set, unless they are in the cache. An interrupted download is resumed.

    Args:
        revision: the commit; None for the newest one. All files are of one commit.

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
            try:
                path = Path(hf_hub_download(repository, name, repo_type="dataset", revision=commit))
            except RemoteEntryNotFoundError:
                raise HubError(f"{repository}: has no file {name}", hint="name its files in the task") from None
            commit = commit or path.parents[len(PurePosixPath(name).parts) - 1].name
            paths.append(path)
    return commit or "", tuple(paths)
