"""Limits on grammars: llama.cpp has few of its own, and crashes or hangs instead.

The limits were found by trying llama.cpp 0c1e57098 in child processes:

- Its parser's stack ends at 10 000 to 20 000 parentheses, and at about 100 000 rules that begin with each other.
- 100 000 alternatives take 80 s. 1600 ways to go on take more than 100 s a token, because each is compared with each.
- An upper bound above 2000 repetitions is silently ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from mimo_gguf.core.errors import UsageError
from mimo_gguf.engine.gbnf import (
    NESTED_MOST,
    Alt,
    Chars,
    Literal,
    NestedTooDeep,
    Node,
    NotGbnf,
    Ref,
    Repeat,
    Rules,
    Seq,
    Token,
    holds,
    parse,
)

TEXT_MOST: Final = 2 << 20  # characters
REPETITIONS_MOST: Final = 1999  # from 2000 on llama.cpp refuses the grammar, or ignores the upper bound
_ELEMENTS_MOST: Final = 1 << 20  # characters, sets and rule names, counted as often as they are repeated
_RULES_MOST: Final = 1 << 15
_CHAIN_MOST: Final = 2000  # rules that begin with each other
_WAYS_MOST: Final = 1000  # ways to go on that llama.cpp tracks at the same time


def check_grammar(grammar: str) -> None:
    """Raises UsageError for a GBNF text that would crash llama.cpp, or keep it busy for minutes."""
    if len(grammar) > TEXT_MOST:
        _refuse(f"it has {len(grammar)} characters; at most {TEXT_MOST} are allowed")
    try:
        rules = parse(grammar)
    except NestedTooDeep:
        _refuse(f"it has more than {NESTED_MOST} parentheses inside each other")
    except NotGbnf:
        return  # llama.cpp's parser explains what is wrong
    check_rules(rules)


def check_rules(rules: Rules) -> None:
    """Raises UsageError if there are too many rules, elements, or ways to go on at the same time."""
    if len(rules) > _RULES_MOST:
        _refuse(f"it has {len(rules)} rules; at most {_RULES_MOST} are allowed")
    if (n_elements := sum(map(_n_elements, rules.values()))) > _ELEMENTS_MOST:
        _refuse(f"it has {n_elements} elements, repetitions counted; at most {_ELEMENTS_MOST} are allowed")
    ways = _Ways(rules)
    for name in rules:
        if (n_ways := ways.most_within(name)) > _WAYS_MOST:
            _refuse(f"rule {name[:40]} has {n_ways} ways to go on; at most {_WAYS_MOST} are allowed")


def _refuse(reason: str) -> None:
    raise UsageError(f"the grammar is too large: {reason}", hint="repeat less, nest less, or split long alternatives")


def _n_elements(node: Node) -> int:
    """The number of elements that llama.cpp makes of a node: it copies what is repeated."""
    match node:
        case Literal(text):
            return len(text)
        case Chars(ranges, _):
            return 1 + 2 * len(ranges)
        case Seq(parts):
            return sum(map(_n_elements, parts))
        case Alt(options):
            return sum(map(_n_elements, options)) + len(options)
        case Repeat(inner, least, most):
            times = least if most is None else most
            if times > REPETITIONS_MOST:
                _refuse(f"it has {times} repetitions of one element; at most {REPETITIONS_MOST} are allowed")
            copied = _n_elements(inner) if isinstance(inner, Literal | Chars) else 1
            return copied * max(times, 1) + _n_elements(inner)
        case Ref() | Token():
            return 1


class _Ways:
    """Counts the ways to begin a rule as llama.cpp does: one for every alternative that may come first.

    Rules that begin with themselves, and names without a rule, count as 1: llama.cpp refuses them by name.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._nullable = _nullable(rules)
        self._known: dict[str, int] = {}

    def of_rule(self, name: str) -> int:
        """The number of ways to begin `name`, counted without recursion, because chains of rules may be long."""
        path: list[tuple[str, Iterator[str]]] = []
        self._enter(name, path)
        while path:
            current, waiting = path[-1]
            following = next((other for other in waiting if other not in self._known), None)
            if following is None:
                self._known[current] = self._of(self._rules[current])
                path.pop()
            elif any(following == on_path for on_path, _ in path):
                self._known.setdefault(following, 1)  # begins with itself
            else:
                self._enter(following, path)
            if len(path) > _CHAIN_MOST:
                _refuse(f"more than {_CHAIN_MOST} rules begin with each other")
        return self._known.get(name, 1)

    def most_within(self, name: str) -> int:
        """The largest number of ways to go on at any point of `name`."""
        self.of_rule(name)
        return self._most(self._rules[name])

    def _enter(self, name: str, path: list[tuple[str, Iterator[str]]]) -> None:
        if name in self._rules:
            path.append((name, iter(list(self._first(self._rules[name])))))
        else:
            self._known[name] = 1

    def _first(self, node: Node) -> Iterator[str]:
        """The names of the rules that may come first in a node."""
        match node:
            case Ref(name):
                yield name
            case Repeat(inner, _, _):
                yield from self._first(inner)
            case Alt(options):
                for option in options:
                    yield from self._first(option)
            case Seq(parts):
                for part in parts:
                    yield from self._first(part)
                    if not self._may_be_empty(part):
                        return

    def _of(self, node: Node) -> int:
        match node:
            case Ref(name):
                return self._known.get(name, 1)
            case Alt(options):
                return sum(map(self._of, options))
            case Repeat(inner, least, most):
                times = max(least if most is None else most, 1)
                return self._of(inner) * (times if self._may_be_empty(inner) else 1) + 1
            case Seq(parts):
                return self._from(parts)
            case _:
                return 1

    def _from(self, parts: Sequence[Node]) -> int:
        """The number of ways to go on with a sequence."""
        n_ways = 0
        for part in parts:
            n_ways += self._of(part)
            if not self._may_be_empty(part):
                break
        return n_ways

    def _most(self, node: Node) -> int:
        match node:
            case Seq(parts):
                on = max((self._from(parts[start:]) for start in range(len(parts))), default=0)
                return max(on, *map(self._most, parts), 0)
            case Alt(options):
                return max(self._of(node), *map(self._most, options), 0)
            case Repeat(inner, _, _):
                return max(self._of(node), self._most(inner))
            case _:
                return self._of(node)

    def _may_be_empty(self, node: Node) -> bool:
        return _is_nullable(node, self._nullable)


def _nullable(rules: Rules) -> set[str]:
    """The names of the rules that match the empty text."""
    used_by: dict[str, set[str]] = {}
    for name, node in rules.items():
        for other in _references(node):
            used_by.setdefault(other, set()).add(name)
    found: set[str] = set()
    waiting = list(rules)
    while waiting:
        name = waiting.pop()
        if name in rules and name not in found and _is_nullable(rules[name], found):
            found.add(name)
            waiting += used_by.get(name, ())
    return found


def _references(node: Node) -> Iterator[str]:
    """The names of the rules that a node refers to."""
    match node:
        case Ref(name):
            yield name
        case Repeat(inner, _, _):
            yield from _references(inner)
        case Seq(inner_nodes) | Alt(inner_nodes):
            for inner in inner_nodes:
                yield from _references(inner)


def _is_nullable(node: Node, names: set[str]) -> bool:
    """Whether a node matches the empty text, if the rules of these names do."""

    def leaf(node: Node) -> bool:
        return node.name in names if isinstance(node, Ref) else node == Literal("")

    return holds(node, leaf)
