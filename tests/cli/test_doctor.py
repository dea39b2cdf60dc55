"""`mimo-gguf doctor`: the whole picture, and an answer whatever is broken."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from mimo_gguf.core.version import __version__
from mimo_gguf.llama.amx import how_amx_is_used
from mimo_gguf.llama.api import api, libraries_of
from tests.cli.command_line import run
from tests.tiny_models import make_model

KERNELS = {"MIMO_GGUF_KERNELS": "libggml"}  # nothing to compile


def test_it_tells_what_is_here(tmp_path: Path) -> None:
    cache = tmp_path / "hub"
    cache.mkdir()
    (cache / "blob").write_bytes(bytes(3 << 20))
    (cache / "link").symlink_to(cache / "blob")
    variables = KERNELS | {"HF_HUB_CACHE": str(cache), "HF_TOKEN": "hf_secret", "GOMP_SPINCOUNT": "20000"}
    done = run(tmp_path, "doctor", "--json", **variables)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["versions"]["mimo-gguf"] == __version__ and document["versions"]["numpy"] == np.__version__
    assert not document["llama.cpp"]["problem"] and "CPU" in document["llama.cpp"]["backends"]
    assert document["memory"]["free_bytes"] > 0
    assert set(document["kernels"]["by_type"]) == {"Q4_K", "Q6_K", "Q8_0"}
    assert (3 << 20) <= document["cache_folders"][str(cache)] < (3 << 20) + 4096
    assert document["environment"]["GOMP_SPINCOUNT"] == "20000" and document["environment"]["HF_TOKEN"] == "(set)"
    assert "GOMP_SPINCOUNT say" in document["threads_wait"]
    assert "hf_secret" not in done.stdout
    assert document["amx"] == how_amx_is_used(libraries_of(api()))
    shown = run(tmp_path, "doctor", **variables)
    assert shown.returncode == 0 and "hf_secret" not in shown.stdout
    for words in ("llama.cpp", "built with", "RAM", "libggml", "3.0 MiB", "GOMP_SPINCOUNT=20000", document["amx"]):
        assert words in shown.stdout, words


def test_it_finds_the_caches_that_variables_moved(tmp_path: Path) -> None:
    cache, models = tmp_path / "cache" / "mimo-gguf", tmp_path / "models"
    for folder in (cache / "wheels", cache / "models", models):
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(bytes(1000))
    variables = KERNELS | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "NUMBA_CACHE_DIR": str(tmp_path / "kernels")}
    found = json.loads(run(tmp_path, "doctor", "--json", **variables).stdout)["cache_folders"]
    assert found.pop(str(cache)) == 2000 and str(cache / "models") not in found  # the models are in it, and count once
    moved = variables | {"MIMO_GGUF_MODELS": str(models), "HF_HUB_CACHE": str(tmp_path / "none")}
    found = json.loads(run(tmp_path, "doctor", "--json", **moved).stdout)["cache_folders"]
    assert found == {str(cache): 2000, str(models): 1000}


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "raise RuntimeError(\"'libllama.so': libcublas.so.13: cannot open shared object file: No such file\")",
            "libcublas.so.13 is missing: it belongs to CUDA",
        ),
        ("import os; os.abort()", "SIGABRT"),
        ("import nothing_of_this_name", "nothing_of_this_name"),
    ],
)
def test_it_answers_whatever_is_broken(tmp_path: Path, code: str, said: str) -> None:
    done = run(tmp_path, "doctor", "--json", **broken(tmp_path, code))
    assert done.returncode == 1 and "Traceback" not in done.stderr and said in done.stderr
    assert json.loads(done.stdout)["llama.cpp"]["problem"]


def test_fit_plans_without_llama_cpp_but_not_without_a_word(tmp_path: Path) -> None:
    variables = broken(tmp_path, "raise RuntimeError('libcuda.so.1: cannot open shared object file')")
    planned = run(tmp_path, "fit", make_model(tmp_path), **variables)
    assert planned.returncode == 0 and "planned for the CPU alone" in planned.stderr
    assert "libcuda.so.1 is missing: it belongs to NVIDIA's driver" in planned.stderr


def broken(tmp_path: Path, code: str) -> dict[str, str]:
    """Variables with which llama_cpp is `code`."""
    package = tmp_path / "broken" / "llama_cpp"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(code)
    return KERNELS | {"PYTHONPATH": os.pathsep.join([str(package.parent), str(Path(__file__).parents[2])])}


def test_layers_asked_for_without_a_gpu_are_told(tmp_path: Path) -> None:
    path = make_model(tmp_path)
    options = ("--gpu-layers", "3", "--ctx", "512")
    for command in (
        ("chat", "-p", "x", "--max-tokens", "1"),
        ("bench", "--tokens", "1", "--drafts", "0", "-r", "1", "--prompt-tokens", "8"),
    ):
        done = run(tmp_path, command[0], path, *command[1:], *options)
        assert done.returncode == 0 and "mimo-gguf doctor" in done.stderr, done.stderr
