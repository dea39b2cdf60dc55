"""The trained tiny model, loaded once for all tests of the server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mimo_gguf.conversion.checkpoint_source import open_checkpoint
from mimo_gguf.engine.session import SessionOptions
from mimo_gguf.runtime.llm import LLM
from mimo_gguf.server import engine
from tests.reference import MIMO_TINY
from tests.server.serving import Serving, serving
from tests.tiny_models import write_gguf


@pytest.fixture(scope="package")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with open_checkpoint(MIMO_TINY) as source:
        path = write_gguf(source, tmp_path_factory.mktemp("served") / "mimo-tiny.gguf")
    options = SessionOptions(n_threads=1, n_draft=2, n_prompt_rows=64, adaptive=False)
    with LLM(path, max_model_len=1024, max_num_seqs=4, options=options) as llm:
        yield llm


@pytest.fixture(scope="package")
def server(llm: LLM) -> Iterator[Serving]:
    with serving(llm) as running:
        yield running


@pytest.fixture
def told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token is sent by itself: otherwise a fast machine has a short answer ready before anything of it is due."""
    monkeypatch.setattr(engine, "_EVERY_S", 0.0)
