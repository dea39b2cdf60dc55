"""The contexts of a run and the conversations in them: passes over whatever each of them has to evaluate next.

A pass is one decode of the target for all conversations at work: the token each has drawn, what the MTP blocks propose
after it (one MTP decode for all), and a stretch of the prompts still being read. Each conversation then draws from its
own rows with its own sampler (`slot`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from mimo_gguf.core.errors import BackendError, UsageError
from mimo_gguf.core.ggml_types import parse_ggml_type
from mimo_gguf.core.kv_cache import check_kv_type, n_ctx_seq
from mimo_gguf.engine.draft_control import DraftControl
from mimo_gguf.engine.drafting import Drafter, DraftRequest, HiddenState
from mimo_gguf.engine.sampling import Sampler
from mimo_gguf.engine.slot import Cancelled, Slot, WindowFull
from mimo_gguf.engine.stats import SessionStats, total
from mimo_gguf.llama.api import ContextOptions, Floats, LlamaContext, LlamaModel, open_context, open_mtp_context
from mimo_gguf.llama.batch import Batch
from mimo_gguf.llama.log import LOG

Ended = dict[Slot, Cancelled | WindowFull]
_MOST_THREADS: Final = 512  # GGML_MAX_N_THREADS
_MOST: Final = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How a session is set up.

    Attributes:
        n_ctx: the window in tokens, which `n_parallel` conversations share in equal parts; 0 takes what the model was
            trained with, for each.
        n_parallel: conversations at a time.
        mtp: draft with the MTP blocks, where the model was loaded with them.
        n_draft: tokens drafted at a time.
        p_min: least probability the MTP block must give a token to propose it.
        hidden: which trunk state the MTP block is fed: before the final norm (MiMo) or after it.
        adaptive: stop drafting while it is slower than not drafting.
        n_ubatch_mtp: micro-batch of the MTP context; it decides the size of its compute buffer.
        kv_type: "f16", "q8_0", "q4_0", ...: ggml's name of the type of the KV cache.
        n_threads: 0 takes the physical cores.
    """

    n_ctx: int = 4096
    n_parallel: int = 1
    n_batch: int = 512
    n_threads: int = 0
    kv_type: str = "f16"
    flash_attn: bool | None = None
    mtp: bool = True
    n_draft: int = 1
    p_min: float = 0.0
    hidden: HiddenState = "pre"
    adaptive: bool = True
    n_ubatch_mtp: int = 64

    def __post_init__(self) -> None:
        """Raises UsageError for values that make no sense; llama.cpp crashes with some of them."""
        for name, low, high, what, hint in (
            ("n_draft", 1, 8, "{} drafts at a time", "choose 1, 2 or 3: --draft 1"),
            ("n_ctx", 0, _MOST, "a context of {} tokens", "give a positive number: --ctx 4096"),
            ("n_batch", 1, _MOST, "a batch of {} tokens", "choose 512"),
            ("n_ubatch_mtp", 1, _MOST, "a micro-batch of {} tokens", "choose 64"),
            ("n_parallel", 1, 256, "{} conversations at a time", "choose 1 to 256"),
            ("n_threads", 0, _MOST_THREADS, "{} threads", f"at most {_MOST_THREADS}; 0 takes the physical cores"),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise UsageError(what.format(value), hint=hint)
        if not 0.0 <= self.p_min <= 1.0:
            raise UsageError(f"a probability of {self.p_min}", hint="choose a draft probability between 0 and 1")
        if self.hidden not in ("pre", "post"):
            raise UsageError(f"no hidden state {self.hidden!r}", hint="pre or post")

    @property
    def n_rows_drawing(self) -> int:
        """Rows that want logits when every conversation draws."""
        return self.n_parallel * (1 + self.n_draft)

    def for_context(self) -> ContextOptions:
        """The target context's options. The cells are divided as llama.cpp divides them: each share is rounded up.

        The cache is one buffer for all sequences: whichever are at work then run in one pass, whatever their numbers of
        rows, and a common beginning is kept once. Divided buffers would need a pass for each number of rows.
        """
        kv_type = _kv_type_number(self.kv_type)
        n_batch = max(min(self.n_batch, self.n_ctx), self.n_rows_drawing + 1)
        return ContextOptions(
            n_ctx=self.n_parallel * n_ctx_seq(self.n_ctx, self.n_parallel),
            n_batch=n_batch,
            n_ubatch=n_batch,
            n_seq_max=self.n_parallel,
            kv_unified=True,
            n_outputs_max=self.n_rows_drawing,
            n_threads=self.n_threads,
            type_k=kv_type,
            type_v=kv_type,
            flash_attn=self.flash_attn,
        )


def _kv_type_number(name: str) -> int:
    """`q8_0` -> 8. Raises UsageError for a type in which llama.cpp keeps no cache; some of them end the process."""
    kind = parse_ggml_type(name)
    check_kv_type(kind)
    return int(kind)


class Part(NamedTuple):
    """What one slot contributes to a pass; the last `n_outputs` tokens want logits."""

    slot: Slot
    tokens: Sequence[int]
    n_outputs: int


class Session:
    """The target context, the MTP context and `n_parallel` slots. Not for two threads at once, but for `Slot.cancel`.

    One conversation uses `slot` and the methods it has. Several are served by `step`.
    """

    def __init__(self, model: LlamaModel, options: SessionOptions | None = None) -> None:
        """Raises BackendError where llama.cpp cannot make the contexts."""
        self.model = model
        options = options or SessionOptions()
        self.options = options if options.n_ctx else replace(options, n_ctx=model.n_ctx_train * options.n_parallel)
        self.drafting_allowed = True
        self.target: LlamaContext = open_context(model, self.options.for_context())
        self.n_ctx = self.target.n_ctx // self.options.n_parallel  # tokens one conversation's window holds
        self.drafter: Drafter | None = None
        try:
            if self.options.mtp and model.n_mtp:
                self.drafter = self._open_drafter()
            self._batch = Batch(self.target.options.n_batch)
        except BaseException:
            self.close()
            raise
        self.slots = tuple(Slot(self, seq_id) for seq_id in range(self.options.n_parallel))
        # What a pass costs, and so whether drafting pays, depends on how many draw from it: a control for each number.
        adaptive, n_draft = self.options.adaptive, self.options.n_draft
        self._controls = [
            DraftControl(adaptive=adaptive, n_drawing=1 + i, n_draft=n_draft) for i in range(len(self.slots))
        ]
        self._n_drawing = 1
        self._cycle = _Cycle()

    def _open_drafter(self) -> Drafter:
        options, n_batch = self.options, self.target.options.n_batch
        n_ubatch = min(max(options.n_ubatch_mtp, options.n_rows_drawing), n_batch)
        context = open_mtp_context(self.target, n_ubatch=n_ubatch)
        return Drafter(context, n_draft=options.n_draft, p_min=options.p_min, hidden=options.hidden)

    @property
    def slot(self) -> Slot:
        """The first slot: the one of a session for one conversation."""
        return self.slots[0]

    @property
    def stats(self) -> SessionStats:
        """Counts of all slots together."""
        return total([slot.stats for slot in self.slots])

    @property
    def control(self) -> DraftControl:
        """The control for as many conversations as drew together last."""
        return self._controls[self._n_drawing - 1]

    @property
    def follows(self) -> bool:
        """Whether the MTP blocks are shown what is evaluated. They need not be while nothing is drafted."""
        return self.drafter is not None and self.drafting_allowed and self.control.wants_rows

    def close(self) -> None:
        """Frees both contexts. The model is not the session's."""
        if self.drafter is not None:
            self.drafter.close()
        self.target.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def step(self, samplers: Mapping[Slot, Sampler]) -> dict[Slot, int | Cancelled | WindowFull]:
        """Goes on with the slots that `samplers` names: at most one pass, then a token for each that has logits.

        A slot that is still reading its prompt is not in the result. A slot whose draft was right gives its next token
        in a step without a pass, before the others go on. One that is cancelled, or has no room left, is in the result
        with that exception; the others are not disturbed.

        Raises:
            BackendError: llama.cpp failed; every slot is as it was before.
        """
        outcomes: dict[Slot, int | Cancelled | WindowFull] = {}
        slots = []
        for slot in samplers:
            if slot.take_cancel():
                outcomes[slot] = Cancelled()
            else:
                slots.append(slot)
        ready = [slot for slot in slots if slot.can_draw]
        if slots and not ready:
            outcomes.update(self.evaluate(slots))
            ready = [slot for slot in slots if slot.can_draw]
        for slot in ready:
            outcomes[slot] = slot.draw(samplers[slot])
        return outcomes

    def evaluate(self, slots: Sequence[Slot]) -> Ended:
        """One pass over what these slots have waiting; those of them that could not go on.

        Raises:
            BackendError: llama.cpp failed; every slot is as it was before.
        """
        started = time.perf_counter()
        ended: Ended = {}
        drawing, reading = [], []
        for slot in slots:
            if slot.drawn is not None and not slot.room:
                ended[slot] = WindowFull()
                continue
            slot.prepare()
            if slot.drawn is not None:
                drawing.append(slot)
            elif slot.prompt:
                reading.append(slot)
        if not drawing and not reading:
            return ended
        parts = self._plan(drawing, reading)
        first_rows = self._decode(parts)
        if first_rows is None:
            return ended | {part.slot: Cancelled() for part in parts if part.slot.take_cancel()}
        seconds = time.perf_counter() - started
        self._cycle.seconds = seconds
        for part, first_row in zip(parts, first_rows, strict=True):
            part.slot.took(part, first_row, seconds)
        return ended

    def _plan(self, drawing: Sequence[Slot], reading: Sequence[Slot]) -> list[Part]:
        """What each slot contributes: drawn tokens with their drafts, then as much of the prompts as there is room.

        The shortest prompt comes first: its conversation waits least, and the others hardly longer for it.
        """
        drafts = {}
        if self.drafter is not None:
            self._begin_cycle(len(drawing), is_pure=not reading)
            drafts = self._draft(self.drafter, drawing)
        parts = []
        for slot in drawing:
            assert slot.drawn is not None
            tokens = [slot.drawn, *drafts.get(slot, ())]
            parts.append(Part(slot, tokens, len(tokens)))
        return parts + self._plan_reading(reading, sum(len(part.tokens) for part in parts)) if reading else parts

    def _plan_reading(self, reading: Sequence[Slot], n_taken: int) -> list[Part]:
        parts, room = [], self._batch.capacity - n_taken
        for slot in sorted(reading, key=lambda slot: len(slot.prompt)):
            if room:
                tokens = slot.prompt[:room]
                parts.append(Part(slot, tokens, int(len(tokens) == len(slot.prompt))))
                room -= len(tokens)
        return parts

    def _draft(self, drafter: Drafter, drawing: Sequence[Slot]) -> dict[Slot, list[int]]:
        if not self.drafting_allowed or not drawing or not self.control.wants_draft():
            return {}
        wanted = {
            slot: DraftRequest(slot.rows, slot.drawn, slot.room - 1)
            for slot in drawing
            if slot.rows is not None and slot.drawn is not None and slot.is_followed and slot.room > 1
        }
        self._cycle.tried = bool(wanted)
        return dict(zip(wanted, drafter.draft(list(wanted.values())), strict=True))

    def _decode(self, parts: Sequence[Part]) -> list[int] | None:
        """The first row of each part in the batch evaluated; None when all of the slots were cancelled meanwhile."""
        since, batch = LOG.mark, self._batch
        batch.clear()
        rows = [
            batch.add(tokens, len(slot.tokens), n_outputs=n_outputs, seq_id=slot.seq_id)
            for slot, tokens, n_outputs in parts
        ]
        for slot in self.slots:
            slot.lose_row()
        is_reading = bool(parts[-1].slot.prompt)  # these come last
        if is_reading:  # a pass that may take long; asking is not free
            self.target.abort_when(lambda: all(slot.is_cancelled() for slot, _, _ in parts))
        try:
            result = self.target.decode(batch.native)
            if result == 0 and self.follows:
                for (slot, tokens, _), first in zip(parts, rows, strict=True):
                    assert slot.rows is not None
                    n = len(tokens) if slot.prompt else 1  # drafts follow when they are drawn
                    slot.rows.follow(tokens[:n], len(slot.tokens), self.states(first, n))
        except BaseException:
            self._take_back(parts)
            raise
        finally:
            if is_reading:
                self.target.abort_when(None)
        if result == 0:
            return rows
        self._take_back(parts)
        if result == 2:
            return None
        raise BackendError(
            f"llama.cpp failed at position {len(parts[0].slot.tokens)} (llama_decode {result}): {LOG.reason(since)}",
            hint="run again with --verbose for its log",
        )

    def _take_back(self, parts: Sequence[Part]) -> None:
        for slot, _, _ in parts:
            self.target.forget(len(slot.tokens), slot.seq_id)

    @property
    def n_rows(self) -> int:
        """Rows of the last pass."""
        return self._batch.n_tokens

    def states(self, first_row: int, n: int) -> Floats:
        """The trunk's states of rows of the last pass, shape (n, n_embd). A view: valid until the next pass."""
        return self.target.hidden(self.n_rows)[first_row : first_row + n]

    def _begin_cycle(self, n_drawing: int, *, is_pure: bool) -> None:
        """Tells the control about the last pass, if nothing but drawing was in it and all it yields was drawn."""
        cycle = self._cycle
        if cycle.n_drawing and cycle.n_drained == cycle.n_drawing:
            self._controls[cycle.n_drawing - 1].record(
                drafted=cycle.tried, seconds=cycle.seconds, n_tokens=cycle.n_tokens
            )
        self._cycle = _Cycle(n_drawing if is_pure else 0)
        if n_drawing:
            self._n_drawing = n_drawing

    def note_drawn(self, seconds: float, *, drained: bool) -> None:
        """A slot has drawn a token, in so many seconds, or, `drained`, all that the last pass yields for it."""
        cycle = self._cycle
        cycle.seconds += seconds
        cycle.n_tokens += 1
        cycle.n_drained += drained


@dataclass(slots=True)
class _Cycle:
    """One pass of the target and the tokens drawn from it.

    Attributes:
        n_drawing: slots that draw from it; 0 where it also reads prompts, so that its time says nothing.
        tried: a draft was asked for, whether or not the MTP block was sure enough to give one.
    """

    n_drawing: int = 0
    n_drained: int = 0
    tried: bool = False
    n_tokens: int = 0
    seconds: float = 0.0
