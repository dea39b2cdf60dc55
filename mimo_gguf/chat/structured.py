"""Grammars for structured answers: JSON, a regular expression, or a choice. Reasoning before the answer stays free."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Final

from mimo_gguf.chat.reasoning import THINK_CLOSE, THINK_OPEN
from mimo_gguf.chat.regex import grammar_of_regex
from mimo_gguf.core.errors import UsageError
from mimo_gguf.engine.gbnf import literals, render
from mimo_gguf.engine.sampling import grammar_of_schema

# Matches a literal, a set, a token, a comment, or a rule's name, of which only the last is replaced.
_WORD: Final = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|!?<[^>\s]*>|#[^\n]*|[A-Za-z0-9-]+')


def grammar_of_json(schema: Any) -> str:
    """The grammar of JSON documents that satisfy a schema, given as text, dict, or pydantic model.

    Raises:
        UsageError: it is not a JSON schema, or a grammar cannot express it.
    """
    if hasattr(schema, "model_json_schema"):
        schema = schema.model_json_schema()
    if not isinstance(schema, str):
        try:
            schema = json.dumps(schema)
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"not a JSON schema: {error}", hint="give a dict or a text") from None
    return grammar_of_schema(schema)


def grammar_of_choice(choice: Any) -> str:
    """The grammar that allows exactly one of these texts.

    Raises:
        UsageError: it is not a list of texts.
    """
    texts = list(choice) if isinstance(choice, Iterable) and not isinstance(choice, str | bytes) else []
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise UsageError(f"not a list of texts: {choice!r:.60}", hint='give texts: choice=["yes", "no"]')
    return render({"root": literals(texts)})


def grammar_after_reasoning(grammar: str, *, inside: bool = False) -> str:
    """Extends a grammar so that reasoning may come first: `<think>`, any text, `</think>`, line ends.

    Otherwise the grammar would forbid the `<think>` with which MiMo begins, and the model would answer without
    thinking.

    Args:
        grammar: GBNF of the answer.
        inside: whether the prompt has opened the block already, so that reasoning always comes first.
    """
    answer = _WORD.sub(lambda found: "mimo-answer" if found[0] == "root" else found[0], grammar)
    begin = "mimo-t0" if inside else f'[ \\t\\n]* "{THINK_OPEN}" mimo-t0 | mimo-answer'
    return "\n".join([f"root ::= {begin}", *_until_closed(THINK_CLOSE, "mimo-blank mimo-answer"), _BLANK, answer])


_BLANK: Final = "mimo-blank ::= [\\n]{0,4}"  # not part of the answer


def _until_closed(marker: str, then: str) -> list[str]:
    """Rules for any text up to the first `marker`: rule n holds after the first n characters of the marker."""
    rules = []
    first = marker[0]
    for n, wanted in enumerate(marker):
        after = then if n == len(marker) - 1 else f"mimo-t{n + 1}"
        ways = [f'"{wanted}" {after}', f"[^{first}{'' if n == 0 else wanted}] mimo-t0"]
        if n:
            ways.append(f'"{first}" mimo-t1')
        rules.append(f"mimo-t{n} ::= " + " | ".join(ways))
    return rules


def grammar_of(
    *, json: Any = None, regex: Any = None, choice: Any = None, grammar: Any = None, json_object: Any = None
) -> str | None:
    """The grammar of the one form that is given; None if none is.

    Raises:
        UsageError: several are given, or a grammar cannot express the one.
    """
    makers = {"json": grammar_of_json, "regex": grammar_of_regex, "choice": grammar_of_choice}
    given = {"json": json, "regex": regex, "choice": choice, "grammar": grammar, "json_object": json_object or None}
    wanted = {name: value for name, value in given.items() if value is not None}
    if not wanted:
        return None
    if len(wanted) > 1:
        raise UsageError(f"{' and '.join(wanted)} together", hint="an answer has one form: give one of them")
    ((name, value),) = wanted.items()
    if name == "json_object":
        return grammar_of_json({"type": "object"})
    if name == "grammar":
        if not isinstance(value, str):
            raise UsageError(f"the grammar is {value!r:.60}", hint="a grammar starts with: root ::= ...")
        return value
    return makers[name](value)
