"""Never lose work: killed anywhere, the same command goes on, and the files are those of an undisturbed run."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mimo_gguf.core.errors import MimoGgufError, OutputError
from mimo_gguf.core.gguf_file import open_gguf
from mimo_gguf.core.progress import Silence
from mimo_gguf.quantization.output_writer import OutputWriter
from mimo_gguf.quantization.plan import OutputRequest, QuantizeOptions, QuantizePlan, plan_quantization
from mimo_gguf.quantization.profiles import load_profile
from mimo_gguf.quantization.report import QuantizeReport
from mimo_gguf.quantization.run import run_quantization
from mimo_gguf.quantization.verification import CHECKSUMS, verify_gguf
from tests.quantization.models import Model, write_random
from tests.quantization.runs import files_in

MODEL = Model(n_trunk=1, n_mtp=1, width=64, ffn=96, vocab=96, heads=2, kv_heads=1, head_dim=32)
OPTIONS = QuantizeOptions(n_threads=1, chunk_weights=1 << 11)
Change = Callable[[QuantizePlan], QuantizePlan]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_random(tmp_path / "Random-BF16.gguf", MODEL)


def run(
    source: Path,
    folder: Path,
    options: QuantizeOptions = OPTIONS,
    names: tuple[str, ...] = ("Q4_0", "F16"),
    progress: Silence | None = None,
) -> QuantizeReport:
    folder.mkdir(exist_ok=True)
    with open_gguf(source) as model:
        requests = [OutputRequest(load_profile(name), folder / f"{name}.gguf") for name in names]
        return run_quantization(plan_quantization(model, requests, options), progress)


def fail_after(monkeypatch: pytest.MonkeyPatch, n_writes: int, error: BaseException) -> None:
    """The `n_writes`-th write of tensor data fails."""
    left, lock, pwrite = n_writes, threading.Lock(), os.pwrite

    def failing(*args: Any) -> int:
        nonlocal left
        with lock:
            left -= 1
            if left <= 0:
                raise error
        return pwrite(*args)

    monkeypatch.setattr(os, "pwrite", failing)


def interrupt(source: Path, folder: Path, n_writes: int = 20, options: QuantizeOptions = OPTIONS) -> None:
    """A run that stops with a full disk after some chunks."""
    with pytest.MonkeyPatch.context() as patch:
        fail_after(patch, n_writes, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(OutputError, match="the disk is full"):
            run(source, folder, options)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
@pytest.mark.parametrize(("how", "at_least"), [("calls", 40), ("clock", 5)])
def test_killed_anywhere_it_resumes_to_the_same_files(how: str, at_least: int, source: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.quantization.crash_runner", str(source), str(tmp_path / "runs"), how]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= at_least
    expected = files_in(tmp_path / "runs/undisturbed")
    assert any("-00001-of-" in name for name in expected), "the test should cover split files too"
    for folder in (tmp_path / "runs").iterdir():
        assert files_in(folder) == expected, f"after crash {folder.name}"


def test_a_full_disk_leaves_what_is_done_and_the_next_run_goes_on(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "undisturbed")
    interrupt(source, tmp_path / "out")
    assert {name for name in files_in(tmp_path / "out") if not name.startswith(".")} == set()
    report = run(source, tmp_path / "out")
    assert all(0 < output.resumed_bytes < output.n_bytes for output in report.outputs)
    assert files_in(tmp_path / "out") == files_in(tmp_path / "undisturbed")


def test_what_a_crash_damaged_is_noticed_and_done_again(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "undisturbed")
    interrupt(source, tmp_path / "out")
    partial, journal = tmp_path / "out/.F16.gguf.partial", tmp_path / "out/.Q4_0.gguf.journal"
    data = bytearray(partial.read_bytes())
    filled = next(at for at in range(len(data) // 8, len(data)) if data[at])  # past the header
    data[filled : filled + 64] = bytes(64)
    partial.write_bytes(data)
    journal.write_bytes(journal.read_bytes()[:-7])  # the last record is torn
    run(source, tmp_path / "out")
    assert files_in(tmp_path / "out") == files_in(tmp_path / "undisturbed")


def test_a_journal_that_says_done_without_its_records_is_not_believed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(source, tmp_path / "undisturbed", names=("F16",))
    with monkeypatch.context() as patch, pytest.raises(OSError, match="stopped here"):
        patch.setattr(OutputWriter, "publish", raise_os_error)
        run(source, tmp_path / "out", names=("F16",))
    journal = tmp_path / "out/.F16.gguf.journal"
    head, _, records = journal.read_bytes().partition(b"\n")
    fingerprint, _, records = records.partition(b"\n")
    sealed = records[-44:]  # the last record: everything is written and synced
    journal.write_bytes(b"\n".join((head, fingerprint, sealed)))
    report = run(source, tmp_path / "out", names=("F16",))
    assert report.outputs[0].resumed_bytes == 0
    assert files_in(tmp_path / "out") == files_in(tmp_path / "undisturbed")


def raise_os_error(*_: Any, **__: Any) -> None:
    raise OSError("stopped here")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("name", [".F16.gguf.journal", ".F16.gguf.partial", "F16.gguf.sums.json"])
def test_a_pipe_under_one_of_our_names_is_not_waited_for(name: str, source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out" / name)
    if not name.endswith(".journal"):  # of no use to anybody, and replaced
        run(source, tmp_path / "out", names=("F16",))
        assert verify_gguf(tmp_path / "out/F16.gguf").method == CHECKSUMS
        return
    with pytest.raises(OutputError, match=r"journal: is a device or pipe"):
        run(source, tmp_path / "out", names=("F16",))


def test_outputs_resume_one_by_one(source: Path, tmp_path: Path) -> None:
    interrupt(source, tmp_path / "out")
    report = run(source, tmp_path / "out", names=("F16",))
    assert report.outputs[0].resumed_bytes > 0


def changed_weights(source: Path) -> None:
    data = bytearray(source.read_bytes())
    data[-100] ^= 1
    source.write_bytes(data)
    os.utime(source, ns=(1, 1))


@pytest.mark.parametrize("what", ["source", "options", "version"])
def test_a_changed_run_starts_afresh(what: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(source, tmp_path / "out")
    options = OPTIONS
    if what == "source":
        changed_weights(source)
    elif what == "options":
        options = replace(OPTIONS, chunk_weights=1 << 12)
    else:
        monkeypatch.setattr("mimo_gguf.quantization.output_state.__version__", "9.9")
    report = run(source, tmp_path / "out", options)
    assert [output.resumed_bytes for output in report.outputs] == [0, 0]
    run(source, tmp_path / "undisturbed", options)
    assert files_in(tmp_path / "out") == files_in(tmp_path / "undisturbed")


def test_what_the_same_run_has_completed_is_not_done_again(source: Path, tmp_path: Path) -> None:
    first = run(source, tmp_path / "out", names=("F16",))
    before = files_in(tmp_path / "out")
    stamp = (tmp_path / "out/F16.gguf").stat().st_mtime_ns
    both = run(source, tmp_path / "out")
    assert [output.was_complete for output in both.outputs] == [False, True]
    again = run(source, tmp_path / "out")
    assert [output.was_complete for output in again.outputs] == [True, True]
    assert (again.read_bytes, again.source_digest) == (0, first.source_digest)
    assert (tmp_path / "out/F16.gguf").stat().st_mtime_ns == stamp
    assert before.items() <= files_in(tmp_path / "out").items()
    assert run(source, tmp_path / "out", replace(OPTIONS, force=True)).read_bytes > 0
    for damaged, where in (("F16.gguf", -9), ("F16.gguf", b"mimo_gguf.source.digest"), ("F16.gguf.sums.json", -9)):
        whole = (tmp_path / "out" / damaged).read_bytes()
        broken = whole[:where] if isinstance(where, int) else whole.replace(where, where.swapcase())
        (tmp_path / "out" / damaged).write_bytes(broken)
        with pytest.raises(OutputError, match=r"F16\.gguf: exists already"):
            run(source, tmp_path / "out")
        (tmp_path / "out" / damaged).write_bytes(whole)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks Linux what a descriptor is")
def test_names_appear_when_everything_is_on_the_disk(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[str] = set()
    fsync, replaced = os.fsync, os.replace

    def sync(fd: int) -> None:
        fsync(fd)
        synced.add(Path(f"/proc/self/fd/{fd}").readlink().name)

    def appear(partial: Path, path: Path) -> None:
        if path.suffix == ".gguf":
            journals = {f".{name}.gguf.journal" for name in ("Q4_0", "F16")}
            assert {partial.name, f".{path.name}.sums.json.partial"} | journals <= synced
            assert Path(f"{path}.sums.json").exists()
        replaced(partial, path)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", appear)
    run(source, tmp_path / "out", replace(OPTIONS, split_max_bytes=None))
    assert "out" in synced, "the names themselves"


def test_an_existing_output_is_kept_without_force_and_replaced_with_it(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out")
    before = files_in(tmp_path / "out")
    changed_weights(source)
    with pytest.raises(OutputError, match="exists already"):
        run(source, tmp_path / "out")
    assert files_in(tmp_path / "out") == before
    run(source, tmp_path / "out", replace(OPTIONS, force=True))
    after = files_in(tmp_path / "out")
    assert after.keys() == before.keys()
    assert after["F16.gguf"] != before["F16.gguf"]


def test_a_file_that_appears_meanwhile_is_kept_and_the_work_too(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "undisturbed")
    appeared = tmp_path / "out/Q4_0.gguf"

    class Stranger(Silence):
        def finish(self) -> None:
            appeared.write_bytes(b"precious")

    for progress in (Stranger(), None):
        with pytest.raises(OutputError, match=r"Q4_0\.gguf: appeared while this run was writing its own"):
            run(source, tmp_path / "out", progress=progress)
        assert appeared.read_bytes() == b"precious"
    appeared.unlink()
    report = run(source, tmp_path / "out")
    assert report.read_bytes == 0
    assert files_in(tmp_path / "out") == files_in(tmp_path / "undisturbed")


def test_nothing_is_left_of_a_run_that_was_split_otherwise(source: Path, tmp_path: Path) -> None:
    interrupt(source, tmp_path / "out", options=replace(OPTIONS, split_max_bytes=30_000))
    assert len(list((tmp_path / "out").glob(".F16-*-of-*.gguf.partial"))) > 2
    run(source, tmp_path / "out")
    run(source, tmp_path / "undisturbed")
    assert files_in(tmp_path / "out") == files_in(tmp_path / "undisturbed")


def test_starting_afresh_is_told_and_going_on_is_not(source: Path, tmp_path: Path) -> None:
    notes: list[str] = []

    class Listener(Silence):
        def note(self, text: str) -> None:
            notes.append(text)

    interrupt(source, tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OutputError):
        fail_after(patch, 5, OSError(errno.ENOSPC, "No space left on device"))
        run(source, tmp_path / "out", progress=Listener())
    assert notes == []
    changed_weights(source)
    run(source, tmp_path / "out", progress=Listener())
    assert [note.partition(":")[0] for note in notes] == ["Q4_0.gguf", "F16.gguf"]
    assert all("starting afresh" in note for note in notes)


def test_a_file_system_that_holds_no_file_so_large(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ftruncate = os.ftruncate

    def limited(fd: int, n_bytes: int) -> None:
        if n_bytes > 40_000:
            raise OSError(errno.EFBIG, "File too large")
        ftruncate(fd, n_bytes)

    monkeypatch.setattr(os, "ftruncate", limited)
    with pytest.raises(OutputError, match="the file system cannot hold so large a file") as caught:
        run(source, tmp_path / "out")
    assert "--split-max-size" in str(caught.value.hint)
    assert files_in(tmp_path / "out") == {}


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_names_that_are_no_text(source: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"b\xff-BF16.gguf")
    odd = source.rename(source.with_name(name))
    report = run(odd, tmp_path / os.fsdecode(b"\xfe"), replace(OPTIONS, split_max_bytes=60_000), names=("F16",))
    made = report.outputs[0].paths
    assert len(made) > 1
    assert verify_gguf(made[0]).intact
    with open_gguf(odd) as model:
        out = tmp_path / os.fsdecode(b"\xfd-F16.gguf")
        run_quantization(plan_quantization(model, [OutputRequest(load_profile("F16"), out)], OPTIONS))
    assert (verify_gguf(out).method, verify_gguf(out).intact) == (CHECKSUMS, True)


def test_two_runs_on_one_output_do_not_meet(source: Path, tmp_path: Path) -> None:
    class Second(Silence):
        """Starts a second run while the first is under way."""

        def start(self, jobs: Any) -> None:
            with pytest.raises(OutputError, match="another run is writing it"):
                run(source, tmp_path / "out", names=("F16",))

    run(source, tmp_path / "out", progress=Second())
    run(source, tmp_path / "undisturbed")
    assert files_in(tmp_path / "out") == files_in(tmp_path / "undisturbed")


def test_a_source_that_changes_while_it_is_read_is_noticed(source: Path, tmp_path: Path) -> None:
    class Meddler(Silence):
        def finish(self) -> None:
            changed_weights(source)

    with pytest.raises(MimoGgufError, match=r"Random-BF16\.gguf: the file changed"):
        run(source, tmp_path / "out", progress=Meddler())
    assert not (tmp_path / "out/F16.gguf").exists()


def test_ctrl_c_stops_within_a_chunk_and_can_be_resumed(source: Path, tmp_path: Path) -> None:
    class Interrupter(Silence):
        def update(self, done: Any, resumed: Any) -> None:
            if sum(done):
                raise KeyboardInterrupt

    before = set(threading.enumerate())  # some may end meanwhile
    pwrite = os.pwrite
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "pwrite", lambda *args: time.sleep(0.02) or pwrite(*args))  # time to interrupt
        run(source, tmp_path / "out", progress=Interrupter())
    assert set(threading.enumerate()) <= before
    run(source, tmp_path / "out")
    run(source, tmp_path / "undisturbed")
    assert files_in(tmp_path / "out") == files_in(tmp_path / "undisturbed")


def test_too_little_disk_is_refused_before_anything_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(OutputError, match=r"needed, 1000 B free"):
        run(source, tmp_path / "out")
    assert all(name.startswith(".") for name in files_in(tmp_path / "out"))
