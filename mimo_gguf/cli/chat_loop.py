"""The conversation in the terminal: reads lines, and runs them as commands or asks them."""

from __future__ import annotations

from mimo_gguf.chat.conversation import Conversation, shortened
from mimo_gguf.cli import ui
from mimo_gguf.cli.chat_commands import COMMANDS, LEAVING, run_command
from mimo_gguf.cli.chat_editor import line_editor
from mimo_gguf.cli.chat_kept import KeptFile
from mimo_gguf.cli.chat_screen import TerminalScreen
from mimo_gguf.cli.chat_talk import Talk
from mimo_gguf.core.errors import MimoGgufError
from mimo_gguf.core.units import counted
from mimo_gguf.engine.sampling import SamplingOptions
from mimo_gguf.hardware.memory_watch import MemoryWatch
from mimo_gguf.runtime.model import AnswerOptions, Model


class ChatLoop:
    """Reads lines until Ctrl-D or /quit, and answers them."""

    def __init__(
        self,
        model: Model,
        conversation: Conversation,
        sampling: SamplingOptions,
        options: AnswerOptions,
        *,
        reasoning: str = "show",
        watch: MemoryWatch | None = None,
        autosave: KeptFile | None = None,
    ) -> None:
        self.talk = Talk(model, conversation, sampling, options, TerminalScreen(reasoning), watch, autosave)

    def run(self) -> None:
        """Runs until Ctrl-D or /quit. An error in a line is shown, and the next line is read."""
        session = line_editor(COMMANDS)
        self._greet()
        while self.talk.running:
            self._warn_of_memory()
            start, self.talk.next_line = self.talk.next_line, ""
            ui.print_line()
            try:
                line = session.prompt("> ", default=start).strip()
            except KeyboardInterrupt:
                self.talk.editing = False
                ui.print_note("Ctrl-D leaves")
                continue
            except EOFError:
                return
            try:
                self.run_line(line)
            except MimoGgufError as error:
                ui.print_error(error)
            except KeyboardInterrupt:
                ui.print_note("interrupted; Ctrl-D leaves")

    def run_line(self, line: str) -> None:
        """Runs a line, which is a command or a question.

        Raises:
            MimoGgufError: as the command or the answer does.
        """
        talk = self.talk
        editing, talk.editing = talk.editing, False
        if line.startswith("/") and not line.startswith("//"):
            run_command(talk, line[1:])
        elif line.lower() in LEAVING:
            talk.running = False
        elif line:
            talk.ask(line[1:] if line.startswith("//") else line, editing=editing)

    def _greet(self) -> None:
        model, turns = self.talk.model, self.talk.conversation.turns
        mtp = "MTP drafting on" if model.has_mtp else "no MTP"
        ui.print_note(f"{model.file.path.name} · {mtp} · context {model.session.window} · /help for commands")
        if turns:
            last = shortened(turns[-1].question)
            ui.print_note(f"going on with {counted(len(turns), 'turn')}; the last was {last}")

    def _warn_of_memory(self) -> None:
        for warning in self.talk.watch.poll() if self.talk.watch is not None else ():
            ui.print_warning(warning)
