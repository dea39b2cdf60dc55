"""`mimo-gguf chat`: holds a conversation with a model in the terminal, or asks it one question."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mimo_gguf.cli import ui
from mimo_gguf.cli.chat_asking import ask
from mimo_gguf.cli.finding import find_model
from mimo_gguf.cli.llama_log import copied_log
from mimo_gguf.cli.loading import loading, print_advice
from mimo_gguf.cli.options import (
    AlwaysDraft,
    Auto,
    Ctx,
    Draft,
    Exact,
    Force,
    GpuLayers,
    Json,
    KvType,
    LogFile,
    ModelName,
    ModelsDir,
    Mtp,
    Rpc,
    Threads,
    Ubatch,
    Verbose,
    Yes,
    check_choice,
)
from mimo_gguf.cli.text_files import argument_text, read_stdin, read_text
from mimo_gguf.cli.workers import use_workers
from mimo_gguf.core.errors import UsageError

if TYPE_CHECKING:
    from mimo_gguf.chat.answer import Answer
    from mimo_gguf.chat.conversation import Conversation
    from mimo_gguf.cli.chat_kept import KeptFile
    from mimo_gguf.cli.chat_screen import Screen
    from mimo_gguf.hardware.memory_watch import MemoryWatch
    from mimo_gguf.runtime.model import Model


def command(
    model_name: ModelName,
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", metavar="TEXT", help="Ask this, print the answer, and stop.")
    ] = None,
    prompt_file: Annotated[
        str | None, typer.Option("-f", "--file", metavar="FILE", help="Add a file's text to the prompt; - is stdin.")
    ] = None,
    system: Annotated[str, typer.Option(metavar="TEXT", help="System message; empty, as Xiaomi recommends.")] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the last conversation.")] = False,
    ctx: Ctx = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Longest answer, reasoning included.")
    ] = None,
    think_budget: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Reasoning tokens after which the answer is asked for.")
    ] = None,
    think: Annotated[
        str, typer.Option(metavar="show|fold|hide", help="Reasoning in full, as one line, or not at all.")
    ] = "show",
    no_think_display: Annotated[bool, typer.Option("--no-think-display", help="The same as --think hide.")] = False,
    temp: Annotated[float, typer.Option(metavar="T", help="Temperature; 0 is greedy.")] = 0.6,
    top_p: Annotated[float, typer.Option(metavar="P")] = 0.95,
    top_k: Annotated[int, typer.Option(metavar="K", help="0 is off.")] = 0,
    min_p: Annotated[float, typer.Option(metavar="P", help="0 is off.")] = 0.0,
    repeat_penalty: Annotated[float, typer.Option(metavar="X", help="1 is off.")] = 1.0,
    seed: Annotated[int | None, typer.Option(metavar="N", help="The same seed gives the same answer.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End the answer here; may be repeated.")
    ] = None,
    grammar: Annotated[Path | None, typer.Option(metavar="FILE", help="GBNF grammar of the answer.")] = None,
    json_schema: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON schema of the answer.")] = None,
    mtp: Mtp = None,
    draft: Draft = 1,
    always_draft: AlwaysDraft = False,
    draft_p_min: Annotated[float, typer.Option(metavar="P", help="Draft only tokens at least this likely.")] = 0.0,
    hidden: Annotated[str, typer.Option(metavar="pre|post", help="Trunk state the MTP layer is fed.")] = "pre",
    threads: Threads = None,
    gpu_layers: GpuLayers = None,
    rpc: Rpc = None,
    kv_type: KvType = None,
    ubatch: Ubatch = None,
    exact: Exact = False,
    auto: Auto = True,
    stats: Annotated[
        bool, typer.Option("--stats", help="Show tok/s and acceptance on stderr even if it is not a terminal.")
    ] = False,
    as_json: Json = False,
    verbose: Verbose = False,
    log_file: LogFile = None,
    yes: Yes = False,
    models_dir: ModelsDir = None,
    force: Force = False,
) -> None:
    """Chat with a model: MTP drafting, reasoning and answer apart, tok/s and acceptance at the end.

    A checkpoint or Hub id is made into a file that fits, once, after a question.

    Without -p, -f or a pipe it is a conversation; /help lists its commands.
    """
    from mimo_gguf.engine.sampling import SamplingOptions
    from mimo_gguf.engine.session import SessionOptions
    from mimo_gguf.runtime.model import AnswerOptions, Model, wishes_of

    check_choice("--think", think, ("show", "fold", "hide"))
    check_choice("--hidden", hidden, ("pre", "post"))
    sampling = SamplingOptions(
        temperature=temp, top_p=top_p, top_k=top_k, min_p=min_p, repeat_penalty=repeat_penalty, seed=seed,
        grammar=_grammar(grammar, json_schema),
    )  # fmt: skip
    stop = [argument_text(text, "--stop") for text in stop or ()]
    answers = AnswerOptions(max_tokens=max_tokens, stop=tuple(stop), think_budget=think_budget)
    question = _question(prompt, prompt_file)
    if question is None and as_json:
        raise UsageError("--json answers one question", hint='give it: -p "..."')
    system = argument_text(system, "--system")
    reasoning = "hide" if no_think_display else think
    kept, conversation = _conversation(system, resume=resume)
    with contextlib.ExitStack() as stack:
        stack.enter_context(copied_log(log_file, verbose))
        options = SessionOptions(
            n_threads=threads or 0, n_draft=draft, p_min=draft_p_min, adaptive=not always_draft,
            hidden="post" if hidden == "post" else "pre",
        )  # fmt: skip
        use_workers(rpc or [], resumes=question is None)
        run: dict[str, Any] = {
            "n_ctx": ctx,
            "kv_type": kv_type,
            "mtp": mtp,
            "n_ubatch": ubatch,
            "n_gpu_layers": gpu_layers,
        }
        file = find_model(
            model_name, wishes_of(replace(options, exact=exact), **run), yes=yes, models_dir=models_dir, force=force,
            quiet=as_json,
        )  # fmt: skip
        watched = not as_json and _somebody_watches()
        with loading(shown=watched or (verbose and not as_json), alive=watched and not verbose) as on_plan:
            model = Model.load(file, **run, options=options, exact=exact, force=force, on_plan=on_plan)
        stack.enter_context(model)
        watch = _watch(model, gpu_layers)
        if question is None:
            from mimo_gguf.cli.chat_loop import ChatLoop

            ChatLoop(model, conversation, sampling, answers, reasoning=reasoning, watch=watch, autosave=kept).run()
            return
        screen = _screen(as_json, reasoning, figures=stats or verbose or sys.stderr.isatty())
        answer = ask(model, conversation.messages(question), sampling, answers, screen, watch)
    if resume and answer.tokens:
        conversation.add(question, answer)
        kept.keep(conversation)
    raise typer.Exit(_exit_code(answer))


def _conversation(system: str, *, resume: bool) -> tuple[KeptFile, Conversation]:
    """A new conversation, or the last one, and the file that it is kept in."""
    from mimo_gguf.chat.conversation import Conversation
    from mimo_gguf.cli.chat_kept import KeptFile, kept_folder, resumed_conversation

    if resume:
        return resumed_conversation(kept_folder(), system)
    return KeptFile(kept_folder()), Conversation(system)


def _watch(model: Model, gpu_layers: int | None) -> MemoryWatch:
    """Says what the plan does that was perhaps not meant, and watches the memory of its devices from now on."""
    from mimo_gguf.hardware.memory_watch import MemoryWatch

    if model.plan is not None:
        print_advice(model.plan, gpu_layers)
    if model.launch_note:
        ui.print_warning(model.launch_note)
    return MemoryWatch([fit.device.name for fit in model.plan.devices] if model.plan else [])


def _exit_code(answer: Answer) -> int:
    from mimo_gguf.cli.chat_screen import CUT_OFF_THINKING, is_cut_off_thinking

    if answer.finish_reason == "abort":
        return 130
    ended_by_window = answer.stop_reason == "window"  # at --max-tokens it ended as it was asked to
    return CUT_OFF_THINKING if ended_by_window and is_cut_off_thinking(answer) else 0


def _question(prompt: str | None, prompt_file: str | None) -> str | None:
    """The one question to ask, from -p and the file, or from a pipe; None for a conversation."""
    parts = [] if prompt is None else [argument_text(prompt, "--prompt")]
    if prompt_file is not None:
        parts.append(read_stdin() if prompt_file == "-" else read_text(Path(prompt_file)))
    if not parts and not sys.stdin.isatty():
        parts.append(read_stdin())
    if parts:
        question = "\n\n".join(parts)
        if not question.strip():
            raise UsageError("the prompt is empty", hint='give a prompt: -p "..."')
        return question
    if not sys.stdout.isatty():
        raise UsageError("a conversation needs a terminal", hint='give a prompt: -p "..."')
    return None


def _grammar(grammar: Path | None, json_schema: Path | None) -> str | None:
    from mimo_gguf.engine.sampling import grammar_of_schema

    if grammar is not None and json_schema is not None:
        raise UsageError("--grammar and --json-schema both prescribe the form of the answer", hint="give one of them")
    if json_schema is not None:
        return grammar_of_schema(read_text(json_schema))
    return None if grammar is None else read_text(grammar)


def _somebody_watches() -> bool:
    return sys.stdout.isatty() and sys.stderr.isatty()


def _screen(as_json: bool, reasoning: str, *, figures: bool) -> Screen:
    from mimo_gguf.cli.chat_screen import JsonScreen, PipeScreen, TerminalScreen

    if as_json:
        return JsonScreen()
    return TerminalScreen(reasoning) if sys.stdout.isatty() else PipeScreen(figures)
