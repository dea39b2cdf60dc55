"""Another program deletes, truncates, replaces or moves the hidden files while a run works.

There is never success without files: every kind of meddling, at every moment, ends in one clear line, and the same
command again makes the right files.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mimo_gguf.core.errors import OutputError
from mimo_gguf.core.gguf_file import open_gguf
from mimo_gguf.core.progress import Silence
from mimo_gguf.quantization import run as run_module
from mimo_gguf.quantization.output_writer import OutputWriter
from mimo_gguf.quantization.plan import OutputRequest, QuantizeOptions, plan_quantization
from mimo_gguf.quantization.profiles import load_profile
from mimo_gguf.quantization.run import run_quantization
from tests.quantization.models import Model, write_random
from tests.quantization.runs import files_in

MODEL = Model(n_trunk=1, n_mtp=1, width=64, ffn=96, vocab=96, heads=2, kv_heads=1, head_dim=32)
NAMES = ("Q4_0", "F16")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="open files can be neither deleted nor moved there")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random(tmp_path_factory.mktemp("source") / "Random-BF16.gguf", MODEL)


@pytest.fixture(scope="module")
def undisturbed(source: Path) -> dict[str, bytes]:
    run(source, source.with_name("undisturbed"))
    return files_in(source.with_name("undisturbed"))


def run(source: Path, folder: Path, progress: Silence | None = None) -> None:
    folder.mkdir(exist_ok=True)
    with open_gguf(source) as model:
        requests = [OutputRequest(load_profile(name), folder / f"{name}.gguf") for name in NAMES]
        run_quantization(
            plan_quantization(model, requests, QuantizeOptions(n_threads=1, chunk_weights=1 << 11)), progress
        )


# ---- what another program may do to the folder of the outputs


def delete(folder: Path) -> None:
    (folder / ".F16.gguf.partial").unlink()


def truncate(folder: Path) -> None:
    partial = folder / ".F16.gguf.partial"
    os.truncate(partial, partial.stat().st_size // 3)


def empty_and_restore_the_size(folder: Path) -> None:
    partial = folder / ".F16.gguf.partial"
    size = partial.stat().st_size
    os.truncate(partial, 9000)  # behind the header, in the middle of a page
    os.truncate(partial, size)


def extend(folder: Path) -> None:
    partial = folder / ".F16.gguf.partial"
    os.truncate(partial, partial.stat().st_size + 1)


def replace_by_a_copy(folder: Path) -> None:
    partial = folder / ".F16.gguf.partial"
    partial.rename(folder / "taken")
    shutil.copy(folder / "taken", partial)
    (folder / "taken").unlink()


def replace_by_a_folder(folder: Path) -> None:
    (folder / ".F16.gguf.partial").unlink()
    (folder / ".F16.gguf.partial").mkdir()


def delete_journal(folder: Path) -> None:
    (folder / ".Q4_0.gguf.journal").unlink()


def replace_journal(folder: Path) -> None:
    (folder / ".Q4_0.gguf.journal").unlink()
    (folder / ".Q4_0.gguf.journal").write_bytes(b"")


def delete_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def move_folder(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def replace_folder(folder: Path) -> None:
    move_folder(folder)
    folder.mkdir()


def replace_folder_by_a_file(folder: Path) -> None:
    move_folder(folder)
    folder.write_bytes(b"")


MEDDLING: tuple[Callable[[Path], None], ...] = (
    delete, truncate, empty_and_restore_the_size, extend, replace_by_a_copy, replace_by_a_folder, delete_journal,
    replace_journal, delete_folder, move_folder, replace_folder, replace_folder_by_a_file,
)  # fmt: skip


def check_refused(source: Path, folder: Path, progress: Silence | None, undisturbed: dict[str, bytes]) -> None:
    """The run ends in an error, leaves no output under its name, and a second run makes the right files."""
    with pytest.raises(OutputError, match=r"while this run was|No such file|Not a directory") as caught:
        run(source, folder, progress)
    assert caught.value.hint
    if folder.is_file():
        folder.unlink()
    partial = folder / ".F16.gguf.partial"
    if partial.is_dir():
        partial.rmdir()
    if folder.is_dir():
        assert [name for name in files_in(folder) if name.endswith(".gguf")] == []
    run(source, folder)
    assert files_in(folder) == undisturbed


@pytest.mark.parametrize(
    ("meddle", "n_records"),
    [
        pytest.param(meddle, n_records, id=f"{meddle.__name__}-{n_records}")
        for meddle in MEDDLING
        for n_records in (0, 12)
        if n_records or meddle is not empty_and_restore_the_size  # there is nothing to lose yet
    ],
)
def test_while_chunks_are_written(
    meddle: Callable[[Path], None],
    n_records: int,
    source: Path,
    tmp_path: Path,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From another thread, once so many chunks of the first output are recorded."""
    folder, pwrite = tmp_path / "out", os.pwrite
    reached, done = threading.Event(), threading.Event()

    def slow(*args: Any) -> int:
        if len(writers) and len(writers[0].journal.done) >= n_records:
            reached.set()
            done.wait(10)
        return pwrite(*args)

    def other_program() -> None:
        assert reached.wait(10)
        meddle(folder)
        done.set()

    writers: list[OutputWriter] = []
    check_space = run_module._check_space
    monkeypatch.setattr(run_module, "_check_space", lambda given: (writers.extend(given), check_space(given)))
    monkeypatch.setattr(os, "pwrite", slow)
    thread = threading.Thread(target=other_program)
    thread.start()
    try:
        check_refused(source, folder, None, undisturbed)
    finally:
        thread.join()


@pytest.mark.parametrize("meddle", MEDDLING, ids=lambda meddle: meddle.__name__)
def test_when_all_chunks_are_written(
    meddle: Callable[[Path], None], source: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    class Meddler(Silence):
        def finish(self) -> None:
            meddle(tmp_path / "out")

    check_refused(source, tmp_path / "out", Meddler(), undisturbed)


@pytest.mark.parametrize("meddle", [delete, replace_by_a_copy, truncate, move_folder, replace_folder, delete_folder])
def test_between_the_last_sync_and_the_names(
    meddle: Callable[[Path], None], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = OutputWriter.publish

    def meddled(writer: OutputWriter, *args: Any, **options: Any) -> None:
        if writer.plan.profile.name == "F16":
            meddle(tmp_path / "out")
        publish(writer, *args, **options)

    monkeypatch.setattr(OutputWriter, "publish", meddled)
    with pytest.raises(OutputError, match=r"while this run was|No such file"):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out/F16.gguf").exists()


@pytest.mark.parametrize("what", ["F16.gguf", "Q4_0.gguf", "F16.gguf.sums.json", "folder", "other bytes"])
def test_between_the_names_and_the_end(
    what: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mimo_gguf.core.output_file import sync_folder

    def meddled(folder: Path) -> None:
        sync_folder(folder)
        if what == "folder":
            move_folder(folder)
        elif what == "other bytes":
            (folder / "F16.gguf").write_bytes(b"short")
        else:
            (folder / what).unlink()

    monkeypatch.setattr(run_module, "sync_folder", meddled)
    with pytest.raises(OutputError, match="while this run was"):
        run(source, tmp_path / "out")


def test_nothing_of_another_programs_is_removed(source: Path, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    """A run that gives up removes its hidden files, but not what has taken their names."""
    folder = tmp_path / "out"

    class Meddler(Silence):
        def start(self, jobs: Any) -> None:
            partial = folder / ".F16.gguf.partial"
            partial.unlink()
            partial.write_bytes(b"precious")
            time.sleep(0.01)

    with pytest.raises(OutputError):
        run(source, folder, Meddler())
    assert (folder / ".F16.gguf.partial").read_bytes() == b"precious"
