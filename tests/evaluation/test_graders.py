"""Graders on answers that are right, wrong, badly written and hostile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.util import find_spec
from unittest import mock

import pytest

from mimo_gguf.core.errors import MimoGgufError
from mimo_gguf.evaluation.graders.asking import Judge
from mimo_gguf.evaluation.graders.grade import find_letter, grade_number
from mimo_gguf.evaluation.run import plan_evaluation

NEEDS_MATH = pytest.mark.skipif(find_spec("math_verify") is None, reason="mimo-gguf[evaluate] is not installed")
NEEDS_CHECKERS = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("lm_eval", "langdetect", "immutabledict", "nltk")),
    reason="mimo-gguf[evaluate] is not installed",
)


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    judge = Judge(limit_s=60)
    yield judge
    judge.close()


@pytest.mark.parametrize(
    ("answer", "expected", "is_right"),
    [
        ("17 + 25 = 42.", "42", True),
        ("It is 41, no: 42", "42", True),
        (r"So \boxed{42}. Check: 17 + 25.", "42", True),
        (r"\boxed{x = 1,042}", "1042", True),
        ("minus -7", "-7", True),
        ("007", "7", True),
        ("42.0", "42", True),
        ("42 is wrong, it is 43", "42", False),
        ("forty-two", "42", False),
        ("", "42", False),
        (r"42 \boxed{}", "42", False),
        ("420", "42", False),
        ("4.2", "42", False),
        ("-42", "42", False),
        ("x42", "42", False),
        ("9" * 100_000, "42", False),
    ],
)
def test_numbers(answer: str, expected: str, is_right: bool) -> None:
    assert bool(grade_number(answer, expected).score) is is_right


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("They ran 3, then 2.\nAnswer: 5", 1.0),
        ("**Answer:** 5.", 1.0),
        ("So the answer is 5", 1.0),
        (r"\boxed{5}", 1.0),
        ("5", 1.0),
        ("Answer: the Jets and Rams", 0.8),  # `the` does not count; of 3 words 2 are right, of 2 right ones both
        ("Answer: Jets, the Rams", 1.0),
        ("Answer: Rams", 0.67),
        ("Answer: 6 yards", 0.0),
        ("Answer: 5 yards", 0.67),
        ("Answer: 7\nAnswer: 5", 1.0),
        ("Answer: five", 0.0),
        ("Answer: ", 0.0),
        ("", 0.0),
        ("Answer: " + "5 " * 100_000, 1.0),
        ("Answer: " + "x5" * 100_000, 0.0),
    ],
)
@NEEDS_CHECKERS
def test_spans_are_graded_as_drop_does(judge: Judge, answer: str, score: float) -> None:
    assert judge.grade("spans", answer, ["5", "the Rams, Jets"]).score == score


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("... so\nAnswer: C", "C"),
        ("**Answer: C**", "C"),
        ("The answer is (C).", "C"),
        ("the answer is option C", "C"),
        ("ANSWER: C because it is heavier", "C"),
        ("Answer: A because it is heavier", "A"),
        ("Answer: D. No, answer: B", "B"),
        (r"$\boxed{C}$", "C"),
        (r"\boxed{\text{C}}", "C"),
        (r"\boxed{C. Neon} although the answer is A elsewhere", "C"),
        (r"Answer: $\text{C}$", "C"),
        ("I think so.\n(C)", "C"),
        ("I think so.\nC.\n", "C"),
        ("**C**", "C"),
        ("Answer: J", None),  # there are four choices
        ("Answer: I think it is heavy", None),
        ("The answer is a bit long", None),
        ("Answer: I'd say so", None),
        ("A and C are both good", None),
        ("", None),
        ("Answer: " * 10_000, None),
        ("\\boxed{" * 10_000, None),
    ],
)
def test_choices(answer: str, letter: str | None) -> None:
    began = time.process_time()
    assert find_letter(answer, 4) == letter
    assert time.process_time() - began < 0.5


@NEEDS_MATH
@pytest.mark.parametrize(
    ("answer", "expected", "is_right"),
    [
        (r"Thus \boxed{\frac{1}{2}}.", r"\frac12", True),
        (r"Thus \boxed{0.5}.", r"\frac12", True),
        (r"\boxed{\left(3, \frac{\pi}{2}\right)}", r"\left( 3, \frac{\pi}{2} \right)", True),
        (r"\boxed{2\sqrt{3}}", r"\sqrt{12}", True),
        (r"\boxed{(x+1)^2}", "x^2+2x+1", True),
        (r"\boxed{\text{Evelyn}}", r"\text{Evelyn}", True),
        (r"\boxed{\text{Evan}}", r"\text{Evelyn}", False),
        (r"The answer is \boxed{33}", "033", True),
        (r"So $x = \boxed{1}$ or $x = \boxed{2}$.", "1, 2", True),
        (r"\boxed{11\sqrt2}", r"11\sqrt{2}", True),
        (r"\boxed{70^\circ}", r"70^\circ", True),
        (r"\boxed{\frac{1}{3}}", r"\frac12", False),
        (r"\boxed{}", "6", False),
        ("I do not know", "6", False),
        ("", "6", False),
        (r"\boxed{\boxed{\boxed{", "6", False),
        ("\\frac{" * 3000, "6", False),
        ("((((" * 5000, "6", False),
        (r"\boxed{__import__('os').system('exit')}", "6", False),
    ],
)
def test_maths(judge: Judge, answer: str, expected: str, is_right: bool) -> None:
    grade = judge.grade("math", answer, expected)
    assert bool(grade.score) is is_right, grade


@NEEDS_MATH
def test_a_bomb_ends_at_the_time_limit() -> None:
    """SymPy's work in C hears no signal, so the process must be killed. The judge is there for the next answer."""
    judge = Judge(limit_s=0.7)
    try:
        assert judge.grade("math", r"\boxed{6}", "6").score == 1
        began = time.monotonic()
        grade = judge.grade("math", r"The answer is $\boxed{9^{9^{9^9}}}$", "6")
        assert time.monotonic() - began < 5 and (grade.score, grade.why) == (0, "not graded within 0.7 s")
        assert judge._process is None
        assert judge.grade("taste", "x", "y").why == "KeyError: 'taste'"
    finally:
        judge.close()


@NEEDS_CHECKERS
@pytest.mark.parametrize(
    ("answer", "names", "given", "is_right"),
    [
        ("these are all small letters, and they are english", ["change_case:english_lowercase"], [{}], True),
        ("These are not all Small letters", ["change_case:english_lowercase"], [{}], False),
        ("no mark", ["punctuation:no_comma", "keywords:existence"], [{}, {"keywords": ["mark"]}], True),
        ("no, mark", ["punctuation:no_comma", "keywords:existence"], [{}, {"keywords": ["mark"]}], False),
        ("a b c", ["length_constraints:number_words"], [{"relation": "at least", "num_words": 3}], True),
        ("a b", ["length_constraints:number_words"], [{"relation": "at least", "num_words": 3}], False),
        ('{"a": 1}', ["detectable_format:json_format"], [{}], True),
        ("[" * 100_000, ["detectable_format:json_format"], [{}], False),
        ("", ["punctuation:no_comma"], [{}], False),
        ("x", ["no:such"], [{}], False),
    ],
)
def test_instructions(
    judge: Judge, answer: str, names: list[str], given: list[dict[str, object]], is_right: bool
) -> None:
    expected = {"instruction_id_list": names, "kwargs": given, "prompt": "?"}
    grade = judge.grade("instructions", answer, expected)
    assert bool(grade.score) is is_right, grade


def test_a_judge_that_dies_says_so() -> None:
    judge = Judge(limit_s=5)
    try:
        assert judge.grade("taste", "x", "y").why == "KeyError: 'taste'"
        assert judge._process is not None
        judge._process.kill()
        assert judge.grade("taste", "x", "y").why == "the grader died of it"
    finally:
        judge.close()


def test_what_is_missing_is_said_before_anything_is_asked() -> None:
    place = "mimo_gguf.evaluation.graders.libraries"
    with mock.patch(f"{place}.find_spec", return_value=None):
        with pytest.raises(MimoGgufError, match="math500: the grader needs math_verify, sympy") as caught:
            plan_evaluation("math500")
        assert caught.value.hint == "pip install 'mimo-gguf[evaluate]'"
    with (
        mock.patch(f"{place}.find_spec", return_value=True),
        mock.patch(f"{place}._has_sentences", return_value=False),
        pytest.raises(MimoGgufError, match="ifeval: the grader needs nltk's model of sentences") as caught,
    ):
        plan_evaluation("ifeval")
    assert caught.value.hint == "python -m nltk.downloader punkt_tab"
    with (
        mock.patch("mimo_gguf.evaluation.graders.running.sys.platform", "darwin"),
        pytest.raises(MimoGgufError, match="humaneval: a model's code is run on Linux only"),
    ):
        plan_evaluation("humaneval", allow_code=True)
