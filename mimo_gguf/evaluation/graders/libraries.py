"""Graders that are libraries: math-verify, and lm-eval's checkers of instructions. They run in a process of their own.

    python -P -m mimo_gguf.evaluation.graders.libraries

reads questions, one JSON line each, and answers each with one. SymPy may need years or all memory for a short answer
(`9^{9^{9^9}}`), and its work in C hears no signal. So whoever asks kills the process when its time is up (`asking.py`).
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import types
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from mimo_gguf.evaluation.spans import find_spans

MEMORY_BYTES: Final = 3 << 30
_SHORT_S: Final = 5  # math-verify's own limit, for work that hears signals
_LONGEST: Final = 20_000  # characters at the end of an answer that are parsed


def grade_math(answer: str, expected: Any) -> dict[str, Any]:
    r"""Compares the `\boxed{}` of an answer, or else its last expression, with LaTeX text, by math-verify."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    both = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
    right = parse(f"\\boxed{{{expected}}}", extraction_config=both, parsing_timeout=_SHORT_S)
    found = parse(answer[-_LONGEST:], extraction_config=both, parsing_timeout=_SHORT_S)
    if not found:
        return {"score": 0.0, "found": None, "why": "it has no expression"}
    is_right = bool(verify(right, found, timeout_seconds=_SHORT_S))
    return {"score": float(is_right), "found": str(found[-1])[:200], "why": None if right else "no right answer"}


def grade_instructions(answer: str, expected: Any) -> dict[str, Any]:
    """Checks every instruction of a prompt of IFEval, strictly, by lm-eval's copy of Google's checkers."""
    checkers = instruction_checkers()
    broken = []
    for name, given in zip(expected["instruction_id_list"], expected["kwargs"], strict=True):
        checker = checkers[name](name)
        checker.build_description(**{key: value for key, value in given.items() if value})
        if "prompt" in (checker.get_instruction_args() or ()):
            checker.build_description(prompt=expected["prompt"])
        if not (answer.strip() and checker.check_following(answer)):
            broken.append(name)
    n = len(expected["kwargs"])
    return {"score": float(not broken), "found": f"{n - len(broken)} of {n}", "why": ", ".join(broken) or None}


def grade_spans(answer: str, expected: Any) -> dict[str, Any]:
    """The F1 of words of an answer's end and the right answer that comes nearest, as lm-eval computes it for DROP.

    An answer of several spans is one bag of words, because a model's text does not say where a span ends. A number in
    the right answer must be in the given one.
    """
    found = find_spans(answer)
    if found is None:
        return {"score": 0.0, "found": None, "why": "it is empty"}
    metrics = _module_of_tasks("drop.utils").get_metrics
    score = max((float(metrics(found, right)[1]) for right in expected), default=0.0)
    return {"score": score, "found": found[:200], "why": None if score == 1 else f"F1 {score:.2f}"}


def instruction_checkers() -> Mapping[str, Any]:
    """Google's names of instructions -> classes that check them."""
    found: Mapping[str, Any] = _module_of_tasks("ifeval.instructions_registry").INSTRUCTION_DICT
    import langdetect

    langdetect.DetectorFactory.seed = 0  # otherwise it guesses the language of a short text now so, now so
    return found


def _module_of_tasks(module: str) -> Any:
    """A module of `lm_eval.tasks`, whose own code is not run: it loads data sets and takes seconds."""
    name = "lm_eval.tasks"
    if name not in sys.modules:
        spec = find_spec("lm_eval")
        package = types.ModuleType(name)
        package.__path__ = [str(Path(spec.origin).parent / "tasks")] if spec is not None and spec.origin else []
        sys.modules[name] = package
        # Only rank 0 downloads nltk's model while it is imported; `missing` has asked the user for that.
        os.environ["LOCAL_RANK"] = "1"
    return importlib.import_module(f"{name}.{module}")


GRADERS: Final[dict[str, Callable[[str, Any], dict[str, Any]]]] = {
    "math": grade_math,
    "instructions": grade_instructions,
    "spans": grade_spans,
}


def missing(grader: str) -> tuple[str, str] | None:
    """What a grader lacks here, and the command that mends it; None if nothing is missing."""
    needed = {
        "math": ("math_verify", "sympy"), "instructions": ("lm_eval", "langdetect", "immutabledict", "nltk"),
        "spans": ("lm_eval", "scipy"),
    }  # fmt: skip
    absent = [name for name in needed.get(grader, ()) if find_spec(name) is None]
    if absent:
        return f"the grader needs {', '.join(absent)}", "pip install 'mimo-gguf[evaluate]'"
    if grader == "instructions" and not _has_sentences():
        return "the grader needs nltk's model of sentences, punkt_tab", "python -m nltk.downloader punkt_tab"
    return None


def _has_sentences() -> bool:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True


def main() -> None:
    """Answers the questions on stdin until it ends."""
    _limit_memory()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print belongs to nobody
    for line in sys.stdin:
        question = json.loads(line)
        try:
            grade = GRADERS[question["grader"]](question["answer"], question["expected"])
        except BaseException as error:  # math-verify's TimeoutException is one, too
            grade = {"score": 0.0, "found": None, "why": f"{type(error).__name__}: {error}"[:200]}
        print(json.dumps(grade), file=answers, flush=True)


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):  # no such limits on this system
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


if __name__ == "__main__":
    main()
