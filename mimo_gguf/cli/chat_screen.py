"""Shows a streamed answer: Markdown in a terminal, the bare answer in a pipe, a line of JSON for programs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from rich.segment import SegmentLines

from mimo_gguf.chat.reasoning import Kind, Piece
from mimo_gguf.cli import ui
from mimo_gguf.cli.live_rows import Clock, LiveRows, Row, dimmed
from mimo_gguf.cli.markdown import markdown_rows, split_blocks
from mimo_gguf.core.units import counted
from mimo_gguf.runtime.model import Answer, Model

REASONING_VIEWS: Final = ("show", "fold", "hide")
_REDRAW_S: Final = 0.05
_DRAWING_SHARE: Final = 0.03  # of the time at most: a long block is drawn less often


class Screen(Protocol):
    """The display of an answer."""

    def begin(self) -> None:
        """Called before the prompt is read."""

    def progress(self, done: int, total: int) -> None:
        """Called with the prompt tokens that are read so far, and their total."""

    def show(self, piece: Piece, n_tokens: int) -> None:
        """Shows a piece of the answer; `n_tokens` have been generated with it."""

    def warn(self, text: str) -> None:
        """Shows a warning while the answer comes."""

    def stop(self) -> None:
        """Finishes what is shown, because nothing more will come; called after an error as well."""

    def end(self, answer: Answer, model: Model) -> None:
        """Called when the answer is complete or was stopped; not if an error or an interrupt ended it."""


class PipeScreen:
    """Writes the answer on stdout as it comes, without reasoning, and a line of figures on stderr if wanted."""

    def __init__(self, figures: bool) -> None:
        self._figures = figures

    def begin(self) -> None:
        pass

    def progress(self, done: int, total: int) -> None:
        pass

    def stop(self) -> None:
        pass

    def warn(self, text: str) -> None:
        ui.print_warning(text)

    def show(self, piece: Piece, n_tokens: int) -> None:
        if piece.kind is Kind.ANSWER:
            sys.stdout.write(piece.text)
            sys.stdout.flush()

    def end(self, answer: Answer, model: Model) -> None:
        if answer.text and not answer.text.endswith("\n"):
            sys.stdout.write("\n")
        sys.stdout.flush()
        if self._figures:
            ui.print_note(status_line(answer, model))
        for warning in warnings(model, answer):
            ui.print_warning(warning)


class JsonScreen:
    """Writes one JSON object on one line when the answer is complete."""

    def begin(self) -> None:
        pass

    def progress(self, done: int, total: int) -> None:
        pass

    def stop(self) -> None:
        pass

    def show(self, piece: Piece, n_tokens: int) -> None:
        pass

    def warn(self, text: str) -> None:
        ui.print_warning(text)

    def end(self, answer: Answer, model: Model) -> None:
        ui.print_json(answer_json(answer, model), indent=None)
        if is_cut_off_thinking(answer):
            ui.print_warning(warnings(model, answer)[-1])


class TerminalScreen:
    """Shows reasoning dimmed and the answer as Markdown.

    What may still change is redrawn in place: an unfinished row of reasoning, or an unfinished Markdown block.
    """

    def __init__(self, reasoning: str = "show") -> None:
        self.reasoning = reasoning  # one of REASONING_VIEWS
        self.n_left_out = 0  # tokens of earlier reasoning that are not in the prompt
        self._kind: Kind | None = None
        self._thinking_since_s = 0.0
        self._n_reasoning = 0
        self._unfinished = ""  # row of reasoning, or block of the answer
        self._gap = False  # a blank row is due before what comes next
        self._live = LiveRows(ui.out)
        self._clock = Clock(self._live)
        self._next_draw_s = 0.0
        self._warned: set[str] = set()

    def begin(self) -> None:
        self._clock.start("reading the prompt")

    def progress(self, done: int, total: int) -> None:
        self._clock.text = f"reading {done} of {total} tokens" if done < total else f"{total} tokens read"

    def warn(self, text: str) -> None:
        self._print_unfinished()
        ui.print_warning(text)

    def show(self, piece: Piece, n_tokens: int) -> None:
        self._clock.stop()
        if piece.kind is not self._kind:
            self._begin(piece.kind)
        text = ui.visible(piece.text)
        if piece.kind is Kind.ANSWER:
            self._show_answer(text)
        elif self.reasoning == "show":
            self._n_reasoning = n_tokens
            self._show_reasoning(text)
        else:
            self._n_reasoning = n_tokens
            self._draw(lambda: _dimmed(f"thinking ... {n_tokens} tokens"))

    def _begin(self, kind: Kind) -> None:
        self._end_reasoning()
        self._kind = kind
        if kind is Kind.REASONING:
            self._thinking_since_s = time.monotonic()

    def _end_reasoning(self) -> None:
        self._print_unfinished()
        if self._kind is Kind.REASONING and self.reasoning == "fold":
            seconds = time.monotonic() - self._thinking_since_s
            self._print(_dimmed(f"thought for {self._n_reasoning} tokens, {seconds:.1f} s"))
        self._gap = self._kind is Kind.REASONING and self.reasoning != "hide"

    def _show_reasoning(self, text: str) -> None:
        *full, row = _dimmed(self._unfinished + text)
        with ui.out:  # one write
            self._print(full)
            self._unfinished = "".join(segment.text for segment in row)
            self._draw(lambda: [row], now=bool(full))

    def _show_answer(self, text: str) -> None:
        whole, self._unfinished = split_blocks(self._unfinished + text)
        with ui.out:
            self._print_block(whole)
            self._draw(lambda: markdown_rows(self._unfinished, ui.out), now=bool(whole))

    def _print_unfinished(self) -> None:
        self._live.erase()
        text, self._unfinished = self._unfinished, ""
        if self._kind is Kind.ANSWER:
            self._print_block(text)
        elif text:
            self._print(_dimmed(text))

    def _print_block(self, text: str) -> None:
        rows = markdown_rows(text, ui.out)
        self._print(rows)
        self._gap = self._gap or bool(rows)

    def _print(self, rows: list[Row]) -> None:
        if rows:
            self._live.erase()
            ui.out.print(SegmentLines([[], *rows] if self._gap else rows, new_lines=True))
            self._gap = False

    def _draw(self, make_rows: Callable[[], list[Row]], *, now: bool = False) -> None:
        """Replaces what is drawn below the printed rows, if it was not drawn a moment ago."""
        started_s = time.monotonic()
        if not now and started_s < self._next_draw_s:
            return
        rows = make_rows()
        self._live.draw([[], *rows] if rows and self._gap else rows)
        drawn_s = time.monotonic()
        self._next_draw_s = drawn_s + max(_REDRAW_S, (drawn_s - started_s) / _DRAWING_SHARE)

    def stop(self) -> None:
        self._clock.stop()
        self._end_reasoning()
        self._kind, self._gap = None, False

    def end(self, answer: Answer, model: Model) -> None:
        left_out = [f"{self.n_left_out} tokens of earlier reasoning left out"] if self.n_left_out else []
        for line in ui.joined(status_parts(answer, model) + left_out, ui.err.width, _SEPARATOR):
            ui.print_note(line)
        for warning in warnings(model, answer):
            if warning not in self._warned:
                ui.print_warning(warning)
        self._warned.update(warnings(model))


def _dimmed(text: str) -> list[Row]:
    return dimmed(text, ui.out)


_CUT_OFF: Final = {"max_tokens": "stopped at --max-tokens", "window": "the context window is full"}


def _ending(answer: Answer) -> str:
    """The reason why the answer ended; empty if the model ended it."""
    if answer.finish_reason == "length":
        return _CUT_OFF[str(answer.stop_reason or "max_tokens")]
    if answer.finish_reason == "abort":
        return "stopped"
    return "" if answer.stop_reason is None else "stopped at a stop string"


def status_line(answer: Answer, model: Model) -> str:
    """The line below an answer: `42 tokens, 31.0 tok/s · MTP drafts 87% right, x1.52 · context 512 of 8192`."""
    return _SEPARATOR.join(status_parts(answer, model))


_SEPARATOR: Final = " · "


def status_parts(answer: Answer, model: Model) -> list[str]:
    """The parts that `status_line` joins."""
    n, rate = answer.stats.n_generated, answer.stats.tokens_per_s
    if not answer.tokens:
        return [_ending(answer) or "the answer is empty"]
    parts = [counted(n, "token")]
    if rate and n >= _ENOUGH_TOKENS:
        parts[0] += f", {rate:.1f} tok/s"
    if model.has_mtp:
        parts.append(_draft_text(answer, model))
    parts.append(f"context {answer.n_prompt + len(answer.tokens)} of {model.session.window}")
    return parts + [text for text in (_ending(answer),) if text]


_ENOUGH_TOKENS: Final = 8  # the first comes with the prompt and takes no time, so that fewer would seem too fast


def _draft_text(answer: Answer, model: Model) -> str:
    verdict = model.session.control.verdict
    if not model.session.drafting_allowed:
        return "MTP off"
    facts = [] if answer.stats.acceptance is None else [f"{answer.stats.acceptance:.0%} right"]
    if verdict.speed_up is not None:
        facts.append(f"x{verdict.speed_up:.2f}")
    if not verdict.drafting:
        facts.append("off")
    return f"MTP drafts {', '.join(facts)}" if facts else "no drafts"


CUT_OFF_THINKING: Final = 4  # exit code


def is_cut_off_thinking(answer: Answer) -> bool:
    """Whether tokens ran out before the model had said anything but reasoning."""
    return answer.finish_reason == "length" and bool(answer.reasoning) and not answer.text.strip()


def warnings(model: Model, answer: Answer | None = None) -> list[str]:
    """The warnings about a session and an answer, for people."""
    found = [] if model.session.stats.warning is None else [model.session.stats.warning]
    if answer is not None and is_cut_off_thinking(answer):
        more = "start with a larger --ctx" if answer.stop_reason == "window" else "raise --max-tokens"
        found.append(f"the answer was cut off while the model was thinking: {more}, or use --think-budget")
    return found


def answer_json(answer: Answer, model: Model) -> dict[str, Any]:
    """The JSON document of an answer, for programs."""
    stats, verdict = answer.stats, model.session.control.verdict
    return {
        "text": answer.text,
        "reasoning": answer.reasoning,
        "finish_reason": answer.finish_reason,
        "stop_reason": answer.stop_reason,
        "warnings": warnings(model, answer),
        "seed": answer.seed,
        "tokens": {
            "prompt": answer.n_prompt,
            "reused": stats.n_reused,
            "generated": stats.n_generated,
            "window": model.session.window,
        },
        "timings": {
            "prompt_s": round(stats.prompt_s, 6),
            "generation_s": round(stats.generation_s, 6),
            "tokens_per_s": stats.tokens_per_s,
            "passes": stats.n_passes,
        },
        "mtp": {
            "present": model.has_mtp,
            "drafting": model.has_mtp and model.session.drafting_allowed and verdict.drafting,
            "drafted": stats.n_drafted,
            "accepted": stats.n_accepted,
            "acceptance": stats.acceptance,
            "acceptance_by_place": stats.acceptance_by_place,
            "plain_tokens_per_s": verdict.plain_tokens_per_s,
            "drafted_tokens_per_s": verdict.drafted_tokens_per_s,
            "near_ties": stats.n_near_ties,
        },
    }
