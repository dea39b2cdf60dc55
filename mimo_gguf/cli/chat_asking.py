"""Asks one question and shows the answer as it comes; Ctrl-C ends the answer."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mimo_gguf.chat.answer import Answer, AnswerOptions
    from mimo_gguf.chat.template import Message
    from mimo_gguf.cli.chat_screen import Screen
    from mimo_gguf.engine.sampling import SamplingOptions
    from mimo_gguf.hardware.memory_watch import MemoryWatch
    from mimo_gguf.runtime.model import Model


def ask(
    model: Model,
    messages: Sequence[Message],
    sampling: SamplingOptions,
    options: AnswerOptions,
    screen: Screen,
    watch: MemoryWatch | None = None,
) -> Answer:
    """Asks a question and shows the answer as it comes. Ctrl-C ends the answer.

    Args:
        watch: polled as the tokens come; it looks at the devices only once in a while.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed, and the answer did not end.
        MimoGgufError: as `Model.chat`.
    """
    try:
        with (
            interruptible(model),
            _without_echo(),
            model.chat(messages, stream=True, sampling=sampling, options=options, progress=screen.progress) as stream,
        ):
            screen.begin()
            for piece in stream:
                screen.show(piece, stream.n_tokens)
                for warning in watch.poll() if watch is not None else ():
                    screen.warn(warning)
    except KeyboardInterrupt:  # in the middle of anything
        model.forget()
        raise
    finally:
        screen.stop()
    screen.end(stream.answer, model)
    return stream.answer


@contextlib.contextmanager
def _without_echo() -> Iterator[None]:
    """Hides what is typed, which would appear in the middle of the answer, until the end of the `with` block.

    The next prompt gets it, even after Ctrl-C.
    """
    if sys.platform == "win32" or not sys.stdin.isatty():
        yield
        return
    import termios

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    silent = termios.tcgetattr(terminal)
    silent[3] = silent[3] & ~termios.ECHO | termios.NOFLSH
    termios.tcsetattr(terminal, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


@contextlib.contextmanager
def interruptible(model: Model) -> Iterator[None]:
    """Lets Ctrl-C stop the answer at a safe point, until the end of the `with` block.

    If the answer does not stop, a later Ctrl-C interrupts as usual.
    """
    previous = signal.getsignal(signal.SIGINT)
    first_s: list[float] = []

    def stop(*_: object) -> None:
        first_s.append(time.monotonic())
        if first_s[-1] - first_s[0] > _PATIENCE_S:
            raise KeyboardInterrupt
        model.cancel()

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


_PATIENCE_S: Final = 2.0  # within this time after the first, Ctrl-C still stops the answer
