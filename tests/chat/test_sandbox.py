"""Hostile chat templates: each ends soon, in little memory, with one error; honest ones are not touched."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import pytest

from mimo_gguf.chat import template_bounds
from mimo_gguf.chat.template import ChatTemplate
from mimo_gguf.core.errors import GgufError, UsageError
from tests.chat.test_template import TEMPLATES, by_transformers

QUESTION = [{"role": "user", "content": "Hi"}]
BIG = "{% set b = 'x' * 900 %}{% set b = b * 900 %}"  # 810,000 characters, which is allowed
DOUBLING = (
    "{% set ns = namespace(v='x') %}{% for i in range(60) %}{% set ns.v = CHANGE %}{% endfor %}{{ ns.v | length }}"
)
TWICE = (
    "{% set ns = namespace(a=['x'], b=['x']) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}"
    "{% set ns.b = [ns.b, ns.b] %}{% endfor %}"
)

HOSTILE = {
    # time
    "a range too large": "{% for i in range(10000000) %}{% endfor %}",
    "loops within loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops by a macro": (
        "{% macro f(n) %}{% for i in range(99) %}{{ f(n - 1) if n }}{% endfor %}{% endmacro %}{{ f(50) }}"
    ),
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a recursive loop": "{% for x in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "filters over filters": "{{ range(99999) | map('string') | map('center', 900) | map('upper') | list | length }}",
    # size in one step
    "a text times a number": "{{ 'x' * 9999999999 }}",
    "a number times a text": "{{ 9999999999 * 'x' }}",
    "a list times a number": "{{ [0] * 9999999999 }}",
    "a list of lists times numbers": "{{ ([[0] * 1000] * 1000) * 1000 }}",
    "a power": "{{ 9 ** 9 ** 9 ** 9 }}",
    "powers of powers": "{% set ns = namespace(v=9) %}{% for i in range(60) %}{% set ns.v = ns.v * ns.v %}{% endfor %}",
    "center": "{{ 'x' | center(9999999999) }}",
    "center as a method": "{{ 'x'.center(9999999999) }}",
    "ljust": "{{ 'x'.ljust(9999999999) }}",
    "rjust with a keyword from a list": "{{ 'x'.rjust(*[9999999999]) }}",
    "zfill": "{{ 'x'.zfill(9999999999) }}",
    "expandtabs": "{{ '\t'.expandtabs(9999999999) }}",
    "percent": "{{ '%9999999999d' % 1 }}",
    "percent with a star": "{{ '%*d' % (9999999999, 1) }}",
    "percent with a precision": "{{ '%.999999999f' % 1 }}",
    "format": "{{ '{:9999999999}'.format(1) }}",
    "format with an inner width": "{{ '{:{}}'.format(1, 9999999999) }}",
    "format_map": "{{ '{a:9999999999}'.format_map({'a': 1}) }}",
    "format as a filter": "{{ '%9999999999d' | format(1) }}",
    "indent": "{{ 'a\nb' | indent(9999999999) }}",
    "tojson": "{{ [1, 2] | tojson(indent=9999999999) }}",
    "tojson with long separators": BIG + "{{ range(9999) | list | tojson(separators=(b, b)) }}",
    "wide indents, nested": (
        "{% set ns = namespace(v=[0] * 100000) %}{% for i in range(900) %}{% set ns.v = [ns.v] %}{% endfor %}"
        "{{ ns.v | tojson(indent=900) }}"
    ),
    "batch": "{{ [1] | batch(9999999999, 'x') | list }}",
    "round": "{{ 1.5 | round(9999999999) }}",
    "replace": BIG + "{{ b.replace('x', b) }}",
    "replace as a filter": BIG + "{{ b | replace('x', b) }}",
    "replace of nothing": BIG + "{{ b.replace('', b) }}",
    "join": BIG + "{{ b.join(range(99999) | map('string')) }}",
    "join as a filter": BIG + "{{ range(99999) | join(b) }}",
    "join of many": BIG + "{{ range(99999) | map('replace', '', b) | join }}",
    "lorem ipsum": "{{ lipsum(n=999999) }}",
    "adding up lists": "{{ range(99999) | batch(1) | map('list') | sum(start=[]) | length }}",
    # size in many steps
    "doubling by +": DOUBLING.replace("CHANGE", "ns.v + ns.v"),
    "doubling by ~": DOUBLING.replace("CHANGE", "ns.v ~ ns.v"),
    "doubling by join": DOUBLING.replace("CHANGE", "[ns.v, ns.v] | join"),
    "doubling by format": DOUBLING.replace("CHANGE", "'%s%s' % (ns.v, ns.v)"),
    "doubling by braces": DOUBLING.replace("CHANGE", "'{0}{0}'.format(ns.v)"),
    "doubling by replace": DOUBLING.replace("CHANGE", "ns.v | replace('x', 'xx')"),
    "doubling by tojson": DOUBLING.replace("CHANGE", "[ns.v, ns.v] | tojson"),
    "doubling by a block": "{% set v = 'x' %}" + "{% set v %}{{ v }}{{ v }}{% endset %}" * 60,
    "doubling by a macro": "{% macro d(v) %}{{ v }}{{ v }}{% endmacro %}" + DOUBLING.replace("CHANGE", "d(ns.v)"),
    "doubling by with": "{% set v = ['x'] %}" + "{% with v = [v, v] %}" * 60 + "{{ v }}" + "{% endwith %}" * 60,
    "printing what holds itself twice": TWICE + "{{ ns.a }}",
    "printing a namespace": TWICE + "{{ ns }}",
    "namespaces in lists": (
        "{% set ns = namespace(v=1) %}" + "".join(
            f"{{% set n{i} = namespace(v=[{'ns' if not i else f'n{i - 1}'}] * 9) %}}" for i in range(40)
        ) + "{{ n39 }}"
    ),
    "comparing what holds itself twice": TWICE + "{{ ns.a == ns.b }}",
    "hashing what holds itself twice": (
        "{% set ns = namespace(a=('x',)) %}{% for i in range(60) %}{% set ns.a = (ns.a, ns.a) %}{% endfor %}"
        "{{ {ns.a: 1} | length }}"
    ),
    "a long output": BIG + "{% for i in range(99999) %}{{ b }}{% endfor %}",
    "many texts": "".join(f"{{% set v{i} = 'x' * 900 * 900 %}}" for i in range(300)),
    # whatever else may be raised
    "a division by zero": "{{ 1 // 0 }}",
    "a number too long to print": "{{ 2 ** 20000 }}",
    "an overflow": "{{ 10.0 ** 400 }}",
    "an import": "{% include 'x' %}",
    "an unknown filter at run time": "{{ [1] | map('nonesuch') | list }}",
    "an attribute of nothing": "{{ a.b.c }}",
    "half a character": "{{ '\\ud800'.encode() }}",
    "a wrong encoding": "{{ 'x'.encode('nonesuch') }}",
    "a date": "{{ strftime_now(5) }}",
}  # fmt: skip


def peak_bytes() -> int:
    """The most memory this process ever had."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_templates_end_soon(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_bounds, "_SECONDS", 1.0)
    started, most_before = time.monotonic(), peak_bytes()
    with pytest.raises((UsageError, GgufError), match="the chat template") as caught:
        ChatTemplate(HOSTILE[case]).render(QUESTION)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 500
    assert caught.value.hint
    assert peak_bytes() - most_before < 300_000_000
    assert time.monotonic() - started < 20  # one by its own clock, on a machine that may be busy


UNCOMPILABLE = {
    "nested brackets": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "a long sum": "{{ 1" + " + 1" * 40_000 + " }}",
    "nested blocks": "{% if 1 %}" * 5_000 + "{% endif %}" * 5_000,
    "loops deeper than Python has": "{% for a in [1] %}" * 200 + "{% endfor %}" * 200,
    "too long": "x" * 1_000_000,
    "an unknown filter": "{{ 1 | nonesuch }}",
}


@pytest.mark.parametrize("case", UNCOMPILABLE)
def test_templates_that_cannot_be_compiled(case: str) -> None:
    try:
        ChatTemplate(UNCOMPILABLE[case])
    except GgufError as error:
        assert "\n" not in error.message and len(error.message) < 500
    else:
        assert case == "a long sum"  # which newer versions of Python compile


HONEST = {
    "padding": "{{ 'x'.center(20) }}|{{ 'x' | center(9) }}|{{ '-' * 80 }}|{{ 'a\nb' | indent(4) }}|{{ '7'.zfill(3) }}",
    "formats": "{{ '%s is %05.2f in 2024' % ('x', 1.5) }} {{ '{:>8} {}'.format('a', 'b') }} {{ '%d%%' | format(5) }}",
    "numbers": "{{ 2 ** 10 }} {{ 7 % 3 }} {{ 7 // 2 }} {{ 1.5 * 2 }} {{ 10 ** 30 }} {{ 123456 | default(999999) }}",
    "lists": "{{ messages[::-1] | length }} {{ [1, 2] + [3] }} {{ (1, 2) * 2 }} {{ {'a': [1, {'b': 2}]} }}",
    "methods": "{{ ' a b '.strip().split(' ') }} {{ 'a,b'.replace(',', ';') }} {{ ','.join(['a', 'b']) }}",
    "loops": (
        "{% for m in messages recursive %}{{ loop.index }}/{{ loop.length }} {{ loop.last }} {{ loop.previtem }}"
        "{% else %}none{% endfor %}{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k ~ v ~ loop.revindex }}{% endfor %}"
        "{% for x in missing %}{% else %}nothing{% endfor %}{% for c in 'abc' if c != 'b' %}{{ c }}{% endfor %}"
    ),
    "filters": (
        "{{ messages | map(attribute='role') | join(', ') }} {{ messages | selectattr('role', 'eq', 'user') | list }}"
        "{{ [3, 1] | sort }} {{ [1, 2] | sum }} {{ 'a b' | title }} {{ messages | tojson(indent=2) }}"
        "{{ [1, 1] | unique | list }}"
        "{{ {'b': 1} | items | list }} {{ messages | groupby('role') | length }} {{ ' x ' | trim }}"
    ),
    "macros": (
        "{% macro row(a, b='c') %}[{{ a }}{{ b }}{{ caller() if caller }}]{% endmacro %}{{ row(1) }}{{ row(1, b=2) }}"
        "{% call row('x') %}inner{% endcall %}{% set block %}{{ row(3) }}{% endset %}{{ block | upper }}"
    ),
    "namespaces": (
        "{% set ns = namespace(found=false, text='') %}{% for m in messages %}{% set ns.found = true %}"
        "{% set ns.text = ns.text + m.content + ' ' %}{% endfor %}{{ ns.found }} {{ ns.text }}"
    ),
}


@pytest.mark.parametrize("case", HONEST)
def test_honest_templates_are_as_in_transformers(case: str) -> None:
    messages = [{"role": "system", "content": "Be <brief>"}, {"role": "user", "content": "Grüße\n'q'"}] * 3
    assert ChatTemplate(HONEST[case]).render(messages) == by_transformers(HONEST[case], messages)


@pytest.mark.parametrize("template", ["published", "chatml"])
def test_long_conversations_are_not_stopped(template: str) -> None:
    many = [{"role": ("user", "assistant")[i % 2], "content": f"{i} " * 20} for i in range(5_000)]
    long = [{"role": "user", "content": "x" * 4_000_000}]
    for messages in (many, long):
        expected = by_transformers(TEMPLATES[template], messages, add_generation_prompt=True)
        assert ChatTemplate(TEMPLATES[template]).render(messages) == expected


def test_conversations_are_counted_alone() -> None:
    """One template may be rendered by several callers; each has an account of its own."""
    template = ChatTemplate("{{ 'x' * 900 * 900 }}")
    assert {len(template.render(QUESTION)) for _ in range(100)} == {810_000}


NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)


def test_a_template_without_a_system_role() -> None:
    template = ChatTemplate(NO_SYSTEM)
    assert template.render([{"role": "system", "content": ""}, *QUESTION]) == "<user>Hi"
    with pytest.raises(UsageError, match="allows no system message: System role not supported") as caught:
        template.render([{"role": "system", "content": "Be brief."}, *QUESTION])
    assert "leave the system message out" in str(caught.value.hint)


def test_other_refusals_are_not_blamed_on_the_system_message() -> None:
    template = ChatTemplate("{{ raise_exception('only one question') }}")
    with pytest.raises(UsageError, match="refuses this conversation: only one question"):
        template.render([{"role": "system", "content": "x"}, *QUESTION])


def test_tools_are_rendered_within_bounds() -> None:
    tools: list[dict[str, Any]] = [
        {"type": "function", "function": {"name": f"tool_{i}", "parameters": {"type": "object", "x": ["y"] * 20}}}
        for i in range(200)
    ]
    ours = ChatTemplate(TEMPLATES["published"]).render(QUESTION, tools=tools)
    assert json.dumps(tools[199]) in ours
