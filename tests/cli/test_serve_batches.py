"""A server is killed while it answers a batch; the next one goes on where it was."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import httpx

from tests.cli.command_line import assert_clear_error, run_here
from tests.cli.test_batch import chat
from tests.cli.test_serve import started


def state(url: str, batch_id: str) -> Any:
    return httpx.get(f"{url}/v1/batches/{batch_id}", timeout=60).json()


def test_killed_it_goes_on(mimo_tiny: Path, tmp_path: Path) -> None:
    rows = "".join(json.dumps(chat(number, ignore_eos=True)) + "\n" for number in range(16))
    options = ("--parallel", "2", "--files-dir", str(tmp_path / "kept"))
    with started(mimo_tiny, *options) as (process, url, _):
        files = {"file": ("rows.jsonl", rows.encode())}
        uploaded = httpx.post(f"{url}/v1/files", data={"purpose": "batch"}, files=files, timeout=60).json()
        body = {"input_file_id": uploaded["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch = httpx.post(f"{url}/v1/batches", json=body, timeout=60).json()
        other = run_here(tmp_path, "serve", mimo_tiny, "--port", "0", "--files-dir", tmp_path / "kept")
        assert_clear_error(other, "another run is working in it")
        partial = tmp_path / "kept" / "batches" / f"{batch['id']}.jsonl.partial"
        while not partial.exists() or partial.read_bytes().count(b"\n") < 3:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = partial.read_bytes()
    with started(mimo_tiny, *options) as (process, url, _):
        while (found := state(url, batch["id"]))["status"] != "completed":
            assert found["status"] in {"in_progress", "finalizing"}
            time.sleep(0.05)
        assert found["request_counts"] == {"total": 16, "completed": 16, "failed": 0}
        answers = httpx.get(f"{url}/v1/files/{found['output_file_id']}/content", timeout=60).content
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert answers.startswith(before[: before.rindex(b"\n") + 1])
    assert len({json.loads(line)["custom_id"] for line in answers.splitlines()}) == 16
