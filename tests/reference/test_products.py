"""Products by numpy and by torch agree; what is not there is one clear error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

import mimo_gguf
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.importance_file import read_importance_sums
from mimo_gguf.reference.decode import Floats
from mimo_gguf.reference.model import open_reference
from mimo_gguf.reference.products import NUMPY, Matrix, best_products, torch_products
from mimo_gguf.reference.run import run_windows
from tests.tiny_models import make_model

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def test_numpy_and_torch_agree(tmp_path: Path) -> None:
    path = make_model(tmp_path)
    windows = [np.arange(30, dtype=np.int32)]
    with open_reference(path, products=NUMPY) as plain, open_reference(path, products=torch_products(DEVICE)) as other:
        assert (plain.products, other.products.name) == (NUMPY, f"torch on {DEVICE}")
        wanted, got = run_windows(plain, windows, mtp=True), run_windows(other, windows, mtp=True)
    assert np.abs(wanted.final[0]).max() > 1
    assert np.abs(got.final[0] - wanted.final[0]).max() < 1e-4
    assert np.abs(got.mtp[0] - wanted.mtp[0]).max() < 1e-4


def blas_now() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@pytest.mark.parametrize("what", ["quality", "imatrix", "compare"])
def test_the_option_for_threads_reaches_numpys_products(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every verb that computes in float32; with another number of threads the figures stay."""
    path, seen, plain = make_model(tmp_path), set[int](), NUMPY.prepare
    (tmp_path / "text.txt").write_text("\n\n".join(f"{i} lazy dogs." for i in range(200)))

    def prepare(weights: Floats) -> Matrix:
        seen.update(blas_now())
        return plain(weights)

    def run(threads: int) -> float:
        seen.clear()
        texts = str(tmp_path / "text.txt")
        if what == "quality":
            quality = mimo_gguf.measure_quality(
                path, texts=texts, ctx=32, tokens=32, arithmetic="float32", all_text=True, threads=threads,
                work=tmp_path / f"work{threads}",
            )  # fmt: skip
            assert quality.backend == ("numpy, 1 thread" if threads == 1 else f"numpy, {threads} threads")
            return quality.files[0].by_kind["all"].perplexity.value
        if what == "compare":
            return mimo_gguf.compare(path, path.with_name("hf"), texts=[texts], threads=threads).trunk.largest
        out = tmp_path / f"{threads}.gguf"
        mimo_gguf.imatrix(path.with_name("hf"), out=out, texts=texts, ctx=32, chunks=1, all_text=True, threads=threads)
        return float(read_importance_sums(out).sums["output.weight"].sum())

    monkeypatch.setattr("mimo_gguf.reference.model.best_products", lambda: replace(NUMPY, prepare=prepare))
    before, figures = blas_now(), []
    for threads in (1, 3):
        figures.append(run(threads))
        assert seen == {threads}
    assert figures[0] == pytest.approx(figures[1], rel=1e-5, abs=1e-5)
    assert blas_now() == before


def test_what_the_device_has_no_room_for_is_computed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, weights = (np.random.default_rng(0).standard_normal((n, 8), np.float32) for n in (3, 5))
    wanted = NUMPY.prepare(weights).product(rows)
    placed = torch_products("cpu").prepare(weights)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(torch.Tensor, "to", full)
    assert np.array_equal(placed.product(rows), wanted)
    assert np.array_equal(torch_products("cpu").prepare(weights).product(rows), wanted)


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands for a GPU's driver; it is not there yet."""
    best_products.cache_clear()
    monkeypatch.setattr("mimo_gguf.reference.products._DRIVERS", (tmp_path / "driver",))
    monkeypatch.setattr("sys.platform", "linux")
    return tmp_path / "driver"


def test_the_best_products_are_those_of_a_gpu_that_is_there(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert best_products() is NUMPY
    driver.touch()
    best_products.cache_clear()
    assert best_products().name == "torch on cuda"
    best_products.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert best_products() is NUMPY
    with pytest.raises(UsageError, match="torch sees no GPU"):
        torch_products()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="torch is not installed"):
        torch_products()
    best_products.cache_clear()
