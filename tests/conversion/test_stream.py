"""Reading while downloading: the files are those of a local copy, whatever the network does."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimo_gguf.conversion.open_model import STREAM, open_model
from mimo_gguf.conversion.remote.ranges import Patience
from mimo_gguf.core.errors import HubError, MimoGgufError, WeightsError
from mimo_gguf.core.progress import Silence
from tests.checkpoints import write_checkpoint
from tests.conversion.rude_hub import FAULTS, RudeHub, Rudeness, serve_rude_hub
from tests.conversion.streams import (
    IMPATIENT,
    MODEL,
    NAMES,
    PAGE,
    TINY,
    files_of,
    open_folder,
    open_stream,
    quantize,
    repository,
)

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
MODELSCOPE = f"modelscope:{MODEL}"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RudeHub]:
    write_checkpoint(tmp_path / "served")
    with serve_rude_hub({MODEL: tmp_path / "served"}) as running:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", running.endpoint)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield running


def expected(hub: RudeHub, tmp_path: Path, page: str | None = None) -> dict[str, bytes]:
    with open_folder(hub.repositories[MODEL], page) as source:
        quantize(source, tmp_path / "expected")
    return files_of(tmp_path / "expected")


def fetches(hub: RudeHub, name: str) -> int:
    return sum(method == "GET" and path.endswith(name) for method, path, _ in hub.requests)


def test_a_streamed_checkpoint_makes_the_files_of_a_local_one(hub: RudeHub, tmp_path: Path) -> None:
    with open_stream(hub) as source:
        quantize(source, tmp_path / "out")
        arrival = source.arrival
    assert files_of(tmp_path / "out") == expected(hub, tmp_path)
    sizes = [(tmp_path / "served" / name).stat().st_size for name in SHARDS]
    assert arrival is not None
    assert arrival.fetched_bytes == sum(sizes), "every byte once"
    assert hub.strangers == [], "the token must not reach the host that a link leads to"


@pytest.mark.parametrize("seed", range(4))
def test_a_rude_network_changes_nothing(seed: int, hub: RudeHub, tmp_path: Path) -> None:
    """Half of all answers are wrong in some way; `benchmarks/streaming.py --rude 200` is the long run."""
    wanted = expected(hub, tmp_path, PAGE if seed % 2 else None)
    hub.rudeness = Rudeness(seed)
    if seed % 2:
        with open_model(MODELSCOPE, reading=replace(STREAM, fetching=TINY)) as source:
            quantize(source, tmp_path / "out")
    else:
        with open_stream(hub) as source:
            quantize(source, tmp_path / "out")
    assert len(hub.rudeness.met) > len(FAULTS) // 3
    assert files_of(tmp_path / "out") == wanted


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_alone(fault: str, hub: RudeHub, tmp_path: Path) -> None:
    wanted = expected(hub, tmp_path)
    hub.rudeness = Rudeness(1, 0.6, (fault,))
    with open_stream(hub) as source:
        quantize(source, tmp_path / "out")
    assert hub.rudeness.met == {fault}
    assert files_of(tmp_path / "out") == wanted


def test_a_file_with_wrong_bytes_comes_once_more_and_only_what_differs_is_done_again(
    hub: RudeHub, tmp_path: Path
) -> None:
    wanted = expected(hub, tmp_path)
    with open_stream(hub) as source:
        hub.rudeness = Rudeness(3, 1.0, ("flipped",))
        report = quantize(source, tmp_path / "out")
        arrival = source.arrival
    assert arrival is not None
    sizes = sorted((tmp_path / "served" / name).stat().st_size for name in SHARDS)
    assert arrival.fetched_bytes in {sum(sizes) + size for size in sizes}
    data = sum(sum(len(of_file) for of_file in [wanted[f"{name}.gguf"]]) for name in NAMES)
    assert report.written_bytes < data, "one chunk was written twice, not the whole shard"
    assert files_of(tmp_path / "out") == wanted


def test_wrong_bytes_twice_are_a_clear_error_and_give_no_file(hub: RudeHub, tmp_path: Path) -> None:
    with open_stream(hub) as source:
        hub.rudeness = Rudeness(3, 1.0, ("flipped",), flips=1000)
        with pytest.raises(HubError, match=r"model-0000.*arrived twice with another digest"):
            quantize(source, tmp_path / "out")
    assert not list((tmp_path / "out").glob("[!.]*"))
    hub.rudeness = None
    with open_stream(hub) as source:
        quantize(source, tmp_path / "out")
    assert files_of(tmp_path / "out") == expected(hub, tmp_path)


def test_a_header_that_arrives_damaged_comes_once_more(hub: RudeHub, tmp_path: Path) -> None:
    """One byte of a type's name, so that it is no header any more."""
    path = tmp_path / "served" / SHARDS[1]
    good = path.read_bytes()
    described = repository(hub)
    path.write_bytes(good.replace(b"BF16", b"BF1c", 1))

    def repair(asked: str) -> None:
        if fetches(hub, SHARDS[1]) > 1:  # a redirect, and the bytes
            path.write_bytes(good)

    hub.on_request = repair
    with open_stream(hub, described=described) as source:
        quantize(source, tmp_path / "out")
    assert files_of(tmp_path / "out") == expected(hub, tmp_path)


def test_a_header_damaged_while_planning_is_noticed(hub: RudeHub, tmp_path: Path) -> None:
    """The offsets of two tensors of one shape change places: everything fits, and the file has its digest."""
    path = tmp_path / "served" / SHARDS[0]
    good = path.read_bytes()
    described = repository(hub)
    path.write_bytes(with_two_offsets_exchanged(good))
    with open_stream(hub, described=described) as source:
        path.write_bytes(good)
        with pytest.raises(HubError, match="header arrived damaged"):
            quantize(source, tmp_path / "out")


def with_two_offsets_exchanged(shard: bytes) -> bytes:
    (length,) = struct.unpack("<Q", shard[:8])
    header = json.loads(shard[8 : 8 + length])
    by_shape: dict[str, list[str]] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            by_shape.setdefault(str(entry["shape"]), []).append(name)
    one, two, *_ = next(names for names in by_shape.values() if len(names) > 1)
    places = header[one]["data_offsets"], header[two]["data_offsets"]
    header[two]["data_offsets"], header[one]["data_offsets"] = places
    text = json.dumps(header).encode()
    assert len(text) == length
    return shard[:8] + text + shard[8 + length :]


def test_damaged_weights_that_are_not_finite_come_again_before_they_count(hub: RudeHub, tmp_path: Path) -> None:
    """NaN in what arrived may be the network's. Only if the digest is right it is the checkpoint's."""
    wanted = expected(hub, tmp_path)
    path = tmp_path / "served" / SHARDS[1]
    good = path.read_bytes()
    last = f"-{len(good) - 1}"

    def repair(asked: str) -> None:
        if any(file.endswith(SHARDS[1]) and (part or "").endswith(last) for _, file, part in hub.requests):
            path.write_bytes(good)

    with open_stream(hub, replace(TINY, connections=1)) as source:
        path.write_bytes(good[:-64] + b"\xff" * 64)
        hub.on_request = repair
        quantize(source, tmp_path / "out")
        assert source.arrival is not None
        assert source.arrival.fetched_bytes > sum((tmp_path / "served" / name).stat().st_size for name in SHARDS)
    hub.on_request = lambda asked: None
    assert files_of(tmp_path / "out") == wanted
    path.write_bytes(good[:-64] + b"\xff" * 64)
    with open_stream(hub) as source, pytest.raises(WeightsError, match="holds Inf or NaN"):
        quantize(source, tmp_path / "nan")
    assert list((tmp_path / "nan").iterdir()) == []


class Cutter(Silence):
    """Ends the run once so many bytes were downloaded."""

    def __init__(self, hub: RudeHub, n_bytes: int) -> None:
        self.hub, self.n_bytes = hub, n_bytes

    def update(self, done: Any, resumed: Any) -> None:
        if done[0] >= self.n_bytes:
            raise KeyboardInterrupt


def test_an_interrupted_run_fetches_only_files_that_are_not_settled(hub: RudeHub, tmp_path: Path) -> None:
    sizes = [(tmp_path / "served" / name).stat().st_size for name in SHARDS]
    slow = replace(TINY, connections=1)
    hub.delays[SHARDS[1]] = 0.03
    with open_stream(hub, slow) as source, pytest.raises(KeyboardInterrupt):
        quantize(source, tmp_path / "out", Cutter(hub, sizes[0] + sizes[1] // 2))
    hub.delays.clear()
    hub.requests.clear()
    with open_stream(hub) as source:
        report = quantize(source, tmp_path / "out")
        arrival = source.arrival
    assert arrival is not None
    assert arrival.fetched_bytes == sizes[1], "the first shard was checked and all of it was written"
    assert all(output.resumed_bytes > 0 for output in report.outputs)
    first_half = report.written_bytes
    assert files_of(tmp_path / "out") == expected(hub, tmp_path)
    assert first_half < sum(len(data) for data in files_of(tmp_path / "out").values()) // 2


def test_a_chunk_that_is_lost_makes_its_file_come_again(hub: RudeHub, tmp_path: Path) -> None:
    sizes = [(tmp_path / "served" / name).stat().st_size for name in SHARDS]
    hub.delays[SHARDS[1]] = 0.03
    with open_stream(hub, replace(TINY, connections=1)) as source, pytest.raises(KeyboardInterrupt):
        quantize(source, tmp_path / "out", Cutter(hub, sizes[0] + sizes[1] // 2))
    hub.delays.clear()
    partial = tmp_path / "out" / ".BF16.gguf.partial"
    data = np.fromfile(partial, np.uint8)
    with open_folder(hub.repositories[MODEL]) as source:
        first = next(tensor for tensor in source.tensors if SHARDS[0] in tensor.origin and tensor.info.n_rows > 1)
        rows = np.empty((first.info.n_rows, first.info.row_bytes), np.uint8)
        first.read_rows(0, first.info.n_rows, rows)
    at = data.tobytes().index(rows.tobytes()[:64])
    data[at : at + 64] = 0
    data.tofile(partial)
    with open_stream(hub) as source:
        quantize(source, tmp_path / "out")
        assert source.arrival is not None
        assert source.arrival.fetched_bytes == sum(sizes)
    assert files_of(tmp_path / "out") == expected(hub, tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_anywhere_it_resumes_to_the_same_files(hub: RudeHub, tmp_path: Path) -> None:
    arguments = [MODELSCOPE, str(tmp_path), str(hub.repositories[MODEL])]
    command = [sys.executable, "-m", "tests.conversion.stream_killer", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "local")


# ---- what a hub may say


def test_modelscope(hub: RudeHub, tmp_path: Path) -> None:
    with open_model(MODELSCOPE, reading=replace(STREAM, fetching=TINY)) as source:
        assert source.metadata["general.source.repo_url"].value == PAGE
        quantize(source, tmp_path / "out")
    assert files_of(tmp_path / "out") == expected(hub, tmp_path, PAGE)
    asked = {path for _, path, _ in hub.requests}
    assert not [path for path in asked if path.startswith("/api/models")]


def test_modelscope_kept_in_the_cache(hub: RudeHub, tmp_path: Path) -> None:
    with open_model(MODELSCOPE) as source:
        quantize(source, tmp_path / "out")
    assert files_of(tmp_path / "out") == expected(hub, tmp_path, PAGE)
    n_bytes = hub.sent_bytes
    open_model(MODELSCOPE).close()
    assert hub.sent_bytes - n_bytes < 5000, "only the list"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("modelscope:Xiaomi/Nothing", "no such model on ModelScope"),
        (f"{MODELSCOPE}@v9", "no such revision"),
    ],
)
def test_not_on_modelscope(hub: RudeHub, model: str, message: str) -> None:
    with pytest.raises(HubError, match=message):
        open_model(model, reading=STREAM)


def test_a_hub_without_digests(hub: RudeHub) -> None:
    hub.states_digests = False
    with pytest.raises(HubError, match="does not state its SHA-256") as caught:
        open_model(MODELSCOPE, reading=STREAM)
    assert caught.value.hint is not None and "--keep-checkpoint" in caught.value.hint


def test_a_gated_model_says_what_to_do(hub: RudeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated.add(MODEL)
    with pytest.raises(HubError, match=r"access refused \(403\)") as caught:
        open_model(MODELSCOPE, reading=STREAM)
    assert caught.value.hint is not None and "MODELSCOPE_API_TOKEN" in caught.value.hint
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "hub-token")
    open_model(MODELSCOPE, reading=STREAM).close()


def test_access_that_ends_during_the_run(hub: RudeHub, tmp_path: Path) -> None:
    hub.redirects = False
    with open_stream(hub) as source:
        hub.gated.add(MODEL)
        hub.token = "another"
        with pytest.raises(HubError, match=r"access refused \(403\)"):
            quantize(source, tmp_path / "out")


def test_a_server_that_never_knows_ranges(hub: RudeHub, tmp_path: Path) -> None:
    with open_stream(hub) as source:
        hub.rudeness = Rudeness(1, 1.0, ("whole file",))
        with pytest.raises(HubError, match=r"ignores ranges.*times in a row"):
            quantize(source, tmp_path / "out")


def test_a_hub_that_is_gone(hub: RudeHub, tmp_path: Path) -> None:
    fetching = replace(TINY, patience=replace(IMPATIENT, tries=3))
    with open_stream(hub, fetching) as source:
        hub.rudeness = Rudeness(1, 1.0, ("no answer",))
        with pytest.raises(MimoGgufError, match="3 times in a row") as caught:
            quantize(source, tmp_path / "out")
    assert isinstance(caught.value, HubError)
    assert caught.value.hint is not None and "resumes" in caught.value.hint


def test_a_file_that_shrank_on_the_hub(hub: RudeHub, tmp_path: Path) -> None:
    path = tmp_path / "served" / SHARDS[1]
    with open_stream(hub, replace(TINY, patience=replace(IMPATIENT, tries=2))) as source:
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(HubError, match=r"the file has \d+ bytes, not \d+"):
            quantize(source, tmp_path / "out")


def test_a_tensor_that_two_outputs_share_and_tensors_nobody_wants(hub: RudeHub, tmp_path: Path) -> None:
    """qwen2 leaves the MTP layer out: its bytes are fetched for the digest alone."""
    for kind, opened in (
        ("local", open_folder(hub.repositories[MODEL], layout="qwen2")),
        ("stream", open_stream(hub, layout="qwen2")),
    ):
        with opened as source:
            quantize(source, tmp_path / kind)
    assert files_of(tmp_path / "stream") == files_of(tmp_path / "local")


def test_pauses_grow_and_what_a_hub_asks_for_is_kept_to() -> None:
    patience = Patience()
    pauses = [patience.pause_s(n) for n in range(1, patience.tries)]
    assert all(0.5 * 2 ** (n - 1) <= min(pause, 60) for n, pause in enumerate(pauses[:6], 1))
    assert max(pauses) <= 1.5 * patience.longest_s
