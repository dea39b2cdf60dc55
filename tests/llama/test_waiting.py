"""Threads that sleep instead of spinning, switched while the process runs; the user's own setting wins."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mimo_gguf.engine.wait_control import WaitControl
from mimo_gguf.engine.waits import Waits
from mimo_gguf.llama.waiting import ENVIRONMENT, Waiting

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
    def n_threads(): return len(os.listdir("/proc/self/task"))
    passes()
    n_usual = n_threads()
    for wanted in (False, True, False, True):
        switch.sleep(switch, wanted=wanted)
        while not wanted and n_threads() > n_usual: time.sleep(0.001)  # the idle threads end on their own
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


class Library:
    """Starts no threads, but does what a test wants in the thread that would."""

    def __init__(self, does: Callable[[], None]) -> None:
        self.parked: list[threading.Thread] = []  # all that ever were; sessions of other tests may have theirs
        self._does = does

    def GOMP_parallel(self, *_: object) -> None:
        self.parked.append(threading.current_thread())
        self._does()

    @property
    def n_parked(self) -> int:
        return sum(thread.is_alive() for thread in self.parked)

    def ends(self) -> None:
        for thread in self.parked:
            thread.join(20)
        assert self.n_parked == 0


def in_time(call: Callable[[], None]) -> None:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it waits for ever"


def test_a_finalizer_in_the_thread_that_parks() -> None:
    """The garbage collector may run there, and find a session that wants nothing any more."""
    switch = Waiting(library := Library(lambda: switch.sleep(gone, wanted=False)))
    gone, stays = object(), object()

    def use() -> None:
        switch.sleep(stays, wanted=True)
        assert library.n_parked == 1
        switch.sleep(stays, wanted=False)

    in_time(use)
    library.ends()
    assert len(library.parked) == 1


def test_threads_are_parked_while_one_wants_it() -> None:
    switch, first, second = Waiting(library := Library(lambda: None)), object(), object()

    def use() -> None:
        for who in (first, second, first):
            switch.sleep(who, wanted=True)
        switch.sleep(first, wanted=False)
        switch.sleep(second, wanted=True)
        assert library.n_parked == 1 and len(library.parked) == 1
        switch.sleep(second, wanted=False)

    in_time(use)
    library.ends()
    in_time(lambda: switch.sleep(first, wanted=True))
    assert library.n_parked == 1 and len(library.parked) == 2
    switch.sleep(first, wanted=False)
    library.ends()


def test_many_threads_switch_at_once() -> None:
    switch = Waiting(library := Library(lambda: None))

    def use() -> None:
        for _ in range(200):
            switch.sleep(threading.current_thread(), wanted=True)
            assert library.n_parked >= 1
            switch.sleep(threading.current_thread(), wanted=False)

    threads = [threading.Thread(target=use, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    library.ends()


@pytest.mark.parametrize("closes_first", [False, True], ids=["closed afterwards", "closed during a pass"])
def test_a_closed_session_wants_nothing(closes_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that somebody still holds: threads that sleep for nobody make the passes of others slower."""
    switch = Waiting(library := Library(lambda: None))
    monkeypatch.setattr("mimo_gguf.engine.waits.waiting", lambda: switch)
    waits = Waits()

    def sleep(control: WaitControl, *_: object, **__: object) -> None:
        if closes_first:
            waits.close()
        control.sleeps = True

    monkeypatch.setattr(WaitControl, "record", sleep)
    waits.record(1, 0.1, reads=False)
    if not closes_first:
        assert library.n_parked == 1
        waits.close()
    library.ends()
    assert len(library.parked) == 1
