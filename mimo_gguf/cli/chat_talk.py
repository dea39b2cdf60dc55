"""A conversation in progress: its settings and its turns; it answers questions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from mimo_gguf.chat.conversation import FULL, Conversation, Turn
from mimo_gguf.chat.template import Message
from mimo_gguf.cli import ui
from mimo_gguf.cli.chat_asking import ask
from mimo_gguf.cli.chat_kept import KeptFile
from mimo_gguf.cli.chat_screen import TerminalScreen
from mimo_gguf.core.errors import OutputError, UsageError
from mimo_gguf.core.units import counted
from mimo_gguf.engine.sampling import SamplingOptions
from mimo_gguf.hardware.memory_watch import MemoryWatch
from mimo_gguf.runtime.model import AnswerOptions, Model

_ANSWER_ROOM: Final = 0.25  # share of the window kept free for an answer when old turns are left out


@dataclass(slots=True)
class Talk:
    """The state of a conversation, which slash commands read and change.

    Attributes:
        autosave: keeps the conversation before and after every answer, for `--resume`; None keeps nothing.
        files: (name, text) of files that are added to the next question.
        next_line: what the next line begins with, for /edit.
        editing: whether the next question replaces the last one.
        own_files: files that this chat has written or read, so that it may write them again.
        running: False ends the loop.
    """

    model: Model
    conversation: Conversation
    sampling: SamplingOptions
    options: AnswerOptions
    screen: TerminalScreen
    watch: MemoryWatch | None = None
    autosave: KeptFile | None = None
    files: list[tuple[str, str]] = field(default_factory=list)
    next_line: str = ""
    editing: bool = False
    own_files: set[Path] = field(default_factory=set)
    running: bool = True
    _warned_not_kept: bool = False

    def ask(self, question: str, *, editing: bool = False) -> None:
        """Answers a question, to which the waiting files are added, and keeps both in the conversation.

        Args:
            editing: whether it replaces the last question.
        """
        files, self.files = self.files, []
        whole = "\n\n".join([question, *(text for _, text in files)])
        if editing:
            self.answer_last_again(whole)
        else:
            self.answer(whole)

    def answer(self, question: str, *, sampling: SamplingOptions | None = None) -> None:
        """Answers a question and keeps both in the conversation.

        Args:
            sampling: for this answer; None means the conversation's.

        Raises:
            UsageError: the question alone is longer than the window.
        """
        self._make_room(question)
        messages = self.conversation.messages(question)
        self.screen.n_left_out = self.n_left_out(question)
        self.keep(question)  # if the program ends now, /regen can answer it later
        try:
            answer = ask(self.model, messages, sampling or self.sampling, self.options, self.screen, self.watch)
        except KeyboardInterrupt:
            self.keep()  # a question that was interrupted on purpose is not kept
            raise
        if answer.tokens:
            self.conversation.add(question, answer)
        self.keep()
        self._warn_when_full(answer.n_prompt + len(answer.tokens))

    def answer_last_again(self, question: str, *, sampling: SamplingOptions | None = None) -> None:
        """Answers the last question again in its new wording. The old turn stays if the new answer is empty.

        Raises:
            UsageError: as `answer`, or if there is no turn yet.
        """
        turn, conversation = self.last_turn(), self.conversation
        conversation.undo()
        n_turns = len(conversation.turns)
        try:
            self.answer(question, sampling=sampling)
        finally:
            if len(conversation.turns) == n_turns:  # stopped before the first token
                conversation.turns.append(turn)
                self.keep()

    def keep(self, unanswered: str = "") -> None:
        """Saves the conversation for `--resume`, if that is possible.

        Args:
            unanswered: a question that is being answered; it is kept as a turn with an empty answer.
        """
        open_turn = [Turn(unanswered, "", finish_reason="abort")] if unanswered else []
        kept = replace(self.conversation, turns=[*self.conversation.turns, *open_turn])
        if self.autosave is not None:
            try:
                self.autosave.keep(kept)
            except OutputError as error:
                if not self._warned_not_kept:
                    ui.print_warning(f"this conversation cannot be kept for --resume: {error.message}")
                self._warned_not_kept = True

    def last_turn(self) -> Turn:
        """The last question and its answer.

        Raises:
            UsageError: there is no turn yet.
        """
        if not self.conversation.turns:
            raise UsageError("nothing has been said yet", hint="ask something first")
        return self.conversation.turns[-1]

    def count(self, messages: list[Message]) -> int:
        """The number of tokens in the prompt that the messages make."""
        return len(self.model.prompt_tokens(messages))

    def n_left_out(self, question: str | None = None) -> int:
        """The number of tokens of earlier reasoning that are left out of the prompt."""
        whole = replace(self.conversation, keep_reasoning=True, n_without_reasoning=0)
        return self.count(whole.messages(question)) - self.count(self.conversation.messages(question))

    def _make_room(self, question: str) -> None:
        window = self.model.session.window
        alone = self.count(Conversation(self.conversation.system).messages(question))
        if alone >= window:
            raise UsageError(
                f"the question alone has {alone} tokens, the window holds {window}",
                hint="ask less at a time, or start again with a larger --ctx",
            )
        room = int(window * (1 - _ANSWER_ROOM))
        n_reasonings, n_turns = self.conversation.make_room(question, self.count, room)
        gone = [f"the reasoning of {counted(n_reasonings, 'old turn')}"] if n_reasonings else []
        gone += [counted(n_turns, "old turn")] if n_turns else []
        if gone:
            ui.print_warning(f"the window is full; left out from now on: {', '.join(gone)}")

    def _warn_when_full(self, used: int) -> None:
        window = self.model.session.window
        first = self.conversation.next_to_leave_out()
        if used > FULL * window and first:
            ui.print_warning(f"{used} of {window} tokens used ({used / window:.0%}): next to be left out is {first}")
