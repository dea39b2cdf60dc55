"""`mimo-gguf inspect` on files whose metadata is unusual."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from gguf import GGUFValueType

from mimo_gguf.core.geometry import STEP35
from mimo_gguf.core.gguf_header import lay_out
from mimo_gguf.core.model_source import array, float32
from tests import full_size
from tests.cli.command_line import run_here


def refuse(constant: str) -> Any:
    raise AssertionError(f"{constant} is not JSON")


def test_numbers_that_json_lacks_are_text(tmp_path: Path) -> None:
    """NaN and infinities may stand in a GGUF, alone and in arrays; JSON parsers refuse the bare words."""
    metadata = full_size.metadata(STEP35) | {
        "odd.nan": float32(math.nan),
        "odd.row": array(GGUFValueType.FLOAT32, [1.5, math.inf, -math.inf]),
    }
    placed = lay_out(metadata, full_size.tensors(STEP35, "Q8_0"))
    with (tmp_path / "odd.gguf").open("wb") as file:
        file.write(placed.header)
        file.truncate(placed.n_bytes)
    done = run_here(tmp_path, "inspect", "odd.gguf", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout, parse_constant=refuse)
    assert (document["metadata"]["odd.nan"], document["metadata"]["odd.row"]) == ("nan", [1.5, "inf", "-inf"])
