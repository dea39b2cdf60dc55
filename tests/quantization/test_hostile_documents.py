"""Small files beside a model, each replaced by something hostile: one error with the path, at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mimo_gguf.chat.conversation import Conversation
from mimo_gguf.conversion.model_card import _read_card
from mimo_gguf.core.errors import GgufError, MimoGgufError, RecipeError, UsageError
from mimo_gguf.quantization.checksums import read_checksums
from mimo_gguf.quantization.importance import read_importance
from mimo_gguf.quantization.profiles import read_profile

READERS: dict[str, tuple[Callable[[Path], Any], type[MimoGgufError]]] = {
    "sums.json": (read_checksums, GgufError),
    "conversation.json": (Conversation.load, UsageError),
    "profile.toml": (read_profile, RecipeError),
    "imatrix.dat": (read_importance, GgufError),
}
HOSTILE: dict[str, bytes] = {
    "nested": b"[" * 200_000,
    "nested tables": b'{"a":' * 50_000,
    "a number of many digits": b'{"n_bytes": ' + b"9" * 5_000 + b"}",
    "a number beyond 64 bits": b'{"n_bytes": ' + b"9" * 30 + b', "format": 1}',
    "infinite": b'{"n_left_out": 1e999, "format": "mimo-gguf conversation 1", "turns": [], "system": ""}',
    "a list": b"[1, 2]",
    "a number": b"5",
    "null": b"null",
    "tables where numbers belong": b'{"header": [], "tensors": {"a": 1}, "format": {}, "turns": 5}',
    "not text": b"\xff\xfe\x00\x01" * 100,
    "half a character": b'{"system": "\\ud800", "format": "mimo-gguf conversation 1", "turns": []}',
    "empty": b"",
    "TOML with a huge number": b"file_type = " + b"9" * 5_000,
    "TOML nested": b"rules = " + b"[" * 50_000,
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("name", READERS)
def test_hostile_content(tmp_path: Path, name: str, case: str) -> None:
    read, error = READERS[name]
    (tmp_path / name).write_bytes(HOSTILE[case])
    with pytest.raises(error, match=name.replace(".", r"\.")) as caught:
        read(tmp_path / name)
    assert caught.value.hint and len(caught.value.message) < 500


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.parametrize("name", READERS)
def test_pipes_and_devices(tmp_path: Path, name: str) -> None:
    read, error = READERS[name]
    os.mkfifo(tmp_path / name)
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / name, tmp_path / "zero", tmp_path / "folder"):
        with pytest.raises(error):
            read(path)


CARDS = {
    "references upon references": "a0: &a0 [x, x]\n"
    + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
    + "tags: *a59",
    "nested": "tags: " + "[" * 5_000,
    "a number of many digits": "license: " + "9" * 9_000,
}


@pytest.mark.parametrize("case", CARDS)
def test_a_hostile_model_card_costs_only_itself(tmp_path: Path, case: str) -> None:
    (tmp_path / "README.md").write_text(f"---\nlicense: mit\n{CARDS[case]}\n---\n")
    assert _read_card(tmp_path) == {}
