"""Which tools a model is shown, and the grammar that makes it call one."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from mimo_gguf.core.errors import UsageError
from mimo_gguf.engine.sampling import grammar_of_schema
from mimo_gguf.server.requests import AllowedTools, Conversation, NamedTool, Tool

_ROOT: Final = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|#[^\n]*|[A-Za-z0-9-]+')
_MOST_CALLS: Final = 16  # of one answer that must call
_OPEN, _CLOSE = '"<tool_call>\\n"', '"\\n</tool_call>"'


@dataclass(frozen=True, slots=True)
class ToolRule:
    """What is done about tools.

    Attributes:
        shown: the tools as the template gets them; None shows none.
        grammar: the form of an answer that must call one; None if it need not.
        in_parallel: whether an answer may have several calls.
    """

    shown: tuple[dict[str, Any], ...] | None
    grammar: str | None = None
    in_parallel: bool = True


def tool_rule(body: Conversation, template: str) -> ToolRule | None:
    """The rule for a conversation; None if it has no tools.

    Args:
        template: the source of the chat template.

    Raises:
        UsageError: the template has no place for tools, `tool_choice` names none of them, or a schema of parameters
            cannot be compiled.
    """
    if not body.tools:
        if body.tool_choice not in (None, "none", "auto"):
            raise UsageError("tool_choice is without tools", hint="give tools, or leave it out")
        return None
    if body.tool_choice == "none":
        return None
    if not re.search(r"\btools\b", template):
        raise UsageError("tools is given, and the model's chat template knows none", hint="leave tools out")
    tools, must = _offered(body.tools, body.tool_choice)
    shown = tuple(tool.model_dump(exclude_none=True) for tool in tools)
    # As at OpenAI, a tool that is named is called exactly once.
    in_parallel = body.parallel_tool_calls is not False and not isinstance(body.tool_choice, NamedTool)
    grammar = calls_grammar(_called(tools, body.tool_choice), several=in_parallel) if must else None
    return ToolRule(shown, grammar, in_parallel)


def calls_grammar(tools: Sequence[Tool], *, several: bool) -> str:
    """The grammar of one call of one of these tools in MiMo's (Hermes') form, or of `several`.

    Raises:
        UsageError: a grammar cannot express the schema of a function's parameters.
    """
    schema: dict[str, Any] = {"anyOf": [_call_schema(tool) for tool in tools]}
    grammar = _ROOT.sub(
        lambda found: "mimo-call" if found[0] == "root" else found[0], grammar_of_schema(json.dumps(schema))
    )
    further = f' ("\\n" {_OPEN} mimo-call {_CLOSE}){{0,{_MOST_CALLS - 1}}}' if several else ""
    return f"root ::= {_OPEN} mimo-call {_CLOSE}{further}\n{grammar}"


def _offered(tools: Sequence[Tool], choice: Any) -> tuple[Sequence[Tool], bool]:
    """The tools that the model is shown, and whether it must call one."""
    if not isinstance(choice, AllowedTools):
        return tools, choice not in (None, "auto")
    return _named(tools, choice.allowed_tools.tools), choice.allowed_tools.mode == "required"


def _called(tools: Sequence[Tool], choice: Any) -> Sequence[Tool]:
    """The tools of which one must be called."""
    return _named(tools, [choice]) if isinstance(choice, NamedTool) else tools


def _named(tools: Sequence[Tool], choices: Sequence[NamedTool]) -> Sequence[Tool]:
    """The tools with these names. Raises UsageError for a name that none has."""
    by_name = {tool.function.name: tool for tool in tools}
    names = [choice.function.name for choice in choices]
    for name in names:
        if name not in by_name:
            raise UsageError(f"tool_choice is {name!r:.80}, which is none of the tools", hint="give one of their names")
    return [by_name[name] for name in dict.fromkeys(names)]


def _call_schema(tool: Tool) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "name": {"const": tool.function.name},
            "arguments": tool.function.parameters or {"type": "object"},
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
