"""What goes wrong with a request, as a status and OpenAI's form of an error: message, type, param, code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from mimo_gguf.core.errors import MimoGgufError, UsageError
from mimo_gguf.engine.slot import WindowFull
from mimo_gguf.server.requests import REFUSED

_INVALID: Final = "invalid_request_error"


@dataclass(frozen=True, slots=True)
class Failure:
    """An answer that says what is wrong.

    Attributes:
        status: the status of HTTP.
        message: one line for people.
        kind: OpenAI's `type`.
        code: a word for programs.
        param: the field of the request that is wrong, like `messages[0].role`; None if it is not one field.
        retry_after_s: seconds after which to try again, for a server that is busy.
    """

    status: int
    message: str
    kind: str = _INVALID
    code: str | None = None
    param: str | None = None
    retry_after_s: int | None = None

    def as_json(self) -> dict[str, Any]:
        """The error in OpenAI's form."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """The headers that belong to it."""
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}


class Refused(Exception):
    """A request is answered with a failure."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def refusal(status: int, message: str, *, code: str | None = None, param: str | None = None) -> Refused:
    """The exception for a request that is not valid."""
    return Refused(Failure(status, message, code=code, param=param))


def failure_of(error: Exception) -> Failure:
    """The failure to answer with, whatever was raised. What nobody foresaw is not told to the client."""
    match error:
        case Refused():
            return error.failure
        case ValidationError():
            return _of_validation(error)
        case WindowFull():
            return Failure(400, _sentence(error), code="context_length_exceeded")
        case UsageError() if "has been closed" in error.message or "was closed" in error.message:
            return Failure(503, "the server is stopping", "server_error", "stopping", retry_after_s=5)
        case UsageError():
            return Failure(400, _sentence(error), code="invalid_value", param=_named_field(error.message))
        case MimoGgufError():
            return Failure(500, error.message, "server_error", "backend_error")
        case _:
            return Failure(500, "an error of the server: its log says more", "server_error", "internal_error")


def _sentence(error: MimoGgufError) -> str:
    return error.message if error.hint is None else f"{error.message} ({error.hint})"


def _named_field(message: str) -> str | None:
    """The field that a message begins with, as in "temperature is 300"; None if it begins otherwise."""
    word, _, rest = message.partition(" is ")
    return word if rest and word.replace("_", "a").isalnum() and " " not in word else None


def _is_field(part: str) -> bool:
    """Whether a part of pydantic's path is a field, not one of several forms that the field may have."""
    return part.isidentifier() and part.islower() and part not in {"str", "int", "float", "bool"}


def _of_validation(error: ValidationError) -> Failure:
    """The first mistake that pydantic found: of several forms of a field, in the form that came closest."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    found = max(errors, key=lambda each: (len(each["loc"]), not each["type"].endswith("_type")))
    places = [part for part in found["loc"] if isinstance(part, int) or _is_field(part)]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in places).lstrip(".")[:200] or None
    if found["type"] == "extra_forbidden":
        if param in REFUSED:
            return Failure(400, f"{param} is not taken here: {REFUSED[param]}", code="unsupported_field", param=param)
        return Failure(400, f"unknown field: {param}", code="unknown_field", param=param)
    if found["type"] == "missing":
        return Failure(400, f"missing field: {param}", code="missing_field", param=param)
    return Failure(400, f"{param or 'the body'}: {found['msg'][:300]}", code="invalid_value", param=param)
