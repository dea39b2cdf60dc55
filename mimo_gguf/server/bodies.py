"""Reads the JSON of a body: strictly, nested only so far, and with plain numbers everywhere."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any, Final, ParamSpec, TypeVar

from pydantic import BaseModel
from pydantic_core import from_json

from mimo_gguf.server.failures import refusal

DEPTH_MOST: Final = 100  # lists and objects inside each other; a schema in a body has up to 60 levels of its own
_SHORT: Final = 1 << 14  # bytes of a body that is worked on at once

M = TypeVar("M", bound=BaseModel)
P = ParamSpec("P")
T = TypeVar("T")


async def worked_on(raw: bytes, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` makes of a body: of a short one at once, of a long one in a thread, so that nothing else waits."""
    return work(*args, **kwargs) if len(raw) <= _SHORT else await asyncio.to_thread(work, *args, **kwargs)


def read_body(kind: type[M], raw: bytes) -> M:
    """The body of a request.

    Of a name that comes twice the last value counts, as with most readers of JSON.

    Raises:
        Refused: it is not JSON, nested too deep, or holds a number that JSON has no form for.
        ValidationError: it is not of this kind.
    """
    try:
        document = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        if str(error).startswith("recursion limit"):
            raise _too_deep() from None
        raise refusal(400, f"the body is not JSON: {error}"[:300], code="invalid_json") from None
    _check_values(document)
    return kind.model_validate(document)


def _check_values(document: Any) -> None:
    """Refuses what is nested too deep, and numbers like 1e999, which are read as infinite."""
    level = [document]
    for _ in range(DEPTH_MOST + 1):
        if any(type(each) is float and not math.isfinite(each) for each in level):
            raise refusal(400, "the body has a number that is too large", code="invalid_value")
        level = [inner for each in level if isinstance(each, dict | list) for inner in _inside(each)]
        if not level:
            return
    raise _too_deep()


def _inside(value: dict[str, Any] | list[Any]) -> Any:
    return value.values() if isinstance(value, dict) else value


def _too_deep() -> Exception:
    return refusal(400, f"the body is nested more than {DEPTH_MOST} levels deep", code="nested_too_deep")
