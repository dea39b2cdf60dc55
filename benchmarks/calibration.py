"""Compares calibrated files with files of the same bytes made with an importance matrix of the same text.

    python -m benchmarks.calibration --model CHECKPOINT --work DIR [-o benchmarks/results/calibration.json]
    python -m benchmarks.calibration --table [-o benchmarks/results/calibration.json]

Each file is judged in float32 beside the checkpoint's own weights, on documents that no calibration saw. A row is
written as soon as it is measured, and a row that is there is not measured again, so a stopped run goes on. All types of
a mix share one calibration, whose folder is kept in DIR. `--table` prints the rows as Markdown.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from benchmarks.measured import machine
from benchmarks.quality_tables import figures_of
from mimo_gguf.core.output_file import atomic_output
from mimo_gguf.core.version import __version__

RESULTS: Final = Path("benchmarks/results/calibration.json")
FTYPES: Final = ("Q3_K_M", "IQ4_XS", "Q4_K_M", "Q5_K_M", "Q6_K")
# imatrix: as llama-quantize; profile: feedback alone, the types of the file type; solve, free: the solved mixes
METHODS: Final = ("imatrix", "profile", "solve", "free")


class Bench:
    """The measuring of rows, each a file type and a method."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.model, self.work, self.path = arguments.model, arguments.work, arguments.out
        self.tokens, self.calibration_tokens = arguments.tokens, arguments.calibration_tokens
        self.types, self.methods, self.texts = arguments.types, arguments.methods, arguments.text
        self.told: dict[tuple[str, str], dict[str, Any]] = {}  # what calibrations of this process said
        settings = {
            "model": arguments.name or self.model.resolve().name,
            "tokens": self.tokens,
            "calibration_tokens": self.calibration_tokens,
            "texts": self.texts,
            "version": __version__,
        }
        self.document: dict[str, Any] = {"settings": settings, "machine": machine(), "rows": []}
        if self.path.is_file():
            self.document = json.loads(self.path.read_text())
            if self.document["settings"] != settings:
                sys.exit(f"{self.path}: was measured with other settings, {self.document['settings']}: give another -o")

    def run(self) -> None:
        """Measures the rows that are missing."""
        self.work.mkdir(parents=True, exist_ok=True)
        for method in self.methods:
            for ftype in self.types:
                if not self._has(ftype, method):
                    self._measure(ftype, method)

    def _has(self, ftype: str, method: str) -> bool:
        return any((row["type"], row["method"]) == (ftype, method) for row in self.document["rows"])

    def _measure(self, ftype: str, method: str) -> None:
        from mimo_gguf.verbs import measure_quality

        started = time.perf_counter()
        path, told = self._with_imatrix(ftype) if method == "imatrix" else self._calibrated(ftype, method)
        made = time.perf_counter() - started
        report = measure_quality(
            path, base=self.model, tokens=self.tokens, arithmetic="float32", work=self.work / "quality"
        )
        self.document["texts"] = {kind: asdict(info) for kind, info in report.texts.kinds.items()}
        row = {"type": ftype, "method": method, **told, "made_s": round(made, 1)}
        self.document["rows"].append(row | figures_of(report.files[0], path))
        self._save()
        print(line_of(self.document["rows"][-1]), flush=True)
        for other in path.parent.glob(f"{path.name}*"):
            other.unlink()

    def _with_imatrix(self, ftype: str) -> tuple[Path, dict[str, Any]]:
        """The file as llama-imatrix and llama-quantize make it: no importance for the head."""
        from mimo_gguf.verbs import imatrix, quantize

        matrix = self.work / "imatrix.gguf"
        if not matrix.is_file():
            imatrix(self.model, out=matrix, tokens=self.calibration_tokens, texts=self.texts, output=False)
        path: Path = self.work / f"{ftype}-imatrix.gguf"
        quantize(self.model, types=ftype, out=path, imatrix=matrix, force=True)
        return path, {}

    def _calibrated(self, ftype: str, mix: str) -> tuple[Path, dict[str, Any]]:
        """The calibrated file; those of the other types that are missing are made in the same pass."""
        from mimo_gguf import calibrate

        missing = [ftype, *(other for other in self.types if other != ftype and not self._has(other, mix))]
        report = calibrate(
            self.model, types=missing, out=f"{self.work / mix}/", mix=mix, tokens=self.calibration_tokens,
            texts=self.texts, work=self.work / "calibration",
        )  # fmt: skip
        for name, file in zip(missing, report.files, strict=True):
            if file.outcomes:
                left = sum(outcome.ratio for outcome in file.outcomes) / len(file.outcomes)
                told = {"seconds": round(report.seconds, 1), "n_types": len(missing), "error_left": round(left, 4)}
                told |= {"n_plain": file.n_plain, "n_matrices": len(file.outcomes)}
                self.told[name, mix] = told | {"predicted_before": file.before, "predicted_after": file.after}
        return report.files[0].path, self.told.get((ftype, mix), {})

    def _save(self) -> None:
        head = {key: value for key, value in self.document.items() if key != "rows"}
        lines = ",\n".join(f"  {json.dumps(row)}" for row in self.document["rows"])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_output(self.path) as file:
            file.write(f'{json.dumps(head, indent=1)[:-2]},\n "rows": [\n{lines}\n ]\n}}\n'.encode())


def line_of(row: dict[str, Any]) -> str:
    """A row in words."""
    kl, error = row["kinds"]["all"]["kl"]
    return f"{row['type']} {row['method']}: {row['size_bytes']} bytes, divergence {kl:.4f} ± {error:.4f}"


def print_table(document: dict[str, Any]) -> None:
    """Prints the rows as a table in Markdown, each beside the importance matrix's row of its type."""
    rows = {(row["type"], row["method"]): row for row in document["rows"]}
    kinds = [kind for kind in document["texts"] if kind != "all"]
    print(f"| type | method | bytes | divergence | to imatrix | same top | drafts | {' | '.join(kinds)} |")
    print("|---" * (7 + len(kinds)) + "|")
    for (ftype, method), row in sorted(rows.items(), key=lambda e: (FTYPES.index(e[0][0]), METHODS.index(e[0][1]))):
        found, base = row["kinds"], rows.get((ftype, "imatrix"))
        kl, error = found["all"]["kl"]
        change = f"{100 * (kl / base['kinds']['all']['kl'][0] - 1):+.0f} %" if base else ""
        drafts = f"{100 * found['all']['acceptance'][0]:.2f} %" if "acceptance" in found["all"] else ""
        each = " | ".join(f"{found[kind]['kl'][0]:.4f}" for kind in kinds)
        top = f"{100 * found['all']['same_top'][0]:.2f} %"
        figures = (f"{row['size_bytes']:,}", f"{kl:.4f} ± {error:.4f}", change, top, drafts, each)
        print(f"| {ftype} | {method} | {' | '.join(figures)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="the checkpoint")
    parser.add_argument("--name", help="what the model is called in the results")
    parser.add_argument("--work", type=Path, help="folder for files, statistics and the base's states")
    parser.add_argument("--tokens", type=int, default=40960, help="tokens read for judging; half of them are judged")
    parser.add_argument("--calibration-tokens", type=int, default=32768)
    parser.add_argument("-f", "--text", nargs="*", default=[], help="text to calibrate with")
    parser.add_argument("--types", nargs="*", default=list(FTYPES), choices=FTYPES)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print what was measured")
    arguments = parser.parse_args()
    if arguments.table:
        print_table(json.loads(arguments.out.read_text()))
        return
    if arguments.model is None or arguments.work is None:
        parser.error("--model and --work are needed")
    Bench(arguments).run()


if __name__ == "__main__":
    main()
