"""Caches saved and loaded: the same next tokens without reading the conversation again, and refusals that are safe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mimo_gguf.core.errors import OutputError
from mimo_gguf.engine.session import Session
from mimo_gguf.engine.single import read_prompt
from mimo_gguf.engine.state import load_state, save_state
from mimo_gguf.llama.api import LlamaModel
from tests.engine.test_session import OPTIONS, PROMPT, generate


@pytest.mark.parametrize("mtp", [True, False])
def test_a_saved_session_goes_on_alike(tiny: LlamaModel, tmp_path: Path, mtp: bool) -> None:
    options = replace(OPTIONS, mtp=mtp)
    with Session(tiny, options) as session:
        said = generate(session, 20)
        save_state(session, session.slot, "key", tmp_path / "talk.kv")
        history = [*PROMPT, *said, 7]
        wanted = generate(session, 20, prompt=history)
    with Session(tiny, options) as session:
        generate(session, 3, prompt=[1, 2, 3])
        assert load_state(session, session.slot, "key", tmp_path / "talk.kv")
        assert (
            session.slot.tokens == history[: len(session.slot.tokens)] and len(session.slot.tokens) >= len(history) - 2
        )
        before = session.stats.n_prompt
        assert generate(session, 20, prompt=history) == wanted
        assert session.stats.n_prompt - before <= 3


def _without(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _spoil(path: Path) -> None:
    path.write_bytes(b"x" * 1000)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)


def _of_another_model(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"key": "key"', b'"key": "kex"'))


def _huge(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"sizes": [', b'"sizes": [9'))


@pytest.mark.parametrize("harm", [_without, _cut, _spoil, _flip, _of_another_model, _huge])
def test_a_damaged_state_leaves_an_empty_session(
    tiny: LlamaModel, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    with Session(tiny, OPTIONS) as session:
        wanted = generate(session, 10)
        save_state(session, session.slot, "key", tmp_path / "talk.kv")
        harm(tmp_path / "talk.kv")
        assert not load_state(session, session.slot, "key", tmp_path / "talk.kv")
        assert session.slot.tokens == [] and session.target.last_position() == -1
        assert generate(session, 10) == wanted


def test_nothing_half_written(tiny: LlamaModel, tmp_path: Path) -> None:
    with Session(tiny, OPTIONS) as session:
        read_prompt(session, PROMPT)
        with pytest.raises(OutputError):
            save_state(session, session.slot, "key", tmp_path / "no such folder" / "talk.kv")
    assert list(tmp_path.iterdir()) == []
