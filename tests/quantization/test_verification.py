"""`verify` finds every kind of damage, and says what it could check."""

from __future__ import annotations

import errno
import json
import random
from pathlib import Path

import pytest

from mimo_gguf.core import data_file, positioned_io
from mimo_gguf.core.errors import GgufError
from mimo_gguf.core.gguf_file import read_gguf
from mimo_gguf.quantization.checksums import checksum_path
from mimo_gguf.quantization.verification import CHECKSUMS, EMBEDDED, STRUCTURE, Verification, verify_gguf
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


def test_a_failing_disk_is_one_line(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(positioned_io, "read_at", failing)
    monkeypatch.setattr(data_file._DirectReader, "read", lambda *_: 0)
    with pytest.raises(GgufError, match=r"Q4_0\.gguf: cannot be read: Input/output error"):
        found(file)
