"""The Hub on loopback, in this process: huggingface_hub reads its variables once, so its constants are replaced."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.conversion.fake_hub import FakeHub, serve_hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub without repositories; add them to `hub.repositories`."""
    with serve_hub({}) as running:
        point_at(running.endpoint, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("MIMO_GGUF_MODELS", str(tmp_path / "models"))
        yield running


def point_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes huggingface_hub ask another address."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
