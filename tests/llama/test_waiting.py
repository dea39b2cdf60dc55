"""Threads that sleep instead of spinning, switched while the process runs; the user's own setting wins."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mimo_gguf.llama.waiting import ENVIRONMENT

# Two threads that have to share one core: whoever spins at a barrier keeps the other one from reaching it.
CODE = """
import os, sys, threading, time
from mimo_gguf.llama.api import load_model, open_context, ContextOptions
from mimo_gguf.llama.waiting import waiting
from mimo_gguf.llama.batch import Batch
with load_model(sys.argv[1]) as model, open_context(model, ContextOptions(n_ctx=512, n_threads=2)) as context:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    batch = Batch(8)
    def passes():
        for _ in range(3):
            context.forget(0)
            assert context.decode(batch.fill([1, 2, 3, 4], 0, n_outputs=1)) == 0
    switch = waiting()
    if switch is None: print("none"); sys.exit()
    passes()
    for wanted in (False, True, False, True):
        switch.sleep(switch, wanted=wanted)
        started = time.process_time()
        passes()
        print(time.process_time() - started)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="GNU's OpenMP is Linux's")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="with one core it never spins")
def test_sleeping_threads_take_no_time(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run([sys.executable, "-c", CODE, str(tiny_path)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    if done.stdout == "none\n":
        pytest.skip("this build of llama.cpp has another OpenMP, or none")
    spinning, sleeping, again, asleep = map(float, done.stdout.split())
    assert max(sleeping, asleep) < min(spinning, again) / 2


def test_the_users_own_setting_wins(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    done = subprocess.run([sys.executable, "-c", CODE, str(tiny_path)], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, "none\n"), done.stderr
