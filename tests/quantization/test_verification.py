"""`verify` finds every kind of damage, and says what it could check."""

from __future__ import annotations

import errno
import hashlib
import json
import random
from pathlib import Path

import pytest

from mimo_gguf.core import data_file, positioned_io
from mimo_gguf.core.errors import GgufError
from mimo_gguf.core.gguf_file import read_gguf
from mimo_gguf.quantization.checksums import checksum_path, read_checksums
from mimo_gguf.quantization.profiles import load_profile
from mimo_gguf.quantization.verification import CHECKSUMS, EMBEDDED, STRUCTURE, Verification, verify_gguf
from tests.quantization import peer
from tests.quantization.models import Model, write_random
from tests.quantization.runs import quantize

MODEL = Model(n_trunk=1, width=64, ffn=96, vocab=73, heads=2, kv_heads=1, head_dim=32)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    source = write_random(folder / "source.gguf", MODEL)
    quantize(source, folder, ["Q4_0"], chunk_weights=1 << 10)
    return folder / "Q4_0.gguf"


@pytest.fixture
def file(made: Path, tmp_path: Path) -> Path:
    """A fresh copy with its checksums."""
    for path in (made, checksum_path(made)):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path / made.name


def found(path: Path) -> Verification:
    return verify_gguf(path, n_threads=2)


def flip(path: Path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def test_an_untouched_file_is_intact_by_each_method(file: Path) -> None:
    assert (found(file).method, found(file).problems) == (CHECKSUMS, ())
    checksum_path(file).unlink()
    assert (found(file).method, found(file).problems) == (EMBEDDED, ())


def test_any_flipped_bit_is_found_with_checksums(file: Path) -> None:
    original = file.read_bytes()
    rng = random.Random(0)
    data_offset = read_gguf(file).parts[0].data_offset
    places = [*rng.sample(range(len(original)), 120), *rng.sample(range(data_offset), 60), 0, len(original) - 1]
    for at in places:
        flip(file, at, rng.randrange(8))
        assert not found(file).intact, f"bit flipped in byte {at}"
        file.write_bytes(original)
    assert found(file).intact


def test_the_damaged_tensor_is_named(file: Path) -> None:
    tensor = read_gguf(file).parts[0].tensors[7]
    flip(file, tensor.offset + tensor.info.n_bytes - 1)
    assert found(file).problems == (f"Q4_0.gguf: the data of {tensor.info.name} changed",)


def test_any_flipped_bit_of_the_data_is_found_without_checksums(file: Path) -> None:
    checksum_path(file).unlink()
    original = file.read_bytes()
    rng = random.Random(1)
    for at in rng.sample(range(read_gguf(file).parts[0].data_offset, len(original)), 60):
        flip(file, at, rng.randrange(8))
        result = found(file)
        assert (result.method, result.intact) == (EMBEDDED, False), f"bit flipped in byte {at}"
        file.write_bytes(original)


@pytest.mark.parametrize("with_checksums", [True, False])
@pytest.mark.parametrize(("change", "message"), [(40, "40 bytes were appended"), (-3, "3 bytes are missing")])
def test_appended_and_missing_bytes_are_found(file: Path, change: int, message: str, with_checksums: bool) -> None:
    if not with_checksums:
        checksum_path(file).unlink()
    data = file.read_bytes()
    file.write_bytes(data + bytes(change) if change > 0 else data[:change])
    assert found(file).problems == (f"Q4_0.gguf: {message}",)


def test_a_truncated_file_is_damaged_not_unreadable(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2000])
    assert "ends at byte" in found(file).problems[0]
    checksum_path(file).unlink()
    with pytest.raises(GgufError, match="ends at byte"):
        found(file)


def test_changed_checksums_are_not_believed(file: Path) -> None:
    document = json.loads(checksum_path(file).read_text())
    document["tensors"][0]["digest"] = "0" * 32
    checksum_path(file).write_text(json.dumps(document))
    with pytest.raises(GgufError, match="the checksums themselves were changed"):
        found(file)
    checksum_path(file).write_text("{}")
    with pytest.raises(GgufError, match="not a file of checksums"):
        found(file)


def test_other_files_are_checked_as_far_as_possible(file: Path, tmp_path: Path) -> None:
    source = write_random(tmp_path / "foreign.gguf", MODEL)
    assert (found(source).method, found(source).problems) == (STRUCTURE, ())
    (tensor,) = (t for t in read_gguf(source).parts[0].tensors if t.info.name == "blk.0.ffn_up.weight")
    data = bytearray(source.read_bytes())
    data[tensor.offset + 5 * tensor.info.row_bytes : tensor.offset + 5 * tensor.info.row_bytes + 2] = b"\xff\xff"
    source.write_bytes(data)
    assert found(source).problems == ("foreign.gguf: blk.0.ffn_up.weight: row 5 holds Inf or NaN",)


def test_every_part_of_a_split_file_is_checked(made: Path, tmp_path: Path) -> None:
    quantize(made.with_name("source.gguf"), tmp_path, ["Q4_0"], split_max_bytes=20_000)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) > 2
    assert found(parts[1]).paths == tuple(parts)
    assert found(parts[1]).intact
    last = read_gguf(parts[0]).parts[-1]
    flip(parts[-1], last.tensors[-1].offset)
    assert found(parts[0]).problems == (f"{parts[-1].name}: the data of {last.tensors[-1].info.name} changed",)
    for part in parts:
        checksum_path(part).unlink()
    assert (found(parts[0]).method, found(parts[0]).intact) == (EMBEDDED, False)
    assert found(parts[0]).without_checksums == tuple(parts)


def test_a_part_without_its_checksums_is_named_and_the_others_headers_are_checked(made: Path, tmp_path: Path) -> None:
    quantize(made.with_name("source.gguf"), tmp_path, ["Q4_0"], split_max_bytes=20_000)
    first, second, third, *_ = sorted(tmp_path.glob("*.gguf"))
    checksum_path(second).unlink()
    result = found(first)
    assert (result.method, result.intact, result.without_checksums) == (EMBEDDED, True, (second,))
    flip(first, first.read_bytes().index(b"Random") + 2)
    flip(third, read_gguf(first).parts[2].tensors[0].offset)
    name = read_gguf(first).parts[2].tensors[0].info.name
    header = f"{first.name}: the header changed (metadata or tensor table)"
    assert found(first).problems == (header, f"{third.name}: the data of {name} changed")


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "F32"])
def test_what_another_program_makes_of_our_file_is_not_damaged(name: str, made: Path, tmp_path: Path) -> None:
    """llama-quantize copies our digests into files that hold other bytes."""
    quantize(made.with_name("source.gguf"), tmp_path, ["BF16"])
    theirs = tmp_path / "theirs.gguf"
    peer.quantize(tmp_path / "BF16.gguf", theirs, load_profile(name).file_type)
    model = read_gguf(theirs)
    assert model.value("mimo_gguf.tensors.digest") == read_gguf(tmp_path / "BF16.gguf").value(
        "mimo_gguf.tensors.digest"
    )
    result = found(theirs)
    assert (result.method, result.intact) == (STRUCTURE, True)
    assert result.notes == ("made by another program from the BF16 file of source; its own digest is not known",)
    tensor = next(t for t in model.parts[0].tensors if t.info.name == "blk.0.ffn_up.weight")
    data = bytearray(theirs.read_bytes())
    for at in range(tensor.offset, tensor.offset + tensor.info.row_bytes):
        data[at] = 0xFF
    theirs.write_bytes(data)
    assert found(theirs).problems == ("theirs.gguf: blk.0.ffn_up.weight: row 0 holds Inf or NaN",)


def test_the_same_tensors_in_another_file_are_intact(made: Path, tmp_path: Path) -> None:
    """llama-quantize to the same type, like a program that only adds metadata, leaves every tensor as it is."""
    quantize(made.with_name("source.gguf"), tmp_path, ["BF16"])
    peer.quantize(tmp_path / "BF16.gguf", tmp_path / "same.gguf", load_profile("BF16").file_type)
    assert (found(tmp_path / "same.gguf").method, found(tmp_path / "same.gguf").problems) == (EMBEDDED, ())


def test_the_sum_the_hub_shows_is_recorded_once_and_checked_then(file: Path) -> None:
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    assert read_checksums(checksum_path(file)).sha256 == ""
    first = found(file)
    assert (first.sha256, first.recorded) == ({file: expected}, (file,))
    assert json.loads(checksum_path(file).read_text())["sha256"] == expected
    again = found(file)
    assert (again.method, again.intact, again.recorded) == (CHECKSUMS, True, ())
    document = json.loads(checksum_path(file).read_text())
    checksum_path(file).write_text(json.dumps(document | {"sha256": "0" * 64}))
    with pytest.raises(GgufError, match="the checksums themselves were changed"):
        found(file)


def test_every_file_has_its_sum_whatever_it_is(made: Path, tmp_path: Path) -> None:
    quantize(made.with_name("source.gguf"), tmp_path, ["Q4_0"], split_max_bytes=20_000)
    foreign = write_random(tmp_path / "foreign.gguf", MODEL)
    for path in (sorted(tmp_path.glob("Q4_0*.gguf"))[0], foreign):
        sums = found(path).sha256
        assert sums == {part: hashlib.sha256(part.read_bytes()).hexdigest() for part in found(path).paths}


def test_a_damaged_file_gets_no_sum_recorded(file: Path) -> None:
    flip(file, read_gguf(file).parts[0].tensors[3].offset)
    assert (found(file).intact, found(file).recorded) == (False, ())
    assert read_checksums(checksum_path(file)).sha256 == ""


@pytest.mark.parametrize(
    "change",
    [
        {"n_bytes": 1 << 62},
        {"offset": 0},
        {"offset": -(1 << 63)},
        {"chunk_bytes": 0},
        {"chunk_bytes": -1},
        {"n_bytes": -1},
        {"offset": 1 << 63},
    ],
    ids=str,
)
def test_impossible_places_in_checksums_are_refused(file: Path, change: dict[str, int]) -> None:
    document = json.loads(checksum_path(file).read_text())
    document["tensors"][1] |= change
    checksum_path(file).write_text(json.dumps(document))
    with pytest.raises(GgufError, match="not a file of checksums"):
        found(file)


@pytest.mark.parametrize("weights", [0, 1 << 31, 4294967295])
def test_a_senseless_size_of_pieces_means_that_the_digest_cannot_be_used(weights: int, file: Path) -> None:
    checksum_path(file).unlink()
    data = file.read_bytes()
    at = data.index(b"mimo_gguf.tensors.digest_chunk") + len(b"mimo_gguf.tensors.digest_chunk") + 4
    file.write_bytes(data[:at] + weights.to_bytes(4, "little") + data[at + 4 :])
    assert (found(file).method, found(file).intact) == (STRUCTURE, True)


def test_a_failing_disk_is_one_line(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(positioned_io, "read_at", failing)
    monkeypatch.setattr(data_file._DirectReader, "read", lambda *_: 0)
    with pytest.raises(GgufError, match=r"Q4_0\.gguf: cannot be read: Input/output error"):
        found(file)
