"""Quantizes a streamed model again and again, killing the process before some request (a script: needs os.fork).

    python -m tests.conversion.stream_killer MODEL FOLDER COPY

FOLDER/killed then holds what the last run has made, which nobody killed, FOLDER/local what a local COPY gives.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from mimo_gguf.conversion.open_model import HEADERS, STREAM, open_model
from mimo_gguf.conversion.remote.ranges import RangeReader
from tests.conversion.streams import PAGE, TINY, open_folder, quantize
from tests.quantization.crash_runner import counting_calls, in_child

REQUESTS = (3, 30, 14)  # about 8 for planning, 19 for each of two shards


def run(model: str, folder: Path) -> None:
    with open_model(model, reading=replace(STREAM, fetching=TINY)) as source:
        quantize(source, folder)


def die_before_request(number: int) -> None:
    count, attempt = counting_calls(), RangeReader._attempt

    def attempt_or_die(*args: Any) -> None:
        if count() >= number:
            os.kill(os.getpid(), signal.SIGKILL)
        attempt(*args)

    setattr(RangeReader, "_attempt", attempt_or_die)  # noqa: B010  (mypy does not see the arguments that it gets)


def main(model: str, folder: str, copy: str) -> None:
    with open_folder(Path(copy), page=PAGE) as source:
        quantize(source, Path(folder) / "local")  # also loads the kernels, which the children then have
    open_model(model, reading=HEADERS).close()  # loads what else they need
    killed = Path(folder) / "killed"
    for number in REQUESTS:

        def doomed(number: int = number) -> None:
            die_before_request(number)
            run(model, killed)

        assert not in_child(doomed), f"request {number} was not reached"
    assert in_child(lambda: run(model, killed))


if __name__ == "__main__":
    main(*sys.argv[1:])
