"""A bounded run of the fuzzer, and that it sees a fault when there is one; `make fuzz` is the long run."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from mimo_gguf.core.errors import GgufError
from mimo_gguf.core.gguf_file import read_gguf
from tests.fuzz.fuzzer import Figures, fuzz, write_bases
from tests.fuzz.gguf_bytes import GgufParts, put_together, take_apart
from tests.fuzz.mutations import TABLE, mutant


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz")
    write_bases(path)
    return path


@pytest.fixture(scope="module")
def base(folder: Path) -> GgufParts:
    return take_apart(folder / "base-0-step35.gguf")


def test_what_is_taken_apart_is_put_together(folder: Path) -> None:
    for path in folder.glob("base-*.gguf"):
        assert put_together(take_apart(path)) == path.read_bytes()


def test_a_seed_gives_the_same_mutants(base: GgufParts) -> None:
    first, again = (
        [mutant(base, random.Random(f"7 {number}"))[0] for number in range(50)] for _ in range(2)
    )  # fmt: skip
    assert first == again
    assert len(set(first)) > 40


@pytest.mark.parametrize("mutation", [mutation for _, mutation in TABLE], ids=lambda mutation: mutation.__name__)
def test_every_mutation_changes_the_file(base: GgufParts, mutation: object, tmp_path: Path) -> None:
    """And most of what it makes is well-formed, so that it is the meaning that is tried."""
    assert callable(mutation)
    whole, n_changed, n_read = put_together(base), 0, 0
    for number in range(30):
        changed = base.copy()
        mutation(changed, random.Random(number))
        raw = put_together(changed)
        n_changed += raw != whole
        (tmp_path / "m.gguf").write_bytes(raw)
        try:
            read_gguf(tmp_path / "m.gguf")
            n_read += 1
        except GgufError:
            continue
    assert n_changed > 20
    assert n_read >= 3


def test_no_mutant_is_a_fault(folder: Path) -> None:
    """100 files that are well-formed and wrong: each is refused by an error of ours, or works."""
    figures = Figures()
    fuzz(folder, figures, seed=20261, count=100)
    assert not figures.faults, "\n".join(f"{fault.kind} {fault.what}: {fault.detail}" for fault in figures.faults)
    assert figures.counts["works"] >= 10
    assert figures.counts["refused"] >= 50


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("import os; os.abort()", "death"),
        ("import time; time.sleep(60)", "hang"),
        ("bytes(5 << 30)", "memory"),
        ("bytearray(b'x') * (600 << 20)", "memory"),
        ("raise KeyError('oh')", "traceback"),
    ],
)
def test_a_fault_is_seen(folder: Path, code: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fuzzer that finds nothing is only worth something if it would have found this."""
    monkeypatch.setenv("MIMO_GGUF_FUZZ_STEP", code)
    figures = Figures()
    fuzz(folder, figures, seed=1, count=1, most_seconds=3 if kind == "hang" else 20)
    assert [fault.kind for fault in figures.faults] == [kind]
