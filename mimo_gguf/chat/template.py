"""Messages to prompt: the file's own chat template, rendered as Hugging Face's `apply_chat_template` renders it.

A template is code from a stranger, so it runs in jinja2's immutable sandbox. The surroundings a template may count on
(trimmed blocks, loop controls, `tojson` without HTML escapes, `raise_exception`, `strftime_now`, `{% generation %}`)
are those of transformers.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mimo_gguf.core.errors import GgufError, UsageError
from mimo_gguf.core.gguf_file import GgufFile

Message = Mapping[str, Any]

# Used where a file has no template of its own: the ChatML form MiMo's is an elaboration of.
CHATML: Final = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


class ChatTemplate:
    """A compiled chat template."""

    def __init__(self, source: str, *, special_tokens: Mapping[str, str] | None = None) -> None:
        """`special_tokens`: what the template may call `bos_token`, `eos_token`, ...

        Raises:
            GgufError: the template is not valid jinja.
        """
        import jinja2

        self.source = source
        self._special_tokens = dict(special_tokens or {})
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise GgufError(
                f"the chat template is not valid jinja: line {error.lineno}: {error.message}",
                hint="convert the model again with a correct tokenizer_config.json",
            ) from None

    @classmethod
    def of_file(cls, model: GgufFile) -> ChatTemplate:
        """The template a GGUF carries (`tokenizer.chat_template`), or plain ChatML where it has none."""
        tokens = model.value("tokenizer.ggml.tokens") or []
        special_tokens = {}
        for name in ("bos", "eos", "padding", "unknown"):
            number = model.value(f"tokenizer.ggml.{name}_token_id")
            if isinstance(number, int) and 0 <= number < len(tokens):
                special_tokens[{"padding": "pad", "unknown": "unk"}.get(name, name) + "_token"] = tokens[number]
        return cls(str(model.value("tokenizer.chat_template") or CHATML), special_tokens=special_tokens)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt for `messages`, each with at least `role` and `content`.

        Raises:
            UsageError: the template refuses the conversation, or a message lacks what it needs.
        """
        import jinja2

        context = {**self._special_tokens, **variables}
        try:
            text: str = self._template.render(
                messages=[dict(message) for message in messages],
                tools=None if tools is None else list(tools),
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **context,
            )
            return text
        except (jinja2.TemplateError, TypeError, IndexError, KeyError, ValueError, AttributeError) as error:
            raise UsageError(
                f"the chat template does not take this conversation: {error}",
                hint='messages are a list of {"role": "user", "content": "..."}',
            ) from None


def with_system(messages: Sequence[Message], system: str | None) -> list[Message]:
    """`messages` with a system message in front where they have none.

    An empty `system` is said explicitly, as Xiaomi recommends for MiMo: leaving it out would make the template put its
    own default ("You are a helpful assistant.") there. None leaves that to the template.
    """
    if system is None or (messages and messages[0].get("role") == "system"):
        return list(messages)
    return [{"role": "system", "content": system}, *messages]


def _environment() -> Any:
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}...{% endgeneration %}` marks the assistant's words for training; here it is its content."""

        tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
