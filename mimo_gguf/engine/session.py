"""The contexts of a run and the conversations in them: passes over whatever each of them has to evaluate next.

A pass is one decode of the target for all conversations at work: the token each has drawn, what the MTP blocks propose
after it (one MTP decode for all), and a stretch of the prompts still being read. Each conversation then draws from its
own rows with its own sampler.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

from mimo_gguf.core.errors import BackendError, MimoGgufError, UsageError
from mimo_gguf.core.ggml_types import parse_ggml_type
from mimo_gguf.core.kinds import check_kind
from mimo_gguf.core.kv_cache import check_kv_type, n_ctx_seq
from mimo_gguf.core.numbers import is_number, is_whole
from mimo_gguf.engine.draft_control import DraftControl
from mimo_gguf.engine.drafting import Drafter, DraftRequest, HiddenState, MtpRows
from mimo_gguf.engine.near_ties import is_near_tie, near_tie
from mimo_gguf.engine.sampling import Sampler
from mimo_gguf.engine.shares import Share, plan_reading
from mimo_gguf.engine.slot import Slot, common_prefix
from mimo_gguf.engine.stats import SessionStats, total
from mimo_gguf.engine.waits import Waits
from mimo_gguf.llama.api import ContextOptions, Floats, LlamaContext, LlamaModel, open_context, open_mtp_context
from mimo_gguf.llama.batch import Batch
from mimo_gguf.llama.log import LOG

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
        exact: compute every row alone, so that a text is the same to the token in any batch, with and without drafts.
        n_prompt_rows: logits that a pass may give of a prompt, if more than drawing needs: each costs memory.
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
    exact: bool = False
    n_prompt_rows: int = 0

    def __post_init__(self) -> None:
        """Raises UsageError for values that make no sense; llama.cpp crashes with some of them."""
        for name, low, high, what, hint in (
            ("n_draft", 1, 8, "{} drafts at a time", "choose 1, 2 or 3: --draft 1"),
            ("n_ctx", 0, _MOST, "a context of {} tokens", "give a positive number: --ctx 4096"),
            ("n_batch", 1, _MOST, "a batch of {} tokens", "choose 512"),
            ("n_ubatch_mtp", 1, _MOST, "a micro-batch of {} tokens", "choose 64"),
            ("n_prompt_rows", 0, 1 << 16, "{} rows of a prompt", "choose 64"),
            ("n_parallel", 1, 256, "{} conversations at a time", "choose 1 to 256"),
            ("n_threads", 0, _MOST_THREADS, "{} threads", f"at most {_MOST_THREADS}; 0 takes the physical cores"),
        ):
            value = getattr(self, name)
            if not is_whole(value) or not low <= value <= high:
                raise UsageError(what.format(value), hint=hint)
        if not is_number(self.p_min) or not 0.0 <= self.p_min <= 1.0:
            raise UsageError(f"a probability of {self.p_min}", hint="choose a draft probability between 0 and 1")
        check_kind("kv_type", self.kv_type, str, 'kv_type="q8_0"')
        for name in ("mtp", "adaptive", "exact"):
            check_kind(name, getattr(self, name), bool, "True or False")
        check_kind("flash_attn", self.flash_attn, bool, "True, False, or None for llama.cpp's choice", or_none=True)
        if self.hidden not in ("pre", "post"):
            raise UsageError(f"no hidden state {self.hidden!r}", hint="pre or post")

    @property
    def n_rows_drawing(self) -> int:
        """Rows that want logits when every conversation draws."""
        return self.n_parallel * (1 + self.n_draft)

    @property
    def n_outputs_max(self) -> int:
        """Rows that a pass may give logits of."""
        return max(self.n_rows_drawing, self.n_prompt_rows)

    def for_context(self) -> ContextOptions:
        """The target context's options. The cells are divided as llama.cpp divides them: each share is rounded up.

        The cache is one buffer for all sequences: whichever are at work then run in one pass, whatever their numbers of
        rows, and a common beginning is kept once. Divided buffers would need a pass for each number of rows.

        With `exact`, each row is a graph of its own, and each sequence's cells are, in the order of its tokens: what is
        computed for a token depends on those before it, and on nothing else.
        """
        kv_type = _kv_type_number(self.kv_type)
        n_batch = max(min(self.n_batch, self.n_ctx), self.n_outputs_max + 1)
        return ContextOptions(
            n_ctx=self.n_parallel * n_ctx_seq(self.n_ctx, self.n_parallel),
            n_batch=n_batch,
            n_ubatch=1 if self.exact else n_batch,
            n_seq_max=self.n_parallel,
            kv_unified=not self.exact,
            n_outputs_max=self.n_outputs_max,
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


class Drawn(NamedTuple):
    """A token was drawn; its logits are row `row` of the last pass, until the next one."""

    token: int
    row: int


class Ended(NamedTuple):
    """A slot cannot go on: it was cancelled, its window has no room for the token drawn last, or drawing failed."""

    reason: Literal["cancelled", "window", "failed"]
    error: MimoGgufError | None = None


Outcome = Drawn | Ended


class Session:
    """The target context, the MTP context and `n_parallel` slots.

    Methods may be called from any thread: one at a time is served, the others wait. One conversation is driven by the
    functions of `single`, several by `step`.
    """

    def __init__(self, model: LlamaModel, options: SessionOptions | None = None) -> None:
        """Raises BackendError if llama.cpp cannot make the contexts."""
        self.model = model
        options = options or SessionOptions()
        self.options = options if options.n_ctx else replace(options, n_ctx=model.n_ctx_train * options.n_parallel)
        self.drafting_allowed = True
        self.target: LlamaContext = open_context(model, self.options.for_context())
        self.window = self.target.n_cells // self.options.n_parallel  # tokens one conversation may have
        self.drafter: Drafter | None = None
        try:
            if self.options.mtp and model.n_mtp:
                self.drafter = self._open_drafter()
            self._batch = Batch(self.target.options.n_batch)
        except BaseException:
            self.close()
            raise
        adaptive, n_draft, numbers = self.options.adaptive, self.options.n_draft, range(self.options.n_parallel)
        self.slots = tuple(Slot(self.target, i, self.window, self._rows_of(i), n_draft) for i in numbers)
        # What a pass costs, and so whether drafting pays, depends on how many draw from it: a control for each number.
        self._controls = [DraftControl(adaptive=adaptive, n_drawing=1 + i, n_draft=n_draft) for i in numbers]
        self._n_drawing = 1
        self._most_rows = 1  # of passes that say something else than they say of one conversation without drafts
        self._cycle = _Cycle()
        self._is_interrupted = False
        self._waits = Waits()

    def _open_drafter(self) -> Drafter:
        options, n_batch = self.options, self.target.options.n_batch
        n_ubatch = min(max(options.n_ubatch_mtp, options.n_outputs_max), n_batch)
        context = open_mtp_context(self.target, n_ubatch=n_ubatch)
        return Drafter(context, n_draft=options.n_draft, p_min=options.p_min, hidden=options.hidden)

    def _rows_of(self, seq_id: int) -> MtpRows | None:
        return None if self.drafter is None else MtpRows(self.drafter, seq_id)

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
    def shows_mtp(self) -> bool:
        """Whether the MTP blocks are shown what is evaluated. They need not be while nothing is drafted."""
        return self.drafter is not None and self.drafting_allowed and self.control.wants_rows

    def interrupt(self) -> None:
        """Ends the pass at work, if it reads a prompt, as if it had not begun. From any thread or a signal handler."""
        self._is_interrupted = True

    def close(self) -> None:
        """Frees both contexts, once no other thread works with them. The model is not the session's."""
        self.interrupt()
        if self.drafter is not None:
            self.drafter.close()
        self.target.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, slot: Slot, prompt: Sequence[int], *, wants_rows: bool = False) -> int:
        """Makes `prompt` what is to stand in the slot's cache; the number of its tokens that do already.

        They are the slot's own or another's, whose cells it then shares. The rest is evaluated by `step`. A prompt
        that `wants_rows` is evaluated from its beginning, in passes that give logits for each of its tokens: these are
        the slot's `read_rows` after a pass.

        Raises:
            WindowFull: the prompt leaves no room for a token after it.
            UsageError: the prompt is empty.
        """
        slot.check_prompt(prompt)
        with self.target.lock:
            prompt = list(prompt)  # it may be slot.tokens
            slot.drop_unfinished()
            slot.wants_rows = wants_rows
            same = 0 if wants_rows else common_prefix(slot.tokens, prompt)
            others = {other: common_prefix(other.tokens, prompt) for other in self.slots if other is not slot}
            if wants_rows:
                others.clear()
            source = max(others, key=others.__getitem__, default=slot)
            if others.get(source, 0) > same:
                slot.share(source, same := others[source])
            elif same < len(slot.tokens):
                slot.cut(same)
            if slot.mtp_rows is not None:
                slot.mtp_rows.forget(same)
            slot.prompt = prompt[same:]
            slot.prepare(shows_mtp=self.shows_mtp)
            slot.stats.n_reused += len(slot.tokens)
            return len(slot.tokens)

    def insert(self, slot: Slot, tokens: Sequence[int], sampler: Sampler) -> None:
        """Goes on as if `tokens` had been drawn after the token drawn last; the sampler counts them, too.

        Raises:
            WindowFull: they do not fit.
        """
        with self.target.lock:
            slot.insert(tokens)
            slot.wants_rows = False
            slot.prepare(shows_mtp=self.shows_mtp)
            for token in tokens:
                sampler.note(token)

    def drop_unfinished(self, slot: Slot) -> None:
        """Leaves the slot with what is evaluated and drawn: no drafts, no token to evaluate, no prompt to read."""
        with self.target.lock:
            slot.drop_unfinished()

    def reset(self, slot: Slot) -> None:
        """Forgets everything the slot has evaluated."""
        with self.target.lock:
            slot.reset()

    def step(self, samplers: Mapping[Slot, Sampler]) -> dict[Slot, Outcome]:
        """Goes on with the slots that `samplers` names: at most one pass, then a token for each that has logits.

        A slot that is still reading its prompt is not in the result. A slot whose draft was right gives its next token
        in a step without a pass, before the others go on. One that is cancelled, has no room left, or whose sampler can
        draw nothing, has ended; the others are not disturbed.

        Raises:
            BackendError: llama.cpp failed; every slot is as it was before.
        """
        with self.target.lock:
            outcomes: dict[Slot, Outcome] = {}
            slots = []
            for slot in samplers:
                if slot.hear_cancel():
                    outcomes[slot] = Ended("cancelled")
                else:
                    slots.append(slot)
            ready = [slot for slot in slots if slot.can_draw]
            if slots and not ready:
                outcomes.update(self._evaluate(slots))
                ready = [slot for slot in slots if slot.can_draw]
            for slot in ready:
                try:
                    outcomes[slot] = self._draw(slot, samplers[slot])
                except MimoGgufError as error:
                    outcomes[slot] = Ended("failed", error)
            return outcomes

    def evaluate(self, slots: Sequence[Slot]) -> dict[Slot, Ended]:
        """Makes one pass over what these slots have waiting; those of them that could not go on.

        Raises:
            BackendError: llama.cpp failed; every slot is as it was before.
        """
        with self.target.lock:
            return self._evaluate(slots)

    def _evaluate(self, slots: Sequence[Slot]) -> dict[Slot, Ended]:
        started = time.perf_counter()
        ended: dict[Slot, Ended] = {}
        drawing, reading = [], []
        shows_mtp = self.shows_mtp
        for slot in slots:
            if slot.drawn is not None and not slot.room:
                ended[slot] = Ended("window")
                continue
            slot.prepare(shows_mtp=shows_mtp)
            if slot.drawn is not None:
                drawing.append(slot)
            elif slot.prompt:
                reading.append(slot)
        if not drawing and not reading:
            return ended
        shares = self._plan(drawing, reading)
        first_rows = self._decode(shares)
        if first_rows is None:
            return ended | {share.slot: Ended("cancelled") for share in shares if share.slot.hear_cancel()}
        seconds = time.perf_counter() - started
        self._waits.record(self._batch.n_tokens, seconds, reads=bool(reading))
        self._cycle.seconds = seconds
        for share, first_row in zip(shares, first_rows, strict=True):
            share.slot.note_evaluated(share.tokens, first_row, seconds)
        return ended

    def _plan(self, drawing: Sequence[Slot], reading: Sequence[Slot]) -> list[Share]:
        """What each slot contributes: drawn tokens with their drafts, then as much of the prompts as there is room.

        The shortest prompt comes first: its conversation waits least, and the others hardly longer for it.
        """
        drafts = {}
        if self.drafter is not None:
            self._begin_cycle(len(drawing), is_pure=not reading)
            drafts = self._draft(self.drafter, drawing)
        shares = []
        for slot in drawing:
            assert slot.drawn is not None
            tokens = [slot.drawn, *drafts.get(slot, ())]
            shares.append(Share(slot, tokens, len(tokens)))
        if reading:
            n_taken = sum(len(share.tokens) for share in shares)
            shares += plan_reading(reading, self._batch.capacity - n_taken, self.target.n_outputs_max - n_taken)
        if self.options.exact:  # llama.cpp puts rows of sequences that follow one another into one graph all the same
            shares.sort(key=lambda share: -share.slot.seq_id)
        return shares

    def _draft(self, drafter: Drafter, drawing: Sequence[Slot]) -> dict[Slot, list[int]]:
        if not self.drafting_allowed or not drawing or not self.control.wants_draft():
            return {}
        wanted = {
            slot: DraftRequest(slot.mtp_rows, slot.drawn, slot.room - 1)
            for slot in drawing
            if slot.mtp_rows is not None and slot.drawn is not None and slot.can_draft
        }
        self._cycle.tried = bool(wanted)
        return dict(zip(wanted, drafter.draft(list(wanted.values())), strict=True))

    def _decode(self, shares: Sequence[Share]) -> list[int] | None:
        """The first row of each share in the batch evaluated; None if it was interrupted or all were cancelled."""
        since, batch = LOG.mark, self._batch
        batch.clear()
        rows = [
            batch.add(tokens, len(slot.tokens), n_outputs=n_outputs, seq_id=slot.seq_id)
            for slot, tokens, n_outputs in shares
        ]
        for slot in self.slots:
            slot.lose_row()
        if not self.options.exact and (len(self.slots) > 1 or not shares[0].slot.prompt):
            self._most_rows = max(self._most_rows, batch.n_tokens)
        self._is_interrupted = False
        is_reading = any(share.slot.prompt for share in shares)
        try:
            if is_reading:  # a pass that may take long; asking is not free
                result = self.target.decode(batch.native, lambda: self._is_to_stop(shares))
            else:
                result = self.target.decode(batch.native)
            if result == 0 and self.shows_mtp:
                for (slot, tokens, _), first in zip(shares, rows, strict=True):
                    assert slot.mtp_rows is not None
                    n = len(tokens) if slot.prompt else 1  # drafts follow when they are drawn
                    slot.mtp_rows.observe(tokens[:n], len(slot.tokens), self._states(first, n))
        except BaseException:
            self._take_back(shares)
            raise
        if result == 0:
            return rows
        self._take_back(shares)
        if result == 2:
            return None
        raise BackendError(
            f"llama.cpp failed at position {len(shares[0].slot.tokens)} (llama_decode {result}): {LOG.reason(since)}",
            hint="run again with --verbose for its log",
        )

    def _is_to_stop(self, shares: Sequence[Share]) -> bool:
        return self._is_interrupted or all(share.slot.is_cancelled for share in shares)

    def _take_back(self, shares: Sequence[Share]) -> None:
        if not self.target.closed:
            for slot, _, _ in shares:
                self.target.forget(len(slot.tokens), slot.seq_id)

    def _draw(self, slot: Slot, sampler: Sampler) -> Drawn:
        row = slot.row
        assert row is not None
        started = time.perf_counter()
        token = sampler.sample(self.target, row)
        if sampler.greedy and self._most_rows > 1:
            gap = near_tie(self.model.file_type, self._most_rows)
            slot.stats.n_near_ties += is_near_tie(self.target.logits(row), gap)
        drained = token != slot.next_draft
        if drained:
            seconds = time.perf_counter() - started
            slot.note_drawn(token, seconds)
        else:
            state = self._states(row + 1, 1)
            seconds = time.perf_counter() - started
            slot.accept_draft(state, seconds)
        cycle = self._cycle
        cycle.seconds += seconds
        cycle.n_tokens += 1
        cycle.n_drained += drained
        return Drawn(token, row)

    def _states(self, first_row: int, n: int) -> Floats:
        """The trunk's states of rows of the last pass, shape (n, n_embd). A view: valid until the next pass."""
        return self.target.hidden(self._batch.n_tokens)[first_row : first_row + n]

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
