"""Limits the time and memory of a chat template; sandbox.py puts the limits into jinja2.

A template is code from a stranger. The sandbox keeps it away from the machine; this module keeps it from running for
hours or filling the memory. There are three rules:

- Work is counted. Each round of a loop and each call checks the clock, and the size of every new text or list is
  charged to one account.
- A step that can make something large out of something small is checked before it is done: `"x" * 1000000000`,
  padding, `%` and `format` with widths, powers.
- The size of a value, with everything inside it, is limited, so that no single step takes long.

The account grows with the messages, so that a long conversation does not use it up.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sized
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

LONGEST_SOURCE: Final = 200_000  # characters; published templates have up to 20,000
_SECONDS: Final = 5.0
_ACCOUNT: Final = 64_000_000  # characters that a template may make, and _SHARE for each character of its input
_SHARE: Final = 64
_LARGEST: Final = 4_000_000  # characters of one value, and 4 for each character of the input
_ENTRY: Final = 8  # characters that an entry of a list counts as
_WIDEST: Final = 1_000  # of padding, indentation and formatted numbers
_MOST_BITS: Final = 2_048  # of a whole number
# Filters with a width, and patterns that find a width in a format that is too large.
_WIDTHS: Final = frozenset({"center", "indent", "tojson", "batch", "slice", "round"})
_WIDE_PERCENT: Final = re.compile(r"%[^a-zA-Z%]*(?:[0-9]{4,}|\*)")
_WIDE_BRACES: Final = re.compile(r"\{[^{}]*:[^{}]*[0-9]{4,}|\{[^{}]*\{")
_PADDING: Final = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs"})


class TemplateTooCostlyError(Exception):
    """The template exceeds its limits of time or memory."""


@dataclass(slots=True)
class Account:
    """What one rendering may still use.

    Attributes:
        left: characters that may still be made.
        largest: characters of one value, at most.
        ends_at: end of the time, as `time.monotonic` counts it, in seconds.
        charged: lists and tables that were charged, by id; they are kept so that no id is used again.
    """

    left: int
    largest: int
    ends_at: float
    charged: dict[int, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Any) -> Account:
        """Makes the account for a rendering with these variables."""
        size, _ = size_of(values, 1 << 40)
        return cls(_ACCOUNT + _SHARE * size, _LARGEST + 4 * size, time.monotonic() + _SECONDS)

    def tick(self) -> None:
        """Raises TemplateTooCostlyError if the time is up."""
        if time.monotonic() > self.ends_at:
            raise TemplateTooCostlyError(f"it takes more than {_SECONDS:.0f} seconds")

    def charge(self, size: int) -> None:
        """Charges `size` characters. Raises TemplateTooCostlyError if that is more than allowed."""
        self.left -= size
        if size > self.largest or self.left < 0:
            raise TemplateTooCostlyError("it makes a text or list that is too large")
        self.tick()

    def charge_value(self, value: Any) -> Any:
        """Charges a value's size, once unless the value can change. Returns the value."""
        if isinstance(value, str):
            self.charge(len(value))
        elif not isinstance(value, int | float | None) and id(value) not in self.charged:
            size, is_lasting = size_of(value, self.largest)
            self.charge(size)
            if is_lasting:
                self.charged[id(value)] = value
        return value

    def charge_all(self, values: Any, times: int = 1) -> None:
        """Charges the size of `values`, as many times as they will be written."""
        self.charge(size_of(values, self.largest)[0] * max(times, 1))


ACCOUNT: ContextVar[Account] = ContextVar("ACCOUNT")


def size_of(value: Any, most: int) -> tuple[int, bool]:
    """The size in characters of a value with everything inside it, counted up to a little more than `most`.

    What is inside twice counts twice, because printing or comparing it costs that much. The second result says whether
    the value never changes: in the sandbox only namespaces do.
    """
    total, is_lasting, open_values = 0, True, [value]
    while open_values and total <= most:
        item = open_values.pop()
        total += 1
        if isinstance(item, str | bytes | range):
            total += len(item)
        elif isinstance(item, Mapping):
            total += 2 * _ENTRY * len(item)
            open_values += item.keys()
            open_values += item.values()
        elif isinstance(item, Collection):
            total += _ENTRY * len(item)
            open_values += item
        elif type(item).__qualname__ == "Namespace":  # jinja2's; the name saves its import
            is_lasting = False
            open_values.append(object.__getattribute__(item, "_Namespace__attrs"))
    return total, is_lasting


# ---- operators


def _add(left: Any, right: Any) -> Any:
    if isinstance(left, Sized) and isinstance(right, Sized):
        ACCOUNT.get().charge(len(left) + len(right))
    return left + right


def _multiply(left: Any, right: Any) -> Any:
    for one, other in ((left, right), (right, left)):
        if isinstance(one, Sized) and isinstance(other, int):
            ACCOUNT.get().charge_all(one, other)
    _check_bits(_bits(left) + _bits(right))
    return left * right


def _power(left: Any, right: Any) -> Any:
    _check_bits(max(_bits(left), 1) * (abs(right) if isinstance(right, int) else 1))
    return left**right


def _modulo(left: Any, right: Any) -> Any:
    if isinstance(left, str):
        _check_format(left, _WIDE_PERCENT)
        ACCOUNT.get().charge_all((left, right), left.count("%"))
    return left % right


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _check_bits(n_bits: int) -> None:
    if n_bits > _MOST_BITS:
        raise TemplateTooCostlyError("it makes a number that is too large")


def _check_format(text: str, too_wide: re.Pattern[str]) -> None:
    if too_wide.search(text):
        raise TemplateTooCostlyError("it formats with a width that is too large")


def _check_width(args: Iterable[Any]) -> None:
    for value in args:
        if (abs(value) if isinstance(value, int) else size_of(value, _WIDEST)[0]) > _WIDEST:
            raise TemplateTooCostlyError("it pads or indents by too much")


# ---- calls and filters


def check_call(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Checks a call before it is made. Returns its arguments.

    Raises:
        TemplateTooCostlyError: a method of a text would make too long a text.
    """
    inner = getattr(function, "__wrapped__", function)  # the sandbox wraps str.format
    owner, name = getattr(inner, "__self__", None), getattr(inner, "__name__", "")
    if not isinstance(owner, str):
        return args
    account = ACCOUNT.get()
    if name in _PADDING:
        _check_width((*args, *kwargs.values()))
        account.charge(len(owner) + _WIDEST * (owner.count("\t") if name == "expandtabs" else 1))
    elif name in ("format", "format_map"):
        _check_format(owner, _WIDE_BRACES)
        account.charge_all((owner, args, kwargs), owner.count("{"))
    elif name == "replace":
        _charge_replace(owner, *args[:2])
    elif name == "join":
        return tuple(_charge_join(owner, values) for values in args)
    elif name in ("translate", "encode"):
        raise TemplateTooCostlyError(f"it calls {name}, which no chat template needs")
    return args


def _charge_replace(text: Any, old: Any = "", new: Any = "", *_: Any, **__: Any) -> None:
    text, old, new = str(text), str(old), str(new)
    ACCOUNT.get().charge(len(text) + text.count(old) * len(new))


def _charge_join(between: Any, values: Any) -> Any:
    """Charges for a join. Returns the values, as a list if they were a generator, which can be read only once."""
    account = ACCOUNT.get()
    parts = values if isinstance(values, Collection) else list(each(values))
    account.charge(len(str(between)) * len(parts))
    account.charge_all(parts)
    return parts


def checked_filter(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps the filter `inner`: its arguments are checked before, and its result is charged after."""
    passed_kind = getattr(inner, "jinja_pass_arg", None)  # a context or environment, passed first

    def checked(*args: Any, **kwargs: Any) -> Any:
        account = ACCOUNT.get()
        passed, values = (args[:1], args[1:]) if passed_kind is not None else ((), args)
        if name in _WIDTHS:
            _check_width((*values[1:], *kwargs.values()))
        before = _BEFORE.get(name)
        if before is not None:
            values = before(values, kwargs)
        account.tick()
        return account.charge_value(inner(*passed, *values, **kwargs))

    if passed_kind is not None:
        checked.jinja_pass_arg = passed_kind  # type: ignore[attr-defined]
    return checked


# The checks before a filter runs, by the filter's name: (values, keywords) -> values.
_Values = tuple[Any, ...]


def _before_replace(values: _Values, kwargs: Mapping[str, Any]) -> _Values:
    _charge_replace(*values[:3], *(kwargs[name] for name in ("old", "new") if name in kwargs))
    return values


def _before_join(values: _Values, kwargs: Mapping[str, Any]) -> _Values:
    between = values[1] if len(values) > 1 else kwargs.get("d", "")
    return (_charge_join(between, values[0]), *values[1:])


def _before_format(values: _Values, kwargs: Mapping[str, Any]) -> _Values:
    text = str(values[0])
    _check_format(text, _WIDE_PERCENT)
    ACCOUNT.get().charge_all((values, dict(kwargs)), text.count("%"))
    return values


def _before_indent(values: _Values, kwargs: Mapping[str, Any]) -> _Values:
    ACCOUNT.get().charge(str(values[0]).count("\n") * _WIDEST)
    return values


def _before_tojson(values: _Values, kwargs: Mapping[str, Any]) -> _Values:
    widths = [len(item) if isinstance(item, str) else item for item in (*values[1:], *kwargs.values())]
    width = max((item for item in widths if isinstance(item, int)), default=0)
    ACCOUNT.get().charge_all(values[:1], 1 + width * _depth_of(values[0]))
    return values


def _before_sum(values: _Values, kwargs: Mapping[str, Any]) -> _Values:
    if not all(isinstance(item, int | float | str | None) for item in (*values[1:], *kwargs.values())):
        raise TemplateTooCostlyError("it adds up lists")
    return values


_BEFORE: Final[Mapping[str, Callable[[_Values, Mapping[str, Any]], _Values]]] = {
    "replace": _before_replace,
    "join": _before_join,
    "format": _before_format,
    "indent": _before_indent,
    "tojson": _before_tojson,
    "sum": _before_sum,
}


def _depth_of(value: Any) -> int:
    """The number of levels of lists and tables inside each other in a value, at most 100."""
    level, depth = [value], 0
    while level and depth < 100:
        inner: list[Any] = []
        for item in level:
            inner += item.values() if isinstance(item, Mapping) else item if isinstance(item, list | tuple) else ()
        level, depth = inner, depth + 1
    return depth


def each(values: Any) -> Iterator[Any]:
    """Yields the values of a loop, and checks the clock before each."""
    account = ACCOUNT.get()
    account.charge_value(values)
    for value in values:
        account.tick()
        yield value


def held(value: Any) -> Any:
    """Charges a value that gets a name or is written."""
    return ACCOUNT.get().charge_value(value)


def joined(values: Any) -> str:
    """Joins values as the operator `~` does."""
    account = ACCOUNT.get()
    texts = [str(account.charge_value(value)) for value in values]
    account.charge(sum(map(len, texts)))
    return "".join(texts)


def concat(pieces: Iterable[str]) -> str:
    """Joins what a template, macro or block has written."""
    account = ACCOUNT.get()
    texts = []
    for piece in pieces:
        account.charge(len(piece))
        texts.append(piece)
    return "".join(texts)


# The operators of jinja2's sandbox that are checked before they are done.
OPERATORS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "+": _add,
    "*": _multiply,
    "**": _power,
    "%": _modulo,
}
