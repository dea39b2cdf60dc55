"""Reads ranges of remote files over HTTP, and does not give up early: networks break, hubs are busy, links expire.

huggingface_hub gives the client: with it come proxies, certificates and the refusal to connect if HF_HUB_OFFLINE is
set. What is here is what its downloads do not have: a range goes into the caller's memory, and after a failure it goes
on at the byte where it broke.
"""

from __future__ import annotations

import contextlib
import email.utils
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from mimo_gguf.conversion.remote.repository import RemoteFile, check_digests
from mimo_gguf.core.errors import HubError, first_line
from mimo_gguf.core.units import format_duration

_TIMEOUT_S: Final = 20.0  # for a connection, and for each piece of an answer
_RETRIED: Final = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})
_EXPIRED: Final = frozenset({400, 401, 403, 404, 410})  # what storage hosts answer to a link that is too old
_LONGEST_STATED_S: Final = 900.0
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
T = TypeVar("T")
_AN_ADVANCE: Final = 1 << 16  # bytes that show that the network works, so that the patience starts afresh


@dataclass(frozen=True, slots=True)
class Patience:
    """How often a range is tried again, and how long the pauses are.

    Attributes:
        tries: failures one after another, without an advance between them, after which it gives up.
        first_s, longest_s: the pauses in seconds: each is twice as long as the one before, give or take half.
    """

    tries: int = 8
    first_s: float = 1.0
    longest_s: float = 60.0

    def pause_s(self, n_failures: int) -> float:
        """The pause after the `n_failures`-th failure, in seconds."""
        return min(self.first_s * 2.0 ** (n_failures - 1), self.longest_s) * random.uniform(0.5, 1.5)


class Broken(Exception):
    """An attempt that failed, but is worth another.

    Attributes:
        stated_s: how long the hub asked to wait, in seconds.
        at_once: whether another attempt makes sense without a pause.
    """

    def __init__(self, why: str, *, stated_s: float | None = None, at_once: bool = False) -> None:
        super().__init__(why)
        self.stated_s = stated_s
        self.at_once = at_once


class Stopped(HubError):
    """The run was stopped while it waited for the network."""


@dataclass(slots=True)
class _Filling:
    """A range that is being filled."""

    file: RemoteFile
    start: int
    out: memoryview
    done: int = 0

    @property
    def headers(self) -> dict[str, str]:
        return {
            "Range": f"bytes={self.start + self.done}-{self.start + len(self.out) - 1}",
            "Accept-Encoding": "identity",
        }


@dataclass(slots=True)
class RangeReader:
    """Reads ranges. Any number of threads may use it.

    Attributes:
        wait: waits for so many seconds; True if the run was stopped meanwhile.
        on_bytes: called with the number of bytes whenever some have arrived.
    """

    patience: Patience = field(default_factory=Patience)
    wait: Callable[[float], bool] = field(default_factory=lambda: threading.Event().wait)
    on_bytes: Callable[[int], None] = field(default=lambda _: None)
    timeout_s: float = _TIMEOUT_S
    _links: dict[str, str] = field(default_factory=dict)  # url -> where the hub redirected to
    _not_before: float = 0.0  # the hub asked for silence until then
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fill(self, file: RemoteFile, start: int, out: memoryview) -> None:
        """Fills `out` with the file's bytes from `start`.

        Raises:
            HubError: the hub refuses the file, or the network fails for good.
        """
        filling = _Filling(file, start, out)
        while filling.done < len(out):
            self.persist(file.name, lambda: self._advance(filling))

    def persist(self, what: str, attempt: Callable[[], T]) -> T:
        """Attempts something until it succeeds; it fails with `Broken` if another attempt is worth it.

        Raises:
            HubError: it failed for good.
        """
        failures = 0
        while True:
            self._keep_silence()
            try:
                return attempt()
            except Broken as broken:
                failures += 1
                self._pause(what, broken, failures)

    def read(self, file: RemoteFile) -> bytes:
        """The whole content of a small file, checked; if its digest is wrong, it is read once more.

        Raises:
            HubError: as `fill`; or the digest is not stated, or was wrong twice.
        """
        check_digests([file])
        for _ in range(2):
            content = bytearray(file.n_bytes)
            self.fill(file, 0, memoryview(content))
            hasher = file.start_digest()
            hasher.update(content)
            if hasher.digest() == file.digest:
                return bytes(content)
        raise wrong_twice(file)

    def _keep_silence(self) -> None:
        left = self._not_before - time.monotonic()
        if left > 0 and self.wait(left):
            raise Stopped("stopped")

    def _pause(self, what: str, broken: Broken, failures: int) -> None:
        if failures >= self.patience.tries:
            raise HubError(
                f"{what}: {broken}, {failures} times in a row", hint="check the connection; run it again, it resumes"
            ) from None
        if broken.at_once and failures == 1:
            return
        stated = broken.stated_s
        if stated is not None:
            if stated > _LONGEST_STATED_S:
                raise HubError(
                    f"{what}: {broken}, and the hub asks to wait {format_duration(stated)}",
                    hint="run it again then, it resumes; a token gives a higher limit (hf auth login)",
                ) from None
            with self._lock:
                self._not_before = max(self._not_before, time.monotonic() + stated)
        if self.wait(self.patience.pause_s(failures) if stated is None else stated):
            raise Stopped("stopped")

    def _advance(self, filling: _Filling) -> None:
        """One request; a failure that brought many bytes is not one, because the network works."""
        before = filling.done
        try:
            self._attempt(filling)
        except Broken:
            if filling.done - before < min(_AN_ADVANCE, len(filling.out) // 4 + 1):
                raise

    def _attempt(self, filling: _Filling) -> None:
        """One request; what arrives is kept, even if it then fails."""
        from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

        file = filling.file
        url = self._links.get(file.url, file.url)
        headers = {**(file.headers if _same_host(url, file.url) else {}), **filling.headers}
        with network_errors(file.name):
            stream = get_session().stream("GET", url, headers=headers, timeout=self.timeout_s, follow_redirects=True)
            with stream as answer:
                self._check_status(file, url, answer)
                _check_range(filling, answer)
                if answer.history:
                    self._links[file.url] = str(answer.url)
                self._take(filling, answer)

    def _take(self, filling: _Filling, answer: Any) -> None:
        for data in answer.iter_raw():
            n = min(len(data), len(filling.out) - filling.done)
            filling.out[filling.done : filling.done + n] = data[:n]
            filling.done += n
            self.on_bytes(n)
            if n < len(data):  # the hub ignored the end of the range
                return
        if filling.done < len(filling.out):
            raise Broken("the answer ended early", at_once=True)

    def _check_status(self, file: RemoteFile, url: str, answer: Any) -> None:
        status = answer.status_code
        if status in (200, 206):
            return
        elsewhere = url != file.url or bool(answer.history)
        if elsewhere and status in _EXPIRED:
            self._links.pop(file.url, None)
            raise Broken(f"the link that the hub gave was refused ({status})", at_once=True)
        check_busy(answer)
        raise _refusal(file, status)


@contextlib.contextmanager
def network_errors(what: str) -> Iterator[None]:
    """Turns the errors of huggingface_hub's client into Broken; a forbidden connection into a HubError."""
    from huggingface_hub import errors

    try:
        yield
    except errors.OfflineModeIsEnabled:
        raise HubError(f"{what}: HF_HUB_OFFLINE forbids to fetch it", hint="unset HF_HUB_OFFLINE") from None
    except errors.HfHubHTTPError as error:
        check_busy(error.response)
        raise
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        raise Broken(_describe(error)) from None


def check_busy(answer: Any) -> None:
    """Raises Broken if a hub answered that it is busy or out of order, with the pause that it asks for."""
    if answer is not None and answer.status_code in _RETRIED:
        raise Broken(f"the hub answered {answer.status_code}", stated_s=stated_pause_s(answer.headers))


def stated_pause_s(headers: Mapping[str, str]) -> float | None:
    """The pause that an answer asks for, in seconds: `Retry-After`, as a number or a date, or the Hub's `RateLimit`.

    https://www.rfc-editor.org/rfc/rfc9110#field.retry-after
    """
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    stated = headers.get("Retry-After", "").strip()
    if stated.isdigit():
        return float(stated)
    if stated:
        try:
            return max(0.0, email.utils.parsedate_to_datetime(stated).timestamp() - time.time())
        except ValueError:
            return None
    limit = parse_ratelimit_headers(headers)
    return None if limit is None or limit.remaining else float(limit.reset_in_seconds)


def wrong_twice(file: RemoteFile) -> HubError:
    """The error for a file that arrived twice with a wrong digest."""
    return HubError(
        f"{file.name}: arrived twice with another digest than the hub states",
        hint="somebody pushed meanwhile: run it again; or a proxy or mirror changes it: try another network or mirror",
    )


def _check_range(filling: _Filling, answer: Any) -> None:
    """Refuses an answer that is not the range asked for."""
    first = filling.start + filling.done
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise Broken("the answer is compressed")
    if answer.status_code == 200:
        if first == 0:
            return
        raise Broken("the server ignores ranges")
    match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
    if match is None or int(match[1]) != first:
        raise Broken("the answer is another range than asked for")
    if int(match[3]) != filling.file.n_bytes:
        raise Broken(f"the file has {match[3]} bytes, not {filling.file.n_bytes}")


def _refusal(file: RemoteFile, status: int) -> HubError:
    if status in (401, 403):
        return HubError(
            f"{file.name}: access refused ({status})",
            hint="accept the model's terms on its page, and log in: hf auth login, or HF_TOKEN (MODELSCOPE_API_TOKEN)",
        )
    if status in (404, 410):
        return HubError(f"{file.name}: no longer there ({status})", hint="run it again: it looks for the newest files")
    return HubError(f"{file.name}: the hub answered {status}", hint="run it again, it resumes")


def _same_host(url: str, other: str) -> bool:
    return urlsplit(url)[:2] == urlsplit(other)[:2]


def _describe(error: BaseException) -> str:
    """A failure of the network, in words."""
    text = first_line(error)
    return text if text != type(error).__name__ else f"the network failed ({text})"
