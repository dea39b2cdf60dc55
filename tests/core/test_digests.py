"""The table of digests: complete, true to the libraries' own functions, and the only place that computes any."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
import xxhash

from mimo_gguf.core import digests
from mimo_gguf.core.digests import DIGESTS, Digest

PACKAGE = Path(digests.__file__).parents[1]


def test_every_digest_of_the_module_is_in_the_table_under_a_name_of_its_own() -> None:
    defined = [value for value in vars(digests).values() if isinstance(value, Digest)]
    assert len(defined) == len(DIGESTS) == len({digest.name for digest in DIGESTS})
    assert set(defined) == set(DIGESTS)
    assert all(digest.covers and digest.purpose for digest in DIGESTS)


@pytest.mark.parametrize("digest", DIGESTS, ids=lambda digest: digest.name)
def test_a_digest_is_that_of_its_algorithm_however_the_data_is_cut(digest: Digest) -> None:
    data = bytes(range(256)) * 7
    expected = {
        "sha256": hashlib.sha256(data).digest(),
        "sha1": hashlib.sha1(data).digest(),
        "xxh3-128": xxhash.xxh3_128_digest(data),
        "xxh3-64": xxhash.xxh3_64_digest(data),
        "blake2b-128": hashlib.blake2b(data, digest_size=16).digest(),
    }[digest.algorithm]
    assert digest.of(data) == digest.of(data[:100], data[100:]) == expected
    assert digest.hex(data) == expected.hex()
    assert digest.of_digests([b"a", b"b"]) == digest.of(b"ab")


def test_no_other_file_computes_a_digest() -> None:
    computing = [
        path.name
        for path in PACKAGE.rglob("*.py")
        if re.search(r"\b(hashlib|xxhash|zlib\.crc32|binascii)\b", path.read_text(encoding="utf-8"))
    ]
    assert computing == ["digests.py"]


def test_every_digest_of_the_table_is_used() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py") if path.name != "digests.py")
    names = [name for name, value in vars(digests).items() if isinstance(value, Digest)]
    assert [name for name in names if not re.search(rf"\b{name}\b", sources)] == []
