"""`quality --certify`, `inspect`, `verify` and `quality --check`, as a user types them one after the other."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mimo_gguf.cli.quality_overview import plotted_files
from mimo_gguf.core.certificate_room import with_empty_room
from mimo_gguf.core.gguf_file import open_gguf, read_gguf
from mimo_gguf.core.model_source import string
from mimo_gguf.core.stored_certificate import certificate_path, read_certificate
from mimo_gguf.llama.api import load_model
from mimo_gguf.quality.divergence import Divergence, Figure, Summary
from mimo_gguf.quality.report import ALL, FileQuality
from mimo_gguf.quantization.certificates import store_certificate
from mimo_gguf.quantization.plan import OutputRequest, QuantizeOptions, plan_quantization
from mimo_gguf.quantization.profiles import load_profile
from mimo_gguf.quantization.run import run_quantization
from mimo_gguf.quantization.verification import identify_tensors, verify_gguf
from tests.cli.command_line import assert_clear_error, run_here
from tests.quantization.runs import quantize

SETTINGS = ("-f", "fox=text.txt", "--ctx", "64", "--tokens", "256", "--all-text", "--threads", "1", "--work", "work")


@pytest.fixture(scope="module")
def folder(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two files made from it, one of which is certified."""
    folder = tmp_path_factory.mktemp("certified")
    shutil.copy(tiny_path, folder / "base.gguf")
    lines = (f"{i} times {i} is {i * i}, said the fox to the hound." for i in range(60))
    (folder / "text.txt").write_text("\n\n".join(lines))
    quantize(folder / "base.gguf", folder, ["Q8_0", "Q4_0"])
    before = (folder / "Q8_0.gguf").read_bytes()
    done = run_here(folder, "quality", "Q8_0.gguf", "--base", "base.gguf", *SETTINGS, "--certify")
    assert done.returncode == 0, done.stderr
    assert "Q8_0.gguf: certified" in done.stderr
    room = read_gguf(folder / "Q8_0.gguf").parts[0].room
    assert with_empty_room((folder / "Q8_0.gguf").read_bytes(), room) == before
    return folder


@pytest.fixture
def here(folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder, with the work that is done."""
    return Path(shutil.copytree(folder, tmp_path / "here"))


def test_a_certificate_is_shown_and_verified_and_the_file_still_loads(folder: Path) -> None:
    shown = run_here(folder, "inspect", "Q8_0.gguf")
    assert shown.returncode == 0, shown.stderr
    rows = {line.split()[0]: line for line in shown.stdout.splitlines() if line}
    assert "divergence 0." in rows["quality"]
    assert "perplexity" in rows["quality"]
    assert "drafts" in rows["quality"]
    assert rows["beside"].endswith("base.gguf")
    assert "fox" in rows["judged"]
    document = json.loads(run_here(folder, "inspect", "Q8_0.gguf", "--json").stdout)
    assert document["certificate"] == json.loads(certificate_path(folder / "Q8_0.gguf").read_text())
    assert "(" in run_here(folder, "inspect", "Q8_0.gguf", "--metadata").stdout
    verified = run_here(folder, "verify", "Q8_0.gguf")
    assert (verified.returncode, "about these tensors, in the file and beside it" in verified.stdout) == (0, True)
    with load_model(folder / "Q8_0.gguf") as model:
        assert model.n_vocab > 0
    assert json.loads(run_here(folder, "inspect", "Q4_0.gguf", "--json").stdout)["certificate"] is None


def test_the_figures_are_those_of_the_report(folder: Path) -> None:
    done = run_here(folder, "quality", "Q8_0.gguf", "--base", "base.gguf", *SETTINGS, "--json")
    (file,) = json.loads(done.stdout)["files"]
    certified = json.loads(certificate_path(folder / "Q8_0.gguf").read_text())
    for kind, summary in file["kinds"].items():
        found = certified["figures"][kind]
        value, error = found["divergence"]["kl"]
        assert value == pytest.approx(summary["divergence"]["kl"]["value"], rel=1e-6)
        assert error == pytest.approx(summary["divergence"]["kl"]["error"], rel=1e-6)
        assert certified["acceptance"]["pre"][kind][0] == pytest.approx(file["acceptance"]["pre"][kind]["value"])


def test_a_check_agrees_and_says_how_closely(here: Path) -> None:
    done = run_here(here, "quality", "Q8_0.gguf", "--check", "--threads", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "agree" in done.stdout
    (document,) = json.loads(run_here(here, "quality", "Q8_0.gguf", "--check", "--json").stdout)
    assert document["agrees"]
    assert all(figure["agrees"] for figure in document["figures"])


def test_a_certificate_with_other_figures_is_found_out(here: Path) -> None:
    path = here / "Q8_0.gguf"
    document = dict(read_certificate(read_gguf(path)).document or {})
    figures: dict[str, Any] = document["figures"]
    figures["all"]["divergence"]["kl"] = [0.5 * value for value in figures["all"]["divergence"]["kl"]]
    store_certificate(read_gguf(path), identify_tensors(read_gguf(path), verify_gguf(path)), document)
    assert run_here(here, "verify", "Q8_0.gguf").returncode == 0  # it is whole; only measuring shows that it is wrong
    done = run_here(here, "quality", "Q8_0.gguf", "--check", "--threads", "1")
    assert done.returncode == 1
    assert "1 of " in done.stdout.splitlines()[-1]
    assert done.stdout.splitlines()[-1].endswith("differ")


def test_what_cannot_be_checked_is_said_in_a_line(here: Path) -> None:
    assert_clear_error(run_here(here, "quality", "Q4_0.gguf", "--check"), "Q4_0.gguf: has no certificate")
    (here / "text.txt").write_text("another text entirely. " * 400)
    assert_clear_error(run_here(here, "quality", "Q8_0.gguf", "--check"), "are others on this machine", code=2)
    shutil.copy(here / "Q4_0.gguf", here / "base.gguf")
    assert_clear_error(run_here(here, "quality", "Q8_0.gguf", "--check"), "is not the base", code=2)


def test_files_are_drawn_in_a_series_for_each_way_they_were_made(folder: Path, tmp_path: Path) -> None:
    for name, key in (("calibrated", "mimo_gguf.calibration.base"), ("imatrix", "quantize.imatrix.file")):
        with open_gguf(folder / "base.gguf") as source:
            made = replace(source, metadata={**source.metadata, key: string("x")})
            request = OutputRequest(load_profile("F16"), tmp_path / f"{name}.gguf")
            run_quantization(plan_quantization(made, [request], QuantizeOptions()))
    shutil.copy(folder / "Q8_0.gguf", tmp_path / "plain.gguf")
    figure, paths = Figure(0.01, 0.001), sorted(tmp_path.glob("*.gguf"))
    points = plotted_files([measured(path, figure) for path in paths])
    assert [(point.label, point.series) for point in points] == [
        ("F16", "calibrated"),
        ("F16", "with importance matrix"),
        ("F16", "without importance matrix"),
    ]
    twice = plotted_files([measured(path, figure) for path in (paths[0], paths[0])])
    assert [point.label for point in twice] == ["calibrated", "calibrated"]  # the type does not tell them apart


def measured(path: Path, kl: Figure) -> FileQuality:
    divergence = Divergence(kl, kl, kl, {}, 0.1, kl, kl, {}, kl)
    return FileQuality(path, 1 << 20, "F16", "", {ALL: Summary(9, kl, divergence)}, {}, 1.0, 9)


def test_several_files_are_drawn_and_shown_side_by_side(here: Path) -> None:
    files = ("Q8_0.gguf", "Q4_0.gguf")
    assert_clear_error(run_here(here, "quality", *files, *SETTINGS, "--plot", "q.svg"), "from a base", code=2)
    done = run_here(here, "quality", *files, "--base", "base.gguf", *SETTINGS, "--plot", "q.svg")
    assert done.returncode == 0, done.stderr
    assert "</svg>" in (here / "q.svg").read_text()
    rows = done.stdout.strip().splitlines()[-2:]
    assert [row.split()[0] for row in rows] == ["Q4_0.gguf", "Q8_0.gguf"]  # the smaller first
