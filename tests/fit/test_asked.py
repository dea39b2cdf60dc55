"""llama.cpp asked about memory: in a process of its own, whose every end is an answer or one clear error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mimo_gguf.core.errors import BackendError
from mimo_gguf.core.geometry import STEP35
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.fit import asked
from mimo_gguf.fit.asked import ask_memory
from mimo_gguf.fit.breakdown import read_memory
from mimo_gguf.memory.run import RunSettings
from tests import full_size
from tests.fuzz.gguf_bytes import put_together, take_apart
from tests.tiny_models import make_model

SETTINGS = RunSettings(n_ctx=2048, n_gpu_layers=0, type_k=GgmlType.Q8_0, type_v=GgmlType.Q8_0)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return full_size.write_header_only(tmp_path_factory.mktemp("asked") / "full.gguf", STEP35, "Q4_K_M")


def test_another_process_says_what_this_one_would(path: Path) -> None:
    assert ask_memory(path, SETTINGS) == read_memory(path, SETTINGS)


def test_a_refusal_arrives_whole(tmp_path: Path) -> None:
    """llama.cpp's own, of a file that only it finds wrong: it allows no gap between two tensors."""
    parts = take_apart(make_model(tmp_path))
    parts.tensors[-1] = replace(parts.tensors[-1], moved=32, data=parts.tensors[-1].data + bytes(32))
    (tmp_path / "gap.gguf").write_bytes(put_together(parts))
    with pytest.raises(BackendError, match="cannot load it") as caught:
        ask_memory(tmp_path / "gap.gguf", RunSettings(n_ctx=64))
    assert "mimo-gguf inspect" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import os; os.abort()", "SIGABRT"),
        ("raise SystemExit('no such symbol')", "no such symbol"),
        ("import time; time.sleep(60)", "no answer within"),
    ],
)
def test_whatever_ends_it_is_one_clear_error(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    """As a library of another ABI would end it while its map is walked."""
    for folder in ("", "fit"):
        (tmp_path / "mimo_gguf" / folder).mkdir(exist_ok=True)
        (tmp_path / "mimo_gguf" / folder / "__init__.py").touch()
    (tmp_path / "mimo_gguf" / "fit" / "breakdown.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(asked, "_TIMEOUT_S", 20 if said.startswith("SIG") else 2)
    with pytest.raises(BackendError, match=said) as caught:
        ask_memory(path, SETTINGS)
    assert "--asked" in str(caught.value.hint)
