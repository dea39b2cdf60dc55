"""A small text for judging, and a plan of few short windows."""

from __future__ import annotations

from pathlib import Path

import pytest

from mimo_gguf.quality.plan import QualityOptions, QualityPlan, plan_quality
from tests.tiny_models import quantized

N_CTX = 64


@pytest.fixture(scope="session")
def tiny_q8_path(tiny_path: Path) -> Path:
    return quantized(tiny_path, "Q8_0")


@pytest.fixture(scope="session")
def text_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(f"{i} times {i} is {i * i}, said the fox to the hound." for i in range(60)))
    return path


@pytest.fixture(scope="session")
def plan(tiny_path: Path, tiny_q8_path: Path, text_path: Path) -> QualityPlan:
    """The quantized random model beside the float32 one, on five windows."""
    options = QualityOptions(N_CTX, 5 * N_CTX, "backend", ("pre", "post"), all_text=True, n_threads=1)
    return plan_quality([tiny_q8_path], str(tiny_path), [f"fox={text_path}"], options)
