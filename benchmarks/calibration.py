"""Compares calibrated files with files of the same bytes made with an importance matrix of the same text.

    python -m benchmarks.calibration --model CHECKPOINT --work DIR [-o benchmarks/results/calibration.json]
    python -m benchmarks.calibration --table [-o benchmarks/results/calibration.json]

Each file is judged in float32 beside the checkpoint's own weights, on documents that no calibration saw. A row is
written as soon as it is measured, and a row that is there is not measured again, so a stopped run goes on. All types of
a mix share one calibration, whose folder is kept in DIR. `--table` prints the rows as Markdown.

The method `usual` takes an importance matrix of other text (`--usual`), for comparing with files that people download.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.measured import machine
from benchmarks.quality_tables import figures_of
from mimo_gguf.core.output_file import atomic_output
from mimo_gguf.core.version import __version__

if TYPE_CHECKING:
    from mimo_gguf.quality.report import FileQuality

RESULTS: Final = Path("benchmarks/results/calibration.json")
FTYPES: Final = ("Q3_K_M", "IQ4_XS", "Q4_K_M", "Q5_K_M", "Q6_K")
# usual, imatrix: as llama-quantize; profile: feedback alone, the types of the file type; solve, free: the solved mixes
METHODS: Final = ("usual", "imatrix", "profile", "solve", "free")
_QUANTILE: Final = 99.9  # of the divergence, reported beside its mean


class Bench:
    """The measuring of rows, each a file type and a method."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.model, self.work, self.path = arguments.model, arguments.work, arguments.out
        self.tokens, self.calibration_tokens = arguments.tokens, arguments.calibration_tokens
        self.types, self.methods = arguments.types, arguments.methods
        self.texts, self.judged, self.usual = arguments.text, arguments.judged, arguments.usual
        self.told: dict[tuple[str, str], dict[str, Any]] = {}  # what calibrations of this process said
        settings = {
            "model": arguments.name or self.model.resolve().name,
            "tokens": self.tokens,
            "calibration_tokens": self.calibration_tokens,
            "texts": names_of(self.texts),
            "judged": names_of(self.judged),
            "usual": names_of(self.usual),
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
        with_matrix = method in ("imatrix", "usual")
        path, told = self._with_matrix(ftype, method) if with_matrix else self._calibrated(ftype, method)
        made = time.perf_counter() - started
        report = measure_quality(
            path, base=self.model, texts=self.judged, tokens=self.tokens, arithmetic="float32",
            work=self.work / "quality",
        )  # fmt: skip
        self.document["texts"] = {kind: asdict(info) for kind, info in report.texts.kinds.items()}
        row = {"type": ftype, "method": method, **told, "made_s": round(made, 1)}
        row |= figures_of(report.files[0], path) | {"kl_quantiles": quantiles_of(report.files[0])}
        self.document["rows"].append(row)
        self._save()
        print(line_of(self.document["rows"][-1]), flush=True)
        for other in path.parent.glob(f"{path.name}*"):
            other.unlink()

    def _with_matrix(self, ftype: str, method: str) -> tuple[Path, dict[str, Any]]:
        """The file as llama-imatrix and llama-quantize make it: no importance for the head."""
        from mimo_gguf.verbs import imatrix, quantize

        matrix = self.work / f"{method}.gguf"
        if not matrix.is_file():
            texts = self.usual if method == "usual" else self.texts
            imatrix(self.model, out=matrix, tokens=self.calibration_tokens, texts=texts, output=False)
        path: Path = self.work / f"{ftype}-{method}.gguf"
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


def names_of(texts: list[str]) -> list[str]:
    """Texts by their names, without the folders they lie in."""
    return [f"{kind}{equals}{Path(name).name}" for kind, equals, name in (text.rpartition("=") for text in texts)]


def quantiles_of(file: FileQuality) -> dict[str, float]:
    """The divergence that all but one token in a thousand keep below, for each kind of text."""
    divergences = {kind: summary.divergence for kind, summary in file.by_kind.items()}
    return {kind: round(d.kl_percentiles[_QUANTILE], 4) for kind, d in divergences.items() if d is not None}


def line_of(row: dict[str, Any]) -> str:
    """A row in words."""
    kl, error = row["kinds"]["all"]["kl"]
    return f"{row['type']} {row['method']}: {row['size_bytes']} bytes, divergence {kl:.4f} ± {error:.4f}"


def print_table(document: dict[str, Any]) -> None:
    """Prints the rows as a table in Markdown, each beside the importance matrix's row of its type."""
    rows = {(row["type"], row["method"]): row for row in document["rows"]}
    kinds = [kind for kind in document["texts"] if kind != "all"]
    print(f"| type | method | bytes | divergence | to imatrix | 99.9 % | same top | drafts | {' | '.join(kinds)} |")
    print("|---" * (8 + len(kinds)) + "|")
    for (ftype, method), row in sorted(rows.items(), key=lambda e: (FTYPES.index(e[0][0]), METHODS.index(e[0][1]))):
        found, base = row["kinds"], rows.get((ftype, "imatrix"))
        kl, error = found["all"]["kl"]
        change = f"{100 * (kl / base['kinds']['all']['kl'][0] - 1):+.0f} %" if base else ""
        drafts = f"{100 * found['all']['acceptance'][0]:.2f} %" if "acceptance" in found["all"] else ""
        each = " | ".join(f"{found[kind]['kl'][0]:.4f}" for kind in kinds)
        top = f"{100 * found['all']['same_top'][0]:.2f} %"
        most = f"{row['kl_quantiles']['all']:.2f}" if "kl_quantiles" in row else ""
        figures = (f"{row['size_bytes']:,}", f"{kl:.4f} ± {error:.4f}", change, most, top, drafts, each)
        print(f"| {ftype} | {method} | {' | '.join(figures)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="the checkpoint")
    parser.add_argument("--name", help="what the model is called in the results")
    parser.add_argument("--work", type=Path, help="folder for files, statistics and the base's states")
    parser.add_argument("--tokens", type=int, default=40960, help="tokens read for judging; half of them are judged")
    parser.add_argument("--calibration-tokens", type=int, default=32768)
    parser.add_argument("-f", "--text", nargs="*", default=[], help="text to calibrate with")
    parser.add_argument("--judged", nargs="*", default=[], help="text to judge by; none: what every machine has")
    parser.add_argument("--usual", nargs="*", default=[], help="text of the method `usual`")
    parser.add_argument("--types", nargs="*", default=list(FTYPES), choices=FTYPES)
    parser.add_argument("--methods", nargs="*", default=list(METHODS[1:]), choices=METHODS)
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
