"""Tasks are data: what is shipped keeps MiMo's rules, and a mistake in a file of the user's is one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest

from mimo_gguf.core.errors import UsageError
from mimo_gguf.evaluation.making import make_stories, make_sums
from mimo_gguf.evaluation.task import read_task, task_names

GOOD = """
title = "mine"
grader = "number"
prompt = "{question}"
max_tokens = 10
[data]
file = "mine.jsonl"
[fields]
question = "q"
answer = "a"
"""


def test_the_rules_of_the_report() -> None:
    tasks = {name: read_task(name) for name in task_names()}
    assert {name: task.repeats for name, task in tasks.items() if task.repeats > 1} == {
        "aime24": 32, "aime25": 32, "gpqa-diamond": 8, "ifeval": 8, "livecodebench-v5": 8, "livecodebench-v6": 8,
    }  # fmt: skip
    for name, task in tasks.items():
        assert (task.temperature, task.top_p, task.system) == (0.6, 0.95, ""), name
        if task.published:
            # "mathematics reasoning, coding, and scientific question answering": arXiv 2505.07608, section 3.5.1
            is_long = task.grader in ("math", "programs") or "gpqa" in name
            assert task.max_tokens == (32768 if is_long else 8192), name
            assert task.source and "README.md" in task.source, name
    assert tasks["math500"].published_for("MiMo-7B-RL-Q4_K_M") == 95.8
    assert tasks["math500"].published_for("mimo-7b-rl-0530-q4_k_m") == 97.2
    assert tasks["math500"].published_for("MiMo-7B-RL-Zero-F16") == 93.6
    assert tasks["math500"].published_for("MiMo-7B-RLX") is None
    assert tasks["humaneval"].published_for("MiMo-7B-RL") is None


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"number"', '"taste"', "grader is 'taste', not one of"),
        ("max_tokens = 10", "max_tokens = 'ten'", "max_tokens is 'ten', not a whole number"),
        ("max_tokens = 10", "max_tokens = true", "max_tokens is True, not a whole number"),
        ("max_tokens = 10", "max_tokens = 0", "are 1 at least"),
        ("max_tokens = 10", "colour = 10", "colour"),
        ("max_tokens = 10", "", "max_tokens"),
        ('"{question}"', '"?"', "prompt has no {question}"),
        ('"{question}"', '"{examples} {question}"', "[examples] and {examples} in prompt need each other"),
        ("[data]", "[examples]\nfiles = ['a.csv']\nn = 1\nform = ''\n[data]", "in prompt need each other"),
        ("[data]", "[examples]\nfiles = ['a.csv']\nform = ''\n[data]", "n"),
        ("[data]", "[examples]\nfiles = 'a.csv'\nn = 1\nform = ''\n[data]", "files is 'a.csv', not a list of texts"),
        ('"number"', '"spans"\nlimit = 1', "limit"),
        ('file = "mine.jsonl"', "", "exactly one of repository, package, made, file"),
        ('file = "mine.jsonl"', 'file = "a.csv"\nmade = "sums"', "exactly one of"),
        ('answer = "a"', "", "needs answer in [fields]"),
        ('"number"', '"choice"', "needs choices in [fields]"),
        ("[data]", "[data", "not valid TOML"),
        ('[data]\nfile = "mine.jsonl"', "", "exactly one of"),
        ('question = "q"', 'question = "q"\nshade = 1', "shade"),
        ('[data]\nfile = "mine.jsonl"', "data = 3", "data is"),
        ('file = "mine.jsonl"', 'made = "jokes"', "made is 'jokes', not one of sums, stories"),
        ('file = "mine.jsonl"', "file = 3", "file is 3, not a text"),
        ('file = "mine.jsonl"', 'repository = "a/b"\nfiles = "c"', "files is 'c', not a list of texts"),
        ('file = "mine.jsonl"', 'file = "c"\nwithin = {d = [1, 2]}', "not two texts for each field"),
        ('question = "q"', "question = []", "question is (), not a text"),
        ("[data]", 'published = {"MiMo-7B-RL" = "high"}\n[data]', "published is"),
    ],
)
def test_a_mistake_is_one_clear_line(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    assert read_task(str(path)).title == "mine"
    text = GOOD.replace(old, new)
    assert text != GOOD
    path.write_text(text)
    with pytest.raises(UsageError, match=r"mine\.toml") as caught:
        read_task(str(path))
    assert words in caught.value.message and caught.value.hint and "\n" not in caught.value.message


def test_an_unknown_task_is_guessed() -> None:
    with pytest.raises(UsageError, match="no task 'maths500'") as caught:
        read_task("maths500")
    assert caught.value.hint == "did you mean math500?"
    with pytest.raises(UsageError, match="no such file"):
        read_task("gone.toml")


def test_made_problems_are_always_the_same() -> None:
    sums, stories = list(make_sums(500)), list(make_stories(200))
    assert len({row["id"] for row in sums}) == 500 and list(make_sums(20)) == sums[:20]
    assert all(sum(map(int, row["id"].split("+"))) == int(row["answer"]) for row in sums)
    assert sums[0] == {"id": "90+68", "question": "What is the sum of 90 and 68?", "answer": "158"}
    assert len({row["question"] for row in stories}) == 200
    assert stories[0] == {
        "id": "story 1", "answer": "0",
        "question": "Hugo has 18 boxes with 9 shells in each of them. Now all shells that Hugo has are packed into "
        "bags of 6, as many full bags as possible. How many shells are left over?",
    }  # fmt: skip
