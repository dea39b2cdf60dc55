"""Where chat templates run: jinja2's immutable sandbox, with the bounds of template_bounds.py put into it.

The surroundings are those of transformers: trimmed blocks, loop controls, `{% generation %}`.
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

# Filters of jinja2 whose time grows with the square of a text, or that no chat needs.
_LEFT_OUT: Final = ("urlize", "striptags", "wordwrap", "pprint", "xmlattr", "filesizeformat", "random", "urlencode")


def bounded_environment(filters: dict[str, Callable[..., Any]]) -> Any:
    """An environment of jinja2 whose templates run within bounds. `ACCOUNT` must be set while one is rendered.

    Args:
        filters: further filters, which get bounds, too.
    """
    from jinja2 import pass_context
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class BoundedEnvironment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(OPERATORS)
        concat = staticmethod(concat)

        def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
            """A call in a template: looked at before, its result charged after."""
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
        optimized=False,  # nothing is computed when a template is compiled: not by this, and ...
        finalize=pass_context(lambda _, value: held(value)),  # ... not for what takes a context
        extensions=[_generation_extension(), "jinja2.ext.loopcontrols"],
    )
    environment.binop_table.update(OPERATORS)
    known = {name: inner for name, inner in (environment.filters | filters).items() if name not in _LEFT_OUT}
    environment.filters.clear()
    environment.filters.update({name: checked_filter(name, inner) for name, inner in known.items()})
    environment.filters.update({_EACH: each, _HELD: held, _JOINED: joined})
    environment.globals.pop("lipsum", None)
    return environment


# Names of the filters that carry the bounds in a parsed template.
_EACH: Final = "_each"
_HELD: Final = "_held"
_JOINED: Final = "_joined"


def _generation_extension() -> Any:
    """`{% generation %}...{% endgeneration %}` marks the assistant's words for training; here it is its content."""
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
    """Puts the bounds into a parsed template: rounds of loops, values that get a name, and the operator `~`."""
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
