"""What clients may say about files and batches: the body of a batch, a file's purposes, and how long lists may be."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field

from mimo_gguf.server.requests import Body

PURPOSES: Final = frozenset({"assistants", "batch", "fine-tune", "vision", "user_data", "evals"})
FILES_MOST: Final = 10_000  # of a page of a list
BATCHES_MOST: Final = 100
WINDOW: Final = r"([1-9]\d{0,2})([hd])"


class BatchBody(Body):
    """The body of `/v1/batches`."""

    input_file_id: str
    endpoint: str
    completion_window: Annotated[str, Field(max_length=8, json_schema_extra={"pattern": f"^{WINDOW}$"})]
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    output_expires_after: Any = None
