"""Runs a quantization again and again, killing it with SIGKILL, until it has finished (a script: needs os.fork).

    python -m tests.quantization.crash_runner SOURCE FOLDER calls    killed before its n-th call that changes a file
    python -m tests.quantization.crash_runner SOURCE FOLDER clock    killed after random times

`calls` starts afresh for every n: all at the beginning and at the end, some of the many between. `clock` kills
the same run over and over; it prints the number of kills. FOLDER/<n> then holds what the last run left, and
FOLDER/undisturbed what a run makes that nobody kills.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mimo_gguf.core.gguf_file import open_gguf
from mimo_gguf.core.model_source import SourceTensor
from mimo_gguf.quantization.plan import OutputRequest, QuantizeOptions, plan_quantization
from mimo_gguf.quantization.profiles import load_profile
from mimo_gguf.quantization.run import run_quantization

NAMES = ("Q4_0", "F16")
CALLS = ("pwrite", "write", "fsync", "replace", "unlink", "ftruncate")


def run(source: Path, folder: Path, wait_s: float = 0.0) -> None:
    """One attempt."""
    folder.mkdir(parents=True, exist_ok=True)
    with open_gguf(source) as model:
        slow = replace(model, tensors=tuple(slowed(tensor, wait_s) for tensor in model.tensors))
        requests = [OutputRequest(load_profile(name), folder / f"{name}.gguf") for name in NAMES]
        options = QuantizeOptions(n_threads=1, split_max_bytes=120_000, chunk_weights=1 << 13)
        run_quantization(plan_quantization(slow, requests, options))


def slowed(tensor: SourceTensor, wait_s: float) -> SourceTensor:
    def read_rows(first: int, last: int, out: Any) -> None:
        time.sleep(wait_s)
        tensor.read_rows(first, last, out)

    return replace(tensor, read_rows=read_rows) if wait_s else tensor


def in_child(action: Callable[[], None], kill_after_s: float | None = None) -> bool:
    """Runs `action` in a forked process, perhaps killing it; whether it came to its end."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            sys.stderr.flush()
            os._exit(1)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return False
    if os.WEXITSTATUS(status) != 0:
        raise SystemExit("a run failed")
    return True


def die_before_call(number: int) -> None:
    """From now on the `number`-th of the calls that change files kills this process instead."""
    count = counting_calls()

    def die() -> None:
        if count() >= number:
            os.kill(os.getpid(), signal.SIGKILL)

    on_call(die)


def counting_calls() -> Callable[[], int]:
    count = 0

    def add() -> int:
        nonlocal count
        count += 1
        return count

    return add


def on_call(action: Callable[[], object]) -> Callable[[], None]:
    """`action` happens before each of CALLS, until what is returned is called."""
    originals = {name: getattr(os, name) for name in CALLS}

    def wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            action()
            return original(*args, **options)

        return call

    for name, original in originals.items():
        setattr(os, name, wrapped(original))

    def undo() -> None:
        for name, original in originals.items():
            setattr(os, name, original)

    return undo


def crash_at_calls(source: Path, folder: Path) -> int:
    count = counting_calls()
    undo = on_call(count)
    run(source, folder / "counted")
    undo()
    n_calls = count() - 1
    points = sorted({*range(1, 9), *range(9, n_calls, 11), *range(n_calls - 30, n_calls + 1)})
    for number in points:

        def doomed(number: int = number) -> None:
            die_before_call(number)
            run(source, folder / str(number))

        assert not in_child(doomed), f"call {number} of {n_calls} was not reached"
        in_child(lambda number=number: run(source, folder / str(number)))  # type: ignore[misc]
    return len(points)


def crash_at_random_times(source: Path, folder: Path) -> int:
    """Ever later times: on a slow machine too it comes to its end, and does not spend all its time in starting."""
    rng = random.Random(1)
    kills = 0
    while not in_child(
        lambda: run(source, folder / "0", wait_s=0.03), kill_after_s=rng.uniform(0.02, 0.1) * (1 + kills / 5)
    ):
        kills += 1
    return kills


def main(source: str, folder: str, how: str) -> None:
    crash = crash_at_calls if how == "calls" else crash_at_random_times
    run(Path(source), Path(folder) / "undisturbed")  # also loads the kernels, which the children then have
    sys.stdout.write(f"{crash(Path(source), Path(folder))}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
