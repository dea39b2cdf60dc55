"""The slash commands of a conversation: one table, which /help, Tab and the dispatch use."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from mimo_gguf.chat.conversation import shortened
from mimo_gguf.cli import chat_files, ui
from mimo_gguf.cli.chat_editor import matching
from mimo_gguf.cli.chat_kept import KeptFile
from mimo_gguf.cli.chat_screen import REASONING_VIEWS
from mimo_gguf.cli.chat_settings import SETTINGS, changed_option, settings_line
from mimo_gguf.cli.chat_talk import Talk
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.near_matches import near_matches
from mimo_gguf.core.units import counted, format_size

_THINK_HINT: Final = "/think show, fold, hide, keep, drop, 500 (a budget), unlimited"


@dataclass(frozen=True, slots=True)
class ChatCommand:
    """A slash command.

    Attributes:
        arguments: what may follow the name, as /help shows it; empty if nothing may.
        run: called with the conversation and the text after the name.
        words: words that may follow, which Tab completes.
        other_names: names that mean the same.
    """

    arguments: str
    help: str
    run: Callable[[Talk, str], None]
    words: tuple[str, ...] = ()
    other_names: tuple[str, ...] = ()


def run_command(talk: Talk, text: str) -> None:
    """Runs the command `name argument`, which is the text after the slash.

    Raises:
        UsageError: no such command, or an argument that it does not have.
    """
    name, _, argument = text.partition(" ")
    name, argument = _whole_name(name.lower()), argument.strip()
    if argument and not COMMANDS[name].arguments:
        raise UsageError(f"/{name} has no argument", hint=f"/{name}")
    COMMANDS[name].run(talk, argument)


def _whole_name(name: str) -> str:
    """The full name of a command, from its name, another name, or the beginning of its name."""
    for full, command in COMMANDS.items():
        if name in command.other_names:
            return full
    matches = matching(name, COMMANDS) if name else []
    if len(matches) == 1:
        return matches[0]
    near = matches or near_matches(name, COMMANDS)[:1]
    meant = f"did you mean {' or '.join(f'/{command}' for command in near)}? " if near else ""
    raise UsageError(
        f"/{name} may be several commands" if matches else f"no command /{name}",
        hint=f"{meant}/help lists them; with // at its start the line is a question",
    )


# ---- what has been said


def show_help(_: Talk, __: str) -> None:
    """Shows the commands and the keys."""
    ui.print_table(("command", "what it does"), [(f"/{n} {c.arguments}".strip(), c.help) for n, c in COMMANDS.items()])
    ui.print_note("Tab completes · Alt-Enter starts a line · Ctrl-C stops the answer · //x asks /x")


def system(talk: Talk, text: str) -> None:
    """Sets the system message, or shows it."""
    if text:
        talk.conversation.system = "" if text == "none" else text
    message = talk.conversation.system
    ui.print_note(f"system message: {message}" if message else "the system message is empty; /system TEXT sets it")


def regenerate(talk: Talk, _: str) -> None:
    """Answers the last question again, with another seed. The old answer stays if the new one is empty."""
    talk.answer_last_again(talk.last_turn().question, sampling=replace(talk.sampling, seed=None))


def edit(talk: Talk, _: str) -> None:
    """Puts the last question on the line to be changed. It and its answer stay until the changed one is asked."""
    talk.next_line = talk.last_turn().question
    talk.editing = True


def undo(talk: Talk, _: str) -> None:
    """Removes the last question and its answer."""
    turn = talk.last_turn()
    talk.conversation.undo()
    ui.print_note(f"removed: {shortened(turn.question)}")


def clear(talk: Talk, _: str) -> None:
    """Begins a new conversation with the same system message."""
    talk.conversation.clear()
    if talk.autosave is not None:
        talk.autosave = KeptFile(talk.autosave.folder)  # the old one stays among the last ten
    talk.files.clear()
    ui.print_note("a new conversation")


def leave(talk: Talk, _: str) -> None:
    """Ends the conversation."""
    talk.running = False


# ---- how it answers


def think(talk: Talk, word: str) -> None:
    """Sets how reasoning is shown, if it is kept, or its budget in tokens; without a word shows the last reasoning."""
    word = {"on": "show", "off": "hide"}.get(word, word)
    if word in REASONING_VIEWS:
        talk.screen.reasoning = word
    elif word in ("keep", "drop"):
        talk.conversation.keep_reasoning = word == "keep"
    elif word == "unlimited" or word.isdecimal():
        budget = "none" if word == "unlimited" else word
        talk.sampling, talk.options = changed_option(talk.sampling, talk.options, "think_budget", budget)
    elif not word:
        for line in (talk.last_turn().reasoning or "no reasoning in the last answer").splitlines():
            ui.print_note(line)
        return
    else:
        raise UsageError(f"/think: {word!r} is not one of its words", hint=_THINK_HINT)
    ui.print_note(f"reasoning: {f'at most {word} tokens' if word.isdecimal() else word}")


def set_option(talk: Talk, text: str) -> None:
    """Changes all settings of a line, or none if one of them is wrong; then shows all settings."""
    sampling, options = talk.sampling, talk.options
    words = re.sub(r"\s*=\s*", "=", text).split()
    while words:
        name, equals, value = words.pop(0).partition("=")
        if not equals and words and "=" not in words[0]:
            value = words.pop(0)
        sampling, options = changed_option(sampling, options, name, value)
    talk.sampling, talk.options = sampling, options
    ui.print_joined(settings_line(sampling, options).split("  "), separator="  ", note=True)


def mtp(talk: Talk, word: str) -> None:
    """Switches MTP drafting on or off, and shows which it is."""
    session = talk.model.session
    if not talk.model.has_mtp:
        raise UsageError("no MTP layer is loaded", hint="use a file with one, without --no-mtp")
    if word in ("on", "off"):
        session.drafting_allowed = word == "on"
    elif word:
        raise UsageError(f"/mtp: {word!r} is neither on nor off", hint="/mtp on or /mtp off")
    ui.print_note(f"MTP drafting is {'on' if session.drafting_allowed else 'off'}")


# ---- what runs


def model(talk: Talk, _: str) -> None:
    """Shows the model that is loaded, and how it runs."""
    from mimo_gguf.core.ggml_types import ftype_name

    file, session = talk.model.file, talk.model.session
    number = file.value("general.file_type")
    ui.print_field("model", str(file.value("general.name", file.path.name)))
    ui.print_field("file", f"{file.path}, {format_size(sum(info.n_bytes for info in file.infos()))}")
    ui.print_field("type", ftype_name(number) if isinstance(number, int) else "unknown")
    ui.print_field("context", f"{session.window} tokens, KV cache {session.options.kv_type}")
    ui.print_field("mtp", "drafting" if talk.model.has_mtp and session.drafting_allowed else "not in use")
    if talk.model.plan is not None:
        ui.print_field("plan", talk.model.plan.summary()[0])


def fit(talk: Talk, _: str) -> None:
    """Shows the plan of this run, and the memory that is free now."""
    from mimo_gguf.cli.fit import print_plan
    from mimo_gguf.fit.weigh import plan_fit
    from mimo_gguf.hardware.devices import list_devices

    session = talk.model.session
    plan = talk.model.plan or plan_fit(
        talk.model.file.path, n_ctx=session.window, type_k=session.options.kv_type, type_v=session.options.kv_type,
        n_ubatch=session.options.n_batch, mtp=talk.model.has_mtp,
        n_gpu_layers=talk.model.native.options.n_gpu_layers,
    )  # fmt: skip
    print_plan(plan)
    free = {device.name: format_size(device.free_bytes) for device in list_devices()}
    now = ", ".join(f"{name}: {free[name]}" for name in plan.needed_bytes if name in free)
    ui.print_note(f"free is what was free before loading; free now: {now}")


def stats(talk: Talk, _: str) -> None:
    """Shows speeds and acceptance of the whole run."""
    counts, verdict = talk.model.session.stats, talk.model.session.control.verdict
    rows = [
        ("prompt", f"{counts.n_prompt} tokens read, {counts.n_reused} reused", _rate(counts.prompt_tokens_per_s)),
        ("answers", f"{counts.n_generated} tokens in {counts.n_passes} passes", _rate(counts.tokens_per_s)),
    ]
    for place, share in enumerate(counts.acceptance_by_place):
        if share is not None:
            rows.append(
                (f"draft {place + 1}", f"{counts.n_accepted[place]} of {counts.n_drafted[place]}", f"{share:.0%}")
            )
    if talk.model.has_mtp:
        drafting = "in use" if verdict.drafting else "switched off: slower here"
        drafting = drafting if talk.model.session.drafting_allowed else "off, as you asked"
        rows += [
            ("plain", "measured meanwhile", _rate(verdict.plain_tokens_per_s)),
            ("drafted", drafting, _rate(verdict.drafted_tokens_per_s)),
        ]
    ui.print_table(("", "counted", "speed or share"), rows)


def tokens(talk: Talk, text: str) -> None:
    """Shows the tokens of a text, or the number of tokens in the conversation."""
    if text:
        ids = talk.model.vocabulary.tokenize(text)
        ui.print_joined([f"{i} {talk.model.vocabulary.name(i)!r}" for i in ids], separator="  ")
        ui.print_note(counted(len(ids), "token"))
        return
    n, saved = talk.count(talk.conversation.messages()), talk.n_left_out()
    note = f"{n} tokens of {talk.model.session.window}, {counted(len(talk.conversation.turns), 'turn')}"
    ui.print_note(f"{note}; {saved} tokens of earlier reasoning are left out" if saved else note)


def _rate(tokens_per_s: float | None) -> str:
    return "-" if tokens_per_s is None else f"{tokens_per_s:.1f} tok/s"


COMMANDS: Final[dict[str, ChatCommand]] = {
    "help": ChatCommand("", "this list", show_help, other_names=("?",)),
    "system": ChatCommand("[TEXT]", "set the system message, or show it; none: empty", system, ("none",)),
    "file": ChatCommand("[FILE]", "add a file's text to the next question", chat_files.attach),
    "regen": ChatCommand("", "answer the last question again, differently", regenerate),
    "edit": ChatCommand("", "change the last question and ask again", edit),
    "undo": ChatCommand("", "remove the last question and answer", undo),
    "clear": ChatCommand("", "begin a new conversation", clear),
    "save": ChatCommand("FILE [kv]", "save the conversation; kv: with its cache", chat_files.save),
    "load": ChatCommand("[FILE|N]", "go on with a saved one, or with N of the last ten", chat_files.load),
    "export": ChatCommand("FILE", "write it as Markdown", chat_files.export),
    "think": ChatCommand(
        "[WORD]", "show, fold, hide; keep or drop in context; N (budget)", think,
        (*REASONING_VIEWS, "keep", "drop", "unlimited"),
    ),
    "stats": ChatCommand("", "speeds, drafts, acceptance", stats),
    "tokens": ChatCommand("[TEXT]", "tokens used, or those of a text", tokens),
    "set": ChatCommand(
        "[NAME VALUE]", "temp, top_p, top_k, seed, max_tokens, ...", set_option,
        tuple(f"{name}=" for name in SETTINGS),
    ),
    "mtp": ChatCommand("[on|off]", "MTP drafting", mtp, ("on", "off")),
    "model": ChatCommand("", "what is loaded, and how it runs", model),
    "fit": ChatCommand("", "the memory in use, part by part", fit),
    "quit": ChatCommand("", "leave (or Ctrl-D)", leave, other_names=("exit", "bye", "q")),
}  # fmt: skip
LEAVING: Final = ("exit", "quit", "bye")  # lines that mean /quit without its slash
