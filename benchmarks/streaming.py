"""Reading a checkpoint while it is downloaded, against downloading first: time, disk and memory; and on a rude network.

    python -m benchmarks.streaming CONFIG_FOLDER SCRATCH [--blocks 36] [--mb-s 100] [--type Q4_K_M]
    python -m benchmarks.streaming --rude 200

CONFIG_FOLDER holds a published model's config.json, tokenizer files and index. A server on loopback, limited to so many
MB/s in all, gives shards of its geometry, made of a block of random weights that repeats. There are three runs:
`quantize` of the model on the server, the download alone, and `quantize` of the downloaded folder. SCRATCH needs the
checkpoint and twice the output: 25 GB for 36 blocks, 8 GB for 8. --rude makes a tiny checkpoint's files through a
network with every fault there is, once for each seed, and compares each with those of a local copy. The last line on
stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from benchmarks.measured import Measurement, machine, measure
from benchmarks.random_checkpoint import SMALL_FILES, random_bf16
from mimo_gguf.conversion.checkpoint import INDEX_NAME
from tests.checkpoints import tensor_shapes, write_checkpoint, write_hollow

MODEL = "Random/MiMo"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PATTERN_WEIGHTS = 15_999_989  # a prime, so that no two rows are alike
PIECE = 1 << 20


# ---- the server


@dataclass
class Shard:
    """A shard that is made as it is read: a true header, then the pattern again and again."""

    header: bytes
    n_bytes: int
    pattern: memoryview
    sha256: str = ""

    def pieces(self, start: int, stop: int) -> Iterator[bytes | memoryview]:
        if start < len(self.header):
            yield self.header[start : min(stop, len(self.header))]
        at = max(start, len(self.header))
        while at < stop:
            first = (at - len(self.header)) % len(self.pattern)
            piece = self.pattern[first : first + min(PIECE, stop - at)]
            yield piece
            at += len(piece)


def shards_of(folder: Path) -> dict[str, Shard]:
    pattern = random_bf16(PATTERN_WEIGHTS, np.random.default_rng(1), 0.02, 0.0).tobytes()
    shards = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            file.seek(0)
            shards[path.name] = Shard(file.read(8 + length), path.stat().st_size, memoryview(pattern))
    for shard in shards.values():
        digest = hashlib.sha256()
        for piece in shard.pieces(0, shard.n_bytes):
            digest.update(piece)
        shard.sha256 = digest.hexdigest()
    return shards


class Link:
    """A network that carries so many bytes per second, all connections together."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s, self._free_at, self._lock = bytes_per_s, time.monotonic(), threading.Lock()

    def carry(self, n_bytes: int) -> None:
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic() - 0.02) + n_bytes / self._bytes_per_s
            wait = self._free_at - time.monotonic()
        if wait > 0:
            time.sleep(wait)


def serve(folder: Path, bytes_per_s: float) -> ThreadingHTTPServer:
    """Serves the small files in `folder` and its shards as ModelScope does."""
    shards, link = shards_of(folder), Link(bytes_per_s)
    small = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".safetensors"}
    entries = [
        *({"Path": n, "Type": "blob", "Size": s.n_bytes, "Sha256": s.sha256} for n, s in shards.items()),
        *({"Path": n, "Type": "blob", "Size": len(d), "Sha256": hashlib.sha256(d).hexdigest()}
          for n, d in small.items()),
    ]  # fmt: skip
    data = {"Files": entries, "LatestCommitter": {"Id": COMMIT}}
    listing = json.dumps({"Code": 200, "Success": True, "Data": data}).encode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            name = parse_qs(parts.query).get("FilePath", [""])[0]
            if parts.path.endswith("/repo/files"):
                self._send(200, [listing], len(listing), {})
                return
            n_bytes = shards[name].n_bytes if name in shards else len(small[name])
            first, last = (int(text) for text in (self.headers["Range"].removeprefix("bytes=").split("-")))
            pieces = shards[name].pieces(first, last + 1) if name in shards else iter([small[name][first : last + 1]])
            self._send(206, pieces, last + 1 - first, {"Content-Range": f"bytes {first}-{last}/{n_bytes}"})

        def _send(self, status: int, pieces: Any, n_bytes: int, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(n_bytes)}.items():
                self.send_header(key, value)
            self.end_headers()
            for piece in pieces:
                link.carry(len(piece))
                self.wfile.write(piece)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


# ---- the runs


class Disk:
    """The most bytes that folders have held at any time, besides what they held at first."""

    def __init__(self, *folders: Path) -> None:
        self.folders, self.most, self._stop = folders, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _used(self) -> int:
        paths = (path for folder in self.folders for path in folder.rglob("*") if path.is_file())
        used = 0
        for path in paths:
            try:
                used += path.stat().st_blocks * 512
            except OSError:
                continue
        return used

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            self.most = max(self.most, self._used() - self._first)

    def __enter__(self) -> Disk:
        self._first = self._used()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def hollow_model(config_folder: Path, folder: Path, n_blocks: int) -> None:
    config = json.loads((config_folder / "config.json").read_text()) | {"num_hidden_layers": n_blocks}
    shapes = tensor_shapes(config)
    published = json.loads((config_folder / INDEX_NAME).read_text())["weight_map"]
    folder.mkdir(parents=True)
    for name in SMALL_FILES:
        if (config_folder / name).is_file():
            shutil.copy(config_folder / name, folder / name)
    write_hollow(folder, config, {name: published[name] for name in shapes}, shapes)


def run(label: str, arguments: list[str | Path], environment: Mapping[str, str]) -> Measurement:
    return run_python(label, ["-m", "mimo_gguf", *arguments, "--json"], environment)


def run_python(label: str, arguments: list[str | Path], environment: Mapping[str, str]) -> Measurement:
    done = measure(label, [sys.executable, *arguments], env={**os.environ, **environment})
    if done.returncode:
        sys.exit(f"{label} failed:\n{done.output[-2000:]}")
    print(f"{label}: {done.wall_s:.1f} s, {done.cpu_s:.1f} s of CPU", file=sys.stderr)
    return done


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    scratch: Path = arguments.scratch
    hollow_model(arguments.config_folder, scratch / "hollow", arguments.blocks)
    server = serve(scratch / "hollow", arguments.mb_s * 1e6)
    temporary = scratch / "tmp"
    temporary.mkdir()
    environment = {
        "MODELSCOPE_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
        "XDG_CACHE_HOME": str(scratch / "cache"),
        "TMPDIR": str(temporary),
    }
    figures: dict[str, Any] = {}
    quantize: list[str | Path] = ["quantize", f"modelscope:{MODEL}", "--type", arguments.type]
    tiny = Path(__file__).resolve().parents[1] / "examples" / "mimo-tiny"
    run("compiling kernels", ["quantize", tiny, "--type", arguments.type, "-o", scratch / "tiny.gguf"], environment)
    with Disk(scratch) as disk:
        streamed = run("while downloading", [*quantize, "-o", scratch / "streamed.gguf"], environment)
    figures["while downloading"] = {**streamed.as_json(), "peak_disk_bytes": disk.most}
    with Disk(scratch) as disk:
        download = run_python("download", ["-c", _DOWNLOAD], environment)
        folder = next((scratch / "cache" / "mimo-gguf" / "checkpoints").glob("*/*"))
        local = run("quantize", [*quantize, "--keep-checkpoint", "-o", scratch / "local.gguf"], environment)
    figures |= {"download": download.as_json(), "quantize": local.as_json(), "peak_disk_bytes": disk.most}
    larger = max(download.wall_s, local.wall_s)
    figures["ratio to the larger"] = round(streamed.wall_s / larger, 3)
    figures["same bytes"] = same_bytes(scratch / "streamed.gguf", scratch / "local.gguf")
    figures["checkpoint_bytes"] = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    server.shutdown()
    return figures


_DOWNLOAD = f"""
from mimo_gguf.conversion.hub import HubId, fetch
fetch(HubId({MODEL!r}, None, "modelscope"))
"""


def same_bytes(one: Path, other: Path) -> bool:
    return hashlib.sha256(one.read_bytes()).digest() == hashlib.sha256(other.read_bytes()).digest()


# ---- a rude network


def rude(n_seeds: int) -> dict[str, Any]:
    from mimo_gguf.conversion.open_model import STREAM, open_model
    from mimo_gguf.core.errors import MimoGgufError
    from tests.conversion.rude_hub import Rudeness, serve_rude_hub
    from tests.conversion.streams import MODEL as PUBLISHED
    from tests.conversion.streams import PAGE, TINY, files_of, open_folder, open_stream, quantize

    met: set[str] = set()
    wrong: list[int] = []
    again: list[int] = []
    n_requests = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_checkpoint(folder / "served")
        expected = []
        for kind, page in enumerate((None, PAGE)):
            with open_folder(folder / "served", page) as source:
                quantize(source, folder / f"expected-{kind}")
            expected.append(files_of(folder / f"expected-{kind}"))
        with serve_rude_hub({PUBLISHED: folder / "served"}) as hub:
            os.environ["MODELSCOPE_ENDPOINT"] = hub.endpoint
            for seed in range(n_seeds):
                hub.rudeness = Rudeness(seed)
                for last in (False, True):
                    try:
                        with _opened(seed, hub, open_stream, open_model, replace(STREAM, fetching=TINY)) as source:
                            quantize(source, folder / "out")
                        break
                    except MimoGgufError as error:  # a clear end without a file; the same command, again
                        if last or list((folder / "out").glob("[!.]*.gguf")):
                            raise
                        again.append(seed)
                        print(f"seed {seed}: {error}", file=sys.stderr)
                wrong += [seed] if files_of(folder / "out") != expected[seed % 2] else []
                met |= hub.rudeness.met
                shutil.rmtree(folder / "out")
                print(f"{seed + 1} of {n_seeds}, {len(hub.requests)} requests, wrong: {wrong}", file=sys.stderr)
            n_requests = len(hub.requests)
    return {"seeds": n_seeds, "wrong": wrong, "again": again, "faults": sorted(met), "requests": n_requests}


@contextmanager
def _opened(seed: int, hub: Any, open_stream: Any, open_model: Any, reading: Any) -> Iterator[Any]:
    from tests.conversion.streams import MODEL as PUBLISHED

    with open_model(f"modelscope:{PUBLISHED}", reading=reading) if seed % 2 else open_stream(hub) as source:
        yield source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config_folder", type=Path, nargs="?")
    parser.add_argument("scratch", type=Path, nargs="?")
    parser.add_argument("--blocks", type=int, default=36)
    parser.add_argument("--mb-s", type=float, default=100)
    parser.add_argument("--type", default="Q4_K_M")
    parser.add_argument("--rude", type=int, help="number of seeds")
    arguments = parser.parse_args()
    if arguments.rude:
        figures = rude(arguments.rude)
    elif arguments.config_folder and arguments.scratch:
        figures = compare(arguments)
    else:
        parser.error("give CONFIG_FOLDER and SCRATCH, or --rude")
    print(json.dumps({"machine": machine(), **figures}))


if __name__ == "__main__":
    main()
