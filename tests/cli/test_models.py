"""`mimo-gguf models`: what is there, where it is, and what is removed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import typer

from mimo_gguf.core.file_lock import held
from mimo_gguf.store.folder import MAKING
from tests.cli.command_line import assert_clear_error, run_here

OLD = 1_700_000_000  # seconds since 1970


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two complete models, one of them long unused, and what an interrupted run left."""
    root = tmp_path / "models"
    monkeypatch.setenv("MIMO_GGUF_MODELS", str(root))
    for place, names in {
        "hub/org--name": ["name-Q4_K_M.gguf", "name-Q4_K_M.gguf.sums.json", ".name-Q6_K.gguf.partial"],
        "local/home/me/tune": ["tune-Q8_0.gguf"],
    }.items():
        (root / place).mkdir(parents=True)
        for name in names:
            (root / place / name).write_bytes(bytes(3 << 19))
    os.utime(root / "local/home/me/tune/tune-Q8_0.gguf", (OLD, OLD))
    return root


def files(root: Path) -> set[str]:
    return {path.name for path in root.rglob("*") if path.is_file()}


def test_the_list(folder: Path, tmp_path: Path) -> None:
    rows = [line.split("  ") for line in run_here(tmp_path, "models").stdout.splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert cells[0] == ["name", "size", "last used", "file"]
    assert cells[1] == ["org/name:Q4_K_M", "3.0 MiB", "just now", "name-Q4_K_M.gguf"]
    assert cells[2] == ["org/name:Q6_K", "1.5 MiB", "unfinished", "name-Q6_K.gguf"]
    name, size, used, file = cells[3]
    assert (name, size, file) == ("/home/me/tune:Q8_0", "1.5 MiB", "tune-Q8_0.gguf") and used.endswith(" days ago")
    assert run_here(tmp_path, "models", "list").stdout == run_here(tmp_path, "models").stdout
    assert cells[4] == [f"6.0 MiB in {folder}"]


def test_a_path(folder: Path, tmp_path: Path) -> None:
    done = run_here(tmp_path, "models", "path", "tune-q8_0")
    assert done.stdout.strip() == str(folder / "local/home/me/tune/tune-Q8_0.gguf")
    assert_clear_error(run_here(tmp_path, "models", "path", "org/name:Q6_K"), "is unfinished", code=2)
    done = run_here(tmp_path, "models", "path", "org/name:Q4_K_S")
    assert_clear_error(done, "no such model", code=2)
    assert "did you mean org/name:Q4_K_M" in done.stderr


def test_removing(folder: Path, tmp_path: Path) -> None:
    assert_clear_error(run_here(tmp_path, "models", "rm", "org/name:Q4_K_M", "nothing"), "no such model", code=2)
    assert "name-Q4_K_M.gguf" in files(folder)
    with held(folder / "hub/org--name" / MAKING):
        assert_clear_error(run_here(tmp_path, "models", "rm", "org/name:Q4_K_M"), "another process is making it")
    done = run_here(tmp_path, "models", "rm", "org/name:Q4_K_M", "/home/me/tune:Q8_0")
    assert done.returncode == 0 and "removed org/name:Q4_K_M, 3.0 MiB" in done.stdout
    assert files(folder) == {".name-Q6_K.gguf.partial"} and not (folder / "local").exists()


def test_pruning_asks(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_clear_error(run_here(tmp_path, "models", "prune"), "remove 1 model, 1.5 MiB?", code=2)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(typer, "confirm", lambda *_, **__: False)
    assert run_here(tmp_path, "models", "prune").returncode == 1
    assert ".name-Q6_K.gguf.partial" in files(folder)
    monkeypatch.setattr(typer, "confirm", lambda *_, **__: True)
    assert run_here(tmp_path, "models", "prune").returncode == 0
    assert files(folder) == {"name-Q4_K_M.gguf", "name-Q4_K_M.gguf.sums.json", "tune-Q8_0.gguf"}
    assert run_here(tmp_path, "models", "prune").stdout == "nothing to remove\n"
    done = run_here(tmp_path, "models", "prune", "--unused", "30", "--yes")
    assert done.returncode == 0 and files(folder) == {"name-Q4_K_M.gguf", "name-Q4_K_M.gguf.sums.json"}


def test_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIMO_GGUF_MODELS", str(tmp_path / "none"))
    assert "mimo-gguf chat XiaomiMiMo/MiMo-7B-RL makes the first" in run_here(tmp_path, "models").stdout
    assert "mimo-gguf models prune" in run_here(tmp_path, "models", "prun").stderr
