"""The llama.cpp that this package is bound to is named once, in core/version.py; all that names it again agrees."""

from __future__ import annotations

import ctypes
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from mimo_gguf.core.version import LLAMA_CPP_COMMIT, LLAMA_CPP_PYTHON, REINSTALL_LLAMA, __version__
from mimo_gguf.quantization.kernels.libggml import load_libggml

ROOT = Path(__file__).resolve().parents[1]
ENDINGS = {".py", ".md", ".toml", ".yml", ".yaml", ".csv"}
LEFT_OUT = {"BENCHMARKS.md", "LOG.md", "CHANGELOG.md", "test_pin.py"}  # what was measured stays as it was measured

PERMALINK = re.compile(r"github\.com/ggml-org/llama\.cpp/(?:blob|tree|raw)/([^/\s)\"]+)")
IN_WORDS = re.compile(r"commit `?([0-9a-f]{7,40})\b|llama\.cpp `?([0-9a-f]{7,40})\b")
RELEASE = re.compile(r"llama-cpp-python(?:==| )(\d[\d.]*\d)")


def texts() -> dict[str, str]:
    """Every document and source, by its path from the root."""
    skipped = {".venv", ".venv-clients", ".venv-gpu", ".git", "build", "dist"}
    files = [
        path
        for path in ROOT.rglob("*")
        if path.suffix in ENDINGS and path.name not in LEFT_OUT and not skipped & set(path.relative_to(ROOT).parts)
    ]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in files}


def test_every_link_and_mention_names_the_pinned_commit() -> None:
    n_links = 0
    for path, text in texts().items():
        for commit in PERMALINK.findall(text):
            n_links += 1
            assert commit == LLAMA_CPP_COMMIT, f"{path}: a link to llama.cpp at {commit}"
        for found in IN_WORDS.findall(text):
            assert LLAMA_CPP_COMMIT in found, f"{path}: commit {found}"
    assert n_links > 30


def test_every_mention_of_the_release_is_the_pinned_one() -> None:
    places = {path for path, text in texts().items() if RELEASE.search(text)}
    assert {"pyproject.toml", "README.md", "docs/install.md"} <= places
    for path, text in texts().items():
        assert set(RELEASE.findall(text)) <= {LLAMA_CPP_PYTHON}, path
    assert REINSTALL_LLAMA.endswith(f"=={LLAMA_CPP_PYTHON}")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("(https://github.com/ggml-org/llama.cpp/blob/master/src/llama.cpp)", ["master"]),
        ("https://github.com/ggml-org/llama.cpp/tree/abc1234/common", ["abc1234"]),
        ("https://github.com/ggml-org/llama.cpp/pull/4766", []),
    ],
)
def test_links_are_recognised(text: str, found: list[str]) -> None:
    assert PERMALINK.findall(text) == found


def test_what_is_installed_is_what_is_pinned() -> None:
    """libggml tells the commit that it was built from."""
    assert version("llama-cpp-python") == LLAMA_CPP_PYTHON
    library = ctypes.CDLL(str(load_libggml().path))
    library.ggml_commit.restype = ctypes.c_char_p
    built_from = library.ggml_commit().decode().partition("-")[0]
    assert len(built_from) >= 7 and LLAMA_CPP_COMMIT.startswith(built_from)


def test_the_version_is_pyprojects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == __version__
    assert f"llama-cpp-python=={LLAMA_CPP_PYTHON}" in project["dependencies"]
