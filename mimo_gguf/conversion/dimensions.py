"""The numbers that a checkpoint states, and the sums and products of them in which a recipe writes sizes."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from mimo_gguf.core.errors import CheckpointError

_OPERATOR: Final = re.compile(r"\s*([*/])\s*")
_LARGEST: Final = (1 << 31) - 1  # llama.cpp keeps sizes in 32 bits; anything near that is damage or malice


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The numbers of a checkpoint by name. config.json is untrusted, so each number is checked when it is needed.

    Attributes:
        config: config.json.
        defaults: expressions for names that config.json may leave out.
        counts: numbers from the tensors instead of config.json (`mtp_layers`); only these may be 0.
        where: the checkpoint, for messages.
    """

    config: Mapping[str, Any]
    defaults: Mapping[str, str]
    counts: Mapping[str, int]
    where: str

    def number(self, expression: str) -> float:
        """The value of a sum of products: `2 * head_dim`, `hidden_size / num_attention_heads`, `n + 1`.

        Raises:
            CheckpointError: a name is missing, or not a positive number below 2**31; a quotient is not whole.
        """
        return sum(self._product(part.strip()) for part in expression.split("+"))

    def whole(self, expression: str) -> int:
        """The value of `expression`, as in `number`, as an int; 4096.0 counts as whole.

        Raises:
            CheckpointError: as `number`, or it has a fraction.
        """
        value = self.number(expression)
        if value != int(value):
            raise self._error(f"{expression} is {value}, not a whole number")
        return int(value)

    def with_count(self, **counts: int) -> Dimensions:
        """The same numbers with further counts."""
        return replace(self, counts={**self.counts, **counts})

    def _product(self, expression: str) -> float:
        first, *rest = _OPERATOR.split(expression)
        value = self._term(first)
        for operator, name in zip(rest[::2], rest[1::2], strict=True):
            other = self._term(name)
            if operator == "/" and value % other:
                raise self._error(f"{expression} is not whole")
            value = value * other if operator == "*" else value // other
        return value

    def _term(self, name: str) -> float:
        if name.isdigit():
            return int(name)
        if name in self.counts:
            return self.counts[name]
        value = self.config.get(name)
        if value is None and name in self.defaults:
            return self.number(self.defaults[name])
        if value is None:
            raise self._error(f"{name} is missing")
        # NaN fails every comparison, so it is refused here too
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LARGEST:
            raise self._error(f"{name} is {reprlib.repr(value)}, not a sensible number")
        return value

    def _error(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.where}: config.json: {what}", hint="download config.json again")
