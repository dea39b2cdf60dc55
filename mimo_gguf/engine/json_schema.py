"""The grammar of a JSON schema: a text that matches it is JSON and satisfies the schema.

The converse does not hold: in the grammar properties come in the order of the schema, none are added unless the schema
says so, and numbers have up to 16 digits. A keyword that a grammar cannot express is refused by name, never left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.near_matches import name_hint
from mimo_gguf.engine.gbnf import (
    EMPTY,
    NEVER,
    Alt,
    Chars,
    Literal,
    Node,
    Ref,
    Repeat,
    Seq,
    alt,
    holds,
    literals,
    optional,
    render,
    seq,
)
from mimo_gguf.engine.grammar_limits import TEXT_MOST, check_rules
from mimo_gguf.engine.number_rules import INTEGER, NUMBER, integers_within, numbers_within
from mimo_gguf.engine.regex_rules import FORMATS, RAW, NotPossible, rules_of_format, rules_of_pattern
from mimo_gguf.engine.schema_forms import KEYWORDS_OF, Child, Document, Form, Place, refuse

JSON_OBJECT: Final = '{"type": "object"}'  # the schema of any JSON object
_COUNT_MOST: Final = 100_000  # items or characters: the largest bound
_BLOCK: Final = 1000  # repetitions that llama.cpp can handle
_DEPTH_MOST: Final = 60
_NUMBER_FORMATS: Final = {"int32": (-(1 << 31), (1 << 31) - 1), "int64": None, "float": None, "double": None}
_HEX: Final = Chars(((0x30, 0x39), (0x41, 0x46), (0x61, 0x66)))
# A character of a string: as it is (never a control character), or escaped, but never half a surrogate pair.
_CHAR: Final = alt([
    Chars(RAW),
    seq("\\", Chars(tuple((ord(c), ord(c)) for c in '"\\/bfnrt'))),
    seq("\\u", alt([
        seq(Chars(((0x30, 0x39), (0x41, 0x43), (0x45, 0x46), (0x61, 0x63), (0x65, 0x66))), Repeat(_HEX, 3, 3)),
        seq(Chars(((0x44, 0x44), (0x64, 0x64))), Chars(((0x30, 0x37),)), Repeat(_HEX, 2, 2)),
    ])),
])  # fmt: skip
_SPACE: Final = optional(alt([Literal(" "), seq("\n", Repeat(Chars(((0x20, 0x20),)), 0, 20))]))


def grammar_of_schema(schema: str | Mapping[str, Any] | bool) -> str:
    """The GBNF grammar of a JSON schema (JSON text, or its Python value), for `SamplingOptions.grammar`.

    Raises:
        UsageError: it is not a schema, or a grammar cannot express it; the message has the keyword's JSON pointer.
    """
    document = _document(schema)
    try:
        rules = _Writer(Document(document)).rules()
    except RecursionError:
        raise refuse("#", "nested too deep") from None
    rules = _without_dead_ends(rules)
    if rules["root"] == NEVER:
        raise refuse("#", "no value satisfies it, or none that ends")
    check_rules(rules)
    return render(rules)


def _document(schema: Any) -> Any:
    if not isinstance(schema, str):
        return schema
    if len(schema) > TEXT_MOST:
        raise UsageError(f"the JSON schema has {len(schema)} characters", hint=f"at most {TEXT_MOST} are allowed")
    try:
        return json.loads(schema, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else error
        raise UsageError(f"the JSON schema is not JSON: {reason}", hint="check the schema") from None


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is not a JSON number")


class _Writer:
    """Writes one rule for every schema in the document: a schema that contains itself refers to its own rule."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._rules: dict[str, Node] = {"root": EMPTY}
        self._names: dict[tuple[str, ...], str] = {}
        self._depth = 0

    def rules(self) -> dict[str, Node]:
        """Writes all rules, `root` first."""
        self._rules["root"] = self._child((self._document.root,))
        return self._rules

    def _child(self, child: Child) -> Node:
        """The rule for values that satisfy all schemas of `child`."""
        child = tuple({place.pointer: place for place in map(self._resolved, child)}.values())
        key = tuple(place.pointer for place in child)
        if key in self._names:
            return Ref(self._names[key])
        name = self._names[key] = f"v{len(self._names)}"
        self._rules[name] = EMPTY  # keeps its place
        self._depth += 1
        if self._depth > _DEPTH_MOST:
            raise refuse(key[0], f"more than {_DEPTH_MOST} levels")
        self._rules[name] = alt([self._form(form) for form in self._document.forms(child)])
        self._depth -= 1
        return Ref(name)

    def _resolved(self, place: Place) -> Place:
        """The schema that a bare reference leads to, so that a schema which contains itself gets one rule only."""
        seen = set()
        while isinstance(place.schema, dict) and place.schema.keys() == {"$ref"} and place.pointer not in seen:
            seen.add(place.pointer)
            place = self._document.find(place.schema["$ref"], f"{place.pointer}/$ref")
        return place

    def _shared(self, name: str, node: Node) -> Ref:
        self._rules.setdefault(name, node)
        return Ref(name)

    def _form(self, form: Form) -> Node:
        if "enum" in form.words:
            return self._enum(form)
        writers: dict[str, Callable[[Form], Node]] = {
            "object": self._object, "array": self._array, "string": self._string, "number": self._number,
            "integer": self._number, "null": lambda _: Literal("null"),
            "boolean": lambda _: literals(["true", "false"]),
        }  # fmt: skip
        types = form.types()
        self._check_types(form, types)
        if not form.words:
            return self._anything()
        return alt([writers[kind](form) for kind in types])

    def _check_types(self, form: Form, types: Sequence[str]) -> None:
        """Refuses keywords about types that the form does not allow: most likely a mistake."""
        for kind, words in KEYWORDS_OF.items():
            if kind in types or (kind == "number" and "integer" in types):
                continue
            for word in sorted(words & form.words.keys()):
                if word != "format" or not {"number", "integer"} & {*types}:
                    at = form.pointers.get(word, "#")
                    raise refuse(at, f"{word} is not about values of type {', '.join(types)}")

    def _enum(self, form: Form) -> Node:
        values = form.words["enum"]
        for word in sorted(form.words.keys() - {"enum", "type"}):
            if word not in _KEEPS:
                raise refuse(form.pointers.get(word, "#"), f"{word} beside enum or const")
            values = [value for value in values if _keeps(value, word, form.words[word])]
        return literals(map(_json_text, values))

    # ---- values of any kind

    def _space(self) -> Node:
        return self._shared("space", _SPACE)

    def _char(self) -> Node:
        return self._shared("char", _CHAR)

    def _text(self) -> Node:
        return self._shared("text", seq('"', Repeat(self._char(), 0, None), '"'))

    def _anything(self) -> Node:
        if "value" not in self._rules:
            self._rules["value"] = EMPTY
            self._rules["value"] = alt([
                self._listed("{", self._pair(self._text(), Ref("value")), 0, None, "}"),
                self._listed("[", Ref("value"), 0, None, "]"),
                self._text(), NUMBER, literals(["true", "false", "null"]),
            ])  # fmt: skip
        return Ref("value")

    def _pair(self, key: Node, value: Node) -> Node:
        return Seq((key, Literal(":"), self._space(), value))

    def _listed(self, start: str, item: Node, least: int, most: int | None, end: str) -> Node:
        """`least` to `most` items between brackets, with commas."""
        if most == 0:
            return self._bracketed(start, EMPTY, end)
        further = self._rule(Seq((Literal(","), self._space(), item)))
        inner = Seq((item, self._times(further, max(least - 1, 0), None if most is None else most - 1)))
        return self._bracketed(start, inner if least else optional(inner), end)

    def _bracketed(self, start: str, inner: Node, end: str) -> Node:
        return Seq((Literal(start), self._space(), inner, *([] if inner == EMPTY else [self._space()]), Literal(end)))

    def _rule(self, node: Node) -> Ref:
        """Gives a node that is repeated a rule of its own."""
        if isinstance(node, Ref):
            return node
        return self._shared(f"part{len(self._rules)}", node)

    def _times(self, node: Node, least: int, most: int | None) -> Node:
        """Repeats a node, in blocks of 1000 if need be, because llama.cpp ignores an upper bound above 2000."""
        item = self._rule(node)
        if max(least, most or 0) <= _BLOCK:
            return Repeat(item, least, most) if most != 0 else EMPTY
        block = self._rule(Repeat(item, _BLOCK, _BLOCK))
        parts: list[Node] = [*[block] * (least // _BLOCK), Repeat(item, least % _BLOCK, least % _BLOCK)]
        if most is None:
            return Seq((*parts, Repeat(item, 0, None)))
        n_blocks, rest = divmod(most - least, _BLOCK)
        tail: Node = Repeat(item, 0, rest) if rest else EMPTY
        for _ in range(n_blocks):
            tail = self._rule(alt([Seq((block, tail)), Repeat(item, 0, _BLOCK - 1)]))
        return Seq((*[part for part in parts if part != Repeat(item, 0, 0)], tail))

    def _range(self, form: Form, least: str, most: str) -> tuple[int, int | None]:
        low, high = form.words.get(least, 0), form.words.get(most)
        for word, value in ((least, low), (most, high)):
            if value is not None and value > _COUNT_MOST:
                raise refuse(form.pointers[word], f"{value} is more than {_COUNT_MOST}")
        return low, high

    # ---- strings and numbers

    def _string(self, form: Form) -> Node:
        low, high = self._range(form, "minLength", "maxLength")
        given = [word for word in ("format", "pattern") if word in form.words]
        if not given:
            if high is not None and low > high:
                return NEVER
            bounded = low or high is not None
            return seq('"', self._times(self._char(), low, high), '"') if bounded else self._text()
        if len(given) == 2 or low or high is not None:
            others = [word for word in ("minLength", "maxLength", "pattern") if word in form.words and word != given[0]]
            raise refuse(form.pointers[others[-1]], f"{others[-1]} beside {given[0]}")
        word, pointer = given[0], form.pointers[given[0]]
        if word == "format":
            if form.words[word] not in FORMATS:
                raise refuse(
                    pointer, f"unknown format {form.words[word]!r:.40}; {name_hint(form.words[word], FORMATS)}"
                )
            return seq('"', rules_of_format(form.words[word]), '"')
        try:
            return seq('"', rules_of_pattern(form.words[word], Repeat(self._char(), 0, None)), '"')
        except NotPossible as reason:
            raise refuse(pointer, f"a grammar cannot express {reason}") from None

    def _number(self, form: Form) -> Node:
        words = form.words
        whole = "number" not in form.types()
        if (factor := words.get("multipleOf")) is not None:
            if factor != 1:
                raise refuse(form.pointers["multipleOf"], "a grammar can express multiples of 1 only")
            whole = True
        lows = [(_decimal(words[word]), word) for word in ("minimum", "exclusiveMinimum") if word in words]
        highs = [(_decimal(words[word]), word) for word in ("maximum", "exclusiveMaximum") if word in words]
        if "format" in words:
            if words["format"] not in _NUMBER_FORMATS:
                raise refuse(form.pointers["format"], f"unknown format; {name_hint(words['format'], _NUMBER_FORMATS)}")
            if bounds := _NUMBER_FORMATS[words["format"]]:
                lows.append((Decimal(bounds[0]), "minimum"))
                highs.append((Decimal(bounds[1]), "maximum"))
        low, low_word = max(lows, default=(None, ""))
        high, high_word = min(highs, default=(None, ""), key=lambda bound: (bound[0], bound[1] != "exclusiveMaximum"))
        if low is None and high is None:
            return self._shared("integer", INTEGER) if whole else self._shared("number", NUMBER)
        open_low, open_high = low_word == "exclusiveMinimum", high_word == "exclusiveMaximum"
        if not whole:
            return numbers_within(low, high, open_low=open_low, open_high=open_high)
        if open_low and low is not None and low == low.to_integral_value():
            low += 1
        if open_high and high is not None and high == high.to_integral_value():
            high -= 1
        return integers_within(low, high)

    # ---- arrays and objects

    def _array(self, form: Form) -> Node:
        least, most = self._range(form, "minItems", "maxItems")
        prefix: list[Child] = form.words.get("prefixItems", [])
        if form.words.get("uniqueItems") and (most is None or most > 1):
            raise refuse(form.pointers["uniqueItems"], "a grammar cannot compare items")
        if most is not None:
            prefix = prefix[:most]
        if most is not None and least > most:
            return NEVER
        items: Child | None = form.words.get("items")
        if not prefix:
            item = self._anything() if items is None else self._child(items)
            none = items is not None and any(place.schema is False for place in items)
            if none:
                return self._listed("[", EMPTY, 0, 0, "]") if least == 0 else NEVER
            return self._listed("[", item, least, most, "]")
        parts: list[Node] = []
        for place in prefix:
            parts += [Literal(","), self._space(), self._child(place)] if parts else [self._child(place)]
        further = max(least - len(prefix), 0)
        rest = 0 if items is None and not further else None if most is None else most - len(prefix)
        if rest != 0 and not (items is not None and any(place.schema is False for place in items)):
            item = self._anything() if items is None else self._child(items)
            parts.append(self._times(Seq((Literal(","), self._space(), item)), further, rest))
        elif further:
            return NEVER
        return self._bracketed("[", Seq(tuple(parts)), "]")

    def _object(self, form: Form) -> Node:
        properties: Mapping[str, Child] = form.words.get("properties", {})
        required: Sequence[str] = form.words.get("required", ())
        extra: Child | None = form.words.get("additionalProperties")
        if extra is not None and any(place.schema is False for place in extra):
            extra, closed = None, True
        else:
            closed = False
        unnamed = [name for name in required if name not in properties]
        if unnamed and closed:
            return NEVER
        anything: Child = extra or (Place(True, "#true"),)
        properties = {**properties, **dict.fromkeys(unnamed, anything)}
        if extra is None and not properties and not closed:
            extra = anything
        least, most = self._range(form, "minProperties", "maxProperties")
        n_named = len(properties)
        if least > max(len(required), 1 if extra and not n_named else 0):
            raise refuse(form.pointers["minProperties"], "a grammar cannot count properties that are not required")
        if most is not None and most < (n_named if extra is None else most + 1):
            raise refuse(form.pointers["maxProperties"], "a grammar cannot count properties")
        pairs = [
            (self._rule(self._pair(Literal(_json_text(name)), self._child(child))), name in required)
            for name, child in properties.items()
        ]
        further = None
        if extra is not None:
            key = self._rule(seq('"', self._other_names(list(properties)), '"')) if properties else self._text()
            further = self._rule(self._pair(key, self._child(extra)))
        inner = self._members(pairs, further)
        if least and not pairs and further is not None:
            return self._listed("{", further, 1, None, "}")
        return self._bracketed("{", inner, "}")

    def _members(self, pairs: Sequence[tuple[Ref, bool]], further: Ref | None) -> Node:
        """The named properties with their commas, optional unless required, then any number of `further` ones."""
        comma = Seq((Literal(","), self._space()))
        tail: Node = EMPTY if further is None else Repeat(self._rule(Seq((comma, further))), 0, None)
        head: Node = EMPTY if further is None else optional(Seq((further, tail)))  # without a comma before it
        for pair, needed in reversed(pairs):
            first = Seq((pair, tail))
            head = first if needed else alt([first, head])
            after = Seq((comma, pair))
            tail = self._rule(Seq((after if needed else optional(after), tail)))
            head = self._rule(head)
        return head

    def _other_names(self, names: Iterable[str]) -> Node:
        """Any name without escapes that is not one of `names`."""
        tree: dict[str, list[str]] = {}
        ends = False
        for name in names:
            if name:
                tree.setdefault(name[0], []).append(name[1:])
            else:
                ends = True
        options: list[Node] = [seq(first, self._other_names(rests)) for first, rests in tree.items() if _is_raw(first)]
        others = Chars(_outside({ord(first) for first in tree}))
        options.append(Seq((others, Repeat(Chars(RAW), 0, None))))
        return alt([*options, *([] if ends else [EMPTY])])


def _json_text(value: Any) -> str:
    """A value as JSON; DEL, which is invisible, and halves of surrogate pairs are escaped."""
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return "".join(f"\\u{ord(letter):04x}" if "\ud800" <= letter <= "\udfff" else letter for letter in text)


_KEEPS: Final[dict[str, tuple[Any, Callable[[Any, Any], bool]]]] = {
    "minLength": (str, lambda value, bound: len(value) >= bound),
    "maxLength": (str, lambda value, bound: len(value) <= bound),
    "minimum": (int | float, lambda value, bound: value >= bound),
    "maximum": (int | float, lambda value, bound: value <= bound),
    "exclusiveMinimum": (int | float, lambda value, bound: value > bound),
    "exclusiveMaximum": (int | float, lambda value, bound: value < bound),
}


def _keeps(value: Any, word: str, bound: Any) -> bool:
    """Whether a constant satisfies a keyword about bounds; one of another type always does."""
    kind, within = _KEEPS[word]
    return not isinstance(value, kind) or isinstance(value, bool) or within(value, bound)


def _is_raw(letter: str) -> bool:
    return any(low <= ord(letter) <= high for low, high in RAW)


def _outside(codes: set[int]) -> tuple[tuple[int, int], ...]:
    """The ranges of characters of a string, without `codes`."""
    ranges = []
    for low, high in RAW:
        for code in sorted(code for code in codes if low <= code <= high):
            ranges.append((low, code - 1))
            low = code + 1
        ranges.append((low, high))
    return tuple((low, high) for low, high in ranges if low <= high)


def _decimal(number: float) -> Decimal:
    return Decimal(repr(number))


# ---- what never ends


def _without_dead_ends(rules: dict[str, Node]) -> dict[str, Node]:
    """The rules without the alternatives that can never end; `root` is NEVER if it cannot end."""
    ending: set[str] = set()
    while more := {name for name, node in rules.items() if name not in ending and _ends(node, ending)}:
        ending |= more
    return {name: _pruned(node, ending) for name, node in rules.items() if name in ending} | (
        {} if "root" in ending else {"root": NEVER}
    )


def _ends(node: Node, ending: set[str]) -> bool:
    """Whether a node matches a text that ends, if the rules of these names do."""
    return holds(node, lambda leaf: not isinstance(leaf, Ref) or leaf.name in ending)


def _pruned(node: Node, ending: set[str]) -> Node:
    match node:
        case Seq(parts):
            return Seq(tuple(_pruned(part, ending) for part in parts))
        case Alt(options):
            return alt([_pruned(option, ending) for option in options if _ends(option, ending)])
        case Repeat(inner, least, most):
            return Repeat(_pruned(inner, ending), least, most) if _ends(inner, ending) else EMPTY
        case _:
            return node
