"""Grammars that llama.cpp would not survive, or be busy with for minutes, never reach it; what it can do is taken."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from mimo_gguf.core.errors import UsageError
from mimo_gguf.engine.gbnf import NESTED_MOST, parse, render
from mimo_gguf.engine.grammar_limits import REPETITIONS_MOST, check_grammar

_LETTERS = [f'"x{i}"' for i in range(100_000)]
TOO_MUCH = {
    "parentheses": "root ::= " + "(" * 100_000 + '"a"' + ")" * 100_000,
    "repetitions": 'root ::= "a"{1000000000}',
    "an upper bound that llama.cpp forgets": 'root ::= "a"{0,100000}',
    "repetitions of what may be nothing": 'root ::= (("a"?){40}){40}',
    "alternatives": f"root ::= {' | '.join(_LETTERS)}",
    "alternatives behind names": "root ::= a | a\na ::= b | b\nb ::= " + " | ".join(_LETTERS[:300]),
    "a chain of rules": "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(200_000)) + 'r200000 ::= "a"\n',
    "a chain of empty rules": "root ::= r0\n"
    + "".join(f'r{i} ::= "" r{i + 1}\n' for i in range(9000))
    + 'r9000 ::= ""',
    "a long text": 'root ::= "' + "a" * 10_000_000 + '"',
    "a long text many times": 'root ::= "' + "a" * 100_000 + '"{1900}',
}
TAKEN = {
    "parentheses": "root ::= " + "(" * NESTED_MOST + '"a"' + ")" * NESTED_MOST,
    "repetitions": f'root ::= "a"{{{REPETITIONS_MOST}}} "b"{{0,{REPETITIONS_MOST}}}',
    "repetitions of what may be nothing": 'root ::= (("a"?){10}){40}',
    "alternatives": f"root ::= {' | '.join(_LETTERS[:1000])}",
    "a chain of rules": "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(1900)) + 'r1900 ::= "a"\n',
    "everything": 'root ::= ("a"? [^"\\\\\\x7F\\x00-\\x1F]{3,4} | b)* # c\n\n  b ::= "\\"" . [a-z\\]] # d\n',
}

_IN_LLAMA_CPP = """
import sys
from pathlib import Path
from mimo_gguf.engine.sampling import Sampler, SamplingOptions
from mimo_gguf.llama.api import load_model
import ctypes
with load_model(sys.argv[1]) as model:
    for text in Path(sys.argv[2]).read_text().split("====="):
        with Sampler(model, SamplingOptions(grammar=text)) as sampler:
            sampler._apply(sampler._grammar, sampler._candidates.of([0.0] * model.n_vocab))
print("lived")
"""


@pytest.mark.parametrize("name", TOO_MUCH)
def test_too_much_is_refused_at_once(name: str) -> None:
    start = time.monotonic()
    with pytest.raises(UsageError, match="the grammar is too large: ") as caught:
        check_grammar(TOO_MUCH[name])
    assert caught.value.hint and len(caught.value.message) < 200
    assert time.monotonic() - start < 15


def test_what_is_taken_llama_cpp_survives(tiny_path: Path, tmp_path: Path) -> None:
    for text in TAKEN.values():
        check_grammar(text)
    (tmp_path / "grammars").write_text("=====".join(TAKEN.values()))
    command = [sys.executable, "-c", _IN_LLAMA_CPP, str(tiny_path), str(tmp_path / "grammars")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "lived\n", (done.returncode, done.stderr[-500:])


def test_what_is_not_gbnf_is_left_to_llama_cpp() -> None:
    for text in ("root ::= (", "no grammar", "root ::= root", "root ::= digit", 'root ::= "a', "root ::= [a", "",
                 "a ::= {3}", 'root ::= "a"{x}', 'root ::= "a"{', "root ::= \\", 'root ::= "\\xZZ"'):  # fmt: skip
        check_grammar(text)


def test_reading_is_writing_backwards() -> None:
    rules = parse(TAKEN["everything"])
    assert parse(render(rules)) == rules
