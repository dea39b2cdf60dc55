"""The settings of a server, checked: where it listens, who may ask, and how much it takes."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mimo_gguf.core.digests import API_KEY
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.numbers import is_number, is_whole
from mimo_gguf.server.connections import ConnectionLimits
from mimo_gguf.server.engine import Limits

LOOPBACK: Final = "127.0.0.1"
_ORIGIN: Final = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+")
_KEY_HINT: Final = "give --api-key or --api-key-file, or --insecure if only friends can reach it"


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a server.

    Attributes:
        host, port: where it listens; port 0 takes a free one.
        names: what the model is called, the name that lists show first.
        api_keys: SHA-256 digests of the keys, one of which a request must have; none means that all may ask.
        cors_origins: origins whose pages may ask from a browser; "*" for all.
        tls: the certificate and its key; None speaks plain HTTP.
        limits: how many answers may wait, and how long a call may take.
        body_bytes: the longest body.
        body_s: seconds in which a body must have come.
        keep_alive_s: seconds of silence after which a stream gets a comment.
        connections: how many connections there may be, and how slow they may be.
        files_dir: a folder for files and batches, of this server's own; None keeps none.
        files_bytes: the largest upload.
        n_batch_rows: rows of batches that are answered at a time.
    """

    host: str = LOOPBACK
    port: int = 8080
    names: tuple[str, ...] = ("default",)
    api_keys: tuple[bytes, ...] = ()
    cors_origins: tuple[str, ...] = ()
    tls: tuple[Path, Path] | None = None
    limits: Limits = field(default_factory=Limits)
    body_bytes: int = 32 << 20
    body_s: float = 60.0
    keep_alive_s: float = 10.0
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)
    files_dir: Path | None = None
    files_bytes: int = 512 << 20
    n_batch_rows: int = 4

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)

    @property
    def url(self) -> str:
        """Where clients find it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_reach(host: str, keys: Sequence[bytes], *, insecure: bool) -> None:
    """Refuses an address that others reach without a key.

    Raises:
        UsageError: the address is not loopback, there is no key, and `insecure` is not wished for.
    """
    if not is_loopback(host) and not keys and not insecure:
        raise UsageError(f"{host} can be reached by others, and there is no key", hint=_KEY_HINT)


def key_digests(keys: Sequence[str], file: Path | None) -> tuple[bytes, ...]:
    """The digests of the keys given and of those in a file, one in a line; `#` begins a comment.

    Raises:
        UsageError: the file cannot be read or holds no key, or a key is empty or not plain ASCII.
    """
    found = list(keys)
    if file is not None:
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not a text file"
            raise UsageError(f"{file}: {reason}", hint="give a file with one key in a line") from None
        of_file = [line for line in lines if line and not line.startswith("#")]
        if not of_file:
            raise UsageError(f"{file}: holds no key", hint="write one key in a line")
        found += of_file
    for key in found:
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise UsageError(
                "a key that is empty, or has spaces or other than ASCII characters", hint="openssl rand -hex 32"
            )
    return tuple(digest(key) for key in found)


def digest(key: str) -> bytes:
    """What keys are compared by: digests of one length, so that the time tells nothing about a key."""
    return API_KEY.of(key.encode("utf-8", "surrogateescape"))


def read_settings(
    *,
    host: str,
    port: int,
    names: Sequence[str],
    n_waiting: int,
    time_s: float | None,
    api_keys: Sequence[str],
    api_key_file: str | Path | None,
    insecure: bool,
    cors_origins: Sequence[str],
    tls_cert: str | Path | None,
    tls_key: str | Path | None,
) -> Settings:
    """The settings that a user's options mean.

    Raises:
        UsageError: an option is out of range, or others could ask without a key.
    """
    keys = key_digests(api_keys, None if api_key_file is None else Path(api_key_file))
    check_reach(host, keys, insecure=insecure)
    _check_numbers(port, n_waiting, time_s)
    for origin in cors_origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise UsageError(f"{origin!r} is not an origin", hint="--cors-origin https://example.org")
    if (tls_cert is None) != (tls_key is None):
        raise UsageError("TLS needs a certificate and its key", hint="--tls-cert cert.pem --tls-key key.pem")
    return Settings(
        host=host,
        port=port,
        names=tuple(dict.fromkeys(names)),
        api_keys=keys,
        cors_origins=tuple(cors_origins),
        tls=None if tls_cert is None or tls_key is None else (Path(tls_cert), Path(tls_key)),
        limits=Limits(n_waiting, time_s),
    )


def _check_numbers(port: int, n_waiting: int, time_s: float | None) -> None:
    if not is_whole(port) or not 0 <= port <= 65535:
        raise UsageError(f"port {port}", hint="choose 1 to 65535: --port 8080")
    if not is_whole(n_waiting) or not 0 <= n_waiting <= 1 << 20:
        raise UsageError(f"a queue of {n_waiting}", hint="choose how many answers may wait: --queue 64")
    if time_s is not None and (not is_number(time_s) or not 0 < time_s < 1e9):
        raise UsageError(f"a time limit of {time_s} seconds", hint="give seconds: --time-limit 600")
