"""Tiny random models shared by the tests of llama, engine, chat and runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mimo_gguf.llama.api import LlamaModel, load_model
from tests.tiny_models import make_model, quantized


@pytest.fixture(scope="session", autouse=True)
def _no_speeds_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's data in a folder of the tests: speeds that were measured on this machine change what is shown."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random float32 model with one MTP layer."""
    return make_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny(tiny_path: Path) -> Iterator[LlamaModel]:
    with load_model(tiny_path) as model:
        yield model


@pytest.fixture(scope="session")
def real_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real language model as a checkpoint, for tests marked `real_model`: half a minute to build."""
    from benchmarks.real_model.building import build_checkpoint

    return build_checkpoint(tmp_path_factory.mktemp("real") / "checkpoint")


@pytest.fixture(scope="session")
def three_heads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaModel]:
    """A random float32 model with three MTP layers."""
    with load_model(make_model(tmp_path_factory.mktemp("three"), n_mtp=3)) as model:
        yield model


@pytest.fixture(scope="session")
def tiny_q8(tiny_path: Path) -> Iterator[LlamaModel]:
    """The random model quantized by llama.cpp."""
    with load_model(quantized(tiny_path, "Q8_0")) as model:
        yield model
