"""Forms of an answer as grammar, held to Python's own `re` through llama.cpp's grammar."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mimo_gguf.chat.regex import grammar_of_regex
from mimo_gguf.chat.structured import grammar_after_reasoning, grammar_of_choice
from mimo_gguf.core.errors import UsageError
from mimo_gguf.engine.sampling import Sampler, SamplingOptions
from mimo_gguf.llama.api import ModelOptions, load_model
from mimo_gguf.llama.vocabulary import Vocabulary

Reads = Callable[[str, str], bool]


@pytest.fixture(scope="module")
def reads(tiny_path: Path) -> Iterator[Reads]:
    """Whether a grammar takes a text, whole."""
    with load_model(tiny_path, ModelOptions(vocab_only=True)) as model:
        vocabulary = Vocabulary(model)
        end = min(vocabulary.end_tokens)

        def takes(grammar: str, text: str) -> bool:
            with Sampler(model, SamplingOptions(grammar=grammar)) as sampler:
                return sampler.allows([*vocabulary.tokenize(text), end])

        yield takes


PATTERNS = {
    r"^\d{3}-\d{4}$": ["555-1234", "555-123", "5555-1234", ""],
    r"(?:ab|c)+d?": ["abc", "abcd", "cabd", "d", "abd", "aabd"],
    r"[^a-c\d]x*?": ["dx", "a", "1", "-", "dxxx", "dx1"],
    r"[-a]\.[\]\\^]{1,2}": ["-.]", "a.\\^", "b.]", "ax]", "a.", "a.]]]"],
    r"\w+@\w+\.(com|org)": ["ab@c.com", "a@b.org", "a@b.net", "@b.com"],
    r"a{2,}b{1}": ["aab", "aaaab", "ab", "aabb"],
    r'"q"\s\S|': ['"q" x', "", '"q"x', '"q"  '],
    r"é.\t?": ["éx", "é\n", "é\t", "éx\t", "e."],
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_expressions_match_what_python_matches(reads: Reads, pattern: str) -> None:
    grammar = grammar_of_regex(pattern)
    rng = random.Random(pattern)
    alphabet = 'abcdx1-5.@\\]^é \t"q'
    texts = PATTERNS[pattern] + ["".join(rng.choices(alphabet, k=rng.randrange(6))) for _ in range(60)]
    for text in texts:
        assert reads(grammar, text) is bool(re.fullmatch(pattern, text, re.ASCII)), text


@pytest.mark.parametrize(
    "pattern",
    ["(?=a)b", "(?P<n>a)", r"\bword", r"(a)\1", "a{2000}", "a{,3}", "[a", "(a", "a)", "*a", "a**", "a\\", "a^b", "a$b",
     r"[\D]", r"\p{L}", "(" * 100 + ")" * 100, 5, b"a"],
)  # fmt: skip
def test_what_a_grammar_cannot_say_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError):
        grammar_of_regex(pattern)


def test_a_choice_is_exactly_one(reads: Reads) -> None:
    texts = ["yes", 'no "x" \\', "line\nend", "été", "\U0001f600"]
    grammar = grammar_of_choice(texts)
    assert all(reads(grammar, text) for text in texts)
    assert not any(reads(grammar, text) for text in ("", "ye", "yesno", "no", "yes "))


@pytest.mark.parametrize("inside", [False, True])
def test_reasoning_is_free_and_the_answer_is_not(reads: Reads, inside: bool) -> None:
    grammar = grammar_after_reasoning('root ::= word "7" # root\nword ::= "root" | [root]', inside=inside)
    begin = "" if inside else "<think>"
    for thought in ("", "a < b", "</think", "<<</</th</thin>", "</think\n", 'root7 {"a": 1}', "é\n\n"):
        for between in ("", "\n", "\n\n"):
            assert reads(grammar, f"{begin}{thought}</think>{between}root7"), thought
        assert not reads(grammar, f"{begin}{thought}</think>root8")
        assert not reads(grammar, f"{begin}{thought}</think>")
    assert not reads(grammar, f"{begin}</think>root7</think>root7")
    assert reads(grammar, "root7") is not inside
    assert reads(grammar, "\n<think>x</think>r7") or inside
