"""A GGUF made of a checkpoint on the way to running it: once, of the type that fits, resumed, from a hub as well."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mimo_gguf.core.errors import DoesNotFit, UsageError
from mimo_gguf.core.units import MIB
from mimo_gguf.fit.solver import Wishes
from mimo_gguf.hardware.devices import host_device
from mimo_gguf.store.resolve import resolve_model
from mimo_gguf.verbs import verify
from tests.conversion.fake_hub import serve_hub
from tests.reference import MIMO_TINY


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MIMO_TINY, tmp_path / "models" / "mimo-tiny"))


def test_it_is_made_once(checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="mimo_gguf")
    made = resolve_model(f"{checkpoint}:q4_k_m", folder=tmp_path / "made")
    assert made.name == "mimo-tiny-Q4_K_M.gguf" and made.is_relative_to(tmp_path / "made")
    assert not verify(made).problems
    before = made.stat().st_mtime_ns
    assert resolve_model(checkpoint, quantization="Q4_K_M", folder=tmp_path / "made") == made
    assert made.stat().st_mtime_ns == before and "which was made from it earlier" in caplog.text


def test_it_is_made_again_if_the_checkpoint_changes(checkpoint: Path, tmp_path: Path) -> None:
    made = resolve_model(checkpoint, quantization="Q8_0", folder=tmp_path / "made")
    before = made.read_bytes()
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "rope_theta": 20000.0}))
    assert resolve_model(checkpoint, quantization="Q8_0", folder=tmp_path / "made") == made
    assert made.read_bytes() != before and not verify(made).problems


def test_the_type_is_what_fits(checkpoint: Path, tmp_path: Path) -> None:
    """By the plan. If nothing fits, nothing is made, unless that is forced: then the smallest."""
    wishes, made = Wishes(n_ctx=512), tmp_path / "made"
    much, little = ((replace(host_device(), free_bytes=n * MIB),) for n in (4096, 1))
    assert resolve_model(checkpoint, wishes, devices=much, folder=made / "much").name == "mimo-tiny-Q8_0.gguf"
    with pytest.raises(DoesNotFit):
        resolve_model(checkpoint, wishes, devices=little, folder=made / "little")
    assert not (made / "little").exists()
    forced = resolve_model(checkpoint, wishes, devices=little, folder=made / "little", force=True)
    assert forced.name == "mimo-tiny-Q4_K_M.gguf"


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        resolve_model(tmp_path / "nothing")
    with pytest.raises(UsageError, match="Q4_K_X"):
        resolve_model(f"{MIMO_TINY}:Q4_K_X")


PROGRAM = """
import sys
from mimo_gguf.fit.solver import Wishes
from mimo_gguf.store.resolve import resolve_model
print(resolve_model("XiaomiMiMo/MiMo-7B-RL", Wishes(n_ctx=512), revision="main"))
"""


def test_from_a_hub(tmp_path: Path) -> None:
    """The second time nobody is asked."""
    environment = os.environ | {
        "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", "MIMO_GGUF_MODELS": str(tmp_path / "made"),
    }  # fmt: skip
    environment.pop("HF_HUB_OFFLINE", None)

    def run(endpoint: str) -> str:
        command = [sys.executable, "-c", PROGRAM]
        done = subprocess.run(
            command, env=environment | {"HF_ENDPOINT": endpoint}, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    with serve_hub({"XiaomiMiMo/MiMo-7B-RL": MIMO_TINY}) as hub:
        made = run(hub.endpoint)
        assert Path(made).parent == tmp_path / "made" / "hub" / "XiaomiMiMo--MiMo-7B-RL@main"
        hub.requests.clear()
    assert run("http://127.0.0.1:9") == made
