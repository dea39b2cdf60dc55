"""A session: the contexts of a run, and passes over what its conversations have to evaluate next.

A pass is one decode of the target for all conversations at work. It evaluates the token that each has drawn, the drafts
after it (one MTP decode for all), and parts of the prompts that are being read. Each conversation then draws from its
own rows with its own sampler.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from mimo_gguf.core.errors import BackendError, MimoGgufError
from mimo_gguf.engine.draft_control import DraftControl
from mimo_gguf.engine.draft_gate import RecentDrafts
from mimo_gguf.engine.drafting import Drafter, DraftRequest, MtpRows
from mimo_gguf.engine.near_ties import near_tie
from mimo_gguf.engine.options import SessionOptions as SessionOptions
from mimo_gguf.engine.pace import Pace
from mimo_gguf.engine.sampling import Sampler
from mimo_gguf.engine.shares import Share, plan_reading
from mimo_gguf.engine.slot import Slot, common_prefix
from mimo_gguf.engine.stats import SessionStats, total
from mimo_gguf.engine.waits import Waits
from mimo_gguf.llama.api import Floats, LlamaContext, LlamaModel, open_context, open_mtp_context
from mimo_gguf.llama.batch import Batch
from mimo_gguf.llama.best import lead
from mimo_gguf.llama.log import LOG


class Drawn(NamedTuple):
    """A token was drawn from the logits in row `row` of the last pass, which are valid until the next pass."""

    token: int
    row: int


class Ended(NamedTuple):
    """A slot cannot go on: it was cancelled, its window is full, or drawing failed with `error`."""

    reason: Literal["cancelled", "window", "failed"]
    error: MimoGgufError | None = None


Outcome = Drawn | Ended


class Session:
    """The target context, the MTP context and `n_parallel` slots.

    Methods may be called from any thread; they run one at a time. The functions of `single` drive one conversation,
    `step` drives several.

    Attributes:
        window: the number of tokens that one conversation may have, prompt and answer together.
        drafter: None if nothing is drafted.
        drafting_allowed: set it to False to switch drafting off.
    """

    def __init__(self, model: LlamaModel, options: SessionOptions | None = None) -> None:
        """Raises BackendError if llama.cpp cannot make the contexts."""
        self.model = model
        options = options or SessionOptions()
        self.options = options if options.n_ctx else replace(options, n_ctx=model.n_ctx_train * options.n_parallel)
        self.drafting_allowed = True
        self.target: LlamaContext = open_context(model, self.options.for_context())
        self.window = self.target.n_cells // self.options.n_parallel
        self.drafter: Drafter | None = None
        self._waits = Waits()
        try:
            if self.options.mtp and model.n_mtp:
                self.drafter = self._open_drafter()
            self._batch = Batch(self.target.options.n_batch)
        except BaseException:
            self.close()
            raise
        adaptive, n_draft, numbers = self.options.adaptive, self.options.n_draft, range(self.options.n_parallel)
        self.slots = tuple(Slot(self.target, i, self.window, self._rows_of(i), n_draft) for i in numbers)
        # Whether drafting pays depends on how many conversations draw from a pass: there is a control for each number.
        self._controls = [DraftControl(adaptive=adaptive, n_drawing=1 + i, n_draft=n_draft) for i in numbers]
        self._n_drawing = 1
        self._most_rows = 1  # of all passes whose logits may differ from those of one conversation without drafts
        self._gap = 0.0  # between two logits whose order they may change
        self._cycle = _Cycle()
        self._is_interrupted = self._was_interrupted = False  # this pass, and the one before
        self._pace = Pace(self.options.max_pause_s)

    def _open_drafter(self) -> Drafter:
        options, n_batch = self.options, self.target.options.n_batch
        n_ubatch = min(max(options.n_ubatch_mtp, options.n_outputs_max), n_batch)
        context = open_mtp_context(self.target, n_ubatch=n_ubatch)
        return Drafter(context, n_draft=options.n_draft, p_min=options.p_min, hidden=options.hidden)

    def _rows_of(self, seq_id: int) -> MtpRows | None:
        return None if self.drafter is None else MtpRows(self.drafter, seq_id)

    @property
    def slot(self) -> Slot:
        """The first slot, which is the only one in a session for one conversation."""
        return self.slots[0]

    @property
    def stats(self) -> SessionStats:
        """The statistics of all slots together."""
        return total([slot.stats for slot in self.slots])

    @property
    def control(self) -> DraftControl:
        """The draft control for the number of conversations that drew from the last pass."""
        return self._controls[self._n_drawing - 1]

    def _shows_mtp(self, slot: Slot) -> bool:
        """Whether the MTP blocks see what is evaluated for a slot: it costs time and is needed only for drafting."""
        allowed = self.drafter is not None and self.drafting_allowed
        return allowed and self.control.wants_rows and slot.recent.wants_rows

    def interrupt(self) -> None:
        """Stops a running pass that reads a prompt, unless the one before was stopped. For any thread or handler."""
        self._is_interrupted = True

    def close(self) -> None:
        """Frees both contexts, as soon as no other thread uses them. The model stays loaded."""
        self.interrupt()
        if self.drafter is not None:
            self.drafter.close()
        self.target.close()
        self._waits.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, slot: Slot, prompt: Sequence[int], *, wants_rows: bool = False, n_draft: int | None = None) -> int:
        """Gives a slot its prompt. Returns the number of leading tokens that are in the KV cache already.

        These tokens are the slot's own, or another slot's, whose cells are then shared. `step` evaluates the rest.

        Args:
            wants_rows: evaluate the prompt from its beginning, with logits for each token: `Slot.read_rows` says after
                a pass which.
            n_draft: tokens to draft at a time for this answer, at most the session's number, which None means; 0 for
                none.

        Raises:
            WindowFull: the prompt leaves no room for a token after it.
            UsageError: the prompt is empty.
        """
        slot.check_prompt(prompt)
        with self.target.lock:
            prompt = list(prompt)  # it may be slot.tokens
            slot.drop_unfinished()
            slot.wants_rows = wants_rows
            slot.draft_limit = self.options.n_draft if n_draft is None else min(n_draft, self.options.n_draft)
            slot.recent = RecentDrafts(slot.draft_limit)
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
            slot.prepare(shows_mtp=self._shows_mtp(slot))
            slot.stats.n_reused += len(slot.tokens)
            return len(slot.tokens)

    def insert(self, slot: Slot, tokens: Sequence[int], sampler: Sampler) -> None:
        """Inserts `tokens` after the token drawn last, as if they had been drawn. The sampler counts them, too.

        Raises:
            WindowFull: the tokens do not fit into the window.
        """
        with self.target.lock:
            slot.insert(tokens)
            slot.wants_rows = False
            slot.prepare(shows_mtp=self._shows_mtp(slot))
            for token in tokens:
                sampler.note(token)

    def drop_unfinished(self, slot: Slot) -> None:
        """Leaves the slot with its evaluated tokens only: no drafts, no token to evaluate, no prompt to read."""
        with self.target.lock:
            slot.drop_unfinished()

    def reset(self, slot: Slot) -> None:
        """Empties the slot."""
        with self.target.lock:
            slot.reset()

    def step(self, samplers: Mapping[Slot, Sampler]) -> dict[Slot, Outcome]:
        """Makes at most one pass over these slots, then draws a token for each slot that has logits.

        A slot that is still reading its prompt is not in the result. A slot whose draft was right gives its next token
        in a step without a pass, before the others go on. A slot has ended if it was cancelled, its window is full, or
        its sampler can draw no token. That does not disturb the others.

        Raises:
            BackendError: llama.cpp failed; every slot is as it was before.
        """
        with self.target.lock:
            outcomes: dict[Slot, Outcome] = {}
            slots = []
            for slot in samplers:
                if slot.clear_cancel():
                    outcomes[slot] = Ended("cancelled")
                else:
                    slots.append(slot)
            ready = [slot for slot in slots if slot.can_draw]
            if slots and not ready:
                outcomes.update(self._evaluate(slots))
                ready = [slot for slot in slots if slot.can_draw]
            return outcomes | self._draw_all(ready, samplers)

    def plain_passes(self, samplers: Mapping[Slot, Sampler]) -> Generator[dict[Slot, Outcome], None, None]:
        """Makes passes that evaluate the token each of these slots has drawn, and draw its next one: nothing else.

        Yields after each pass what `step` would return. It ends before a pass that only `step` can make: with drafts or
        prompts, or of a slot that was cancelled or whose window is full. Beside llama.cpp it costs less than
        `step`, which matters if a pass takes less than a millisecond.

        Raises:
            BackendError: llama.cpp failed; every slot is as it was before.
        """
        with self.target.lock:
            slots = list(samplers)
            if self.options.exact:  # in the order that `_plan` gives them
                slots.sort(key=lambda slot: -slot.seq_id)
            while slots and self._is_plain(slots):
                started = time.perf_counter()
                if self.drafter is not None:
                    self._begin_cycle(slots, is_pure=True)
                shares = [Share(slot, [slot.drawn], 1) for slot in slots if slot.drawn is not None]
                if not self._pass_over(shares, started, reads=False):
                    return
                yield self._draw_all(slots, samplers)

    def _is_plain(self, slots: Sequence[Slot]) -> bool:
        """Whether the next pass over these slots is plain."""
        if self.drafter is not None and len(slots) != self._n_drawing:  # `control` is not theirs yet
            return False
        return all(slot.only_draws and not self._shows_mtp(slot) for slot in slots)

    def _draw_all(self, slots: Sequence[Slot], samplers: Mapping[Slot, Sampler]) -> dict[Slot, Outcome]:
        """Draws a token for each of these slots, which have logits."""
        outcomes: dict[Slot, Outcome] = {}
        for slot in slots:
            try:
                outcomes[slot] = self._draw(slot, samplers[slot])
            except MimoGgufError as error:
                outcomes[slot] = Ended("failed", error)
        return outcomes

    def evaluate(self, slots: Sequence[Slot]) -> dict[Slot, Ended]:
        """Makes one pass over what these slots have to evaluate. Returns the slots that could not go on.

        Raises:
            BackendError: llama.cpp failed; every slot is as it was before.
        """
        with self.target.lock:
            return self._evaluate(slots)

    def _evaluate(self, slots: Sequence[Slot]) -> dict[Slot, Ended]:
        started = time.perf_counter()
        ended: dict[Slot, Ended] = {}
        drawing, reading = [], []
        for slot in slots:
            if slot.drawn is not None and not slot.room:
                ended[slot] = Ended("window")
                continue
            if self.drafter is not None or slot.drawn is None:  # else there is nothing to prepare
                slot.prepare(shows_mtp=self._shows_mtp(slot))
            if slot.drawn is not None:
                drawing.append(slot)
            elif slot.prompt:
                reading.append(slot)
        if not drawing and not reading:
            return ended
        shares = self._plan(drawing, reading)
        if not self._pass_over(shares, started, reads=bool(reading)):
            return ended | {share.slot: Ended("cancelled") for share in shares if share.slot.clear_cancel()}
        return ended

    def _pass_over(self, shares: Sequence[Share], started: float, *, reads: bool) -> bool:
        """Makes the pass that was begun at `started`. Returns whether it was made, as `_decode` says."""
        first_rows = self._decode(shares)
        if first_rows is None:
            return False
        seconds = time.perf_counter() - started
        self._waits.record(self._batch.n_tokens, seconds, reads=reads)
        self._cycle.seconds = seconds
        if reads:
            self._pace.record(self._batch.n_tokens, seconds)
        for share, first_row in zip(shares, first_rows, strict=True):
            share.slot.note_evaluated(share.tokens, first_row, seconds)
        return True

    def _plan(self, drawing: Sequence[Slot], reading: Sequence[Slot]) -> list[Share]:
        """Plans the next pass: drawn tokens with their drafts, then as much of the prompts as there is room for."""
        drafts = {}
        if self.drafter is not None:
            self._begin_cycle(drawing, is_pure=not reading)
            drafts = self._draft(self.drafter, drawing)
        shares = []
        for slot in drawing:
            assert slot.drawn is not None
            tokens = [slot.drawn, *drafts.get(slot, ())]
            shares.append(Share(slot, tokens, len(tokens)))
        if reading:
            n_rows = sum(len(share.tokens) for share in shares)
            room = self._pace.room(n_rows, self._batch.capacity - n_rows)
            shares += plan_reading(reading, room, self.target.n_outputs_max - n_rows)
        if self.options.exact:  # in ascending order llama.cpp would put rows of several sequences into one graph
            shares.sort(key=lambda share: -share.slot.seq_id)
        return shares

    def _draft(self, drafter: Drafter, drawing: Sequence[Slot]) -> dict[Slot, list[int]]:
        if not self.drafting_allowed or not drawing or not self.control.wants_draft():
            return {}
        wanted = {
            slot: DraftRequest(slot.mtp_rows, slot.drawn, min(slot.room - 1, slot.draft_limit))
            for slot in drawing
            if slot.mtp_rows is not None and slot.drawn is not None and slot.can_draft
        }
        self._cycle.n_right = dict.fromkeys(wanted, 0)
        return dict(zip(wanted, drafter.draft(list(wanted.values())), strict=True))

    def _decode(self, shares: Sequence[Share]) -> list[int] | None:
        """Evaluates the shares. Returns the first row of each; None if interrupted, or if all were cancelled."""
        since, batch = LOG.mark, self._batch
        batch.clear()
        rows = [
            batch.add(tokens, len(slot.tokens), n_outputs=n_outputs, seq_id=slot.seq_id)
            for slot, tokens, n_outputs in shares
        ]
        for slot in self.slots:
            slot.lose_row()
        if batch.n_tokens > self._most_rows and not self.options.exact:
            self._note_rows(shares)
        self._was_interrupted, self._is_interrupted = self._is_interrupted and not self._was_interrupted, False
        is_reading = any(share.slot.prompt for share in shares)
        try:
            if is_reading:  # only such a pass may be long; the callback costs time
                result = self.target.decode(batch.native, lambda: self._is_to_stop(shares))
            else:
                result = self.target.decode(batch.native)
            if result == 0:
                for (slot, tokens, _), first in zip(shares, rows, strict=True):
                    if slot.mtp_rows is None or not self._shows_mtp(slot):
                        continue
                    n = len(tokens) if slot.prompt else 1  # drafts are observed when they are drawn
                    slot.mtp_rows.observe(tokens[:n], len(slot.tokens), self._states(first, n))
        except BaseException:
            self._undo(shares)
            raise
        if result == 0:
            return rows
        self._undo(shares)
        if result == 2:
            return None
        raise BackendError(
            f"llama.cpp failed at position {len(shares[0].slot.tokens)} (llama_decode {result}): {LOG.reason(since)}",
            hint="run again with --verbose for its log",
        )

    def _note_rows(self, shares: Sequence[Share]) -> None:
        """Notes a pass with more rows than any before, unless only a prompt is read that nothing is computed beside."""
        if len(self.slots) > 1 or not shares[0].slot.prompt:
            self._most_rows = self._batch.n_tokens
            self._gap = near_tie(self.model.file_type, self._most_rows)

    def _is_to_stop(self, shares: Sequence[Share]) -> bool:
        return (self._is_interrupted and not self._was_interrupted) or all(share.slot.is_cancelled for share in shares)

    def _undo(self, shares: Sequence[Share]) -> None:
        """Removes from the KV cache what a pass over `shares` may have left there."""
        if not self.target.closed:
            for slot, _, _ in shares:
                self.target.forget(len(slot.tokens), slot.seq_id)

    def _draw(self, slot: Slot, sampler: Sampler) -> Drawn:
        row = slot.row
        assert row is not None
        started = time.perf_counter()
        token = sampler.sample(self.target, row)
        if self._gap and sampler.greedy:
            slot.stats.n_near_ties += lead(self.target, row) < self._gap
        cycle, drained = self._cycle, token != slot.next_draft
        if drained:
            seconds = time.perf_counter() - started
            slot.note_drawn(token, seconds)
            if slot in cycle.n_right:
                slot.recent.record(cycle.n_right[slot])
        else:
            state = self._states(row + 1, 1)
            seconds = time.perf_counter() - started
            slot.accept_draft(state, seconds)
            if slot in cycle.n_right:  # else the pass after it could not be made
                cycle.n_right[slot] += 1
        cycle.seconds += seconds
        cycle.n_tokens += 1
        cycle.n_drained += drained
        return Drawn(token, row)

    def _states(self, first_row: int, n: int) -> Floats:
        """The trunk's hidden states of rows of the last pass, shape (n, n_embd): a view, valid until the next pass."""
        return self.target.hidden(self._batch.n_tokens)[first_row : first_row + n]

    def _begin_cycle(self, drawing: Sequence[Slot], *, is_pure: bool) -> None:
        """Records the last pass in its draft control, if it read no prompt and all its tokens were drawn.

        Then it begins the next one, which conversations that are left out of drafting let pass by.
        """
        cycle = self._cycle
        if cycle.n_drawing and cycle.n_drained == cycle.n_drawing:
            self._controls[cycle.n_drawing - 1].record(
                drafted=len(cycle.n_right), seconds=cycle.seconds, n_tokens=cycle.n_tokens, all_recent=cycle.all_recent
            )
        self._cycle = _Cycle(len(drawing) if is_pure else 0, [slot.recent for slot in drawing if slot.draft_limit])
        if drawing:
            self._n_drawing = len(drawing)
        for slot in drawing:
            if not slot.recent.drafts:
                slot.recent.pass_by()


@dataclass(slots=True)
class _Cycle:
    """One pass of the target and the tokens drawn from it.

    Attributes:
        n_drawing: slots that draw from the pass; 0 if it also reads prompts, so that its time cannot be compared.
        all_recent: the recent drafts of the slots that may draft.
        n_drained: slots that have drawn their last token from it.
        n_right: the right drafts of each slot for which some were requested, even if none was sure enough to be given.
        n_tokens: tokens drawn from the pass.
        seconds: the time of the pass and of drawing.
    """

    n_drawing: int = 0
    all_recent: Sequence[RecentDrafts] = ()
    n_drained: int = 0
    n_right: dict[Slot, int] = field(default_factory=dict)
    n_tokens: int = 0
    seconds: float = 0.0
