"""The environment of chat templates: jinja2's immutable sandbox, with the limits of template_bounds.py.

Templates find the features of transformers there: trimmed blocks, loop controls, `{% generation %}`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from mimo_gguf.chat.template_bounds import (
    ACCOUNT,
    OPERATORS,
    check_call,
    checked_filter,
    concat,
    each,
    held,
    joined,
)

# Filters of jinja2 whose time grows with the square of a text's length, or that no chat template needs.
_LEFT_OUT: Final = ("urlize", "striptags", "wordwrap", "pprint", "xmlattr", "filesizeformat", "random", "urlencode")


def bounded_environment(filters: dict[str, Callable[..., Any]]) -> Any:
    """Makes a jinja2 environment whose templates have limits. `ACCOUNT` must be set while one is rendered.

    Args:
        filters: further filters, which get limits, too.
    """
    from jinja2 import pass_context
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class BoundedEnvironment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(OPERATORS)
        concat = staticmethod(concat)

        def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
            """Makes a call in a template: checks its arguments before, and charges its result after."""
            account = ACCOUNT.get()
            account.tick()
            args = check_call(function, args, kwargs)
            for value in (*args, *(kwargs[name] for name in kwargs if not name.startswith("_"))):
                account.charge_value(value)
            return account.charge_value(super().call(context, function, *args, **kwargs))

        def _generate(self, source: Any, *args: Any, **kwargs: Any) -> str:
            _put_bounds(source, self)
            return super()._generate(source, *args, **kwargs)

    environment = BoundedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,  # compute nothing while a template is compiled ...
        finalize=pass_context(lambda _, value: held(value)),  # ... which a function with a context prevents here, too
        extensions=[_generation_extension(), "jinja2.ext.loopcontrols"],
    )
    environment.binop_table.update(OPERATORS)
    known = {name: inner for name, inner in (environment.filters | filters).items() if name not in _LEFT_OUT}
    environment.filters.clear()
    environment.filters.update({name: checked_filter(name, inner) for name, inner in known.items()})
    environment.filters.update({_EACH: each, _HELD: held, _JOINED: joined})
    environment.globals.pop("lipsum", None)
    return environment


# The names of the filters that apply the limits in a parsed template.
_EACH: Final = "_each"
_HELD: Final = "_held"
_JOINED: Final = "_joined"


def _generation_extension() -> Any:
    """The tag `{% generation %}`, which marks the assistant's words for training; here it has no effect."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    return Generation


def _put_bounds(node: Any, environment: Any) -> None:
    """Puts the limits into a parsed template: around loops, values that get a name, and the operator `~`."""
    from jinja2 import nodes

    def through(name: str, inner: Any) -> Any:
        made = nodes.Filter(inner, name, [], [], None, None, lineno=inner.lineno)
        made.set_environment(environment)
        return made

    def bounded(item: Any) -> Any:
        if isinstance(item, nodes.Concat):
            return through(_JOINED, nodes.List(item.nodes, lineno=item.lineno))
        return item

    for child in node.iter_child_nodes():
        _put_bounds(child, environment)
    if isinstance(node, nodes.For):
        node.iter = through(_EACH, node.iter)
    elif isinstance(node, nodes.Assign):
        node.node = through(_HELD, node.node)
    elif isinstance(node, nodes.With):
        node.values = [through(_HELD, value) for value in node.values]
    for name, value in list(node.iter_fields()):
        setattr(node, name, [bounded(item) for item in value] if isinstance(value, list) else bounded(value))
