"""The real download code against a hub on loopback, in fresh processes: its library reads the environment once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from tests.checkpoints import write_checkpoint
from tests.conversion.fake_hub import COMMIT, FakeHub, serve_hub

MODEL = "XiaomiMiMo/MiMo-7B-RL"
SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    folder = tmp_path / "served"
    write_checkpoint(folder)
    (folder / "pytorch_model.bin").write_bytes(bytes(1000))
    (folder / "training.log").write_text("not needed")
    with serve_hub({MODEL: folder}) as running:
        yield running


def run_cli(hub: FakeHub, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    return subprocess.run(
        [sys.executable, "-m", "mimo_gguf", *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def files_fetched(hub: FakeHub) -> set[str]:
    return {path.rsplit("/", 1)[-1] for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path}


def test_convert_from_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    done = run_cli(hub, tmp_path, "convert", MODEL, "--json")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "MiMo-7B-RL-BF16.gguf").is_file()
    fetched = files_fetched(hub)
    assert SHARD in fetched
    assert not fetched & {"pytorch_model.bin", "training.log"}
    described = [path for _, path, _ in hub.requests if path.startswith("/api/models/")]
    assert len(described) == len(set(described)), "the same was asked twice"
    inspected = run_cli(hub, tmp_path, "inspect", "MiMo-7B-RL-BF16.gguf", "--json")
    metadata = json.loads(inspected.stdout)["metadata"]
    assert metadata["general.source.url"] == f"https://huggingface.co/{MODEL}/tree/{COMMIT}"
    assert metadata["general.name"] == "MiMo 7B RL"


def test_dry_run_reads_headers_only(hub: FakeHub, tmp_path: Path) -> None:
    done = run_cli(hub, tmp_path, "convert", MODEL, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["layout"] == "step35"
    weights = [(path, part) for method, path, part in hub.requests if method == "GET" and path.endswith(".safetensors")]
    assert weights
    assert all(part is not None for _, part in weights)
    assert not list(tmp_path.glob("*.gguf"))
    assert not list(tmp_path.glob("hf/**/*.safetensors"))


def test_index_that_leads_out_of_the_folder(hub: FakeHub, tmp_path: Path) -> None:
    """A hostile index names a shard elsewhere: refused before anything is fetched or written there."""
    path = hub.repositories[MODEL] / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["lm_head.weight"] = "../../outside.safetensors"
    path.write_text(json.dumps(index))
    with mock.patch.dict(os.environ, {"TMPDIR": str(tmp_path / "tmp" / "tmp")}):
        (tmp_path / "tmp" / "tmp").mkdir(parents=True)
        done = run_cli(hub, tmp_path, "convert", MODEL, "--dry-run")
    assert done.returncode == 1
    assert "'../../outside.safetensors', not a file name" in done.stderr
    assert not list(tmp_path.rglob("outside*"))


def test_broken_download_resumes(hub: FakeHub, tmp_path: Path) -> None:
    hub.break_after[SHARD] = 5000
    first = run_cli(hub, tmp_path, "convert", MODEL)
    if first.returncode:  # the library may also resume within one call
        assert first.returncode == 1
        assert "resumes" in first.stderr
        assert "Traceback" not in first.stderr
        second = run_cli(hub, tmp_path, "convert", MODEL)
        assert second.returncode == 0, second.stderr
    assert (tmp_path / "MiMo-7B-RL-BF16.gguf").is_file()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("XiaomiMiMo/Nothing", "no such model on the Hub"),
        (f"{MODEL}@v9", "no such revision"),
    ],
)
def test_not_on_the_hub(hub: FakeHub, tmp_path: Path, source: str, expected: str) -> None:
    done = run_cli(hub, tmp_path, "convert", source)
    assert done.returncode == 1
    assert expected in done.stderr
    assert "hint:" in done.stderr
    assert "Traceback" not in done.stderr


def test_hub_out_of_reach(hub: FakeHub, tmp_path: Path) -> None:
    nowhere = FakeHub({}, endpoint="http://127.0.0.1:9")
    done = run_cli(nowhere, tmp_path, "convert", MODEL)
    assert done.returncode == 1
    assert "could not be reached" in done.stderr
    assert "Traceback" not in done.stderr
