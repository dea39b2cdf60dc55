"""Data sets on a Hugging Face Hub on loopback: the fake hub of conversion, which serves models, under `/datasets/`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conversion.fake_hub import FakeHub, HubHandler, serve


class _Handler(HubHandler):
    """Answers for data sets as the parent does for models, at any commit."""

    def answer(self, path: str, token: str) -> None:
        path = path.replace("/api/datasets/", "/api/models/", 1)
        is_data = path.startswith(("/datasets/", "/api/"))
        super().answer(path.replace("/datasets/", "/", 1) if is_data else "/models-are-not-served", token)

    def state_of(self, name: str, revision: str | None) -> tuple[Path, str] | None:
        if revision is None or len(revision) != 40:
            return super().state_of(name, revision)
        state = super().state_of(name, None)
        return None if state is None else (state[0], revision)


@contextmanager
def serve_data(repositories: dict[str, Path]) -> Iterator[FakeHub]:
    """A running hub; `hub.endpoint` is what HF_ENDPOINT must be."""
    with serve(FakeHub(repositories), _Handler) as hub:
        yield hub
