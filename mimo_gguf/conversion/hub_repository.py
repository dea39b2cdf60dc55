"""What a repository on the Hub holds, and single files of it: their first bytes, or whole and checked."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from mimo_gguf.conversion.hub import HubId, translated
from mimo_gguf.conversion.hub_bars import reporting_bar
from mimo_gguf.conversion.remote.ranges import RangeReader
from mimo_gguf.conversion.remote.repository import RemoteFile, parse_digest
from mimo_gguf.core.digests import FILE
from mimo_gguf.core.errors import HubError

_READ_BYTES: Final = 1 << 22


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository.

    Attributes:
        name: its path in the repository, with slashes.
        sha256: the digest that the Hub shows; None for small files, which it keeps otherwise.
    """

    name: str
    n_bytes: int
    sha256: str | None = None

    @property
    def base_name(self) -> str:
        return PurePosixPath(self.name).name


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A state of a repository: its commit, and every file."""

    hub_id: HubId
    commit: str
    files: tuple[HubFile, ...]

    @property
    def pinned(self) -> HubId:
        """The id of exactly this state."""
        return HubId(self.hub_id.model_id, self.commit)

    def ending_in(self, suffix: str) -> tuple[HubFile, ...]:
        """The files with this ending, whatever its case."""
        return tuple(file for file in self.files if file.name.lower().endswith(suffix))


def list_repository(hub_id: HubId) -> HubRepository:
    """Lists a repository, in one request.

    Raises:
        HubError: as `fetch`.
    """
    from huggingface_hub import HfApi

    with translated(hub_id):
        info = HfApi().model_info(hub_id.model_id, revision=hub_id.revision, files_metadata=True)
    files = (
        HubFile(each.rfilename, each.size or 0, each.lfs.sha256 if each.lfs else None) for each in info.siblings or ()
    )
    return HubRepository(hub_id, str(info.sha), tuple(file for file in files if _is_plain(file.name)))


def _is_plain(name: str) -> bool:
    """Whether a name stays within its folder, on every system."""
    return not any(part in ("", ".", "..") or set(part) & set("\\:\0") for part in name.split("/"))


def missing_bytes(repository: HubRepository, files: tuple[HubFile, ...]) -> int:
    """The bytes of those of these files that are not in the Hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    model_id, commit = repository.hub_id.model_id, repository.commit
    return sum(
        file.n_bytes
        for file in files
        if not isinstance(try_to_load_from_cache(model_id, file.name, revision=commit), str)
    )


def write_beginning(repository: HubRepository, file: HubFile, path: Path, n_bytes: int) -> None:
    """Writes the first `n_bytes` of a file to `path`, and as a hole what follows.

    Raises:
        HubError: as `RangeReader.fill`.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    url = hf_hub_url(repository.hub_id.model_id, file.name, revision=repository.commit)
    remote = RemoteFile(file.name, url, file.n_bytes, parse_digest(file.sha256), build_hf_headers())
    beginning = bytearray(min(n_bytes, file.n_bytes))
    RangeReader().fill(remote, 0, memoryview(beginning))
    with path.open("wb") as out:
        out.write(beginning)
        out.truncate(file.n_bytes)


def download(repository: HubRepository, file: HubFile, path: Path, on_progress: Callable[[int], None]) -> None:
    """Downloads a file to `path`, which gets its name when every byte was checked. It resumes.

    Args:
        on_progress: called with the bytes that are there.

    Raises:
        HubError: as `fetch`; also a file whose digest is not the Hub's.
        OSError: the file cannot be written.
    """
    from huggingface_hub import hf_hub_download

    folder = path.with_name(f".{path.name}.download")
    with translated(repository.hub_id):
        there = Path(
            hf_hub_download(
                repository.hub_id.model_id,
                file.name,
                revision=repository.commit,
                local_dir=folder,
                tqdm_class=reporting_bar(on_progress),
            )
        )
    if file.sha256 is not None and _sha256(there) != file.sha256:
        shutil.rmtree(folder)
        raise HubError(f"{file.name}: the bytes that came are not the Hub's (sha256)", hint="run it again")
    there.replace(path)
    shutil.rmtree(folder)


def _sha256(path: Path) -> str:
    digest = FILE.start()
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()
