"""Measures a command (wall time, CPU time, and peak resident memory, on Linux anonymous memory apart) and a session."""

from __future__ import annotations

import hashlib
import platform
import resource
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mimo_gguf.engine.sampling import Sampler
    from mimo_gguf.engine.session import Session
    from mimo_gguf.engine.slot import Slot


@dataclass(frozen=True)
class Measurement:
    """The measurement of one run.

    Attributes:
        wall_s, cpu_s: seconds of wall time and of all cores' time.
        peak_anon_bytes: memory without mapped or cached file pages; 0 if the system does not report it.
    """

    label: str
    wall_s: float
    cpu_s: float
    peak_rss_bytes: int
    peak_anon_bytes: int
    returncode: int
    output: str

    def as_json(self) -> dict[str, Any]:
        """The measurement as a JSON document, without the output."""
        return {key: value for key, value in asdict(self).items() if key != "output"}


class Timed:
    """A function that counts the seconds spent in it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments: Any) -> Any:
        started = time.perf_counter()
        result = self.function(*arguments)
        self.seconds += time.perf_counter() - started
        return result


def time_decodes(session: Session) -> list[Timed]:
    """Counts the time inside llama_decode from now on, with one timer for each context of `session`."""
    native = []
    for context in [session.target, *([session.drafter.context] if session.drafter is not None else [])]:
        if not isinstance(context._decode, Timed):
            context._decode = Timed(context._decode)
        native.append(context._decode)
    return native


@dataclass(frozen=True)
class Served:
    """What it took to answer side by side.

    Attributes:
        seconds, steps, passes: of all tokens behind each conversation's first.
        native_s: those of the seconds that llama_decode took.
    """

    seconds: float
    native_s: float
    steps: int
    passes: int


def serve_together(
    session: Session, samplers: Mapping[Slot, Sampler], prompts: Iterable[list[int]], n_tokens: int
) -> Served:
    """Lets every slot read its prompt and draw a token, then measures until each has drawn `n_tokens` more.

    The samplers are closed; end tokens are ignored.
    """
    left = dict(samplers)
    for slot, prompt in zip(left, prompts, strict=False):
        session.reset(slot)
        session.begin(slot, prompt)
    said = dict.fromkeys(left, 0)
    while not all(said.values()):
        for slot in session.step({slot: left[slot] for slot in left if not said[slot]}):
            said[slot] = 1
    native = time_decodes(session)
    before = sum(timed.seconds for timed in native)
    steps, passes, started = 0, session.stats.n_passes, time.perf_counter()
    while left:
        steps += 1
        for slot in session.step(left):
            said[slot] += 1
            if said[slot] > n_tokens:
                left.pop(slot).close()
    seconds = time.perf_counter() - started
    return Served(seconds, sum(timed.seconds for timed in native) - before, steps, session.stats.n_passes - passes)


def measure(label: str, command: Sequence[str | Path], **popen: Any) -> Measurement:
    """Runs `command` to its end; stdout is kept, stderr is not redirected."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True, **popen)
    peaks = {"VmHWM": 0, "RssAnon": 0}
    watcher = threading.Thread(target=_watch, args=(process, peaks), daemon=True)
    watcher.start()
    output, _ = process.communicate()
    wall = time.perf_counter() - started
    watcher.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measurement(label, wall, cpu, peaks["VmHWM"], peaks["RssAnon"], process.returncode, output)


def _watch(process: subprocess.Popen[str], peaks: dict[str, int]) -> None:
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:
            return
        for key in peaks:
            if key in fields:
                peaks[key] = max(peaks[key], 1024 * int(fields[key].split()[0]))
        time.sleep(0.05)


def machine() -> dict[str, Any]:
    """Describes the machine on which the figures were measured."""
    import os

    name = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    return {"cpu": name, "cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()}


def sources_digest() -> str:
    """The SHA-256 of this program's code and recipes, with their names: whether two figures come from the same one."""
    root, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    kinds = {"mimo_gguf": "*.py", "convert": "*.toml", "quant_profiles": "*.toml"}
    for path in sorted(path for folder, pattern in kinds.items() for path in (root / folder).rglob(pattern)):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def drop_page_cache() -> bool:
    """Empties the file cache, so that every candidate starts cold. False if it cannot: only root on Linux may."""
    import os

    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    except OSError:
        return False
    return True
