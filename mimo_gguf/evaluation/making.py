"""Problems that are made here, so that every machine has some: sums, and stories that end in a whole number.

Only `Random.random` is used, because Python promises that its sequence stays the same; that of `randrange` may change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Any, Final

_SEED: Final = 20
_SUMS: Final = (
    "What is {a} + {b}?",
    "How much is {a} plus {b}?",
    "Compute {a} + {b}.",
    "What is the sum of {a} and {b}?",
    "I have {a} apples and get {b} more. How many apples do I have?",
)
_GOODS: Final = ("pencils", "marbles", "eggs", "stickers", "oranges", "books", "shells", "coins")
_PEOPLE: Final = ("Ada", "Ben", "Chloe", "Dev", "Emma", "Farid", "Greta", "Hugo")

Row = dict[str, Any]


def _number(random: Random, low: int, high: int) -> int:
    """A whole number from `low` to `high`, both included."""
    return low + int(random.random() * (high - low + 1))


def _pick(random: Random, of: tuple[str, ...]) -> str:
    return of[_number(random, 0, len(of) - 1)]


def make_sums(n: int) -> Iterator[Row]:
    """Sums of two numbers below 100, each pair once."""
    random = Random(_SEED)
    seen: set[tuple[int, int]] = set()
    while len(seen) < n:
        a, b = _number(random, 0, 99), _number(random, 0, 99)
        if (a, b) not in seen:
            seen.add((a, b))
            yield {"id": f"{a}+{b}", "question": _pick(random, _SUMS).format(a=a, b=b), "answer": str(a + b)}


def make_stories(n: int) -> Iterator[Row]:
    """Stories in which something comes in boxes, is bought, given away and shared: two to four steps each."""
    random = Random(_SEED)
    for number in range(n):
        who, other, things = _pick(random, _PEOPLE), _pick(random, _PEOPLE), _pick(random, _GOODS)
        boxes, each = _number(random, 3, 19), _number(random, 4, 24)
        have = boxes * each
        lines = [f"{who} has {boxes} boxes with {each} {things} in each of them."]
        if random.random() < 0.6:
            more = _number(random, 11, 95)
            lines.append(f"Then {who} finds {more} more {things}.")
            have += more
        if random.random() < 0.6:
            given = _number(random, 3, have // 2)
            friend = other if other != who else "a friend"
            lines.append(f"{who} gives {given} of the {things} to {friend}.")
            have -= given
        size = _number(random, 2, 6)
        lines.append(f"Now all {things} that {who} has are packed into bags of {size}, as many full bags as possible.")
        end, answer = f"How many {things} are left over?", have % size
        if random.random() < 0.5:
            end, answer = "How many full bags are there?", have // size
        yield {"id": f"story {number + 1}", "question": " ".join([*lines, end]), "answer": str(answer)}


MAKERS: Final[Mapping[str, Callable[[int], Iterator[Row]]]] = {"sums": make_sums, "stories": make_stories}
