"""Responses that later requests may name, in memory only: `previous_response_id`, and looking at one again."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

from mimo_gguf.server.failures import refusal

N_MOST: Final = 1000
CHARACTERS_MOST: Final = 32 << 20  # of all responses, each counted with the conversation before it


@dataclass(frozen=True, slots=True)
class Stored:
    """A response that has ended.

    Attributes:
        document: as it was sent.
        items: the items of its input.
        messages: the whole conversation that it ends, without instructions: they hold for one response only.
    """

    document: dict[str, Any]
    items: tuple[dict[str, Any], ...]
    messages: tuple[dict[str, Any], ...]


class ResponseStore:
    """The newest responses. Those that were not used for longest go first. It belongs to the event loop's thread."""

    def __init__(self, n_most: int = N_MOST, characters_most: int = CHARACTERS_MOST) -> None:
        self._most = (n_most, characters_most)
        self._stored: OrderedDict[str, tuple[Stored, int]] = OrderedDict()
        self._n_characters = 0

    def put(self, stored: Stored) -> None:
        """Keeps a response, unless it alone is larger than all that may be kept."""
        size = len(json.dumps([stored.document, stored.items, stored.messages]))
        n_most, characters_most = self._most
        if size > characters_most:
            return
        self._stored[stored.document["id"]] = (stored, size)
        self._n_characters += size
        while len(self._stored) > n_most or self._n_characters > characters_most:
            _, (_, gone) = self._stored.popitem(last=False)
            self._n_characters -= gone

    def get(self, name: str) -> Stored:
        """The response with this id. Raises Refused if it is not here."""
        if name not in self._stored:
            raise refusal(404, f"no response {name[:80]!r} here", code="response_not_found")
        self._stored.move_to_end(name)
        return self._stored[name][0]

    def remove(self, name: str) -> None:
        """Forgets a response. Raises Refused if it is not here."""
        self.get(name)
        _, size = self._stored.pop(name)
        self._n_characters -= size

    def conversation(self, previous: str | None) -> tuple[dict[str, Any], ...]:
        """The messages up to the end of the response `previous`; none without one.

        Raises:
            Refused: it is not here.
        """
        if previous is None:
            return ()
        if previous not in self._stored:
            message = f"no response {previous[:80]!r} here: it was not stored, or is forgotten; send all of input again"
            raise refusal(400, message, code="previous_response_not_found", param="previous_response_id")
        return self.get(previous).messages
