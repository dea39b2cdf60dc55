"""Sessions on a second device: an RPC worker on loopback takes weights, caches and the MTP context."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.workers import running_worker


def ask(path: Path, *arguments: str) -> dict[str, Any]:
    """One greedy answer, in a process of its own: a worker's devices cannot be taken out of llama.cpp again."""
    options = ["--temp", "0", "--max-tokens", "30", "--threads", "1", "--ctx", "256", "--always-draft", "--json"]
    program = "from mimo_gguf.cli.app import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", program, "chat", str(path), "-p", "Hello there", *options, *arguments],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    answer: dict[str, Any] = json.loads(run.stdout)
    return answer


def test_the_same_tokens_wherever_the_layers_are(tiny_path: Path) -> None:
    """Any split between worker and host gives the host's tokens, with and without MTP."""
    here = ask(tiny_path)
    assert here["tokens"]["generated"] == 30 and here["mtp"]["drafted"][0] > 20
    with running_worker() as endpoint:
        for layers, mtp in ((2, True), (4, False)):
            there = ask(tiny_path, "--rpc", endpoint, "--gpu-layers", str(layers), *([] if mtp else ["--no-mtp"]))
            assert there["text"] == here["text"]
            assert there["mtp"]["present"] == mtp and (not mtp or there["mtp"]["drafted"][0] > 20)


def test_two_workers_hold_what_the_plan_deals_them(tiny_path: Path) -> None:
    """The split of the plan is the one llama.cpp is given: the same tokens, and the plan names both shares."""
    here = ask(tiny_path)
    with running_worker() as first, running_worker() as second:
        there = ask(tiny_path, "--rpc", first, "--rpc", second)
    assert there["text"] == here["text"]
