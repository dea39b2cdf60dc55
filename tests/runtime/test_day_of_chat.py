"""A day of chat in miniature: hundreds of turns with regenerating, editing, undoing, saving, loading, cancelling at any
moment and a window that overflows; then memory is as it was, and a fresh session goes on with the same tokens.

A longer day: MIMO_GGUF_DAY=5000 python -m pytest tests/runtime/test_day_of_chat.py
"""

from __future__ import annotations

import gc
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from mimo_gguf.chat.conversation import Conversation
from mimo_gguf.conversion.checkpoint_source import open_checkpoint
from mimo_gguf.engine.session import SessionOptions
from mimo_gguf.engine.state import load_state, save_state
from mimo_gguf.runtime.model import Model
from tests.reference import MIMO_TINY
from tests.tiny_models import quantized, write_gguf

OPTIONS = SessionOptions(n_ctx=512, n_threads=1, n_batch=64, n_ubatch_mtp=16)
N_OPERATIONS = int(os.environ.get("MIMO_GGUF_DAY", "150"))
QUESTIONS = (
    "Who are you?",
    "What is 12 + 9?",
    "Tell me a story.",
    "What is the capital of France?",
    "Ünïcode 🙂 please",
)


class Day:
    """The operations of a day, drawn by a seeded hand."""

    def __init__(self, model: Model, folder: Path, seed: int) -> None:
        self.model, self.folder = model, folder
        self.rng = np.random.default_rng(seed)
        self.conversation = Conversation()
        self.n_overflows = self.n_cancelled = 0

    def run(self, n: int) -> None:
        operations = (
            self.ask,
            self.ask,
            self.ask,
            self.cancelled,
            self.regenerate,
            self.edit,
            self.undo,
            self.save_and_load,
            self.think,
            self.keep,
        )
        for _ in range(n):
            operations[self.rng.integers(len(operations))]()

    def count(self, messages: list) -> int:  # type: ignore[type-arg]
        return len(self.model.prompt_tokens(messages))

    def ask(self, question: str | None = None, **options: object) -> None:
        question = question or str(self.rng.choice(QUESTIONS))
        self.n_overflows += any(self.conversation.make_room(question, self.count, 384))
        sampling = {"temperature": float(self.rng.choice([0, 0.7, 1.5])), "seed": int(self.rng.integers(1 << 30))}
        answer = self.model.chat(self.conversation.messages(question), max_tokens=24, **{**sampling, **options})  # type: ignore[call-overload]
        assert answer.finish_reason in ("stop", "length")
        assert answer.n_prompt + len(answer.tokens) <= self.model.session.window + 1
        self.conversation.add(question, answer)

    def cancelled(self) -> None:
        """Left after any number of pieces, or cancelled: at any moment, or from within the reading of the prompt."""
        messages = self.conversation.messages("Tell me a story.")
        if self.rng.random() < 0.3:
            timer = threading.Timer(float(self.rng.uniform(0, 0.05)), self.model.cancel)
            timer.start()
            answer = self.model.chat(messages, max_tokens=60, seed=1)
            timer.join()
            self.n_cancelled += answer.finish_reason == "abort"
            return
        if self.rng.random() < 0.3:
            answer = self.model.chat(messages, progress=lambda *_: self.model.cancel(), max_tokens=9)
            if answer.stats.n_prompt:  # otherwise all of the prompt was there already
                assert answer.finish_reason == "abort" and len(answer.tokens) <= 1  # one came with the last pass
            return
        with self.model.chat(messages, stream=True, max_tokens=30, seed=1) as stream:
            for _, _ in zip(range(int(self.rng.integers(20))), stream, strict=False):
                pass
        self.conversation.add("Tell me a story.", stream.answer)

    def regenerate(self) -> None:
        turn = self.conversation.undo()
        if turn is not None:
            self.ask(turn.question)

    def edit(self) -> None:
        turn = self.conversation.undo()
        if turn is not None:
            self.ask(f"{turn.question} Now.")

    def keep(self) -> None:
        """Earlier reasoning in the context from now on, or out of it again."""
        self.conversation.keep_reasoning = not self.conversation.keep_reasoning

    def undo(self) -> None:
        self.conversation.undo()

    def save_and_load(self) -> None:
        self.conversation.save(self.folder / "talk.json")
        save_state(self.model.session, self.model.slot, "key", self.folder / "talk.kv")
        tokens = list(self.model.session.slot.tokens)
        if self.rng.random() < 0.5:
            self.model.chat([{"role": "user", "content": "something else"}], max_tokens=5)
        self.conversation = Conversation.load(self.folder / "talk.json")
        assert load_state(self.model.session, self.model.slot, "key", self.folder / "talk.kv") == bool(tokens)
        assert self.model.session.slot.tokens == tokens

    def think(self) -> None:
        self.ask(think_budget=int(self.rng.integers(1, 12)))


@pytest.mark.many_passes
def test_a_day_of_chat(tmp_path: Path) -> None:
    with open_checkpoint(MIMO_TINY) as source:
        exact = quantized(write_gguf(source, tmp_path / "tiny.gguf"), "F32")
    process = psutil.Process()
    with Model.open(exact, session=OPTIONS) as model:
        day = Day(model, tmp_path, 0)
        day.run(N_OPERATIONS // 3)
        gc.collect()
        before = process.memory_info().rss
        day.run(N_OPERATIONS - N_OPERATIONS // 3)
        assert day.n_overflows > N_OPERATIONS // 24
        assert day.n_cancelled > 0
        gc.collect()
        assert process.memory_info().rss - before < 6 << 20
        for question in QUESTIONS:
            day.conversation.make_room(question, day.count, 384)
            messages = day.conversation.messages(question)
            said = model.chat(messages, temperature=0, max_tokens=30).tokens
            with Model.open(exact, session=replace(OPTIONS, mtp=False)) as fresh:
                assert fresh.chat(messages, temperature=0, max_tokens=30).tokens == said
