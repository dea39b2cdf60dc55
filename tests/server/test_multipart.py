"""Uploads: as httpx writes them, in pieces of any size, and broken ones."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimo_gguf.server.failures import Refused
from mimo_gguf.server.multipart import Upload


def encoded(content: bytes, name: str = "rows.jsonl", **fields: str) -> tuple[str, bytes]:
    request = httpx.Request("POST", "http://x", data=fields, files={"file": (name, content)})
    return request.headers["content-type"], request.read()


@settings(max_examples=60, deadline=None)
@given(
    content=st.lists(st.sampled_from([b"\r\n", b"--", b"x", b"\r\n--", b"boundary", b"\0\xff"])).map(b"".join),
    sizes=st.lists(st.integers(1, 30), min_size=1),
)
def test_whatever_is_in_it_and_however_it_comes(content: bytes, sizes: list[int]) -> None:
    kind, body = encoded(content, purpose="batch", other="é")
    got = bytearray()
    upload = Upload(kind, got.extend)
    at = number = 0
    while at < len(body):
        size = sizes[number % len(sizes)]
        upload.feed(body[at : at + size])
        at, number = at + size, number + 1
    upload.finish()
    assert (bytes(got), upload.filename, upload.fields) == (content, "rows.jsonl", {"purpose": "batch", "other": "é"})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda body: body[:-4],
        lambda body: body[:40],
        lambda body: b"",
        lambda body: body.replace(b"name=", b"nome="),
        lambda body: body.replace(b"filename=", b"x="),
        lambda body: body.replace(b'name="file"', b'name="fill"'),
        lambda body: body.replace(b"\r\n\r\n", b"x" * 20_000),
    ],
)
def test_a_broken_upload_is_refused(spoil: object) -> None:
    kind, body = encoded(b"{}\n" * 9, purpose="batch")
    upload = Upload(kind, lambda piece: None)
    with pytest.raises(Refused):
        upload.feed(spoil(body))  # type: ignore[operator]
        upload.finish()


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data", "", "multipart/form-data; boundary="])
def test_what_is_not_an_upload(kind: str) -> None:
    with pytest.raises(Refused, match="multipart"):
        Upload(kind, lambda piece: None)
