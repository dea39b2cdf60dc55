"""Measures what every file type costs, and what the MTP block's type costs, for the tables of docs/quality.md.

    python -m benchmarks.quality_tables --model CHECKPOINT [--tokens 10240] -o benchmarks/results/quality.json
    python -m benchmarks.quality_tables --write-docs -o benchmarks/results/quality.json

Each type is made from the checkpoint, without and with an importance matrix, and judged beside the checkpoint's own
weights in float32: once with the file's weights alone (float32), once as llama.cpp computes here (backend). A row is
written as soon as it is measured, and a row that is there is not measured again, so a stopped run goes on. All rows are
of the same code: the document has a digest of it, and the run stops if a source file changes in the meantime.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.measured import machine, sources_digest
from benchmarks.quality_docs import write_docs
from mimo_gguf.core.output_file import atomic_output
from mimo_gguf.core.version import LLAMA_CPP_COMMIT, __version__

if TYPE_CHECKING:
    from benchmarks.mtp_types import Hits, Trunk
    from mimo_gguf.quality.divergence import Figure
    from mimo_gguf.quality.report import FileQuality, QualityReport

RESULTS: Final = Path("benchmarks/results/quality.json")
FTYPES: Final = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "IQ4_XS", "Q3_K_M", "Q2_K")
WITHOUT_SEARCH: Final = ("F16", "Q8_0")  # an importance matrix changes nothing in them
ARITHMETICS: Final = ("float32", "backend")
MTP_TYPES: Final = ("F16", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "IQ4_XS", "Q3_K", "Q2_K")  # the first is the best
TRUNKS: Final = ("F16", "Q4_K_M")


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement: a file, and how it is judged.

    Attributes:
        table: "types", or "mtp" for the rows that differ in the MTP block alone.
        mtp_type: type of the MTP block; None means as the profile says.
    """

    table: str
    ftype: str
    imatrix: bool
    mtp_type: str | None
    arithmetic: str

    @property
    def file(self) -> str:
        """The name of the file that the row is about; several rows may share it."""
        parts = [self.ftype, *(["imatrix"] if self.imatrix else []), *([f"mtp-{self.mtp_type}"] * bool(self.mtp_type))]
        return f"{'-'.join(parts)}.gguf"


def rows(arithmetics: Sequence[str]) -> Iterator[Row]:
    """All rows, in the order in which they are measured: what is asked for most comes first."""
    with_search = [ftype for ftype in FTYPES if ftype not in WITHOUT_SEARCH]
    first, *others = arithmetics
    yield from (Row("types", ftype, False, None, first) for ftype in FTYPES)
    yield from (Row("types", ftype, True, None, first) for ftype in with_search)
    yield from (Row("mtp", trunk, False, mtp_type, first) for trunk in TRUNKS for mtp_type in MTP_TYPES)
    for arithmetic in others:
        yield from (Row("types", ftype, False, None, arithmetic) for ftype in FTYPES)
        yield from (Row("types", ftype, True, None, arithmetic) for ftype in with_search)


class Results:
    """The document with all rows that were measured; it is written whenever one is added."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Reads what an earlier run left.

        Raises:
            SystemExit: it was measured with other settings.
        """
        self.path = path
        self.document: dict[str, Any] = {"settings": settings, "rows": []}
        if path.is_file():
            self.document = json.loads(path.read_text())
            if self.document["settings"] != settings:
                sys.exit(f"{path}: was measured with other settings, {self.document['settings']}: give another -o")

    def has(self, row: Row) -> bool:
        """Whether the row was measured."""
        return any(all(each[key] == value for key, value in asdict(row).items()) for each in self.document["rows"])

    def add(self, row: Row, found: dict[str, Any]) -> None:
        """Adds a measured row.

        Raises:
            SystemExit: a source file has changed since the measurement began, so the row may be of other code.
        """
        if self.document["settings"]["sources"] != sources_digest():
            sys.exit("a source file has changed during the run: measure with a copy of the sources that nobody edits")
        self.document["rows"].append(asdict(row) | found)
        self.save()

    def save(self) -> None:
        """Writes the document, a row per line."""
        head = {key: value for key, value in self.document.items() if key != "rows"}
        lines = ",\n".join(f"  {json.dumps(row)}" for row in self.document["rows"])
        text = f'{json.dumps(head, indent=1)[:-2]},\n "rows": [\n{lines}\n ]\n}}\n'
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_output(self.path) as file:
            file.write(text.encode())


@dataclass(frozen=True, slots=True)
class Bench:
    """The measuring of rows.

    Attributes:
        model: the checkpoint.
        work: folder for the files, the importance matrix, and the base's states. Others' files in it count as ours.
        threads: of everything that is measured; None means one per core.
    """

    model: Path
    work: Path
    tokens: int
    imatrix_tokens: int
    results: Results
    threads: int | None = None
    trunks: dict[str, tuple[Trunk, Hits]] = field(default_factory=dict)

    def run(self, wanted: Sequence[Row]) -> None:
        """Measures the rows that are missing; a file is removed when its last row is there."""
        left = [row for row in wanted if not self.results.has(row)]
        for number, row in enumerate(left):
            started = time.perf_counter()
            found = self._measured(row)
            self.results.add(row, found | {"seconds": round(time.perf_counter() - started, 1)})
            print(f"{number + 1}/{len(left)} {row}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
            if not any(other.file == row.file for other in left[number + 1 :]):
                for made in self.work.glob(f"{row.file}*"):
                    made.unlink()

    def _measured(self, row: Row) -> dict[str, Any]:
        path = self._make(row)
        if row.table == "mtp":
            return sizes_of(path) | {"kinds": self._drafts(row, path)}
        report = self._judge(path, row)
        self._note(report)
        return figures_of(report.files[0], path)

    def _drafts(self, row: Row, path: Path) -> dict[str, Any]:
        """How many drafts of a file's MTP block its trunk accepts; the trunk is run once for all of its rows."""
        from benchmarks.mtp_types import Trunk, acceptance_figures, as_pairs
        from mimo_gguf.quality.plan import QualityOptions, plan_quality

        if row.ftype not in self.trunks:
            best = self._make(replace(row, mtp_type=MTP_TYPES[0]))
            options = QualityOptions(n_tokens=self.tokens, arithmetic="float32", n_threads=self.threads or 0)
            plan = plan_quality([best], None, [], options)
            self._check_texts(plan.texts.windows_digest)
            trunk = Trunk(plan, self.work / f"trunk-{row.ftype}")
            self.trunks[row.ftype] = trunk, trunk.hits(best)
        trunk, best_hits = self.trunks[row.ftype]
        return as_pairs(acceptance_figures(trunk.hits(path), best_hits))

    def _make(self, row: Row) -> Path:
        from mimo_gguf.verbs import quantize

        path = self.work / row.file
        if not path.is_file():
            imatrix = self._imatrix() if row.imatrix else None
            quantize(
                self.model, types=[row.ftype], out=path, mtp_type=row.mtp_type, imatrix=imatrix, threads=self.threads
            )
        return path

    def _imatrix(self) -> Path:
        """The importance matrix of the checkpoint, of text for calibration."""
        from mimo_gguf.verbs import imatrix

        path = self.work / f"imatrix-{self.imatrix_tokens}.gguf"
        if not path.is_file():
            imatrix(self.model, out=path, tokens=self.imatrix_tokens)
        return path

    def _judge(self, path: Path, row: Row) -> QualityReport:
        from mimo_gguf.verbs import measure_quality

        return measure_quality(
            path, base=self.model, tokens=self.tokens, arithmetic=row.arithmetic, work=self.work / "quality",
            threads=self.threads,
        )  # fmt: skip

    def _note(self, report: QualityReport) -> None:
        """Writes down once what the rows have in common.

        Raises:
            SystemExit: the rows that are there were measured with other texts.
        """
        kinds = {kind: asdict(info) for kind, info in report.texts.kinds.items()}
        self.results.document.setdefault("texts", {"windows_digest": report.texts.windows_digest, "kinds": kinds})
        self._check_texts(report.texts.windows_digest)
        self.results.document.setdefault("backends", {})[report.arithmetic] = report.backend

    def _check_texts(self, windows_digest: str) -> None:
        if self.results.document.get("texts", {}).get("windows_digest", windows_digest) != windows_digest:
            sys.exit(f"{self.results.path}: was measured with other texts than there are now: give another -o")


def figures_of(file: FileQuality, path: Path) -> dict[str, Any]:
    """The figures of a file as they are kept: [value, standard error] for each kind of text."""
    from benchmarks.mtp_types import as_pairs

    kinds: dict[str, dict[str, Figure]] = {}
    for kind, summary in file.by_kind.items():
        kinds[kind] = figures = {"perplexity": summary.perplexity}
        if summary.divergence is not None:
            figures.update({name: getattr(summary.divergence, name) for name in ("ln_ratio", "kl", "same_top")})
        if file.acceptance:
            (of_kind,) = file.acceptance.values()  # hidden states before the final norm alone
            figures["acceptance"] = of_kind[kind]
    return sizes_of(path) | {"kinds": as_pairs(kinds)}


def sizes_of(path: Path) -> dict[str, Any]:
    """The sizes of a file and of its MTP block."""
    from mimo_gguf.verbs import inspect

    found = inspect(path)
    mtp_bytes = found.mtp.n_bytes if found.mtp is not None else 0
    return {
        "size_bytes": found.file_bytes, "bits_per_weight": round(found.bits_per_weight, 3), "mtp_bytes": mtp_bytes
    }  # fmt: skip


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What decides the figures, so that rows of two runs belong together."""
    return {
        "model": arguments.name or arguments.model.resolve().name,
        "tokens": arguments.tokens,
        "imatrix_tokens": arguments.imatrix_tokens,
        "version": __version__,
        "llama_cpp": LLAMA_CPP_COMMIT,
        "machine": machine(),
        "sources": sources_digest(),
    }


def read_arguments(words: Sequence[str]) -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a checkpoint; without it nothing is measured")
    parser.add_argument("--name", help="what the document calls the model, if not its folder's name")
    parser.add_argument("--tokens", type=int, default=10240, help="tokens that each file reads")
    parser.add_argument("--imatrix-tokens", type=int, default=50_000)
    parser.add_argument("--arithmetic", choices=[*ARITHMETICS, "both"], default="both")
    parser.add_argument("--table", choices=["types", "mtp", "both"], default="both")
    parser.add_argument("--threads", type=int, help="default: one per core")
    parser.add_argument("--work", type=Path, default=Path("build/quality-tables"))
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    parser.add_argument("--write-docs", action="store_true", help="write the tables into docs/quality.md")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> None:
    """Measures, writes the documents, or both."""
    arguments = read_arguments(words)
    if arguments.model is not None:
        settings = settings_of(arguments)
        results = Results(arguments.output, settings)
        work = arguments.work / settings["sources"][:16]  # what other code has left there is not taken for ours
        work.mkdir(parents=True, exist_ok=True)
        arithmetics = ARITHMETICS if arguments.arithmetic == "both" else (arguments.arithmetic,)
        wanted = [row for row in rows(arithmetics) if arguments.table in (row.table, "both")]
        bench = Bench(arguments.model, work, arguments.tokens, arguments.imatrix_tokens, results, arguments.threads)
        bench.run(wanted)
    if arguments.write_docs:
        write_docs(arguments.output)


if __name__ == "__main__":
    main(sys.argv[1:])
