"""The settings that `/set` changes during a conversation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.near_matches import name_hint
from mimo_gguf.engine.sampling import SamplingOptions
from mimo_gguf.runtime.model import AnswerOptions

_SAMPLING_FIELDS: Final = frozenset(SamplingOptions.__dataclass_fields__)
SETTINGS: Final[dict[str, str]] = {
    "temp": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p", "typical_p": "typical_p",
    "repeat_penalty": "repeat_penalty", "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty", "dry": "dry_multiplier", "seed": "seed",
    "max_tokens": "max_tokens", "think_budget": "think_budget",
}  # fmt: skip
_WHOLE_NUMBERS: Final = frozenset({"top_k", "seed", "max_tokens", "think_budget"})


def changed_option(
    sampling: SamplingOptions, options: AnswerOptions, name: str, value: str
) -> tuple[SamplingOptions, AnswerOptions]:
    """Changes one setting in copies of both; `none` removes a seed or a limit.

    Raises:
        UsageError: no such setting, or a value that it cannot have.
    """
    field = SETTINGS.get(name, name)
    if field not in SETTINGS.values():
        raise UsageError(f"no setting {name!r}", hint=name_hint(name, SETTINGS))
    if not value:
        raise UsageError(f"{name}: the value is missing", hint=f"/set {name}=1")
    number: Any = None
    if value != "none" or field not in _WHOLE_NUMBERS - {"top_k"}:
        try:
            number = int(value) if field in _WHOLE_NUMBERS else float(value)
        except ValueError:
            kind = "whole number" if field in _WHOLE_NUMBERS else "number"
            raise UsageError(f"{name}={value} is not a {kind}", hint=f"/set {name}=1") from None
    if field in _SAMPLING_FIELDS:
        try:
            return replace(sampling, **{field: number}), options
        except UsageError as error:
            raise UsageError(error.message, hint="/set shows all settings") from None
    least = 0 if field == "think_budget" else 1
    if number is not None and number < least:
        raise UsageError(f"{name}={value} is less than {least}", hint=f"/set {name}=none removes the limit")
    return sampling, replace(options, **{field: number})


def settings_line(sampling: SamplingOptions, options: AnswerOptions) -> str:
    """The line of all settings: `temp=0.6  top_p=0.95  ...  max_tokens=none`."""
    values = {
        name: getattr(sampling if field in _SAMPLING_FIELDS else options, field) for name, field in SETTINGS.items()
    }
    return "  ".join(f"{name}={'none' if value is None else value}" for name, value in values.items())
