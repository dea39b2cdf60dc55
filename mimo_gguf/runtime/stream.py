"""An answer while it is generated."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Sequence

from mimo_gguf.chat.answer import Answer
from mimo_gguf.chat.reasoning import Piece
from mimo_gguf.core.errors import UsageError
from mimo_gguf.engine.single import OnRead
from mimo_gguf.runtime.driver import Driver
from mimo_gguf.runtime.scheduler import Event, Request


class AnswerStream(Iterator[Piece]):
    """An answer while it is generated: iterate over its pieces, or `read` it to the end.

    Tokens are generated only while the caller waits for them. `close`, the end of a `with` block, `Model.cancel`, and
    dropping the stream end the answer early; `answer` keeps what has come.
    """

    def __init__(self, driver: Driver, request: Request, on_read: OnRead | None = None) -> None:
        """Queues the request. Raises UsageError as `Driver.submit`."""
        self._ticket = driver.submit([request])
        self._on_read = on_read
        self._pieces: deque[Piece] = deque()
        self._n_tokens = 0
        self._whole: Answer | None = None
        self._at_work: dict[str, weakref.ref[_Call]] = {}  # "by": the present call; `setdefault` is atomic
        self.was_stopped = False  # whether `close` ended it early

    def __next__(self) -> Piece:
        me = _Call()
        try:
            self._check_alone(me)
            while not self._pieces and not self._ticket.is_done:
                self._go_on()
        finally:
            self._leave(me)
        if not self._pieces:
            raise StopIteration
        return self._pieces.popleft()

    def _go_on(self) -> None:
        for event in self._ticket.wait(self._note):
            if event.error is not None:
                raise event.error
            if self._on_read is not None and event.n_to_read:
                self._on_read(event.n_read, event.n_to_read)

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the answer, if it has not ended.

        Raises:
            UsageError: the answer is being generated, by the caller (in `progress`) or in another thread.
        """
        me = _Call()
        try:
            self._check_alone(me)
            if not self._ticket.is_done:
                self.was_stopped = True
                self._ticket.cancel()
            while not self._ticket.is_done:
                self._ticket.wait(self._note)
            self._pieces.clear()
        finally:
            self._leave(me)

    def cancel(self) -> None:
        """Ends the answer as soon as possible. May be called from any thread or a signal handler."""
        self._ticket.cancel()

    def read(self) -> Answer:
        """Generates the answer to its end, and returns it.

        Raises:
            BackendError: llama.cpp failed, or the grammar allows no token.
            UsageError: the model was closed.
        """
        me = _Call()
        try:
            self._check_alone(me)  # for the whole answer, not for each token
            while not self._ticket.is_done:
                self._go_on()
            self._pieces.clear()
        except BaseException:
            if self._is_at_work(me):
                self._ticket.cancel()
            raise
        finally:
            self._leave(me)
        return self.answer

    @property
    def n_tokens(self) -> int:
        """The number of tokens so far."""
        return self._n_tokens

    @property
    def answer(self) -> Answer:
        """The answer so far, which is complete after the iteration.

        Raises:
            UsageError: an error in another thread broke the answer off.
        """
        found = self._whole or self._ticket.answer(self._ticket.ids[0])
        if found is None:
            raise UsageError("the answer was broken off by an error in another thread", hint="ask again")
        return found

    def _note(self, events: Sequence[Event]) -> None:
        for event in events:
            self._pieces += event.pieces
            self._n_tokens = max(self._n_tokens, event.n_tokens)
            self._whole = event.answer

    def _check_alone(self, me: _Call) -> None:
        mine = weakref.ref(me)
        found = self._at_work.setdefault("by", mine)
        if found() is None:  # an interrupt struck the last call just as it ended
            self._at_work["by"] = found = mine
        if found() is not me:
            raise UsageError("an answer is being generated", hint="one at a time: Model.cancel stops it; several: LLM")

    def _leave(self, me: _Call) -> None:
        if self._is_at_work(me):
            del self._at_work["by"]

    def _is_at_work(self, me: _Call) -> bool:
        found = self._at_work.get("by")
        return found is not None and found() is me


class _Call:
    """One call that works with a stream. Its claim ends with the call, even if an exception ends it."""

    __slots__ = ("__weakref__",)
