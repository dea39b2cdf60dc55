"""Whatever is dropped, in whatever order, at whatever moment: the process ends as its script says, not by a signal."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from mimo_gguf.core.errors import UsageError
from mimo_gguf.engine.sampling import Sampler, SamplingOptions
from mimo_gguf.engine.session import Session, SessionOptions
from mimo_gguf.engine.single import next_token, read_prompt
from mimo_gguf.llama.api import load_model
from mimo_gguf.llama.vocabulary import Vocabulary
from mimo_gguf.runtime.model import Model

OPTIONS = SessionOptions(n_ctx=512, n_threads=2, n_batch=64)
START = """
import gc, os, sys, threading, time
from mimo_gguf import LLM, Model, SamplingParams
from mimo_gguf.engine.session import SessionOptions
OPTIONS = SessionOptions(n_ctx=2048, n_threads=2)
def load(): return Model.open(sys.argv[1], session=OPTIONS)
def stream(model, n=2000): return model.complete("tell me " * 5, stream=True, max_tokens=n)
"""
SCRIPTS = {
    "left in a loop": "model = load()\nfor piece in stream(model): break",
    "left by an exception": "model = load()\nfor piece in stream(model): raise ValueError('mine')",
    "left by sys.exit": "model = load()\nfor piece in stream(model): sys.exit(7)",
    "returned from": """
def first():
    model = load()
    for piece in stream(model): return piece
first(); gc.collect()""",
    "replaced": "for _ in range(8):\n    model = load(); next(stream(model))",
    "the stream outlives the model": "s = stream(load())\ngc.collect(); next(s); print(len(s.read().tokens))",
    "a circle": """
model = load(); s = stream(model); next(s)
c = [model, s]; c.append(c); del model, s, c; gc.collect()""",
    "closed within": "model = load()\nfor piece in stream(model): model.close()",
    "the weights closed first": """
model = load(); s = stream(model); next(s)
model.native.close(); del s; model.close()""",
    "a daemon generates": """
model = load()
threading.Thread(target=lambda: stream(model).read(), daemon=True).start()
time.sleep(0.2)""",
    "a daemon reads a prompt": """
model = load()
threading.Thread(target=lambda: model.complete("word " * 380, max_tokens=1), daemon=True).start()
time.sleep(0.05)""",
    "daemons ask one LLM": """
llm = LLM(sys.argv[1], max_model_len=256, max_num_seqs=2, options=OPTIONS)
for _ in range(3):
    threading.Thread(target=lambda: llm.generate(["a b c"] * 50, SamplingParams(max_tokens=50)), daemon=True).start()
time.sleep(0.3)""",
    "closed by another thread": """
llm = LLM(sys.argv[1], max_model_len=256, max_num_seqs=2, options=OPTIONS)
said = []
work = lambda: said.extend(llm.generate(["a b c"] * 400, SamplingParams(max_tokens=60, temperature=0)))
thread = threading.Thread(target=work); thread.start(); time.sleep(0.3); llm.close(); thread.join()
assert {o.outputs[0].finish_reason for o in said} >= {"abort"} and len(said) == 400
try: llm.generate("a")
except Exception as error: assert "closed" in str(error), error
else: raise AssertionError""",
}
EXIT_CODES = {"left by an exception": 1, "left by sys.exit": 7}


def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", START + script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_process_never_dies(name: str, tiny_path: Path) -> None:
    done = run(SCRIPTS[name], tiny_path)
    assert done.returncode == EXIT_CODES.get(name, 0), done.stderr
    lines = done.stderr.strip().splitlines()
    assert not lines or lines[-1] == "ValueError: mine", done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_is_told_so(tiny_path: Path) -> None:
    """llama.cpp's threads are not in the child: it would wait for them for ever."""
    done = run(
        """
model = load(); wanted = model.complete("a b", temperature=0, max_tokens=5).tokens
s = stream(model); next(s)
child = os.fork()
if not child:
    for use in (lambda: model.complete("a"), lambda: next(s), lambda: model.vocabulary.tokenize("a"), s.close):
        try: use()
        except Exception as error: print(type(error).__name__, "spawn" in (error.hint or ""), flush=True)
    del model, s; gc.collect(); sys.exit(0)
print(os.waitpid(child, 0)[1], flush=True)
assert model.complete("a b", temperature=0, max_tokens=5).tokens == wanted
""",
        tiny_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\n")[-2] == "0" and set(done.stdout.split("\n")[:-2]) == {"UsageError True"}


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_weights_go_with_the_last_reference(tiny_path: Path) -> None:
    model = Model.open(tiny_path, session=OPTIONS)
    native, session = weakref.ref(model.native), weakref.ref(model.session)
    model.complete("a b c", max_tokens=3)
    unread, begun = model.complete("a", stream=True), model.complete("b", stream=True)
    next(begun)
    del model
    assert native() is not None  # two answers are on their way
    del unread
    assert native() is not None and begun.read().tokens
    del begun
    assert (native(), session()) == (None, None)


@pytest.mark.usefixtures("no_collector")
def test_contexts_go_with_their_session(tiny_path: Path) -> None:
    with load_model(tiny_path) as model:
        session = Session(model, OPTIONS)
        target = weakref.ref(session.target)
        read_prompt(session, list(range(1, 200)))  # asks llama.cpp whether to stop
        with Sampler(model, SamplingOptions()) as sampler:
            next_token(session, sampler)
        del session, sampler
        assert target() is None


def test_closing_the_weights_closes_what_was_made_of_them(tiny_path: Path) -> None:
    model = load_model(tiny_path)
    session, vocabulary = Session(model, OPTIONS), Vocabulary(model)
    sampler = Sampler(model, SamplingOptions(grammar='root ::= "a"+'))
    read_prompt(session, [1, 2, 3])
    model.close()
    assert session.target.closed and session.drafter is not None and session.drafter.context.closed
    for use in (
        lambda: next_token(session, sampler),
        lambda: vocabulary.tokenize("a"),
        lambda: sampler.allows([1]),
        lambda: session.begin(session.slot, [1]),
        lambda: session.reset(session.slot),
    ):
        with pytest.raises(UsageError, match="closed"):
            use()
    session.close()
    sampler.close()
