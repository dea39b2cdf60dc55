"""Renders messages as a prompt with the file's chat template, as Hugging Face's `apply_chat_template` does.

A template is code from a stranger, so it runs in jinja2's immutable sandbox with limited time and memory (sandbox.py,
template_bounds.py). It finds the features of transformers there: trimmed blocks, loop controls, `tojson` without HTML
escapes, `raise_exception`, `strftime_now`, `{% generation %}`.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mimo_gguf.chat.template_bounds import ACCOUNT, LONGEST_SOURCE, Account
from mimo_gguf.core.errors import GgufError, UsageError, first_line
from mimo_gguf.core.gguf_file import GgufFile
from mimo_gguf.core.model_source import Metadata

Message = Mapping[str, Any]

# Used if a file has no template: ChatML, on which MiMo's template is based.
CHATML: Final = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


class ChatTemplate:
    """A compiled chat template."""

    def __init__(self, source: str, *, special_tokens: Mapping[str, str] | None = None) -> None:
        """Compiles a template.

        Args:
            source: jinja2 text.
            special_tokens: values of the template's variables `bos_token`, `eos_token`, ...

        Raises:
            GgufError: the template is not valid jinja2, or is too long.
        """
        import jinja2

        self.source = source
        self.special_tokens = dict(special_tokens or {})
        hint = "convert the model again with a correct chat template"
        if len(source) > LONGEST_SOURCE:
            raise GgufError(
                f"the chat template has {len(source)} characters; at most {LONGEST_SOURCE} are allowed", hint=hint
            )
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            what = f"line {error.lineno}: {error.message}"
            raise GgufError(f"the chat template is not valid jinja: {what}", hint=hint) from None
        except Exception as error:  # the compiler may fail in many ways, for example if the template is nested too deep
            raise GgufError(f"the chat template cannot be compiled: {_reason(error)}", hint=hint) from None

    @classmethod
    def of_file(cls, model: GgufFile) -> ChatTemplate:
        """The template in a GGUF (`tokenizer.chat_template`), or plain ChatML if it has none."""
        return cls.of_metadata(model.metadata)

    @classmethod
    def of_metadata(cls, metadata: Metadata) -> ChatTemplate:
        """The template in a model's metadata, or plain ChatML if it has none."""
        values = {key: entry.value for key, entry in metadata.items()}
        tokens = values.get("tokenizer.ggml.tokens") or []
        special_tokens = {}
        for name in ("bos", "eos", "padding", "unknown"):
            number = values.get(f"tokenizer.ggml.{name}_token_id")
            if isinstance(number, int) and 0 <= number < len(tokens):
                special_tokens[{"padding": "pad", "unknown": "unk"}.get(name, name) + "_token"] = tokens[number]
        return cls(str(values.get("tokenizer.chat_template") or CHATML), special_tokens=special_tokens)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt for `messages`, each with at least `role` and `content`.

        An empty system message is left out if the template refuses system messages.

        Raises:
            UsageError: the template refuses the conversation, a message lacks a field that it needs, or the template
                exceeds its limits of time or memory.
        """
        options = {**variables, "add_generation_prompt": add_generation_prompt, "tools": tools}
        try:
            return self._render(messages, options)
        except Exception as error:  # a template is code from a stranger: it may raise anything
            reason = _reason(error)
        without = self._render_without_system(messages, options)
        if without is not None and not messages[0].get("content"):
            return without
        if without is not None:
            raise UsageError(
                f"the chat template allows no system message: {reason}",
                hint="leave the system message out, or write it into the first question",
            )
        raise UsageError(
            f"the chat template refuses this conversation: {reason}",
            hint='messages are a list of {"role": "user", "content": "..."}',
        )

    def _render_without_system(self, messages: Sequence[Message], options: Mapping[str, Any]) -> str | None:
        """The prompt without the leading system message; None if there is no such message, or if this fails, too."""
        if len(messages) < 2 or messages[0].get("role") != "system":
            return None
        try:
            return self._render(messages[1:], options)
        except Exception:
            return None

    def _render(self, messages: Sequence[Message], options: Mapping[str, Any]) -> str:
        tools = options["tools"]
        variables = {
            **self.special_tokens,
            **options,
            "messages": [dict(message) for message in messages],
            "tools": None if tools is None else list(tools),
            "documents": options.get("documents"),
        }
        token = ACCOUNT.set(Account.of(variables))
        try:
            return str(self._template.render(variables))
        finally:
            ACCOUNT.reset(token)


def with_system(messages: Sequence[Message], system: str | None) -> list[Message]:
    """`messages` with a system message in front, if they have none.

    An empty `system` becomes an empty message, as Xiaomi recommends for MiMo. With None there is no message, and the
    template writes its own default ("You are a helpful assistant.").
    """
    if system is None or (messages and messages[0].get("role") == "system"):
        return list(messages)
    return [{"role": "system", "content": system}, *messages]


def _environment() -> Any:
    import jinja2

    from mimo_gguf.chat.sandbox import bounded_environment

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = bounded_environment({"tojson": _to_json})
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def _reason(error: Exception) -> str:
    """The reason of an error in one line."""
    if isinstance(error, RecursionError):
        return "it calls itself, or is nested, too deeply"
    return first_line(error)[:300]


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
