"""The tables of docs/quality.md are those of the measured document, and a stopped measurement goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import quality_tables
from benchmarks.measured import sources_digest
from benchmarks.mtp_types import Trunk, acceptance_figures
from benchmarks.quality_docs import BEGIN, END, with_tables, write_docs
from benchmarks.quality_tables import ARITHMETICS, FTYPES, MTP_TYPES, RESULTS, Bench, Results, Row, rows
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.quality.divergence import Figure
from mimo_gguf.quality.judge import run_quality
from mimo_gguf.quality.plan import QualityOptions, plan_quality
from mimo_gguf.quantization.profiles import MtpRule
from mimo_gguf.quantization.type_choice import TypeOptions
from tests.quantization.runs import quantize

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "model": "model", "tokens": 64, "imatrix_tokens": 9, "version": "0", "llama_cpp": "c", "machine": {"cpu": "a CPU"},
    "sources": sources_digest(),
}  # fmt: skip
FIGURES = {
    "perplexity": [4.5, 0.2], "kl": [0.0123, 0.0004], "same_top": [0.91, 0.01], "acceptance": [0.4, 0.02],
    "change": [-0.01, 0.005],
}  # fmt: skip


def document() -> dict[str, Any]:
    info = {"n_documents": 3, "n_windows": 2, "n_tokens": 32, "n_judged": 16}
    kinds = {"code": FIGURES, "all": FIGURES}
    measured = [
        {
            "table": row.table, "ftype": row.ftype, "imatrix": row.imatrix, "mtp_type": row.mtp_type,
            "arithmetic": row.arithmetic, "size_bytes": 3 << 20, "bits_per_weight": 16.0 - FTYPES.index(row.ftype),
            "mtp_bytes": 1 << 19, "kinds": kinds,
        }
        for row in rows(ARITHMETICS)
    ]  # fmt: skip
    return {
        "settings": SETTINGS, "texts": {"windows_digest": "d", "kinds": {"code": info}},
        "backends": {"float32": "numpy, 2 threads", "backend": "llama.cpp, CPU"}, "rows": measured,
    }  # fmt: skip


def test_the_documents_tables_are_those_of_the_measured_document() -> None:
    text = (ROOT / "docs/quality.md").read_text(encoding="utf-8")
    assert with_tables(text, json.loads((ROOT / RESULTS).read_text(encoding="utf-8"))) == text


def test_every_row_is_in_a_table_with_its_error(tmp_path: Path) -> None:
    page, results = tmp_path / "page.md", tmp_path / "results.json"
    page.write_text(f"# Page\n\n{BEGIN}\nold\n{END}\nmore\n")
    results.write_text(json.dumps(document()))
    write_docs(results, page)
    text = page.read_text()
    assert text.startswith("# Page")
    assert text.endswith(f"{END}\nmore\n")
    assert "old" not in text
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert (
        len([line for line in table if "| 4.50 ± 0.20 | 0.01230 ± 0.00040 | 91.0 ± 1.0 % | 40.0 ± 2.0 % |" in line])
        == 32
    )
    assert len([line for line in table if line.startswith(tuple(f"| {name} | 0.50 |" for name in MTP_TYPES))]) == 16
    assert "Not measured here" in text
    first = table[1].split("|")[1].strip()
    assert first == "F16"
    assert table.index(next(line for line in table if "Q6_K with imatrix" in line)) == 1 + table.index(
        next(line for line in table if line.startswith("| Q6_K |"))
    )


def test_a_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no place for the tables"):
        with_tables("# Page\n", document())


def test_no_row_is_measured_twice_and_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [Row("types", "Q8_0", False, None, arithmetic) for arithmetic in ARITHMETICS]
    made: list[str] = []

    class Report:
        files = (None,)

    def judge(self: Bench, path: Path, row: Row) -> Report:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(row.arithmetic)
        return Report()

    def make(self: Bench, row: Row) -> Path:
        (self.work / row.file).touch()
        return self.work / row.file

    monkeypatch.setattr(Bench, "_judge", judge)
    monkeypatch.setattr(Bench, "_make", make)
    monkeypatch.setattr(Bench, "_note", lambda self, report: None)
    monkeypatch.setattr(quality_tables, "figures_of", lambda file, path: {"kinds": {}})

    def run(of: list[Row]) -> None:
        Bench(tmp_path, tmp_path, 64, 9, Results(tmp_path / "r.json", SETTINGS)).run(of)

    run(wanted[:1])
    with pytest.raises(KeyboardInterrupt):
        run([*wanted, Row("types", "Q6_K", False, None, "float32")])
    assert made == ["float32", "backend"]
    assert len(json.loads((tmp_path / "r.json").read_text())["rows"]) == 2
    assert not (tmp_path / "Q8_0.gguf").exists()  # its last row is there
    with pytest.raises(SystemExit, match="other settings"):
        Results(tmp_path / "r.json", SETTINGS | {"tokens": 65})
    made.clear()
    monkeypatch.setattr(quality_tables, "sources_digest", lambda: "of other code")
    with pytest.raises(SystemExit, match="a source file has changed"):
        run([Row("types", "Q6_K", False, None, "float32")])
    assert len(json.loads((tmp_path / "r.json").read_text())["rows"]) == 2


def test_drafts_of_a_block_are_counted_as_the_command_counts_them(tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(f"{i} times {i} is {i * i}, said the fox." for i in range(80)))
    quantize(tiny_path, tmp_path, ["F16"])
    options = QualityOptions(64, 320, "float32", all_text=True, n_threads=1)
    plan = plan_quality([tmp_path / "F16.gguf"], None, [f"fox={tmp_path / 'text.txt'}"], options)
    trunk = Trunk(plan, tmp_path / "trunk")
    best = trunk.hits(tmp_path / "F16.gguf")
    theirs = run_quality(plan, tmp_path / "work").files[0].acceptance["pre"]
    figures = acceptance_figures(best, best)
    assert {kind: each["acceptance"] for kind, each in figures.items()} == theirs
    assert all(each["change"] == Figure(0.0, 0.0) for each in figures.values())
    same_trunk = TypeOptions(mtp=MtpRule(GgmlType.Q4_0))
    quantize(tiny_path, tmp_path / "worse", ["F16"], types=same_trunk)
    worse = acceptance_figures(trunk.hits(tmp_path / "worse/F16.gguf"), best)["all"]
    assert worse["change"].value == pytest.approx(worse["acceptance"].value - theirs["all"].value)


def test_rows_and_their_files_are_told_apart() -> None:
    wanted = list(rows(ARITHMETICS))
    assert len(set(wanted)) == len(wanted)
    files = {(row.ftype, row.imatrix, row.mtp_type): row.file for row in wanted}
    assert len(set(files.values())) == len(files)
