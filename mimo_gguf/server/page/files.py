"""The page's files, read once: what is served is in this table, so that no path of a request touches the disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mimo_gguf.core.digests import PAGE_FILE

_FOLDER: Final = Path(__file__).with_name("static")
_TYPES: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# No script but the page's own runs, nothing is fetched from elsewhere, and no other page shows this one in a frame.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file of the page, and the tag by which a browser knows that it has not changed."""

    content: bytes
    kind: str
    tag: str


def _read(path: Path) -> PageFile:
    content = path.read_bytes()
    tag = f'"{PAGE_FILE.hex(content)[:20]}"'
    return PageFile(content, f"{_TYPES[path.suffix]}; charset=utf-8", tag)


def _addresses() -> dict[str, PageFile]:
    files = {path.name: _read(path) for path in sorted(_FOLDER.iterdir()) if path.suffix in _TYPES}
    return {"/" if name == "index.html" else f"/page/{name}": file for name, file in files.items()}


FILES: Final = _addresses()  # path -> file
