"""A GGUF made of a checkpoint on the way to running it: once, of the type that fits, resumed, from a hub as well."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mimo_gguf.core.errors import DoesNotFit, UsageError
from mimo_gguf.core.file_lock import held
from mimo_gguf.core.progress import Silence
from mimo_gguf.core.units import MIB
from mimo_gguf.fit.solver import Wishes
from mimo_gguf.hardware.devices import host_device
from mimo_gguf.store.folder import MAKING, kept_models, remove_model
from mimo_gguf.store.plan import MakingPlan
from mimo_gguf.store.resolve import resolve_model
from mimo_gguf.verbs import verify
from tests.checkpoints import write_checkpoint
from tests.conversion.fake_hub import serve_hub
from tests.conversion.relatives import flat_config, relative_shapes
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


def test_what_a_relative_cannot_do_is_in_the_plan(tmp_path: Path) -> None:
    """MiMo-VL: the text model is made, and whoever is asked reads first that it sees no images."""
    write_checkpoint(tmp_path / "MiMo-VL", config=flat_config(), shapes=relative_shapes())
    plans: list[MakingPlan] = []
    made = resolve_model(f"{tmp_path / 'MiMo-VL'}:Q8_0", folder=tmp_path / "made", on_plan=plans.append)
    assert made.name == "MiMo-VL-Q8_0.gguf"
    assert any("sees no images" in note for note in plans[0].notes)


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        resolve_model(tmp_path / "nothing")
    with pytest.raises(UsageError, match="Q4_K_X"):
        resolve_model(f"{MIMO_TINY}:Q4_K_X")


class Interrupted(Silence):
    """A person who presses Ctrl-C as soon as there is progress."""

    def update(self, done: Sequence[int], resumed: Sequence[int]) -> None:
        raise KeyboardInterrupt


def test_an_interrupted_run_is_listed_and_goes_on(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    with pytest.raises(KeyboardInterrupt):
        resolve_model(f"{checkpoint}:Q4_K_M", folder=folder, progress=Interrupted())
    (left,) = kept_models(folder)
    assert not left.is_complete and left.name == f"{checkpoint}:Q4_K_M"
    made = resolve_model(f"{checkpoint}:Q4_K_M", folder=folder)
    assert made == left.path and not verify(made).problems
    assert [model.is_complete for model in kept_models(folder)] == [True]


class Heard(Silence):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.heard = threading.Event()

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.heard.set()


def test_a_second_run_waits_for_the_first(checkpoint: Path, tmp_path: Path) -> None:
    """Somebody else holds the lock, and has made the file when it is free again."""
    made = resolve_model(f"{checkpoint}:Q4_K_M", folder=tmp_path / "made")
    content = made.read_bytes(), made.with_name(f"{made.name}.sums.json").read_bytes()
    remove_model(kept_models(tmp_path / "made")[0], tmp_path / "made")
    progress = Heard()

    def other() -> None:
        made.parent.mkdir(parents=True)
        with held(made.parent / MAKING):
            begun.set()
            assert progress.heard.wait(60)
            made.with_name(f"{made.name}.sums.json").write_bytes(content[1])
            made.write_bytes(content[0])

    begun = threading.Event()
    thread = threading.Thread(target=other)
    thread.start()
    assert begun.wait(60)
    assert resolve_model(f"{checkpoint}:Q4_K_M", folder=tmp_path / "made", progress=progress) == made
    thread.join()
    assert any("another process is making" in note for note in progress.notes)
    assert made.read_bytes() == content[0]


PROGRAM = """
import sys
from mimo_gguf.fit.solver import Wishes
from mimo_gguf.store.folder import MAKING, kept_models, remove_model
from mimo_gguf.store.plan import MakingPlan
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
