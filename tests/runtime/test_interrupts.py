"""Ctrl-C at any moment: KeyboardInterrupt within one pass, none lost, and everything whole afterwards."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from mimo_gguf.engine.session import Session, SessionOptions
from mimo_gguf.engine.shares import Share
from mimo_gguf.engine.single import read_prompt
from mimo_gguf.llama.api import LlamaModel, load_model
from mimo_gguf.llama.log import LOG, LogRing
from mimo_gguf.runtime.interrupts import DeferredSignals
from mimo_gguf.runtime.model import Model
from mimo_gguf.runtime.scheduler import Event, Scheduler

if sys.platform == "win32":
    pytest.skip("Windows has no SIGINT to send to one process", allow_module_level=True)

# Tells each moment from which a Ctrl-C counts ("go"), and how long it took to be heard. Whatever it interrupts must
# leave the model as it was: a known answer is asked for afterwards.
ASK = """
import gc, signal, sys, threading, time
from mimo_gguf import LLM, Model, SamplingParams
from mimo_gguf.engine.session import SessionOptions
signal.signal(signal.SIGINT, signal.default_int_handler)
options = SessionOptions(n_ctx=4096, n_threads=2, n_batch=512)
model = Model.open(sys.argv[1], session=options)
reads = sys.argv[2] == "reading"
prompt = "word " * 700 if reads else "a b"
known = model.complete("c d", temperature=0, max_tokens=5).tokens
for number in range(int(sys.argv[3])):
    model.forget()
    try:
        print("go", flush=True)
        while True:
            model.complete(f"{number}" + prompt, max_tokens=1 if reads else 300, temperature=0)
            model.forget()
    except KeyboardInterrupt:
        print("heard", flush=True)
    assert model.complete("c d", temperature=0, max_tokens=5).tokens == known
"""
MANY = """
import signal, sys, threading
from mimo_gguf import LLM, SamplingParams
from mimo_gguf.engine.session import SessionOptions
signal.signal(signal.SIGINT, signal.default_int_handler)
options = SessionOptions(n_threads=2, kv_type="f32", flash_attn=False)
llm = LLM(sys.argv[1], max_model_len=256, max_num_seqs=3, options=options)
params = SamplingParams(temperature=0, max_tokens=20)
known = [o.outputs[0].token_ids for o in llm.generate(["a b", "c d", "e f"], params)]
wrong = []
def ask():
    while go:
        said = [o.outputs[0].token_ids for o in llm.generate(["a b", "c d", "e f"], params)]
        if said != known: wrong.append(said)
go = True
threads = [threading.Thread(target=ask) for _ in range(2)]
[t.start() for t in threads]
for number in range(int(sys.argv[3])):
    try:
        print("go", flush=True)
        while True: llm.generate(["x y"] * 3, params)
    except KeyboardInterrupt:
        print("heard", flush=True)
go = False
[t.join() for t in threads]
assert not wrong, wrong[0]
"""


def interrupt(script: str, path: Path, how: str, n: int) -> list[float]:
    """Interrupts the script `n` times, each at a random moment; the seconds until each was heard."""
    rng, waited = random.Random(1), []
    command = [sys.executable, "-c", script, str(path), how, str(n)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        for _ in range(n):
            assert process.stdout.readline() == "go\n", process.stderr.read()
            time.sleep(rng.uniform(0, 0.08))
            sent = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "heard\n", process.stderr.read()
            waited.append(time.monotonic() - sent)
        assert process.wait(60) == 0, process.stderr.read()
        assert process.stderr.read() == ""
    return waited


@pytest.mark.many_passes
@pytest.mark.parametrize("how", ["reading", "drawing"])
def test_every_ctrl_c_is_heard_within_a_pass(tiny_path: Path, how: str) -> None:
    waited = sorted(interrupt(ASK, tiny_path, how, 25))
    assert waited[len(waited) // 2] < 1.0


@pytest.mark.many_passes
def test_ctrl_c_spoils_no_other_threads_answer(tiny_path: Path) -> None:
    assert len(interrupt(MANY, tiny_path, "", 20)) == 20


def test_ctrl_c_while_a_model_loads(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes in the midst of llama.cpp's log, where ctypes can raise nothing."""

    def write(ring: LogRing, level: int, text: str) -> None:
        monkeypatch.undo()
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setattr(type(LOG), "write", write)
        with pytest.raises(KeyboardInterrupt):
            load_model(tiny_path)
        with load_model(tiny_path) as model:
            assert model.n_vocab
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_in_the_last_step_loses_no_answer(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, n_idle = Scheduler.step, 0

    def step(scheduler: Scheduler) -> list[Event]:
        nonlocal n_idle
        n_idle += scheduler.idle
        assert n_idle < 20
        events = real(scheduler)
        if any(event.is_last for event in events):
            signal.raise_signal(signal.SIGINT)
        return events

    with Model.open(tiny_path, session=SessionOptions(n_ctx=256, n_threads=1)) as model, default_ctrl_c():
        wanted = model.complete("a b", temperature=0, max_tokens=4)
        monkeypatch.setattr(Scheduler, "step", step)
        with model.complete("a b", temperature=0, max_tokens=4, stream=True) as stream:
            with pytest.raises(KeyboardInterrupt):
                list(stream)
            assert stream.answer.tokens == wanted.tokens
            assert "".join(piece.text for piece in stream) in wanted.text


def test_a_prompt_is_read_though_signals_come_all_the_time(tiny: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with Session(tiny, SessionOptions(n_ctx=256, n_threads=1)) as session:
        real, n_asked = session._is_to_stop, 0

        def interrupted(shares: Sequence[Share]) -> bool:
            nonlocal n_asked
            n_asked += 1
            assert n_asked < 5000
            session.interrupt()
            return real(shares)

        monkeypatch.setattr(session, "_is_to_stop", interrupted)
        read_prompt(session, list(range(200)))


def test_all_handlers_run_at_the_end_and_stay() -> None:
    heard = []

    def alarm(number: int, _: object) -> None:
        heard.append(number)
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, alarm)
    try:
        with default_ctrl_c(), pytest.raises(KeyboardInterrupt) as caught, DeferredSignals(lambda: None):
            signal.raise_signal(signal.SIGALRM)
            signal.raise_signal(signal.SIGINT)
            assert not heard
        assert heard == [signal.SIGALRM] and isinstance(caught.value.__context__, TimeoutError)
        assert signal.getsignal(signal.SIGALRM) is alarm
    finally:
        signal.signal(signal.SIGALRM, before)


@contextmanager
def default_ctrl_c() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
