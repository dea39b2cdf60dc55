"""Many windows, block by block: the same states in memory and in a folder, whenever the run is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimo_gguf.core.errors import OutputError, UsageError
from mimo_gguf.reference.decode import Floats
from mimo_gguf.reference.model import ReferenceModel, open_reference
from mimo_gguf.reference.run import WindowStates, run_windows
from tests.tiny_models import make_model

Window = np.ndarray[tuple[int], np.dtype[np.int32]]
LENGTHS = (7, 20, 1, 0, 13)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), num_hidden_layers=3)


@pytest.fixture
def model(path: Path) -> Iterator[ReferenceModel]:
    with open_reference(path) as model:
        yield model


def some_windows(seed: int = 0) -> list[Window]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 272, n).astype(np.int32) for n in LENGTHS]


def bits(states: WindowStates) -> list[bytes]:
    return [rows.tobytes() for part in (states.before_norm, states.final, states.mtp) for rows in part]


def test_windows_do_not_see_each_other(model: ReferenceModel) -> None:
    states = run_windows(model, some_windows(), mtp=True)
    for i, window in enumerate(some_windows()):
        alone = run_windows(model, [window], mtp=True)
        assert states.before_norm[i].shape == (len(window), 64)
        assert states.mtp[i].shape == (max(0, len(window) - 1), 64)
        assert bits(alone) == [part[i].tobytes() for part in (states.before_norm, states.final, states.mtp)]


def test_a_folder_gives_the_same_bits_and_keeps_only_the_newest_states(model: ReferenceModel, tmp_path: Path) -> None:
    wanted = run_windows(model, some_windows(), mtp=True)
    states = run_windows(model, some_windows(), mtp=True, folder=tmp_path / "states")
    assert bits(states) == bits(wanted)
    assert bits(run_windows(model, some_windows(), mtp=True, folder=tmp_path / "states")) == bits(wanted)
    names = sorted(file.name for file in (tmp_path / "states").iterdir())
    assert names == ["block-003.states", "mtp-003-pre.states", "states.json"]
    assert [len(rows) for rows in states.final[1:]] == list(LENGTHS[1:])


def test_a_tap_sees_the_inputs_of_every_matrix(model: ReferenceModel) -> None:
    seen: dict[str, list[Floats]] = {}
    states = run_windows(
        model, some_windows(), mtp=True, tap=lambda name, rows: seen.setdefault(name, []).append(rows.copy())
    )
    assert list(seen)[-1] == "output.weight"
    matrices = {tensor.info.name for tensor in model.source.tensors if len(tensor.info.shape) == 2}
    not_first = {f"blk.{n}.{part}.weight" for n in range(4) for part in ("attn_k", "attn_v", "ffn_up")}
    assert seen.keys() == matrices - not_first - {"token_embd.weight"}
    for name, rows in seen.items():
        n_tokens = sum(max(0, n - name.startswith("blk.3.")) for n in LENGTHS)
        assert np.concatenate(rows).shape == (n_tokens, model.weights(name).shape[1])
        assert all(part.dtype == np.float32 for part in rows)
    assert np.array_equal(np.concatenate(seen["output.weight"]), np.concatenate(list(states.final)))
    inner = np.concatenate(seen["blk.2.ffn_down.weight"]) @ model.weights("blk.2.ffn_down.weight").T
    attended = np.concatenate(seen["blk.2.attn_output.weight"]) @ model.weights("blk.2.attn_output.weight").T
    before = run_windows(model, some_windows()).before_norm
    previous = np.concatenate(list(before)) - inner - attended
    gains = model.vector("blk.2.attn_norm.weight")
    normed = previous / np.sqrt((previous**2).mean(-1, keepdims=True) + 1e-5) * gains
    assert np.abs(normed - np.concatenate(seen["blk.2.attn_q.weight"])).max() < 1e-4


def test_one_block_is_in_memory_at_a_time(tmp_path: Path) -> None:
    """A block has a million weights, everything else little; without a folder the states are in memory, too."""
    sizes: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "head_dim": 64}
    with open_reference(make_model(tmp_path, **sizes)) as model:
        in_block = [t.info.n_elements for t in model.source.tensors if t.info.name.startswith("blk.2.")]
        block_bytes = 4 * sum(in_block)
        assert block_bytes > 3 << 20
        tracemalloc.start()
        try:
            run_windows(model, some_windows(), folder=tmp_path / "states")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert block_bytes < peak < 1.5 * block_bytes


def test_progress_ends_at_the_total(model: ReferenceModel, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def note(done: int, total: int) -> None:
        seen.append((done, total))

    for _ in range(2):  # the second has nothing left to do
        seen.clear()
        run_windows(model, some_windows(), mtp=True, folder=tmp_path / "s", on_progress=note)
        assert seen == sorted(seen)
        assert seen[-1] == (4 * sum(LENGTHS), 4 * sum(LENGTHS))


CHILD = """
import json, os, signal, sys
from pathlib import Path
import numpy as np
from mimo_gguf.reference.model import open_reference
from mimo_gguf.reference.run import run_windows

path, folder, die_at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
windows = [np.array(window, np.int32) for window in json.loads(sys.argv[4])]
calls = 0

def die(*_):
    global calls
    calls += 1
    if calls == die_at:
        os.kill(os.getpid(), signal.SIGKILL)

with open_reference(path) as model:
    run_windows(model, windows, mtp=True, folder=folder, tap=die)
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_run_killed_anywhere_goes_on_to_the_same_bits(path: Path, model: ReferenceModel, tmp_path: Path) -> None:
    """Each run is killed later than the one before, so that every block is met half done."""
    wanted = run_windows(model, some_windows(), mtp=True, tap=lambda *_: None)
    folder = tmp_path / "states"
    windows = json.dumps([window.tolist() for window in some_windows()])
    for die_at in (22, 30, 25):  # in block 1, in block 2, in the MTP block
        command = [sys.executable, "-c", CHILD, str(path), str(folder), str(die_at), windows]
        child = subprocess.run(command, check=False)
        assert child.returncode == -signal.SIGKILL
    assert not (folder / "mtp-003-pre.states").exists()
    tapped: list[str] = []
    states = run_windows(model, some_windows(), mtp=True, folder=folder, tap=lambda name, _: tapped.append(name))
    assert bits(states) == bits(wanted)
    assert "blk.0.attn_q.weight" not in tapped and "blk.3.nextn.eh_proj.weight" in tapped
    assert not list(folder.glob(".*"))


def test_what_a_tap_gathers_can_be_saved_before_a_block_counts_as_done(model: ReferenceModel, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(number: int) -> None:
        done.append(number)
        if number == 1 and len(done) == 2:
            raise StoppedError

    done: list[int] = []
    with pytest.raises(StoppedError):
        run_windows(model, some_windows(), folder=tmp_path / "s", mtp=True, on_block=stop)
    run_windows(model, some_windows(), folder=tmp_path / "s", mtp=True, on_block=stop)
    assert done == [0, 1, 1, 2, 3]


def test_a_folder_of_something_else_is_refused(path: Path, model: ReferenceModel, tmp_path: Path) -> None:
    folder = tmp_path / "states"
    run_windows(model, some_windows(), folder=folder)
    with pytest.raises(OutputError, match="its states are of another text"):
        run_windows(model, some_windows(1), folder=folder)
    with pytest.raises(OutputError, match="its states are of another purpose"):
        run_windows(model, some_windows(), folder=folder, tap=lambda *_: None, purpose="sums")
    with open_reference(make_model(tmp_path / "other", seed=1)) as other:
        with pytest.raises(OutputError, match="its states are of another model"):
            run_windows(other, some_windows(), folder=folder)
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "letter.txt").touch()
        with pytest.raises(OutputError, match="holds other files"):
            run_windows(other, some_windows(), folder=tmp_path / "full")
    (folder / "states.json").write_text("{")
    with pytest.raises(OutputError, match="cannot be read"):
        run_windows(model, some_windows(), folder=folder)


def test_two_runs_do_not_share_a_folder(model: ReferenceModel, tmp_path: Path) -> None:
    def second(_: int) -> None:
        with pytest.raises(OutputError, match="another run is working in it"):
            run_windows(model, some_windows(), folder=tmp_path / "states")

    run_windows(model, some_windows(), folder=tmp_path / "states", on_block=second)
    run_windows(model, some_windows(), folder=tmp_path / "states")
    assert not (tmp_path / "states" / "states.lock").exists() or os.name == "nt"


def test_windows_are_checked(model: ReferenceModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="window 1 has a token id beyond the vocabulary of 272"):
        run_windows(model, [np.zeros(2, np.int32), np.array([3, 272], np.int32)])
    with pytest.raises(UsageError, match="window 0 has 129 tokens, the model's context 128"):
        run_windows(model, [np.zeros(129, np.int32)])
    with (
        open_reference(make_model(tmp_path, n_mtp=0)) as trunk,
        pytest.raises(UsageError, match="has no MTP block"),
    ):
        run_windows(trunk, some_windows(), mtp=True)
