"""The trained tiny model as a file, and a conversation with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mimo_gguf.chat.conversation import Conversation
from mimo_gguf.cli.chat_loop import ChatLoop
from mimo_gguf.conversion.checkpoint_source import open_checkpoint
from mimo_gguf.engine.sampling import SamplingOptions
from mimo_gguf.engine.session import SessionOptions
from mimo_gguf.runtime.model import AnswerOptions, Model
from tests.reference import MIMO_TINY
from tests.tiny_models import write_gguf


@pytest.fixture(scope="session")
def mimo_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with open_checkpoint(MIMO_TINY) as source:
        return write_gguf(source, tmp_path_factory.mktemp("chat") / "mimo-tiny-BF16.gguf")


@pytest.fixture
def loop(mimo_tiny: Path, request: pytest.FixtureRequest) -> Iterator[ChatLoop]:
    """Greedy, with short answers, in a window of 512 tokens; a parameter says whether with MTP."""
    options = SessionOptions(n_ctx=512, n_threads=1, mtp=getattr(request, "param", True))
    with Model.open(mimo_tiny, session=options) as model:
        yield ChatLoop(model, Conversation(), SamplingOptions(temperature=0), AnswerOptions(max_tokens=60))
