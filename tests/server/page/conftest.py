"""The page's server with a script instead of a model's words, and a browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mimo_gguf.runtime.llm import LLM
from tests.server.page.scripted import ScriptedEngine
from tests.server.serving import Serving, serving

NAME = "MiMo-7B-RL-Q4_K_M"


@pytest.fixture
def scripted(llm: LLM) -> Iterator[Serving]:
    with serving(llm, ScriptedEngine, names=(NAME,), keep_alive_s=0.5) as running:
        yield running
