"""Every digest this package computes: what it covers, by which algorithm, and what it is for.

Each need has its algorithm. SHA-256 is for what people or other programs compare (the Hub shows it), and for small
texts that name something for good. XXH3 is for tensor data: it is faster than memory is read, and no flipped bit
escapes it, but it does not withstand an attacker. BLAKE2b-128 is for saved caches of conversations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import xxhash


class Hasher(Protocol):
    """A digest that is being computed."""

    def update(self, data: Any, /) -> None: ...

    def digest(self) -> bytes: ...

    def hexdigest(self) -> str: ...


_ALGORITHMS: Final[dict[str, Callable[[], Any]]] = {
    "sha256": hashlib.sha256,
    "xxh3-128": xxhash.xxh3_128,
    "xxh3-64": xxhash.xxh3_64,
    "sha1": lambda: hashlib.sha1(usedforsecurity=False),
    "blake2b-128": lambda: hashlib.blake2b(digest_size=16),
}


@dataclass(frozen=True, slots=True)
class Digest:
    """One kind of digest.

    Attributes:
        name: what it is called in code and documents.
        algorithm: a key of `_ALGORITHMS`.
        covers: the bytes it is computed from.
        purpose: who compares it with what.
    """

    name: str
    algorithm: str
    covers: str
    purpose: str

    def start(self) -> Hasher:
        """A hasher that reads the data piece by piece."""
        hasher: Hasher = _ALGORITHMS[self.algorithm]()
        return hasher

    def of(self, *pieces: Any) -> bytes:
        """The digest of contiguous pieces (bytes or buffers), one after the other."""
        hasher = self.start()
        for piece in pieces:
            hasher.update(piece)
        return hasher.digest()

    def hex(self, *pieces: Any) -> str:
        """The digest as lower-case hexadecimal digits."""
        return self.of(*pieces).hex()

    def of_digests(self, digests: Iterable[bytes]) -> bytes:
        """The digest that stands for a sequence of digests."""
        return self.of(b"".join(digests))


# ---- what data is
CHUNK: Final = Digest(
    "chunk", "xxh3-128",
    "the bytes of one chunk of a tensor, as read from a source or as written to an output",
    "the journal: which chunks an interrupted run finished, and whether their bytes are still there",
)  # fmt: skip
TENSOR: Final = Digest(
    "tensor", "xxh3-128",
    "the chunk digests of one tensor, in order",
    "sums.json: which tensor of a file changed",
)  # fmt: skip
HEADER: Final = Digest(
    "header", "xxh3-128",
    "everything of a GGUF file before its tensor data, with spaces in its room for a certificate",
    "sums.json: whether metadata or tensor table changed",
)  # fmt: skip
TENSORS: Final = Digest(
    "tensors", "xxh3-128",
    "the tensor digests of all tensors of an output, in the order of their names",
    "metadata `mimo_gguf.tensors.digest`: whether a file without sums.json changed",
)  # fmt: skip
TABLE: Final = Digest(
    "table", "xxh3-128",
    "one line per tensor of an output: name, type, shape, part, and offset within the part's tensor data",
    "metadata `mimo_gguf.tensors.table`: whether `mimo_gguf.tensors.digest` is about this file or was copied along",
)  # fmt: skip
SOURCE: Final = Digest(
    "source", "xxh3-128",
    "one line per tensor of a source: name, shape, type, and the tensor digest of its bytes",
    "metadata `mimo_gguf.source.digest`: whether two outputs come from the same weights",
)  # fmt: skip
FILE: Final = Digest(
    "file", "sha256",
    "all bytes of a file",
    "sums.json: the sum that the Hub shows of an uploaded file, and that sha256sum prints",
)  # fmt: skip
GIT_BLOB: Final = Digest(
    "git blob", "sha1",
    "the word blob, the size of a file, and all of its bytes",
    "the name that git gives to a small file on a hub: whether a download is right",
)  # fmt: skip
SUMS: Final = Digest(
    "sums", "xxh3-128",
    "the values in a sums.json",
    "sums.json: whether the checksums themselves were changed",
)  # fmt: skip
CERTIFICATE: Final = Digest(
    "certificate", "sha256",
    "everything else in a certificate, as one line of JSON",
    "a certificate: whether it was changed",
)  # fmt: skip
API_KEY: Final = Digest(
    "API key", "sha256",
    "a key that the server accepts, or that a request brings",
    "nowhere: digests of one length are compared, so that the time tells nothing about a key",
)  # fmt: skip

PAGE_FILE: Final = Digest(
    "page file", "sha256",
    "the bytes of a file of the browser's page",
    "its ETag: whether a browser has it already",
)  # fmt: skip

# ---- what decides data
RECIPE: Final = Digest(
    "recipe", "sha256",
    "a TOML file of convert/ or quant_profiles/, or a profile of the user's",
    "part of the run: another recipe or profile starts afresh",
)  # fmt: skip
GGUF_HEADER: Final = Digest(
    "gguf header", "sha256",
    "header and tensor table of a GGUF that is read, with spaces in its room for a certificate",
    "part of a source's fingerprint; whether a saved conversation is of this model",
)  # fmt: skip
FINGERPRINT: Final = Digest(
    "fingerprint", "sha256",
    "a source's headers, recipe and metadata, with size and time of its files",
    "part of the run: a changed source starts afresh",
)  # fmt: skip
RUN: Final = Digest(
    "run", "sha256",
    "version, source fingerprint, profile, planned headers and importance weights of an output",
    "sums.json: whether the same run has made the file already",
)  # fmt: skip
JOURNAL: Final = Digest(
    "journal", "sha256",
    "the run digest and the names of the kernels",
    "the journal's first line: whether an interrupted run can go on",
)  # fmt: skip
GATHERED: Final = Digest(
    "gathered", "sha256",
    "source fingerprint, options and windows of an importance matrix that is being measured",
    "the sums of an interrupted run: whether the same run can go on with them",
)  # fmt: skip
RECORD: Final = Digest(
    "record", "xxh3-64",
    "one record of a journal",
    "the journal: whether a record is torn",
)  # fmt: skip
WORK: Final = Digest(
    "work", "sha256",
    "version, source fingerprint, tokens and options of a calibration",
    "run.json in a work folder: whether an interrupted calibration can go on",
)  # fmt: skip
GRAM: Final = Digest(
    "gram", "xxh3-128",
    "the bytes of one Gram matrix",
    "metadata `mimo_gguf.calibration.statistics`: whether two files were calibrated with the same statistics",
)  # fmt: skip

# ---- rows of a batch
ROW: Final = Digest(
    "row", "xxh3-64",
    "custom_id, method, url and body of a row, as JSON with sorted keys",
    "the id of its output: whether the row has changed since it was answered",
)  # fmt: skip
ROW_NAME: Final = Digest(
    "row name", "xxh3-64",
    "the custom_id of a row",
    "nowhere: millions of names are compared in a compact table; the seed of a row that gives none",
)  # fmt: skip
ROW_RUN: Final = Digest(
    "row run", "xxh3-64",
    "the fingerprint of the model and settings that answer a batch",
    "the id of each output: whether all answers are of one model",
)  # fmt: skip

# ---- texts
TEXT: Final = Digest(
    "text", "sha256",
    "the UTF-8 bytes of a document, or one line per document of a set",
    "whether a document is for calibration or for judging; which texts a figure is about",
)  # fmt: skip
WINDOWS: Final = Digest(
    "windows", "sha256",
    "the token ids of the windows of a text, each after their number",
    "a folder of states: whether it is of the same text",
)  # fmt: skip

# ---- speeds
SHAPES: Final = Digest(
    "shapes", "xxh3-128",
    "one line per tensor of a model, sorted: name, type and shape",
    "speeds.json: whether a speed that was measured here is of a file that reads the same bytes",
)  # fmt: skip

# ---- caches
KERNELS: Final = Digest(
    "kernels", "sha256",
    "the source files of the kernels",
    "the name of the folder with the compiled kernels",
)  # fmt: skip
STATE: Final = Digest(
    "state", "blake2b-128",
    "the saved cache of one context of a conversation",
    "a saved conversation: whether its file is whole",
)  # fmt: skip

DIGESTS: Final = (
    CHUNK, TENSOR, HEADER, TENSORS, TABLE, SOURCE, FILE, GIT_BLOB, SUMS, CERTIFICATE, API_KEY,
    RECIPE, GGUF_HEADER, FINGERPRINT, RUN, JOURNAL, RECORD, PAGE_FILE,
    WORK, GRAM, ROW, ROW_NAME, ROW_RUN,
    TEXT, WINDOWS, GATHERED, SHAPES, KERNELS, STATE,
)  # fmt: skip
