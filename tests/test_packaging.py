"""The built wheel, away from the checkout: recipes and profiles are found, and help needs no heavy import."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def unpacked_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run_python(site: Path, cwd: Path, code: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_shelves_ship_in_the_wheel(unpacked_wheel: Path, tmp_path: Path) -> None:
    code = (
        "from mimo_gguf.core import shelves; import mimo_gguf\n"
        "print(mimo_gguf.__file__)\n"
        "for name in (shelves.CONVERT, shelves.QUANT_PROFILES):\n"
        "    print(shelves.shelf(name), len(shelves.entries(name)))"
    )
    package, convert, profiles = run_python(unpacked_wheel, tmp_path, code).splitlines()
    assert package.startswith(str(unpacked_wheel))
    for line, name in ((convert, "convert"), (profiles, "quant_profiles")):
        folder, count = line.rsplit(" ", 1)
        assert Path(folder) == unpacked_wheel / "mimo_gguf" / "_shipped" / name
        assert int(count) == len(list((ROOT / name).glob("*.toml")))


def test_wheel_holds_only_the_package(unpacked_wheel: Path) -> None:
    assert {path.name for path in unpacked_wheel.iterdir()} == {"mimo_gguf", "mimo_gguf-0.1.0.dist-info"}


def test_help_imports_nothing_heavy(unpacked_wheel: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from mimo_gguf.cli.app import build_app; build_app()\n"
        "heavy = {'torch', 'llama_cpp', 'numba', 'numpy', 'gguf', 'huggingface_hub', 'transformers'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert run_python(unpacked_wheel, tmp_path, code).strip() == "[]"
