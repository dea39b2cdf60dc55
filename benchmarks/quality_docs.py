"""Makes the tables of docs/quality.md from the document that `benchmarks.quality_tables` measured."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

DOCS: Final = Path(__file__).parents[1] / "docs" / "quality.md"
BEGIN: Final = "<!-- made by python -m benchmarks.quality_tables --write-docs -->"
END: Final = "<!-- end of the tables -->"
ALL: Final = "all"
MIB: Final = 1 << 20

# Of Llama 3 8B by llama.cpp's authors: type -> mean divergence without an importance matrix and with one of 10 million
# tokens, and the same top token in percent without one. Another model, another text, CUDA's arithmetic.
PUBLISHED_PAGE: Final = "https://github.com/ggml-org/llama.cpp/blob/0c1e57098/tools/perplexity/README.md"
PUBLISHED: Final = {
    "Q8_0": ("0.0014", "", "97.7 %"),
    "Q6_K": ("0.0055", "", "96.0 %"),
    "Q5_K_M": ("0.0108", "", ""),
    "Q4_K_M": ("0.0313", "0.0282", "91.9 %"),
    "Q4_K_S": ("0.0431", "0.0320", ""),
    "IQ4_XS": ("", "0.0363", ""),
    "Q3_K_M": ("0.1019", "0.0844", ""),
    "Q2_K": ("0.4451", "0.3322", "71.1 %"),
}

Rows = Sequence[dict[str, Any]]
Cell = Callable[[dict[str, Any]], str]


def write_docs(results: Path, page: Path = DOCS) -> None:
    """Puts the tables in place of those in the page, between its two marks."""
    text = page.read_text(encoding="utf-8")
    page.write_text(with_tables(text, json.loads(results.read_text(encoding="utf-8"))), encoding="utf-8")


def with_tables(text: str, document: dict[str, Any]) -> str:
    """The page with the tables of a document between its marks.

    Raises:
        ValueError: the page has no marks.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("the page has no place for the tables")
    return f"{before}{begin}\n\n{tables(document)}\n{end}{after}"


def tables(document: dict[str, Any]) -> str:
    """All tables, each with a line that says what it is of."""
    parts = [_of_what(document)]
    types = sorted((row for row in document["rows"] if row["table"] == "types"), key=_place)
    for arithmetic, title in (("float32", "The weights alone (float32)"), ("backend", "What llama.cpp computes here")):
        chosen = [row for row in types if row["arithmetic"] == arithmetic]
        if chosen:
            backend = document["backends"][arithmetic]
            parts.append(f"**{title}**, {backend}, all texts together:\n\n{_types_table(chosen)}")
    if by_kind := _kinds_table([row for row in types if row["arithmetic"] == "float32"] or types):
        parts.append(by_kind)
    parts += _mtp_tables([row for row in document["rows"] if row["table"] == "mtp"])
    parts.append(_published_table(types))
    return "\n\n".join(parts) + "\n"


def _place(row: dict[str, Any]) -> tuple[float, bool]:
    """Larger files first, and of one type the one without an importance matrix."""
    return -row["bits_per_weight"], row["imatrix"]


def _of_what(document: dict[str, Any]) -> str:
    settings, texts = document["settings"], document["texts"]["kinds"]
    judged = sum(info["n_judged"] for info in texts.values())
    kinds = ", ".join(texts)
    return _wrapped(
        f"Of {settings['model']}: {settings['tokens']} tokens of {kinds}, {judged} judged, each file beside the "
        f"checkpoint's weights in float32. ± is the standard error. Importance matrices are of "
        f"{settings['imatrix_tokens']} tokens for calibration. mimo-gguf {settings['version']}, llama.cpp "
        f"{settings['llama_cpp']}, {settings['machine']['cpu']}."
    )


def _types_table(rows: Rows) -> str:
    columns: list[tuple[str, Cell]] = [
        ("type", _name),
        ("MiB", lambda row: f"{row['size_bytes'] / MIB:.1f}"),
        ("bits", lambda row: f"{row['bits_per_weight']:.2f}"),
        ("perplexity", lambda row: _number(row, ALL, "perplexity", 2)),
        ("divergence", lambda row: _number(row, ALL, "kl", 5)),
        ("same top", lambda row: _percent(row, ALL, "same_top")),
        ("acceptance", lambda row: _percent(row, ALL, "acceptance")),
    ]
    return _table(rows, columns)


def _kinds_table(rows: Rows) -> str:
    kinds = [kind for kind in (rows[0]["kinds"] if rows else ()) if kind != ALL]
    if not kinds:
        return ""
    parts = []
    titles = (("kl", "Divergence by kind of text"), ("acceptance", "Acceptance by kind of text"))
    for name, title in titles:
        columns: list[tuple[str, Cell]] = [("type", _name)]
        for kind in kinds:
            columns.append((kind, _cell_of(kind, name)))
        parts.append(f"**{title}**, {rows[0]['arithmetic']}:\n\n{_table(rows, columns)}")
    return "\n\n".join(parts)


def _cell_of(kind: str, name: str) -> Cell:
    if name == "kl":
        return lambda row: _number(row, kind, name, 4)
    return lambda row: _percent(row, kind, name)


def _mtp_tables(rows: Rows) -> Iterable[str]:
    """For each trunk how the MTP block's type changes how many of its drafts the trunk accepts."""
    for trunk in sorted({row["ftype"] for row in rows}):  # F16 before Q4_K_M
        chosen = [row for row in rows if row["ftype"] == trunk]
        kinds = [kind for kind in chosen[0]["kinds"] if kind != ALL]
        columns: list[tuple[str, Cell]] = [
            ("MTP block", lambda row: str(row["mtp_type"])),
            ("its MiB", lambda row: f"{row['mtp_bytes'] / MIB:.2f}"),
            ("acceptance", lambda row: _percent(row, ALL, "acceptance")),
            ("less than F16", lambda row: _percent(row, ALL, "change", sign=-1)),
            *((kind, _cell_of(kind, "acceptance")) for kind in kinds),
        ]
        made = "with an importance matrix, " if chosen[0]["imatrix"] else ""
        yield f"**The MTP block's type**, trunk {trunk}, {made}{chosen[0]['arithmetic']}:\n\n{_table(chosen, columns)}"


def _published_table(rows: Rows) -> str:
    """Figures that llama.cpp's authors published, of another model."""
    lines = ["| type | divergence | with imatrix | same top |", "|---|---:|---:|---:|"]
    lines += [f"| {name} | {kl} | {with_imatrix} | {same} |" for name, (kl, with_imatrix, same) in PUBLISHED.items()]
    head = _wrapped(
        f"**Not measured here:** what llama.cpp's authors [published]({PUBLISHED_PAGE}) of Llama 3 8B, on another "
        f"text, on a GPU. Larger models lose less."
    )
    return head + "\n\n" + "\n".join(lines)


# ---- cells


def _name(row: dict[str, Any]) -> str:
    return f"{row['ftype']}{' with imatrix' if row['imatrix'] else ''}"


def _number(row: dict[str, Any], kind: str, name: str, places: int) -> str:
    value, error = row["kinds"][kind][name]
    return f"{round(value, places) + 0.0:.{places}f} ± {error:.{places}f}"  # no -0.00000


def _percent(row: dict[str, Any], kind: str, name: str, *, sign: int = 1) -> str:
    if name not in row["kinds"][kind]:
        return ""
    value, error = row["kinds"][kind][name]
    return f"{round(100 * sign * value, 1) + 0.0:.1f} ± {100 * error:.1f} %"


def _table(rows: Rows, columns: Sequence[tuple[str, Cell]]) -> str:
    lines = [f"| {' | '.join(name for name, _ in columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]
    lines += [f"| {' | '.join(cell(row) for _, cell in columns)} |" for row in rows]
    return "\n".join(lines)


def _wrapped(text: str, width: int = 120) -> str:
    """Breaks a paragraph into lines, never within a link."""
    words, lines = re.findall(r"\[[^\]]*\]\([^)]*\)\S*|\S+", text), [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    return "\n".join(lines)
