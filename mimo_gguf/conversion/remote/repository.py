"""A model's files on a hub, as the code that fetches them sees them, whichever hub it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mimo_gguf.core.digests import FILE, GIT_BLOB, Hasher
from mimo_gguf.core.errors import HubError

_SHA1_BYTES: Final = 20
_SHA256_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file at one commit of a repository.

    Attributes:
        url: where it is; the hub may answer with a redirect to a link that expires.
        headers: what the hub wants with the request, a token for example. No other host gets them.
        digest: its SHA-256, or, of a small file that git itself keeps, the SHA-1 of git's blob; empty if unknown.
        head: its first bytes, if they have been read before; they must come again.
    """

    name: str
    url: str
    n_bytes: int
    digest: bytes
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    head: bytes = field(default=b"", repr=False)

    def start_digest(self) -> Hasher:
        """A hasher for its bytes, to be compared with `digest`."""
        if len(self.digest) == _SHA256_BYTES:
            return FILE.start()
        hasher = GIT_BLOB.start()
        hasher.update(b"blob %d\0" % self.n_bytes)
        return hasher


@dataclass(frozen=True, slots=True)
class Repository:
    """A model's repository at one commit.

    Attributes:
        label: what the user called it.
        model_id: `org/name`.
        commit: the commit that its files are of, so that all are of one state; of a hub that does not tell it, the
            revision.
        page: the web page of the model, if it is not on the Hugging Face Hub.
        small_files: everything but weights, by name: functions that give the content.
        list_weights: asks for the shards with these names; it may need a request for each.
        copy: the folder in the hub's own cache that has all of it already.
    """

    label: str
    model_id: str
    commit: str
    page: str | None
    small_files: Mapping[str, Callable[[], bytes]]
    list_weights: Callable[[Sequence[str]], Sequence[RemoteFile]]
    copy: Path | None = None


def parse_digest(text: str | None) -> bytes:
    """The digest in hexadecimal digits, a SHA-256 or a SHA-1; empty if the text is neither."""
    try:
        digest = bytes.fromhex(text or "")
    except ValueError:
        return b""
    return digest if len(digest) in (_SHA1_BYTES, _SHA256_BYTES) else b""


def check_digests(files: Iterable[RemoteFile]) -> None:
    """Raises HubError if the hub does not state a digest of some file, so that it could not be checked."""
    for file in files:
        if not file.digest:
            raise HubError(
                f"{file.name}: the hub does not state its SHA-256, so that the download could not be checked",
                hint="--keep-checkpoint downloads it as the hub's own library does",
            )
