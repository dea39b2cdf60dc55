"""Rows as the data sets on the Hub have them: their fields and types, with contents of our own.

The fields are those of the published data sets at the pinned commits, as their pages show them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


def math500(n: int) -> Rows:
    return [
        {"problem": f"What is ${k} + 1$?", "solution": f"$\\boxed{{{k + 1}}}$", "answer": str(k + 1),
         "subject": "Algebra", "level": 1, "unique_id": f"test/algebra/{k}.json"}
        for k in range(n)
    ]  # fmt: skip


def aime24(n: int) -> Rows:
    return [
        {"id": 60 + k, "problem": f"Find {k}.", "solution": "...", "answer": f"{k:03}", "url": "https://...",
         "year": "2024"}
        for k in range(n)
    ]  # fmt: skip


def aime25(n: int) -> Rows:
    return [{"problem": f"Find {k}.", "answer": str(k), "id": str(k)} for k in range(n)]


def gpqa(n: int) -> Rows:
    return [
        {"Record ID": f"rec{k}", "Question": f"Which, of {k}?\nSay.", "Correct Answer": f"right {k}\n",
         "Incorrect Answer 1": f"wrong {k} a", "Incorrect Answer 2": f"wrong {k}, b",
         "Incorrect Answer 3": f'wrong "{k}" c', "High-level domain": "Physics"}
        for k in range(n)
    ]  # fmt: skip


def supergpqa(n: int) -> Rows:
    return [
        {"uuid": f"u{k}", "question": f"Which, of {k}?", "options": [f"{k}{c}" for c in "abcdefghij"],
         "answer": f"{k}c", "answer_letter": "C", "discipline": "Science", "field": "Physics", "subfield": "Optics",
         "difficulty": "easy", "is_calculation": False}
        for k in range(n)
    ]  # fmt: skip


def mmlu_pro(n: int) -> Rows:
    return [
        {"question_id": k, "question": f"Which, of {k}?", "options": ["a", "b", "c"], "answer": "B", "answer_index": 1,
         "cot_content": "", "category": "physics", "src": "ori"}
        for k in range(n)
    ]  # fmt: skip


def ifeval(n: int) -> Rows:
    return [
        {"key": 1000 + k, "prompt": f"Write about {k} without commas.",
         "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"num_words": None}]}
        for k in range(n)
    ]  # fmt: skip


def drop(n: int) -> Rows:
    """All of one id: the published rows have two of one. The answer to question k is k, or two spans."""

    def record(number: str, *spans: str) -> dict[str, Any]:
        return {
            "number": number,
            "date": {"day": "", "month": "", "year": ""},
            "spans": list(spans),
            "worker_id": "",
            "hit_id": "",
        }

    def several(*records: dict[str, Any]) -> dict[str, Any]:
        return {name: [each[name] for each in records] for name in records[0]}

    return [
        {"section_id": "nfl_1", "query_id": "q", "passage": f"They scored {k} {{question}} points.",
         "question": f"How many, of {k}?", "answer": record(str(k)),
         "validated_answers": several(record("", f"{k} points", "or so"), record(str(k)))}
        for k in range(n)
    ]  # fmt: skip


def livecodebench(n: int) -> Rows:
    """Half of the problems are within the window of each published figure."""
    return [
        {"question_title": "Twice", "question_content": f"Print twice the number. ({k})", "platform": "atcoder",
         "question_id": f"abc{k}", "contest_id": "abc", "difficulty": "easy", "metadata": "{}",
         "contest_date": "2025-03-01T00:00:00" if k % 2 else "2024-09-01T00:00:00", "starter_code": "",
         "public_test_cases": json.dumps([{"input": "2\n", "output": "4\n", "testtype": "stdin"}]),
         "private_test_cases": json.dumps([{"input": "7\n", "output": "14\n", "testtype": "stdin"}])}
        for k in range(n)
    ]  # fmt: skip


ROWS: dict[str, Callable[[int], Rows]] = {
    "math500": math500, "aime24": aime24, "aime25": aime25, "gpqa-diamond": gpqa, "supergpqa": supergpqa,
    "drop": drop, "mmlu-pro": mmlu_pro, "ifeval": ifeval, "livecodebench-v5": livecodebench,
    "livecodebench-v6": livecodebench,
}  # fmt: skip


def write_rows(rows: Rows, path: Path) -> None:
    """Writes rows in the format that the file's name says. Parquet needs pyarrow."""
    import csv

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
