"""The child: makes mutants and does with each what the program does with a file, saying on stdout how it went.

Run by `fuzzer`, which sees to it that a death or a hang here costs one mutant and not the run. One line before each
mutant (`> number what`) and one after it (`< JSON`).
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mimo_gguf.core.errors import MimoGgufError
from mimo_gguf.core.units import GIB, MIB
from tests.fuzz.gguf_bytes import put_together, take_apart
from tests.fuzz.mutations import mutant

MOST_ADDRESS_BYTES: Final = 3 * GIB  # beyond what the process has when it starts
MOST_RESIDENT_BYTES: Final = 512 * MIB  # beyond what it held before the mutant
_N_CTX: Final = 256


def main(folder: Path, seed: int, first: int, last: int) -> None:
    bases = [take_apart(path) for path in sorted(folder.glob("base-*.gguf"))]
    path = folder / f"mutant-{seed}.gguf"
    _warm_up(sorted(folder.glob("base-*.gguf"))[0])
    _limit_memory()
    steps = {**STEPS, **_planted_step()}
    for number in range(first, last):
        rng = random.Random(f"{seed} {number}")
        what, parts = mutant(bases[number % len(bases)], rng)
        path.write_bytes(put_together(parts))
        print(f"> {number} {what[:300]!r}", flush=True)
        start, before = time.monotonic(), _resident_bytes()
        outcomes = {name: _outcome(step, path) for name, step in steps.items()}
        grown = _peak_bytes() - before
        report = {"outcomes": outcomes, "seconds": round(time.monotonic() - start, 2), "grown": grown}
        print(f"< {json.dumps(report)}", flush=True)


def _read(path: Path) -> None:
    from mimo_gguf.core.gguf_file import read_gguf
    from mimo_gguf.core.inspection import as_json, inspect_gguf, layout_line

    inspection = inspect_gguf(read_gguf(path))
    layout_line(inspection)
    as_json(inspection, tensors=True)


def _plan(path: Path) -> None:
    from mimo_gguf.bench.bandwidth import weight_reads
    from mimo_gguf.core.gguf_file import read_gguf
    from mimo_gguf.fit.refusal import plan_json
    from mimo_gguf.fit.verdicts import judge_cards
    from mimo_gguf.fit.weigh import plan_fit
    from mimo_gguf.hardware.cards import cards
    from mimo_gguf.hardware.devices import host_device, imagined_gpu

    host = host_device()
    for devices in ((host,), (imagined_gpu(300 * MIB), host)):
        plan_json(plan_fit(path, n_ctx=0, devices=devices))
    model = plan_fit(path, n_ctx=_N_CTX, devices=(imagined_gpu(GIB), imagined_gpu(GIB), host)).model
    judge_cards(model, _N_CTX, cards()[:2])
    weight_reads(read_gguf(path))


def _quantize(path: Path) -> None:
    from mimo_gguf.core.gguf_file import open_gguf
    from mimo_gguf.quantization.plan import OutputRequest, plan_quantization
    from mimo_gguf.quantization.profiles import load_profile

    with open_gguf(path) as source:
        plan_quantization(source, [OutputRequest(load_profile("Q4_K_M"), path.with_name("out.gguf"))]).as_json()


def _ask(path: Path) -> None:
    """As `ask_memory` does, but in this process: starting one for each mutant takes a second."""
    from mimo_gguf.core.gguf_file import read_gguf
    from mimo_gguf.core.runnable import check_measurable
    from mimo_gguf.fit.breakdown import read_memory
    from mimo_gguf.memory.run import RunSettings

    check_measurable(read_gguf(path))
    read_memory(path, RunSettings(n_ctx=_N_CTX))


def _run(path: Path) -> None:
    from mimo_gguf.engine.session import SessionOptions
    from mimo_gguf.runtime.model import Model

    with Model.load(path, n_ctx=_N_CTX, options=SessionOptions(n_threads=1)) as model:
        model.chat([{"role": "user", "content": "Hello, <|im_end|> 12 ü"}], temperature=0, max_tokens=4)
        model.complete("he said", max_tokens=3, seed=1)


STEPS: Final[dict[str, Callable[[Path], None]]] = {
    "read": _read,
    "plan": _plan,
    "quantize": _quantize,
    "ask": _ask,
    "run": _run,
}


def _planted_step() -> dict[str, Callable[[Path], None]]:
    """A fault put there on purpose, by the test that faults are seen."""
    code = os.environ.get("MIMO_GGUF_FUZZ_STEP")
    return {"planted": lambda _: exec(code, {})} if code else {}


def _outcome(step: Callable[[Path], None], path: Path) -> str:
    """`works`, one of our errors (`refused ...`), or the traceback of what should never come out."""
    try:
        step(path)
    except MimoGgufError as error:
        return f"refused {type(error).__name__}: {error.message[:300]}"
    except Exception:
        return traceback.format_exc(limit=-4)
    return "works"


def _warm_up(path: Path) -> None:
    """Loads what every mutant needs, so that none is charged with it."""
    for step in STEPS.values():
        step(path)


def _limit_memory() -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MOST_ADDRESS_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _resident_bytes() -> int:
    """What is resident now; the peak counts from here."""
    Path("/proc/self/clear_refs").write_text("5")
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
