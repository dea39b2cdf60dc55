"""Grammar rules for numbers within bounds, digit by digit, as JSON schemas need them."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from mimo_gguf.engine.gbnf import EMPTY, NEVER, Chars, Literal, Node, Repeat, alt, optional, seq

_DIGIT = Chars(((0x30, 0x39),))
_DIGITS_MOST = 16  # before the point; a double cannot hold more
_DECIMALS_MOST = 20
_MORE_DECIMALS = 6  # beyond those of the bounds
_BEYOND = Decimal(10) ** _DIGITS_MOST - 1
_NATURAL = alt([Literal("0"), seq(Chars(((0x31, 0x39),)), Repeat(_DIGIT, 0, _DIGITS_MOST - 1))])
_FRACTION = optional(seq(".", Repeat(_DIGIT, 1, _DIGITS_MOST)))
_EXPONENT = optional(seq(Chars(((0x45, 0x45), (0x65, 0x65))), optional(Chars(((0x2B, 0x2B), (0x2D, 0x2D)))),
                         Repeat(_DIGIT, 1, 2)))  # fmt: skip
INTEGER: Node = seq(optional(Literal("-")), _NATURAL)
NUMBER: Node = seq(optional(Literal("-")), _NATURAL, _FRACTION, _EXPONENT)


def integers_within(low: Decimal | None, high: Decimal | None) -> Node:
    """The whole numbers from `low` to `high`, both included; None sets no bound."""
    if low is None and high is None:
        return INTEGER
    first, last = _bounds(low, high)
    return _within(int(first.to_integral_value(ROUND_CEILING)), int(last.to_integral_value(ROUND_FLOOR)), 0)


def numbers_within(low: Decimal | None, high: Decimal | None, *, open_low: bool, open_high: bool) -> Node:
    """The numbers from `low` to `high`, without the bounds that are open; None sets no bound.

    They have as many decimals as the bounds, and between the bounds up to 6 more.
    """
    if low is None and high is None:
        return NUMBER
    first, last = _bounds(low, high)
    decimals = min(max(_n_decimals(first), _n_decimals(last)), _DECIMALS_MOST)
    if (open_low or open_high) and max(abs(first), abs(last)) < 10**6:
        decimals = min(decimals + 3, _DECIMALS_MOST)
    smallest = int((first * 10**decimals).to_integral_value(ROUND_CEILING))
    largest = int((last * 10**decimals).to_integral_value(ROUND_FLOOR))
    if open_low and smallest == first * 10**decimals:
        smallest += 1
    if open_high and largest == last * 10**decimals:
        largest -= 1
    return _within(smallest, largest, decimals, more=True)


def _bounds(low: Decimal | None, high: Decimal | None) -> tuple[Decimal, Decimal]:
    """Both bounds, limited to numbers of 16 digits."""
    return max(-_BEYOND if low is None else low, -_BEYOND), min(_BEYOND if high is None else high, _BEYOND)


def _n_decimals(number: Decimal) -> int:
    return max(-int(number.normalize().as_tuple().exponent), 0)


def _within(low: int, high: int, decimals: int, *, more: bool = False) -> Node:
    """The numbers k / 10^decimals for k from `low` to `high`; with `more`, further digits between them."""
    options = [_magnitudes(max(low, 0), high, decimals, more)] if high >= 0 else []
    if low < 0:
        options.append(seq("-", _magnitudes(max(-high, 0), -low, decimals, more)))
    options = [option for option in options if option != NEVER]
    return alt(options) if low <= high and options else NEVER


def _magnitudes(low: int, high: int, decimals: int, more: bool) -> Node:
    """As `_within`, for `low` of 0 or more."""
    if low > high:
        return NEVER
    if not more:
        return alt(_patterns(low, high, decimals))
    tail = Repeat(_DIGIT, 1, _MORE_DECIMALS)
    further = optional(tail if decimals else seq(".", tail))
    options = [seq(alt(_patterns(low, high - 1, decimals)), further)] if high > low else []
    return alt([*options, alt(_patterns(high, high, decimals))])


def _patterns(low: int, high: int, decimals: int) -> Iterator[Node]:
    """The digits of the numbers from `low` to `high`, one length after the other, with the decimal point."""
    length = max(len(str(low)), decimals + 1)
    while low <= high:
        last = min(high, 10**length - 1)
        for digits in _ranges(str(low).zfill(length), str(last).zfill(length)):
            whole, fraction = digits[: length - decimals], digits[length - decimals :]
            yield seq(*whole, *([".", *fraction] if fraction else [EMPTY]))
        low, length = 10**length, length + 1


def _ranges(low: str, high: str) -> Iterator[list[Node]]:
    """Sequences of digit sets that together match the numbers from `low` to `high`, both of the same length."""
    if not low:
        yield []
    elif low[0] == high[0]:
        for rest in _ranges(low[1:], high[1:]):
            yield [_digit(low[0], low[0]), *rest]
    else:
        first, last = int(low[0]), int(high[0])
        n = len(low) - 1
        if set(low[1:]) - {"0"}:
            for rest in _ranges(low[1:], "9" * n):
                yield [_digit(low[0], low[0]), *rest]
            first += 1
        ends_early = bool(set(high[1:]) - {"9"})
        if first <= last - ends_early:
            yield [_digit(str(first), str(last - ends_early)), *[_DIGIT] * n]
        if ends_early:
            for rest in _ranges("0" * n, high[1:]):
                yield [_digit(high[0], high[0]), *rest]


def _digit(low: str, high: str) -> Node:
    return Literal(low) if low == high else Chars(((ord(low), ord(high)),))
