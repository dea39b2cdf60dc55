"""The conversation in the terminal: line editing, and the commands that begin with a slash."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from mimo_gguf.chat.conversation import FULL, Conversation, Turn, shortened
from mimo_gguf.chat.template import Message
from mimo_gguf.cli import ui
from mimo_gguf.cli.chat_asking import ask
from mimo_gguf.cli.chat_editor import line_editor, matching
from mimo_gguf.cli.chat_screen import REASONING_VIEWS, TerminalScreen
from mimo_gguf.cli.chat_settings import SETTINGS, changed_option, settings_line
from mimo_gguf.core.errors import MimoGgufError, OutputError, UsageError
from mimo_gguf.core.output_file import atomic_output
from mimo_gguf.core.paths import path_kind
from mimo_gguf.core.units import format_size
from mimo_gguf.engine.sampling import SamplingOptions
from mimo_gguf.engine.state import load_state, save_state, state_key
from mimo_gguf.fit.weigh import plan_fit
from mimo_gguf.hardware.memory_watch import MemoryWatch
from mimo_gguf.runtime.model import AnswerOptions, Model

_CACHE: Final = ".kv"  # suffix of the file beside a saved conversation
_ANSWER_ROOM: Final = 0.25  # share of the window kept free for an answer when old turns have to go


@dataclass(frozen=True, slots=True)
class ChatCommand:
    """A slash command: what it takes, what it does, the ChatLoop method that does it, and words that may follow."""

    arguments: str
    help: str
    run: Callable[[ChatLoop, str], None]
    words: tuple[str, ...] = ()


class ChatLoop:
    """Reads lines until Ctrl-D or /quit, and answers them."""

    def __init__(
        self,
        model: Model,
        system: str,
        sampling: SamplingOptions,
        options: AnswerOptions,
        *,
        reasoning: str = "show",
        watch: MemoryWatch | None = None,
    ) -> None:
        self.model = model
        self.sampling = sampling
        self.options = options
        self.conversation = Conversation(system)
        self.screen = TerminalScreen(reasoning)
        self.watch = watch
        self._draft_line = ""  # what the next line begins with (/edit)
        self._editing = False  # the next question replaces the last one
        self._own_files: set[Path] = set()  # written or read by this chat, so it may write them again
        self._running = True

    def run(self) -> None:
        """The loop. Errors of one line are shown and the next line is read."""
        session = line_editor(COMMANDS)
        self._greet()
        while self._running:
            self._look_at_memory()
            start, self._draft_line = self._draft_line, ""
            ui.out.print()
            try:
                line = session.prompt("> ", default=start).strip()
            except KeyboardInterrupt:
                self._editing = False
                ui.print_note("Ctrl-D leaves")
                continue
            except EOFError:
                return
            try:
                self.take(line)
            except MimoGgufError as error:
                ui.print_error(error)
            except KeyboardInterrupt:
                ui.print_note("interrupted; Ctrl-D leaves")

    def _greet(self) -> None:
        mtp = "MTP drafting on" if self.model.has_mtp else "no MTP"
        ui.print_note(f"{self.model.file.path.name} · {mtp} · context {self.model.session.window} · /help for commands")

    def _look_at_memory(self) -> None:
        for warning in self.watch.poll() if self.watch is not None else ():
            ui.print_warning(warning)

    def take(self, line: str) -> None:
        """One line: a command or a question."""
        editing, self._editing = self._editing, False
        if not line.startswith("/") or line.startswith("//"):
            if line and editing:
                self.conversation.undo()
            if line:
                self.answer(line[1:] if line.startswith("//") else line)
            return
        name, _, argument = line[1:].partition(" ")
        name, argument = _whole_name(name.lower()), argument.strip()
        if argument and not COMMANDS[name].arguments:
            raise UsageError(f"/{name} takes nothing behind it", hint=f"/{name}")
        COMMANDS[name].run(self, argument)

    def answer(self, question: str, *, sampling: SamplingOptions | None = None) -> None:
        """Answers a question and keeps both."""
        self._make_room(question)
        sampling = sampling or self.sampling
        messages = self.conversation.messages(question)
        self.screen.n_left_out = self._n_left_out(question)
        answer = ask(self.model, messages, sampling, self.options, self.screen, self.watch)
        if answer.tokens:
            self.conversation.add(question, answer)
        self._tell_when_full(answer.n_prompt + len(answer.tokens))

    def _make_room(self, question: str) -> None:
        alone, window = (
            self._count(Conversation(self.conversation.system).messages(question)),
            self.model.session.window,
        )
        if alone >= window:
            raise UsageError(
                f"the question alone takes {alone} tokens, the window holds {window}",
                hint="ask less at a time, or start again with a larger --ctx",
            )
        room = int(self.model.session.window * (1 - _ANSWER_ROOM))
        n_reasonings, n_turns = self.conversation.make_room(question, self._count, room)
        gone = [f"the reasoning of {_counted(n_reasonings, 'old turn')}"] if n_reasonings else []
        gone += [_counted(n_turns, "old turn")] if n_turns else []
        if gone:
            ui.print_warning(f"the window is full; left out from now on: {', '.join(gone)}")

    def _tell_when_full(self, used: int) -> None:
        window = self.model.session.window
        first = self.conversation.next_to_leave_out()
        if used > FULL * window and first:
            ui.print_warning(f"{used} of {window} tokens used ({used / window:.0%}): next to be left out is {first}")

    def _count(self, messages: list[Message]) -> int:
        return len(self.model.prompt_tokens(messages))

    def _n_left_out(self, question: str | None = None) -> int:
        """Tokens by which the prompt is shorter because earlier reasoning is not in it."""
        whole = replace(self.conversation, keep_reasoning=True, n_without_reasoning=0)
        return self._count(whole.messages(question)) - self._count(self.conversation.messages(question))

    # ---- commands; each takes the text after its name

    def help(self, _: str) -> None:
        ui.print_table(
            ("command", "what it does"), [(f"/{n} {c.arguments}".strip(), c.help) for n, c in COMMANDS.items()]
        )
        ui.print_note("Tab completes · Alt-Enter new line · Ctrl-C stops the answer · //x is no command")

    def set_system(self, text: str) -> None:
        self.conversation.system = text
        ui.print_note("system message set; it counts for the whole conversation" if text else "system message empty")

    def regenerate(self, _: str) -> None:
        turn = self._last_turn()
        self.conversation.undo()
        n_turns = len(self.conversation.turns)
        try:
            self.answer(turn.question, sampling=replace(self.sampling, seed=None))
        finally:
            if len(self.conversation.turns) == n_turns:  # stopped before it said anything
                self.conversation.turns.append(turn)

    def edit(self, _: str) -> None:
        """The last question comes back to be changed; it and its answer stay until the changed one is asked."""
        self._draft_line = self._last_turn().question
        self._editing = True

    def undo(self, _: str) -> None:
        turn = self._last_turn()
        self.conversation.undo()
        ui.print_note(f"taken back: {shortened(turn.question)}")

    def _last_turn(self) -> Turn:
        if not self.conversation.turns:
            raise UsageError("nothing has been said yet", hint="ask something first")
        return self.conversation.turns[-1]

    def clear(self, _: str) -> None:
        self.conversation.clear()
        ui.print_note("a new conversation")

    def save(self, text: str) -> None:
        """The conversation; with `kv` behind the name also the caches, so that it need not be read again."""
        name = text.removesuffix(" kv")
        path = _path(name, ".json", "/save talk.json, or with the cache: /save talk.json kv")
        cache = path.with_suffix(_CACHE) if name != text else None
        with self._writing(path, *[cache] if cache else []):
            self.conversation.save(path)
            if cache:
                session = self.model.session
                save_state(session, session.slot, state_key(self.model.file, session), cache)
        ui.print_note(f"saved to {path}" + (" with its cache" if cache else ""))

    def load(self, name: str) -> None:
        path = _path(name, ".json", "/load talk.json")
        self.conversation = Conversation.load(path)
        self._own_files.add(path.resolve())
        note, cache = _counted(len(self.conversation.turns), "turn") + " loaded", path.with_suffix(_CACHE)
        if path_kind(cache) == "file":
            session = self.model.session
            taken = load_state(session, session.slot, state_key(self.model.file, session), cache)
            self._own_files.update([cache.resolve()] if taken else [])
            note += " with the cache" if taken else "; the cache is of another model or damaged, so they are read again"
        if self.conversation.turns:
            note += f"; the last was {shortened(self.conversation.turns[-1].question)}"
        ui.print_note(note)

    @contextlib.contextmanager
    def _writing(self, *paths: Path) -> Iterator[None]:
        """Raises UsageError for files that this chat has neither written nor read, and where one cannot be written."""
        for path in paths:
            if path_kind(path) != "nothing" and path.resolve() not in self._own_files:
                raise UsageError(f"{path}: exists already", hint="choose another name, or delete it first")
        try:
            yield
        except OutputError as error:
            raise UsageError(error.message, hint="choose another name") from None
        self._own_files.update(path.resolve() for path in paths)

    def export(self, name: str) -> None:
        path = _path(name, ".md", "/export talk.md")
        with self._writing(path), atomic_output(path) as file:
            file.write(self.conversation.as_markdown().encode("utf-8", "replace"))
        ui.print_note(f"written to {path}")

    def think(self, word: str) -> None:
        """`show`, `fold`, `hide`, `keep`, `drop`, a number of tokens, or nothing: the last reasoning."""
        word = {"on": "show", "off": "hide"}.get(word, word)
        if word in REASONING_VIEWS:
            self.screen.reasoning = word
        elif word in ("keep", "drop"):
            self.conversation.keep_reasoning = word == "keep"
        elif word == "unlimited" or word.isdigit():
            budget = "none" if word == "unlimited" else word
            self.sampling, self.options = changed_option(self.sampling, self.options, "think_budget", budget)
        elif not word:
            for line in (self._last_turn().reasoning or "no reasoning in the last answer").splitlines():
                ui.print_note(line)
            return
        else:
            raise UsageError(f"/think {word}?", hint="/think show, fold, hide, keep, drop, 500 (a budget), unlimited")
        ui.print_note(f"reasoning: {f'at most {word} tokens' if word.isdigit() else word}")

    def stats(self, _: str) -> None:
        stats, verdict = self.model.session.stats, self.model.session.control.verdict
        rows = [
            ("prompt", f"{stats.n_prompt} tokens read, {stats.n_reused} reused", _rate(stats.prompt_tokens_per_s)),
            ("answers", f"{stats.n_generated} tokens in {stats.n_passes} passes", _rate(stats.tokens_per_s)),
        ]
        for place, share in enumerate(stats.acceptance_by_place):
            if share is not None:
                rows.append(
                    (f"draft {place + 1}", f"{stats.n_accepted[place]} of {stats.n_drafted[place]}", f"{share:.0%}")
                )
        if self.model.has_mtp:
            drafting = "in use" if verdict.drafting else "switched off: slower here"
            drafting = drafting if self.model.session.drafting_allowed else "off, as you wished"
            rows += [
                ("plain", "measured meanwhile", _rate(verdict.plain_tokens_per_s)),
                ("drafted", drafting, _rate(verdict.drafted_tokens_per_s)),
            ]
        ui.print_table(("", "counted", "speed or share"), rows)

    def tokens(self, text: str) -> None:
        if text:
            ids = self.model.vocabulary.tokenize(text)
            ui.print_joined([f"{i} {self.model.vocabulary.name(i)!r}" for i in ids], separator="  ")
            ui.print_note(_counted(len(ids), "token"))
            return
        n, saved = self._count(self.conversation.messages()), self._n_left_out()
        note = f"{n} tokens of {self.model.session.window}, {_counted(len(self.conversation.turns), 'turn')}"
        ui.print_note(f"{note}; {saved} tokens of earlier reasoning are left out" if saved else note)

    def set_option(self, text: str) -> None:
        """All settings of a line, or none of them where one is wrong; without any, how they are."""
        sampling, options = self.sampling, self.options
        for assignment in text.split():
            name, _, value = assignment.partition("=")
            sampling, options = changed_option(sampling, options, name, value)
        self.sampling, self.options = sampling, options
        ui.print_note(settings_line(sampling, options))

    def mtp(self, word: str) -> None:
        session = self.model.session
        if not self.model.has_mtp:
            raise UsageError("there is no MTP layer loaded", hint="use a file with one, without --no-mtp")
        if word in ("on", "off"):
            session.drafting_allowed = word == "on"
        elif word:
            raise UsageError(f"/mtp {word}?", hint="/mtp on or /mtp off")
        ui.print_note(f"MTP drafting is {'on' if session.drafting_allowed else 'off'}")

    def fit(self, _: str) -> None:
        """The plan it runs by, and what is free beside it now."""
        from mimo_gguf.cli.fit import print_plan
        from mimo_gguf.hardware.devices import list_devices

        session = self.model.session
        plan = self.model.plan or plan_fit(
            self.model.file.path, n_ctx=session.window, type_k=session.options.kv_type, type_v=session.options.kv_type,
            n_ubatch=session.options.n_batch, mtp=self.model.has_mtp,
            n_gpu_layers=self.model.native.options.n_gpu_layers,
        )  # fmt: skip
        print_plan(plan)
        free = {device.name: format_size(device.free_bytes) for device in list_devices()}
        now = ", ".join(f"{name}: {free[name]}" for name in plan.needed_bytes if name in free)
        ui.print_note(f"free is what was free before loading; free now: {now}")

    def quit(self, _: str) -> None:
        self._running = False


COMMANDS: Final[dict[str, ChatCommand]] = {
    "help": ChatCommand("", "this list", ChatLoop.help),
    "system": ChatCommand("[TEXT]", "set the system message (nothing: empty)", ChatLoop.set_system),
    "regen": ChatCommand("", "answer the last question again, differently", ChatLoop.regenerate),
    "edit": ChatCommand("", "change the last question and ask again", ChatLoop.edit),
    "undo": ChatCommand("", "take the last question and answer back", ChatLoop.undo),
    "clear": ChatCommand("", "begin a new conversation", ChatLoop.clear),
    "save": ChatCommand("FILE [kv]", "save the conversation; kv: with its cache", ChatLoop.save),
    "load": ChatCommand("FILE", "go on with a saved one", ChatLoop.load),
    "export": ChatCommand("FILE", "write it as Markdown", ChatLoop.export),
    "think": ChatCommand(
        "[WORD]", "show, fold, hide; keep or drop in context; N (budget)", ChatLoop.think,
        (*REASONING_VIEWS, "keep", "drop", "unlimited"),
    ),
    "stats": ChatCommand("", "speeds, drafts, acceptance", ChatLoop.stats),
    "tokens": ChatCommand("[TEXT]", "tokens used, or those of a text", ChatLoop.tokens),
    "set": ChatCommand(
        "[NAME=VALUE]", "temp, top_p, top_k, seed, max_tokens, ...", ChatLoop.set_option,
        tuple(f"{name}=" for name in SETTINGS),
    ),
    "mtp": ChatCommand("[on|off]", "MTP drafting", ChatLoop.mtp, ("on", "off")),
    "fit": ChatCommand("", "the memory it takes, part by part", ChatLoop.fit),
    "quit": ChatCommand("", "leave (or Ctrl-D)", ChatLoop.quit),
}  # fmt: skip


def _whole_name(name: str) -> str:
    """The command that `name` is, or is the beginning of.

    Raises:
        UsageError: none, or several.
    """
    matches = matching(name, COMMANDS) if name else []
    if len(matches) == 1:
        return matches[0]
    near = matches or difflib.get_close_matches(name, COMMANDS, n=1)
    meant = f"did you mean {' or '.join(f'/{command}' for command in near)}? " if near else ""
    raise UsageError(
        f"/{name} may be several commands" if matches else f"no command /{name}",
        hint=f"{meant}/help lists them; // in front makes it no command",
    )


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _path(name: str, suffix: str, example: str) -> Path:
    if not name:
        raise UsageError("a file name is missing", hint=example)
    path = Path(name)
    with contextlib.suppress(RuntimeError):  # ~nobody
        path = path.expanduser()
    if not path.name or "\0" in name or path_kind(path) == "folder":
        raise UsageError(f"{name}: is no file name", hint=example)
    if path.suffix == _CACHE:
        raise UsageError(f"{name}: the cache goes there", hint=example)
    return path if path.suffix else path.with_suffix(suffix)


def _rate(tokens_per_s: float | None) -> str:
    return "-" if tokens_per_s is None else f"{tokens_per_s:.1f} tok/s"
