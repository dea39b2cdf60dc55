"""The parent: runs many mutants in child processes with limits, and counts how they end.

    python -m tests.fuzz.fuzzer --count 2000 --seed 1

A fault is the death of the process, a hang, an absurd amount of memory, or a traceback that is none of our errors.
The last line on stdout is one JSON document with the counts.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from tests.fuzz.trial import MOST_RESIDENT_BYTES

ROOT: Final = Path(__file__).resolve().parents[2]
FAULTS: Final = ("death", "hang", "memory", "traceback")
_MOST_SECONDS: Final = 30.0  # for one mutant; a few hundredths are usual
_MOST_START_SECONDS: Final = 120.0  # until a child has loaded llama.cpp


@dataclass(frozen=True, slots=True)
class Fault:
    """A mutant that did what no file may do; `seed` and `number` make it again."""

    seed: int
    number: int
    kind: str
    what: str
    detail: str


@dataclass(slots=True)
class Figures:
    """How the mutants of a run ended."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    on_report: Callable[[int, str, Mapping[str, str]], None] = lambda *_: None

    def add(self, fault: Fault) -> None:
        self.counts[fault.kind] += 1
        self.faults.append(fault)

    def as_json(self) -> dict[str, int]:
        return {kind: self.counts[kind] for kind in ("works", "refused", *FAULTS)}


def fuzz(
    folder: Path, figures: Figures, *, seed: int, count: int, most_seconds: float = _MOST_SECONDS, first: int = 0
) -> None:
    """Tries `count` mutants of the files base-*.gguf in `folder`, and adds to `figures`."""
    last = first + count
    while first < last:
        first = _one_child(folder, seed, first, last, most_seconds, figures)


def _one_child(folder: Path, seed: int, first: int, last: int, most_seconds: float, figures: Figures) -> int:
    """Runs mutants until the end or until one takes the child with it; the number to go on from."""
    errors = folder / f"stderr-{seed}.txt"
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1", "GGML_NO_BACKTRACE": "1",
    }  # fmt: skip
    command = [
        sys.executable,
        "-X",
        "faulthandler",
        "-m",
        "tests.fuzz.trial",
        str(folder),
        str(seed),
        str(first),
        str(last),
    ]
    number, what = first - 1, "starting"
    with (
        errors.open("wb") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, cwd=ROOT, env=environment, text=True) as child,
    ):
        assert child.stdout is not None
        for line in _lines(child.stdout, most_seconds):
            if line is None:
                child.kill()
                figures.add(Fault(seed, number, "hang", what, f"more than {most_seconds:.0f} s"))
                break
            if line.startswith("> "):
                text, _, what = line[2:].partition(" ")
                number = int(text)
            elif line.startswith("< "):
                _count(figures, seed, number, what, json.loads(line[2:]))
                if number == last - 1:
                    return last
        else:
            child.wait()
            detail = errors.read_text(errors="replace")[:600]
            figures.add(Fault(seed, number, "death", what, f"exit {child.returncode}: {detail}"))
    if number < first:
        raise RuntimeError(f"the child does not start: {errors.read_text(errors='replace')[-2000:]}")
    return number + 1


def _lines(stream: IO[str], most_seconds: float) -> Iterator[str | None]:
    """Lines as they come; None once there is none for too long. The first may take as long as a child starts."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        for line in stream:
            lines.put(line.rstrip("\n"))
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    patience = max(most_seconds, _MOST_START_SECONDS)
    while True:
        try:
            line = lines.get(timeout=patience)
        except queue.Empty:
            yield None
            return
        if line is None:
            return
        yield line
        patience = most_seconds


def _count(figures: Figures, seed: int, number: int, what: str, report: Mapping[str, Any]) -> None:
    outcomes: Mapping[str, str] = report["outcomes"]
    figures.on_report(number, what, outcomes)
    strange = {step: text for step, text in outcomes.items() if text.startswith("Traceback")}
    out_of_memory = any("MemoryError" in text or "bad_alloc" in text for text in outcomes.values())
    if out_of_memory or report["grown"] > MOST_RESIDENT_BYTES:
        figures.add(Fault(seed, number, "memory", what, json.dumps(report)))
    elif strange:
        figures.add(Fault(seed, number, "traceback", what, json.dumps(strange)))
    else:
        figures.counts["works" if outcomes["run"] == "works" else "refused"] += 1


def write_bases(folder: Path) -> None:
    """The valid files that are mutated: tiny random ones of both layouts, and the trained one quantized."""
    from mimo_gguf.conversion.open_model import open_model
    from tests.tiny_models import make_model, quantized, write_gguf

    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    make_model(folder / "step35", **heads).rename(folder / "base-0-step35.gguf")
    make_model(folder / "qwen2", n_mtp=0, **heads).rename(folder / "base-1-qwen2.gguf")
    with open_model(str(ROOT / "examples" / "mimo-tiny")) as source:
        trained = write_gguf(source, folder / "trained.gguf")
    quantized(trained, "Q4_K_M").rename(folder / "base-2-trained.gguf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant")
    parser.add_argument("--verbose", action="store_true", help="say how every mutant ended")
    arguments = parser.parse_args()
    figures = Figures(on_report=_show if arguments.verbose else lambda *_: None)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        write_bases(Path(folder))
        fuzz(Path(folder), figures, seed=arguments.seed, count=arguments.count, first=arguments.first)
    for fault in figures.faults:
        print(f"{fault.kind} {fault.seed} {fault.number}: {fault.what}\n    {fault.detail}")
    print(json.dumps({"seed": arguments.seed, "seconds": round(time.monotonic() - start), **figures.as_json()}))
    sys.exit(bool(figures.faults))


def _show(number: int, what: str, outcomes: Mapping[str, str]) -> None:
    print(f"{number} {what} " + " | ".join(f"{step}: {text}" for step, text in outcomes.items()), flush=True)


if __name__ == "__main__":
    main()
