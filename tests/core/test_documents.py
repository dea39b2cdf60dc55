"""Small documents: whatever a file holds, reading it gives its value or one error with the path in it, at once."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_gguf.core.documents import DocumentKind
from mimo_gguf.core.errors import UsageError

KIND = DocumentKind(UsageError, "do this", most_bytes=1_000_000)

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(JSON_VALUES)
def test_json_is_read_as_the_standard_library_reads_it(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False)
    assert KIND.parse_json(text, "here") == json.loads(text)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_one_error(data: bytes) -> None:
    for parse in (KIND.parse_json, lambda raw, where: KIND.parse_yaml(raw.decode("latin-1"), where)):
        try:
            parse(data, "here")
        except UsageError as error:
            assert error.message.startswith("here: ")
            assert "\n" not in error.message
            assert error.hint


HOSTILE_JSON = {
    "nested arrays": b"[" * 500_000,
    "nested objects": b'{"a":' * 190_000,
    "nested just below Python's limit": b"[" * 500 + b"]" * 500,
    "a number of a million digits": b"9" * 999_000,
    "a number beyond 64 bits": b"1" + b"0" * 25,
    "an infinite number": b"1e999",
    "NaN": b'{"a": NaN}',
    "half a character": b'"\\ud800"',
    "half a character as a key": b'{"\\udfff": 1}',
    "not UTF-8": b"\xff\xfe",
    "empty": b"",
    "too large": b" " * 1_000_001,
}


@pytest.mark.parametrize("case", HOSTILE_JSON)
def test_hostile_json(tmp_path: Path, case: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(HOSTILE_JSON[case])
    with pytest.raises(UsageError, match=r"a\.json: ") as caught:
        KIND.read_json(path)
    assert caught.value.hint == "do this"


def test_unbounded_numbers_are_the_callers_to_check() -> None:
    """Trainers write NaN and absurd numbers into entries that nobody reads."""
    kind = DocumentKind(UsageError, "do this", bounded=False)
    assert kind.parse_json('{"a": NaN, "b": 1' + "0" * 30 + "}", "here")["b"] == 10**30
    with pytest.raises(UsageError, match="not valid JSON"):
        kind.parse_json("9" * 10_000, "here")


HOSTILE_TOML = {
    "nested arrays": "a = " + "[" * 100_000,
    "a dotted key of many parts": ".".join("a" * 3_000) + " = 1",
    "a number of many digits": "a = " + "9" * 10_000,
    "a number beyond 64 bits": "a = " + "9" * 30,
    "infinite": "a = inf",
    "not TOML": "a = ",
}


@pytest.mark.parametrize("case", HOSTILE_TOML)
def test_hostile_toml(tmp_path: Path, case: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(HOSTILE_TOML[case])
    with pytest.raises(UsageError, match=r"a\.toml: not valid TOML"):
        KIND.read_toml(path)


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 60))
HOSTILE_YAML = {
    "references upon references": BOMB,
    "merges upon merges": MERGES,
    "a list that holds itself": "&a [*a]",
    "nested": "a: " + "[" * 5_000,
    "nested by indentation": "".join(" " * n + "a:\n" for n in range(600)),
    "a number of many digits": "a: " + "9" * 10_000,
    "a hexadecimal number of many digits": "a: 0x" + "f" * 10_000,
    "a day that does not exist": "a: 2024-99-99",
    "a Python object": "!!python/object/apply:os.system [echo]",
    "not YAML": "a: [",
    "many entries": "- 1\n" * 250_000,
}


@pytest.mark.parametrize("case", HOSTILE_YAML)
def test_hostile_yaml(case: str) -> None:
    started = time.monotonic()
    with pytest.raises(UsageError, match="here: not valid YAML") as caught:
        KIND.parse_yaml(HOSTILE_YAML[case], "here")
    assert len(caught.value.message) < 300
    assert time.monotonic() - started < 20


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket has at most 100 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.parametrize("make", [make_pipe, make_socket, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_not_a_file_is_not_read(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "a.json")
    with pytest.raises(UsageError, match=r"a\.json: not a file"):
        KIND.read_json(tmp_path / "a.json")


@pytest.mark.parametrize("name", ["absent", "x" * 5000, "a\0b"])
def test_no_such_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        KIND.read_bytes(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_pipes_where_they_are_wanted() -> None:
    """`--prompt-file <(command)` is a pipe; endless devices are cut off at the limit."""
    kind = DocumentKind(UsageError, "do this", most_bytes=100, pipes=True)
    reading, writing = os.pipe()
    os.write(writing, b"hello")
    os.close(writing)
    assert kind.read_text(Path(f"/dev/fd/{reading}")) == "hello"
    os.close(reading)
    with pytest.raises(UsageError, match="larger than 100 B"):
        kind.read_bytes(Path("/dev/zero"))


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_lines_end_as_in_pythons_text_mode(tmp_path: Path, newline: str) -> None:
    (tmp_path / "a").write_bytes(f"a{newline}b{newline}".encode())
    assert KIND.read_text(tmp_path / "a") == (tmp_path / "a").read_text() == "a\nb\n"
