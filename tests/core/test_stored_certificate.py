"""Certificates in the header: a room that any reader accepts, and a text that shows every change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gguf import GGUFReader

from mimo_gguf.core.certificate_room import (
    CERTIFICATE_KEY,
    ROOM_BYTES,
    Room,
    empty_room,
    with_empty_room,
    write_into_room,
)
from mimo_gguf.core.errors import GgufError, OutputError
from mimo_gguf.core.gguf_file import read_gguf, read_part
from mimo_gguf.core.gguf_header import lay_out
from mimo_gguf.core.stored_certificate import certificate_path, read_certificate, seal, unseal
from mimo_gguf.core.tensor_table import digest_table_of
from tests.quantization.models import Model, write_random

MODEL = Model(n_trunk=1, width=64, ffn=96, vocab=73, heads=2, kv_heads=1, head_dim=32)
CONTENT = {"figures": {"perplexity": [12.5, 0.25]}, "base": "\N{LATIN SMALL LETTER E WITH ACUTE}", "n": 3}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_random(tmp_path / "file.gguf", MODEL, extra={CERTIFICATE_KEY: empty_room()})


def test_a_certificate_replaces_the_bytes_of_the_room_and_no_others(file: Path) -> None:
    before, part = file.read_bytes(), read_part(file)
    assert part.room == Room(before.index(b" " * ROOM_BYTES), ROOM_BYTES)
    write_into_room(file, part.room, seal(CONTENT))
    after = file.read_bytes()
    assert with_empty_room(after, part.room) == before != after
    changed = read_part(file)
    assert (changed.room, changed.tensors, changed.header_digest) == (part.room, part.tensors, part.header_digest)
    read = GGUFReader(file).fields[CERTIFICATE_KEY].contents()
    assert json.loads(read) == json.loads(seal(CONTENT))


def test_the_writer_and_the_reader_find_the_same_room(tmp_path: Path) -> None:
    layout = lay_out({CERTIFICATE_KEY: empty_room()}, [])
    (tmp_path / "x.gguf").write_bytes(layout.header)
    assert layout.room == read_part(tmp_path / "x.gguf").room
    assert lay_out({}, []).room is None


@pytest.mark.parametrize("step", [1, 7, 100])
def test_bytes_read_in_pieces_are_emptied_as_the_whole_is(step: int) -> None:
    data, room = bytes(range(60)), Room(13, 20)
    whole = with_empty_room(data, room)
    assert whole == data[:13] + b" " * 20 + data[33:]
    assert b"".join(with_empty_room(data[at : at + step], room, at) for at in range(0, 60, step)) == whole


def test_a_text_that_does_not_fit_changes_nothing(file: Path) -> None:
    before, room = file.read_bytes(), read_part(file).room
    assert room is not None
    for text in ("x" * (ROOM_BYTES + 1), "\N{LATIN SMALL LETTER E WITH ACUTE}"):
        with pytest.raises(OutputError, match="does not fit into its room"):
            write_into_room(file, room, text)
    assert file.read_bytes() == before


def test_every_changed_character_of_a_certificate_is_seen(file: Path) -> None:
    text, model = seal(CONTENT), read_gguf(file)
    room = model.parts[0].room
    assert room is not None
    assert unseal(text, "x") == unseal(json.dumps(json.loads(text), indent=2), "x")
    for at in range(len(text) + 3):
        padded = text.ljust(len(text) + 3)
        write_into_room(file, room, padded[:at] + chr(ord(padded[at]) ^ 1) + padded[at + 1 :])
        stored = read_certificate(read_gguf(file))
        assert (stored.inside, len(stored.problems)) == (None, 1), at


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"digest":1}', '{"digest":null,"a":1e999}', "[" * 5000, "{"])
def test_other_documents_are_refused(text: str) -> None:
    with pytest.raises(GgufError):
        unseal(text, "x")


def test_the_one_beside_holds_while_the_one_in_the_file_is_torn(file: Path) -> None:
    assert read_certificate(read_gguf(file)).places == ""
    model = read_gguf(file)
    document = {**CONTENT, "tensors": {"digest": "d", "table": digest_table_of(model), "chunk_weights": 5}}
    text = seal(document)
    certificate_path(file).write_text(json.dumps(json.loads(text), indent=1))
    beside = read_certificate(model)
    assert (beside.document, beside.places, beside.problems) == (json.loads(text), "beside it", ())
    assert beside.has_table(digest_table_of(model))
    assert beside.has_tensors("d")
    assert beside.chunk_weights == 5
    room = model.parts[0].room
    assert room is not None
    write_into_room(file, room, text[: len(text) // 2])
    torn = read_certificate(read_gguf(file))
    assert torn.document == json.loads(text)
    assert [line.split(":")[0] for line in torn.problems] == ["file.gguf"]
    write_into_room(file, room, text)
    assert read_certificate(read_gguf(file)).places == "in the file and beside it"
    assert not read_certificate(read_gguf(file)).problems


def test_two_certificates_that_differ_are_a_problem(file: Path) -> None:
    room = read_part(file).room
    assert room is not None
    write_into_room(file, room, seal(CONTENT))
    certificate_path(file).write_text(seal({**CONTENT, "n": 4}))
    stored = read_certificate(read_gguf(file))
    assert stored.document == json.loads(seal(CONTENT))
    assert stored.problems == ("file.gguf: the certificate in the file is not the one beside it",)


def test_a_room_of_other_blanks_is_a_changed_one(file: Path) -> None:
    data = file.read_bytes()
    at = data.index(b" " * ROOM_BYTES)
    file.write_bytes(data[:at] + b"\t" + data[at + 1 :])
    assert read_certificate(read_gguf(file)).problems == ("file.gguf: the certificate in it was changed",)
