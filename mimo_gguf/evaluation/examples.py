"""Examples before a question: a few rows of training data with their answers, the same ones for every question."""

from __future__ import annotations

import heapq

from mimo_gguf.batch.rows import name_of
from mimo_gguf.core.errors import UsageError
from mimo_gguf.evaluation.filling import filled
from mimo_gguf.evaluation.rows_of_data import answers_in, field_of, find_examples, read_rows
from mimo_gguf.evaluation.task import Task


def examples_text(task: Task) -> str:
    """What `{examples}` stands for in a task's prompt; empty if it shows none.

    The examples are chosen by their places in the files, and so are the same ones whenever it is asked.

    Raises:
        UsageError, HubError, MimoGgufError: as `find_files` and `read_rows`; a row lacks a field, or there are too few.
    """
    shown = task.examples
    if shown is None:
        return ""
    rows = enumerate(read_rows(task.data, find_examples(task)))
    chosen = heapq.nsmallest(shown.n, rows, key=lambda entry: name_of(f"{task.name}/examples/{entry[0]}"))
    if len(chosen) < shown.n:
        raise UsageError(
            f"{task.name}: {len(chosen)} rows for {shown.n} examples",
            hint="the data have changed; give the revision that you mean in a task of your own",
        )
    names, texts = task.fields, []
    for place, row in (entry for _, entry in chosen):
        parts = {"question": str(field_of(row, names.question, place))}
        if names.context is not None:
            parts["context"] = str(field_of(row, names.context, place))
        if names.answer is not None:
            parts["answer"] = next(iter(answers_in(row, (names.answer,), place)), "")
        texts.append(filled(shown.form, parts))
    return "\n\n".join(texts)
