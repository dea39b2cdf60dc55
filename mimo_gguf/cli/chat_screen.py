"""How a streamed answer looks: Markdown in a terminal, the bare answer in a pipe, a line of JSON for programs."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Final, Protocol

from rich.live import Live
from rich.markdown import Markdown
from rich.text import Text
from rich.theme import Theme

from mimo_gguf.cli import ui
from mimo_gguf.runtime.model import Answer, Model
from mimo_gguf.runtime.reasoning import Kind, Piece

REASONING_VIEWS: Final = ("show", "fold", "hide")
_MARKDOWN: Final = Theme({"markdown.code": "bold cyan", "markdown.code_block": "cyan"})  # rich's are on black
_REFRESH_S: Final = 0.05


class Screen(Protocol):
    """Where an answer goes while it comes."""

    def progress(self, done: int, total: int) -> None:
        """Prompt tokens read so far."""

    def show(self, piece: Piece, n_tokens: int) -> None:
        """A piece of the answer; `n_tokens` have been generated with it."""

    def warn(self, text: str) -> None:
        """Something to know while the answer comes."""

    def end(self, answer: Answer, model: Model) -> None: ...


class PipeScreen:
    """The answer on stdout as it comes, reasoning nowhere, one line of figures on stderr when that is a terminal."""

    def progress(self, done: int, total: int) -> None:
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
        ui.print_note(status_line(answer, model))
        for warning in warnings(answer, model):
            ui.print_warning(warning)


class JsonScreen:
    """One JSON object on one line when the answer is complete."""

    def progress(self, done: int, total: int) -> None:
        pass

    def show(self, piece: Piece, n_tokens: int) -> None:
        pass

    def warn(self, text: str) -> None:
        ui.print_warning(text)

    def end(self, answer: Answer, model: Model) -> None:
        print(json.dumps(answer_json(answer, model), ensure_ascii=False), flush=True)


class TerminalScreen:
    """Reasoning dimmed, the answer as Markdown: each block is rendered when it is complete, the last one shown raw."""

    def __init__(self, reasoning: str = "show") -> None:
        self.reasoning = reasoning  # one of REASONING_VIEWS
        self._thinking_since_s = 0.0
        self._n_reasoning = 0
        self._block = ""
        self._kind: Kind | None = None
        self._live: Live | None = None
        self._refreshed_s = 0.0
        self._warned: set[str] = set()

    def progress(self, done: int, total: int) -> None:
        if total > 512:
            self._preview(Text(f"reading {done} of {total} tokens", style="note"), now=True)

    def warn(self, text: str) -> None:
        self._stop_preview()
        if self._kind is Kind.REASONING and self.reasoning == "show":
            ui.out.print()
        ui.print_warning(text)

    def show(self, piece: Piece, n_tokens: int) -> None:
        if piece.kind is Kind.REASONING:
            self._show_reasoning(piece.text, n_tokens)
            return
        if self._kind is not Kind.ANSWER:
            self._end_reasoning()
            self._kind = Kind.ANSWER
        self._block += piece.text
        whole, self._block = split_blocks(self._block)
        if whole.strip():
            self._stop_preview()
            _print_markdown(whole)
            ui.out.print()
        self._preview(Text(_tail(self._block)))

    def _show_reasoning(self, text: str, n_tokens: int) -> None:
        if self._kind is not Kind.REASONING:
            self._kind, self._thinking_since_s = Kind.REASONING, time.monotonic()
        self._n_reasoning = n_tokens
        if self.reasoning == "show":
            self._stop_preview()
            ui.out.print(Text(text, style="note"), end="")
        else:
            self._preview(Text(f"thinking ... {n_tokens} tokens", style="note"))

    def _end_reasoning(self) -> None:
        self._stop_preview()
        if self._kind is not Kind.REASONING:
            return
        if self.reasoning == "show":
            ui.out.print("\n")
        elif self.reasoning == "fold":
            seconds = time.monotonic() - self._thinking_since_s
            ui.out.print(f"thought for {self._n_reasoning} tokens, {seconds:.1f} s", style="note")

    def _preview(self, text: Text, *, now: bool = False) -> None:
        if self._live is None:
            self._live = Live(console=ui.out, transient=True, auto_refresh=False, vertical_overflow="crop")
            self._live.start()
        if now or time.monotonic() - self._refreshed_s > _REFRESH_S:
            self._live.update(text, refresh=True)
            self._refreshed_s = time.monotonic()

    def _stop_preview(self) -> None:
        if self._live is not None:
            self._live.update(Text(""))
            self._live.stop()
            self._live = None

    def end(self, answer: Answer, model: Model) -> None:
        self._end_reasoning()
        if self._block.strip():
            _print_markdown(self._block)
        self._block, self._kind = "", None
        ui.err.print(status_line(answer, model), style="note", markup=False, emoji=False, soft_wrap=False)
        for warning in warnings(answer, model):
            if warning not in self._warned:
                ui.print_warning(warning)
        self._warned.update(warnings(answer, model))


def _print_markdown(text: str) -> None:
    """In the terminal's own colours, so that it can be read on light and on dark backgrounds."""
    with ui.out.use_theme(_MARKDOWN):
        ui.out.print(Markdown(text, code_theme="ansi_light"), soft_wrap=False)


def split_blocks(text: str) -> tuple[str, str]:
    """(complete Markdown blocks, the unfinished rest): cut at the last blank line that is outside a code fence."""
    cut, at, fenced = 0, 0, False
    for line in text.splitlines(keepends=True):
        at += len(line)
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
        elif not fenced and not line.strip() and line.endswith("\n"):
            cut = at
    return text[:cut], text[cut:]


def _tail(text: str) -> str:
    """The end of a block that fits above the cursor."""
    n_lines = max(ui.out.height - 3, 3)
    lines = text.splitlines()
    return "\n".join(line[-4 * ui.out.width :] for line in lines[-n_lines // 2 :])


_ENDINGS: Final = {
    "length": "stopped at --max-tokens",
    "context": "the context window is full",
    "cancelled": "stopped",
    "stop_string": "stopped at a stop string",
}


def status_line(answer: Answer, model: Model) -> str:
    """`42 tokens, 31.0 tok/s · drafts 87% right, x1.52 · context 512 of 8192`."""
    stats = answer.stats
    parts = [f"{stats.n_generated} tokens"]
    if stats.tokens_per_s:
        parts[0] += f", {stats.tokens_per_s:.1f} tok/s"
    if model.has_mtp:
        parts.append(_draft_text(answer, model))
    parts.append(f"context {answer.n_prompt + len(answer.tokens)} of {model.session.n_ctx}")
    if answer.finish_reason in _ENDINGS:
        parts.append(_ENDINGS[answer.finish_reason])
    return " · ".join(parts)


def _draft_text(answer: Answer, model: Model) -> str:
    verdict = model.session.control.verdict
    if not model.session.drafting_allowed:
        return "MTP off"
    text = "no drafts" if answer.stats.acceptance is None else f"MTP drafts {answer.stats.acceptance:.0%} right"
    if verdict.speed_up is not None:
        text += f", x{verdict.speed_up:.2f}"
    return text if verdict.drafting else f"{text}, off: slower here"


def warnings(answer: Answer, model: Model) -> list[str]:
    """What people should know beyond the figures."""
    found = []
    if model.session.stats.warning is not None:
        found.append(model.session.stats.warning)
    if answer.finish_reason == "context" and not answer.tokens:
        window = model.session.n_ctx
        found.append(f"the prompt has {answer.n_prompt} tokens, the window holds {window}: try a larger --ctx")
    return found


def answer_json(answer: Answer, model: Model) -> dict[str, Any]:
    """An answer for programs."""
    stats, verdict = answer.stats, model.session.control.verdict
    return {
        "text": answer.text,
        "reasoning": answer.reasoning,
        "finish_reason": answer.finish_reason,
        "warnings": warnings(answer, model),
        "seed": answer.seed,
        "tokens": {
            "prompt": answer.n_prompt,
            "reused": stats.n_reused,
            "generated": stats.n_generated,
            "window": model.session.n_ctx,
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
