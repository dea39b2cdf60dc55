"""Whatever is dropped, in whatever order, at whatever moment: the process ends as its script says, not by a signal."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mimo_gguf.core.errors import UsageError
from mimo_gguf.engine.sampling import Sampler, SamplingOptions
from mimo_gguf.engine.session import Session, SessionOptions
from mimo_gguf.engine.single import next_token, read_prompt
from mimo_gguf.llama.api import api, load_model
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
said, begun = [], threading.Event()
class Bar:
    def __init__(self, **_): self.total = 0
    def __getattr__(self, name): return lambda *_, **__: begun.set() if name == "update" else None
params = SamplingParams(max_tokens=60, temperature=0)
work = lambda: said.extend(llm.generate(["a b c"] * 400, params, use_tqdm=Bar))
thread = threading.Thread(target=work); thread.start(); begun.wait(); llm.close(); thread.join()
assert {o.outputs[0].finish_reason for o in said} >= {"abort"} and len(said) == 400
try: llm.generate("a")
except Exception as error: assert "closed" in str(error), error
else: raise AssertionError""",
}
SCRIPTS |= {
    "threads that load first, together": """
said = []
gate = threading.Barrier(8)
def work(): gate.wait(); said.append(load().complete("a b", temperature=0, max_tokens=3).tokens)
sys.setswitchinterval(1e-5)
threads = [threading.Thread(target=work) for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
assert len(said) == 8 and len(set(said)) == 1""",
    "daemons load and tokenize": """
model = load()
def loads():
    while True: load().close()
def tokenizes():
    while True: model.vocabulary.tokenize("hello world " * 20000)
for work in (loads, loads, tokenizes): threading.Thread(target=work, daemon=True).start()
time.sleep(0.3)""",
    "closed from below, then used": """
def closes(what):
    model = load(); s = stream(model); next(s); what(model)
    for use in (s.close, lambda: list(s), lambda: model.complete("a")):
        try: use()
        except Exception as error: assert "closed" in str(error), error
closes(lambda model: model.native.close()); closes(lambda model: model.session.close())""",
    "alarms close it at any moment": """
import random, signal
for _ in range(5):
    model = load()
    signal.signal(signal.SIGALRM, lambda *_: model.close())
    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.001, 0.03))
    try:
        while True: model.complete("a b", max_tokens=50); model.forget()
    except Exception as error: assert "closed" in str(error), error""",
    "alarms that raise disturb nobody": """
import random, signal
class Late(Exception): pass
def late(*_): raise Late
signal.signal(signal.SIGALRM, late)
llm = LLM(sys.argv[1], max_model_len=256, max_num_seqs=3, options=SessionOptions(n_threads=1))
errors, done, params = [], [], SamplingParams(max_tokens=20)
def work():
    while not done:
        try: llm.generate(["a b", "c d"], params)
        except Exception as error: errors.append(error)
threads = [threading.Thread(target=work) for _ in range(2)]; [t.start() for t in threads]
n, end = 0, time.time() + 1.5
while time.time() < end:
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0005, 0.02))
        while True: llm.generate(["x y", "z"], params)
    except Late: n += 1
done.append(1); [t.join() for t in threads]
assert n > 5 and not errors, (n, errors)""",
}
if sys.platform == "win32":
    SCRIPTS = {name: script for name, script in SCRIPTS.items() if "SIGALRM" not in script}
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
held = threading.Event()
def hold():  # what another thread may hold while this one forks
    with model.driver._lock, model.driver.scheduler._assigning, model._starting, model.native.lock, LOG._lock:
        held.set(); time.sleep(0.5)
from mimo_gguf.llama.log import LOG
threading.Thread(target=hold).start(); held.wait()
child = os.fork()
if not child:
    uses = [load, model.forget, lambda: model.complete("a"), lambda: model.complete([1])]
    for use in (*uses, lambda: next(s), lambda: model.vocabulary.tokenize("a"), s.close):
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


def test_closing_waits_for_what_is_tokenized(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(tiny_path)
    vocabulary, begun, go_on = Vocabulary(model), threading.Event(), threading.Event()
    real = api().llama_tokenize

    def tokenize(*arguments: Any) -> int:
        begun.set()
        assert go_on.wait(10) and not model.closed
        return int(real(*arguments))

    vocabulary.tokenize("a")
    monkeypatch.setattr(api(), "llama_tokenize", tokenize)
    works, closes = threading.Thread(target=vocabulary.tokenize, args=("a b",)), threading.Thread(target=model.close)
    works.start()
    begun.wait(10)
    closes.start()
    closes.join(0.1)
    assert not model.closed
    go_on.set()
    works.join()
    closes.join()
    assert model.closed


def test_nothing_is_closed_from_within_a_pass(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load_model(tiny_path) as model, Session(model, OPTIONS) as session:
        for close in (model.close, session.close):
            with monkeypatch.context() as patched:
                patched.setattr(session, "_is_to_stop", lambda *_, close=close: close())
                with pytest.raises(UsageError, match="is generating an answer"):
                    read_prompt(session, list(range(1, 200)))
            assert not session.target.closed and session.drafter is not None and not session.drafter.context.closed
        read_prompt(session, list(range(1, 200)))


def test_a_closed_sampler_is_not_asked(tiny_path: Path) -> None:
    with load_model(tiny_path) as model:
        sampler = Sampler(model, SamplingOptions(grammar='root ::= "a"+'))
        sampler.close()
        for use in (lambda: sampler.note(1), lambda: sampler.allows([1])):
            with pytest.raises(UsageError, match="closed"):
                use()
