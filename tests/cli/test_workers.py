"""Runs over RPC workers that go away: one clear error and exit code 1, whatever llama.cpp was doing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.cli.command_line import assert_clear_error
from tests.tiny_models import make_model
from tests.workers import running_worker

CODE = """
import sys
from mimo_gguf.cli.workers import use_workers
from mimo_gguf.runtime.model import Model

use_workers([sys.argv[2]])
model = Model.load(sys.argv[1], n_ctx=512)
question = [{"role": "user", "content": "x"}]
model.chat(question, max_tokens=1)
print("ready", flush=True)
sys.stdin.readline()
model.chat(question, max_tokens=5)
print("never", flush=True)
"""


def test_a_worker_that_goes_away_is_one_clear_error(tmp_path: Path) -> None:
    """llama.cpp itself would end with SIGABRT and the backtrace of a debugger."""
    path = make_model(tmp_path)
    with running_worker() as endpoint:
        process = subprocess.Popen(
            [sys.executable, "-c", CODE, path, endpoint],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    out, err = process.communicate("the worker is gone\n", timeout=60)
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    assert_clear_error(done, "a worker went away", code=1)
    assert "mimo-gguf worker" in err and out == ""
