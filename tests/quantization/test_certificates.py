"""A certificate is written into a finished file and beside it; nothing else changes, and every later change is seen."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest

from mimo_gguf.core.certificate_room import CERTIFICATE_KEY, ROOM_BYTES, Room, with_empty_room
from mimo_gguf.core.errors import OutputError
from mimo_gguf.core.gguf_file import read_gguf
from mimo_gguf.core.stored_certificate import certificate_path, read_certificate
from mimo_gguf.core.tensor_table import digest_table_of
from mimo_gguf.quantization.certificates import TensorsIdentity, store_certificate
from mimo_gguf.quantization.checksums import checksum_path, read_checksums
from mimo_gguf.quantization.profiles import load_profile
from mimo_gguf.quantization.verification import (
    CHECKSUMS,
    EMBEDDED,
    STRUCTURE,
    Verification,
    identify_tensors,
    verify_gguf,
)
from tests.quantization import peer
from tests.quantization.models import Model, write_random
from tests.quantization.runs import differing_tensors, quantize

MODEL = Model(n_trunk=1, width=64, ffn=96, vocab=73, heads=2, kv_heads=1, head_dim=32)
CONTENT = {"figures": {"perplexity": [12.5, 0.25]}, "arithmetic": "float32"}
IN_BOTH = "in the file and beside it"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    quantize(write_random(folder / "source.gguf", MODEL), folder, ["Q4_0"], chunk_weights=1 << 10)
    return folder / "Q4_0.gguf"


@pytest.fixture
def file(made: Path, tmp_path: Path) -> Path:
    """A fresh copy with its checksums."""
    for path in (made, checksum_path(made)):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path / made.name


def certify(path: Path, content: dict[str, Any] = CONTENT) -> tuple[str, ...]:
    model = read_gguf(path)
    return store_certificate(model, identify_tensors(model, found(path)), content)


def found(path: Path) -> Verification:
    return verify_gguf(path, n_threads=2)


def room_of(path: Path) -> Room:
    room = read_gguf(path).parts[0].room
    assert room is not None
    return room


def test_a_certified_file_is_the_same_but_for_its_room_and_intact_by_each_method(file: Path) -> None:
    before = file.read_bytes()
    assert found(file).certificate is None
    assert read_checksums(checksum_path(file)).sha256
    assert certify(file) == ()
    assert with_empty_room(file.read_bytes(), room_of(file)) == before
    results = [found(file), found(file)]
    assert [result.recorded for result in results] == [(file,), ()]  # the new sha256
    checksum_path(file).unlink()
    results.append(found(file))
    assert [result.method for result in results] == [CHECKSUMS, CHECKSUMS, EMBEDDED]
    assert [(result.intact, result.certificate) for result in results] == [(True, IN_BOTH)] * 3


def test_any_flipped_bit_in_the_room_is_seen(file: Path) -> None:
    certify(file)
    found(file)  # adds the sha256
    checksum_path(file).unlink()
    certificate_path(file).unlink()
    original, room = file.read_bytes(), room_of(file)
    rng = random.Random(0)
    for at in (room.offset, room.end - 1, *rng.sample(range(room.offset, room.end), 30)):
        data = bytearray(original)
        data[at] ^= 1 << rng.randrange(7)
        file.write_bytes(data)
        result = found(file)
        assert (result.problems, len(result.certificate_problems), result.intact) == ((), 1, False), at
    file.write_bytes(original)
    assert found(file).certificate == "in the file"


def test_another_certificate_in_its_place_is_seen_by_the_one_beside_and_by_the_sha256(file: Path) -> None:
    certify(file)
    assert found(file).recorded
    sums, beside = checksum_path(file).read_bytes(), certificate_path(file).read_bytes()
    certify(file, CONTENT | {"arithmetic": "backend"})
    certificate_path(file).write_bytes(beside)
    assert found(file).certificate_problems == ("Q4_0.gguf: the certificate in the file is not the one beside it",)
    certificate_path(file).unlink()
    assert found(file).intact
    checksum_path(file).write_bytes(sums)
    assert "its sha256 is not the one in its checksums" in found(file).problems[0]


def writes(monkeypatch: pytest.MonkeyPatch, stop_at: int, *, half: bool) -> None:
    """Makes the write with number `stop_at` fail, after half of its bytes or before the first."""
    left, pwrite = stop_at, os.pwrite

    def failing(fd: int, data: memoryview, offset: int) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            if half:
                pwrite(fd, data[: len(data) // 64], offset)
            raise OSError(errno.EIO, "Input/output error")
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", failing)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("earlier", [False, True])
def test_stopped_anywhere_the_file_has_the_old_certificate_or_the_new_one(
    file: Path, earlier: bool, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = CONTENT, CONTENT | {"arithmetic": "backend"}
    for stop_at in range(4):
        if earlier:
            certify(file, old)
        found(file)  # the sha256 is there, so all files are written
        with pytest.MonkeyPatch.context() as patch:
            writes(patch, stop_at, half=half)
            if stop_at == 3:  # checksums, beside, room
                certify(file, new)
            else:
                with pytest.raises(OutputError):
                    certify(file, new)
        document = read_certificate(read_gguf(file)).document
        assert (document or {}).get("arithmetic") in ({"float32", "backend"} if earlier else {None, "backend"})
        assert found(file).problems == ()
        certify(file, new)
        assert found(file).intact
        assert sorted(path.name for path in file.parent.iterdir()) == [
            file.name, certificate_path(file).name, checksum_path(file).name,
        ]  # fmt: skip
        if not earlier:
            certificate_path(file).unlink()
            blank(file)


def blank(path: Path) -> None:
    path.write_bytes(with_empty_room(path.read_bytes(), room_of(path)))


def test_a_certified_output_is_still_complete_and_its_certificate_is_not_inherited(made: Path, tmp_path: Path) -> None:
    source = made.with_name("source.gguf")
    quantize(source, tmp_path, ["Q4_0"])
    certify(tmp_path / "Q4_0.gguf")
    report = quantize(source, tmp_path, ["Q4_0"])
    assert [output.was_complete for output in report.outputs] == [True]
    assert found(tmp_path / "Q4_0.gguf").certificate == IN_BOTH
    quantize(tmp_path / "Q4_0.gguf", tmp_path / "again", ["Q4_0"])
    assert read_certificate(read_gguf(tmp_path / "again/Q4_0.gguf")).document is None


def test_a_certificate_of_other_tensors_is_a_problem(file: Path) -> None:
    model = read_gguf(file)
    store_certificate(model, TensorsIdentity("0" * 32, 1 << 10, digest_table_of(model)), CONTENT)
    result = found(file)
    assert (result.certificate, result.problems) == (None, ())
    assert result.certificate_problems == ("Q4_0.gguf: the certificate is about other tensors",)


def test_a_certificate_that_llama_cpp_copied_along_does_not_count(made: Path, tmp_path: Path) -> None:
    quantize(made.with_name("source.gguf"), tmp_path, ["F16"])
    certify(tmp_path / "F16.gguf")
    peer.quantize(tmp_path / "F16.gguf", tmp_path / "theirs.gguf", load_profile("Q8_0").file_type)
    assert CERTIFICATE_KEY in read_gguf(tmp_path / "theirs.gguf").metadata
    result = found(tmp_path / "theirs.gguf")
    assert (result.method, result.certificate, result.intact) == (STRUCTURE, None, True)
    assert result.notes[-1].endswith(
        "its certificate was copied from the file that it was made from, and does not count"
    )
    quantize(made.with_name("source.gguf"), tmp_path, ["Q8_0"])
    assert differing_tensors(tmp_path / "Q8_0.gguf", tmp_path / "theirs.gguf") == []


def test_a_file_without_room_has_its_certificate_beside_it(made: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.gguf"
    theirs.write_bytes(made.with_name("source.gguf").read_bytes())
    before = theirs.read_bytes()
    assert certify(theirs) == ("the file reserves no room for a certificate, so it lies only beside the file",)
    assert theirs.read_bytes() == before
    assert found(theirs).certificate == "beside it"
    data = bytearray(before)
    data[-100] ^= 1
    theirs.write_bytes(data)
    assert found(theirs).certificate_problems == ("theirs.gguf: the certificate is about other tensors",)


def test_a_certificate_larger_than_the_room_lies_beside_the_file(file: Path) -> None:
    certify(file)
    (note,) = certify(file, CONTENT | {"long": "x" * ROOM_BYTES})
    assert note.startswith("the certificate does not fit")
    assert found(file).certificate == "beside it"
    assert found(file).intact


def test_a_split_file_has_it_in_and_beside_its_first_part(made: Path, tmp_path: Path) -> None:
    quantize(made.with_name("source.gguf"), tmp_path, ["Q4_0"], split_max_bytes=40_000)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) > 1
    certify(parts[1])
    assert certificate_path(parts[0]).is_file()
    assert (found(parts[1]).certificate, found(parts[1]).intact) == (IN_BOTH, True)
