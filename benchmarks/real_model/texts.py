"""Texts that biases and MTP layer are trained on, from packages that can be installed by name.

prose   Debian's `anarchism` (An Anarchist FAQ; GFDL or GPL) and `debian-reference-en` (GPL-2+)
code    Python's standard library (PSF-2.0)
manual  Debian's `perl-doc` (GPL-1+ or Artistic) and `python3.11-doc` (PSF-2.0)

A document is held out, whole, if `mimo-gguf quality` would judge by it; so its figures are about unseen text. Pages of
Python's documentation that `help` shows parts of are left out altogether, because `quality` judges by those.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

PACKAGES = ("anarchism=15.3-3", "debian-reference-en=2.100", "perl-doc", "python3.11-doc")
KINDS = ("prose", "code", "manual")
PIECE = 3600  # characters: enough for a window of 512 tokens
HELD_EVERY = 4
SHORTEST, LONGEST = 1500, 200_000  # characters of a file of code
NOT_CODE = {"site-packages", "dist-packages", "test", "tests", "lib2to3", "idle_test", "pydoc_data"}
IN_HELP = re.compile(r"_sources/(reference/.*|library/(stdtypes|string|pdb|constants|functions)\.rst\.txt)$")


@dataclass(frozen=True, slots=True)
class Document:
    """A text with its kind, the name of its file, and its part: "train" or "held"."""

    kind: str
    name: str
    part: str
    text: str


def make_document(kind: str, name: str, text: str) -> Document:
    """A document in the part that its content decides."""
    digest = hashlib.sha256(text.strip().encode("utf-8", "surrogatepass")).hexdigest()
    is_held = int(digest[:8], 16) % HELD_EVERY == 0
    return Document(kind, name, "held" if is_held else "train", text)


def fetch_packages(folder: Path) -> None:
    """Downloads the Debian packages with apt-get, and unpacks them into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", *PACKAGES], cwd=folder, check=True)
    for package in sorted(folder.glob("*.deb")):
        subprocess.run(["dpkg", "-x", package, folder], check=True)


def collect(folder: Path) -> list[Document]:
    """All documents, of the unpacked packages in `folder` and of this Python's standard library."""
    return sorted({document.text: document for document in _documents(folder)}.values(), key=lambda d: (d.kind, d.name))


def _documents(folder: Path) -> Iterator[Document]:
    share = folder / "usr" / "share"
    library = Path(sys.base_prefix) / "lib" / f"python3.{sys.version_info.minor}"
    for path in (share / "doc" / "anarchism" / "markdown").glob("*"):
        if path.is_file():
            yield make_document("prose", path.name, read(path))
    for path in (share / "debian-reference").glob("*.en.html"):
        yield make_document("prose", path.name, without_tags(read(path)))
    for path in library.rglob("*.py"):
        text = "" if NOT_CODE & set(path.parts) else read(path)
        if SHORTEST < len(text) < LONGEST:
            yield make_document("code", path.relative_to(library).as_posix(), text)
    for pattern in ("**/*.pod", "**/_sources/**/*.txt"):
        for path in share.glob(pattern):
            if IN_HELP.search(path.as_posix()):
                continue
            yield make_document("manual", path.relative_to(share).as_posix(), read(path))


def read(path: Path) -> str:
    """The text of a file, unpacked if it ends in .gz."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return data.decode("utf-8", "replace")


def without_tags(page: str) -> str:
    """The words of an HTML page, with a line for each paragraph."""
    page = re.sub(r"(?s)<(script|style|head).*?</\1>", " ", page)
    page = re.sub(r"(?i)</(p|h\d|li|div|tr|dt|dd|pre)>|<br\s*/?>", "\n", page)
    page = html.unescape(re.sub(r"(?s)<[^>]+>", "", page))
    return re.sub(r"\n\s*\n+", "\n\n", re.sub(r"[ \t]+", " ", page)).strip()


def pieces(documents: Sequence[Document], kind: str, part: str) -> list[str]:
    """Pieces of the documents of one kind and part, in an order that mixes documents and is always the same."""
    found = {}
    for document in documents:
        if (document.kind, document.part) == (kind, part):
            digest = hashlib.sha256(document.text.encode()).hexdigest()
            for start in range(0, max(1, len(document.text) - PIECE // 2), PIECE):
                key = hashlib.sha256(f"{digest}:{start}".encode()).digest()
                found[key] = document.text[start : start + PIECE]
    return [found[key] for key in sorted(found)]


def write_documents(path: Path, documents: Sequence[Document]) -> None:
    """Writes documents as JSON, one a line."""
    path.write_text("".join(f"{json.dumps(asdict(document))}\n" for document in documents), encoding="utf-8")


def read_documents(path: Path) -> list[Document]:
    """Reads what `write_documents` wrote."""
    return [Document(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
