"""Certificates: figures are kept and read again, tied to tensors, base and texts, and compared within tolerances."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimo_gguf.core.certificate_room import ROOM_BYTES
from mimo_gguf.core.errors import GgufError, OutputError, UsageError
from mimo_gguf.core.gguf_file import read_gguf
from mimo_gguf.core.stored_certificate import certificate_path, seal
from mimo_gguf.quality.certificate import Certificate, certify, read_certificate_json
from mimo_gguf.quality.certifying import certify_files, check_certifiable
from mimo_gguf.quality.checking import certificate_of, check_about_tensors, check_same_base, check_same_texts
from mimo_gguf.quality.comparison import ABSOLUTE, RELATIVE, TIES, TOLERANCES, compare_figures
from mimo_gguf.quality.divergence import Divergence, Figure, Summary, compare_rows, summarize
from mimo_gguf.quality.plan import QualityOptions, QualityPlan
from mimo_gguf.quality.report import ALL, Arithmetic, BaseInfo, FileQuality, KindInfo, QualityReport, TextInfo
from mimo_gguf.quantization.plan import SOURCE_DIGEST
from mimo_gguf.quantization.verification import verify_gguf
from tests.quantization.models import Model, write_random
from tests.quantization.runs import quantize

MODEL = Model(n_trunk=1, width=64, ffn=96, vocab=73, heads=2, kv_heads=1, head_dim=32)
KINDS = ("code", "prose", "maths")


def summary(seed: int) -> Summary:
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((400, 50)).astype(np.float32) * 2
    logits = base + rng.standard_normal(base.shape).astype(np.float32) * 0.1
    return summarize(compare_rows(base, logits, rng.integers(0, 50, 400, np.int32)))


def quality(path: Path, kinds: tuple[str, ...] = KINDS) -> FileQuality:
    names = (*kinds, ALL)
    return FileQuality(
        path=path, size_bytes=path.stat().st_size if path.is_file() else 0, file_type="Q4_0", fingerprint="f",
        by_kind={kind: summary(number) for number, kind in enumerate(names)},
        acceptance={"pre": {kind: Figure(0.5, 0.02) for kind in names}}, seconds=1.0, n_read=1,
    )  # fmt: skip


def measured(file: FileQuality, base: str, arithmetic: Arithmetic = "float32") -> tuple[QualityPlan, QualityReport]:
    kinds = {kind: KindInfo(10, 4, 512, 256) for kind in file.by_kind if kind != ALL}
    texts = TextInfo(("docs", "a.txt"), "d" * 64, "w" * 64, kinds, 3)
    info = BaseInfo(base, "fingerprint", "block by block")
    plan = QualityPlan((), info, (), texts, QualityOptions(n_tokens=4096), arithmetic, 0)
    return plan, QualityReport(arithmetic, "numpy, 2 threads", 128, info, texts, (file,))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    quantize(write_random(folder / "source.gguf", MODEL), folder, ["Q4_0"], chunk_weights=1 << 10)
    return folder


@pytest.fixture
def file(made: Path, tmp_path: Path) -> Path:
    for path in made.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path / "Q4_0.gguf"


@pytest.fixture(scope="module")
def certificate() -> Certificate:
    found = quality(Path("x.gguf"))
    return certify(*measured(found, "base.gguf"), found, "b" * 32)


# ---- the value


def test_a_certificate_is_read_as_it_was_written(certificate: Certificate) -> None:
    read = read_certificate_json(json.loads(seal(certificate.as_json())), "x")
    assert read.as_json() == certificate.as_json()
    assert list(read.figures) == list(certificate.figures)  # all texts together stay the last
    for kind, found in certificate.figures.items():
        theirs = read.figures[kind]
        assert found.divergence is not None
        assert theirs.divergence is not None
        for field in fields(Divergence):
            ours, other = getattr(found.divergence, field.name), getattr(theirs.divergence, field.name)
            assert list(numbers(other)) == pytest.approx(list(numbers(ours)), rel=1e-6), field.name
    assert read.texts == certificate.texts
    assert (read.base, read.versions, read.acceptance) == (
        certificate.base,
        certificate.versions,
        certificate.acceptance,
    )


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, Figure):
        yield from (value.value, value.error)
    elif isinstance(value, dict):
        yield from (number for pair in value.items() for number in pair)
    else:
        yield value


def test_a_dozen_kinds_of_text_fit_into_the_room() -> None:
    found = quality(Path("x.gguf"), tuple(f"kind-{number:02}" for number in range(12)))
    assert len(seal(certify(*measured(found, "org/model"), found, "b" * 32).as_json())) < 0.8 * ROOM_BYTES


def test_a_certificate_without_base_or_drafts_is_read_again() -> None:
    found = quality(Path("x.gguf"))
    alone = replace(
        found, acceptance={}, by_kind={kind: replace(each, divergence=None) for kind, each in found.by_kind.items()}
    )
    plan, report = measured(alone, "")
    certificate = certify(replace(plan, base=None), replace(report, base=None), alone, "")
    read = read_certificate_json(json.loads(seal(certificate.as_json())), "x")
    assert (read.base, read.acceptance) == (None, {})
    assert read.as_json() == certificate.as_json()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "mimo-gguf certificate 2"),
        ("arithmetic", "float16"),
        ("figures", {}),
        ("figures", []),
        ("texts", None),
        ("base", {"label": "x"}),
        ("versions", {"numpy": "2"}),
        ("acceptance", {"before": {}}),
        ("acceptance", {"pre": {ALL: [0.5, 0.1]}}),
        ("acceptance", {"pre": {ALL: [1]}}),
    ],
)
def test_a_document_of_another_form_is_refused_in_a_line(certificate: Certificate, key: str, value: object) -> None:
    with pytest.raises(GgufError, match=r"x\.gguf: its certificate has a form") as caught:
        read_certificate_json(certificate.as_json() | {key: value}, "x.gguf")
    assert caught.value.hint


# ---- comparing


def test_equal_measurements_agree(certificate: Certificate) -> None:
    figures = compare_figures(certificate, quality(Path("x.gguf")))
    assert all(figure.agrees for figure in figures)
    assert {figure.kind for figure in figures} == {*KINDS, ALL}
    assert [figure.name for figure in figures if figure.kind == ALL] == [
        "perplexity", "ln_ratio", "kl", "shift", "shift_rms", "same_top", "acceptance, pre",
    ]  # fmt: skip


@pytest.mark.parametrize("arithmetic", ["float32", "backend"])
@pytest.mark.parametrize("name", ["perplexity", "ln_ratio", "kl", "shift", "shift_rms", "same_top", "acceptance, pre"])
def test_a_figure_may_differ_by_its_tolerance_and_no_more(
    certificate: Certificate, name: str, arithmetic: Arithmetic
) -> None:
    of = replace(certificate, arithmetic=arithmetic)
    file = quality(Path("x.gguf"))
    found = {figure.name: figure for figure in compare_figures(of, file) if figure.kind == "code"}[name]
    ties = TIES / file.by_kind["code"].n_tokens if name in ("same_top", "acceptance, pre") else 0
    allowed = TOLERANCES[arithmetic] * found.certified.error + RELATIVE * abs(found.certified.value) + ABSOLUTE + ties
    for step, agrees in ((0.99, True), (1.01, False)):
        value = found.certified.value + step * allowed
        compared = compare_figures(of, with_figure(file, "code", name, value))
        assert [figure.name for figure in compared if not figure.agrees] == ([] if agrees else [name])


def with_figure(file: FileQuality, kind: str, name: str, value: float) -> FileQuality:
    if name == "acceptance, pre":
        return replace(file, acceptance={"pre": file.acceptance["pre"] | {kind: Figure(value, 0.0)}})
    old = file.by_kind[kind]
    if name == "perplexity":
        new = replace(old, perplexity=Figure(value, 0.0))
    else:
        assert old.divergence is not None
        changed: dict[str, Any] = {name: Figure(value, 0.0)}
        new = replace(old, divergence=replace(old.divergence, **changed))
    return replace(file, by_kind=file.by_kind | {kind: new})


# ---- with its file


def test_a_certificate_names_the_tensors_and_the_base_that_the_file_was_made_from(file: Path) -> None:
    plan, report = measured(quality(file), str(file.with_name("source.gguf")))
    (certified,) = certify_files(plan, report, 1)
    assert certified.notes == ()
    model = read_gguf(file)
    assert certified.certificate.base is not None
    assert certified.certificate.base.digest == model.value(SOURCE_DIGEST)
    assert verify_gguf(file).certificate == "in the file and beside it"
    check_about_tensors(model)
    assert certificate_of(file).as_json() == certified.certificate.as_json()
    check_same_base(certificate_of(file), str(file.with_name("source.gguf")), model)
    write_random(file.with_name("other.gguf"), MODEL, seed=1)
    with pytest.raises(UsageError, match="is not the base of the certificate"):
        check_same_base(certificate_of(file), str(file.with_name("other.gguf")), model)
    check_same_texts(certificate_of(file), plan)
    with pytest.raises(UsageError, match=r"the texts of the certificate \(docs, a.txt\) are others"):
        check_same_texts(certificate_of(file), replace(plan, texts=replace(plan.texts, windows_digest="x")))
    with pytest.raises(UsageError, match="are others"):
        check_same_texts(certificate_of(file), replace(plan, texts=replace(plan.texts, kinds={})))


def test_a_damaged_file_gets_no_certificate_and_is_not_measured_again(file: Path) -> None:
    plan, report = measured(quality(file), str(file.with_name("source.gguf")))
    certify_files(plan, report, 1)
    data = bytearray(file.read_bytes())
    data[-40] ^= 1
    file.write_bytes(data)
    before = certificate_path(file).read_bytes()
    for call in (lambda: certify_files(plan, report, 1), lambda: check_about_tensors(read_gguf(file))):
        with pytest.raises(GgufError, match=r"the data of .* changed") as caught:
            call()
        assert caught.value.hint == f"mimo-gguf verify {file}"
    assert certificate_path(file).read_bytes() == before


def test_files_without_a_certificate_of_their_own_are_named(file: Path) -> None:
    with pytest.raises(GgufError, match=r"Q4_0\.gguf: has no certificate") as caught:
        certificate_of(file)
    assert caught.value.hint == f"mimo-gguf quality {file} --certify"
    certify_files(*measured(quality(file), str(file.with_name("source.gguf"))))
    quantize(file.with_name("source.gguf"), file.parent, ["Q8_0"])
    certificate_path(file).rename(certificate_path(file.with_name("Q8_0.gguf")))
    with pytest.raises(GgufError, match="about another file"):
        certificate_of(file.with_name("Q8_0.gguf"))


def test_read_only_files_are_refused_before_anything_is_measured(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_certifiable([file])
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != file and access(path, mode))
    with pytest.raises(OutputError, match="is read-only"):
        check_certifiable([file])
