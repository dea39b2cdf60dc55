"""Sends requests that schemathesis makes from the server's own OpenAPI document, and checks every answer with it.

    python -m tests.server.fuzz --count 2000 --seed 1

No answer may have the status 500, hang, or be other than the document says. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Final

import hypothesis
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from mimo_gguf import convert
from mimo_gguf.engine.session import SessionOptions
from mimo_gguf.runtime.llm import LLM
from mimo_gguf.server.engine import Limits
from tests.server.serving import SUM, Serving, serving

ROOT: Final = Path(__file__).resolve().parents[2]
CHECKS: Final = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
]  # fmt: skip
_SECONDS: Final = 30.0  # after which a request hangs
_SHORT: Final = {
    "/v1/chat/completions": "max_completion_tokens", "/v1/completions": "max_tokens", "/v1/messages": "max_tokens",
    "/v1/responses": "max_output_tokens",
}  # fmt: skip


def shortened(body: Any, path: str) -> Any:
    """The body with a short answer, if it wishes for a valid long one."""
    name = _SHORT.get(path)
    if name is None or not isinstance(body, dict):
        return body
    given = body.get(name)
    return {**body, name: 4} if given is None or (type(given) is int and given > 4) else body


def pointed(case: Any, file_id: str) -> None:
    """Makes a request ask for a file that there is, if it is right otherwise: nobody guesses an id."""
    if case.path == "/v1/batches" and isinstance(case.body, dict) and isinstance(case.body.get("input_file_id"), str):
        case.body = {**case.body, "input_file_id": file_id, "endpoint": "/v1/chat/completions"}
    if case.method == "GET" and case.path.startswith("/v1/files/{id}"):
        case.path_parameters["id"] = file_id


def a_file(server: Serving) -> str:
    """Uploads rows of a batch. Returns the file's id."""
    body = {"messages": SUM, "max_tokens": 1}
    row = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    file = {"file": ("rows.jsonl", json.dumps(row).encode())}
    answer = server.client.post(f"{server.url}/v1/files", data={"purpose": "batch"}, files=file)
    return str(answer.json()["id"])


def fuzz(server: Serving, count: int, seed: int) -> Counter[str]:
    """Sends about `count` requests, the same for the same seed. Returns how many answers had which status.

    Raises:
        Exception: what a check of schemathesis or the connection says of the first answer that is wrong.
    """
    statuses: Counter[str] = Counter()
    schema = schemathesis.openapi.from_dict(server.get("/openapi.json").json())
    operations = [found.ok() for found in schema.get_all_operations()]
    file_id = a_file(server)
    ways = [(operation, mode) for operation in operations for mode in _modes(operation)]
    for operation, mode in ways:

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=max(count // len(ways), 1), deadline=None, database=None,
            suppress_health_check=list(hypothesis.HealthCheck), phases=[hypothesis.Phase.generate],
        )  # fmt: skip
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def send(case: Any) -> None:
            case.body = shortened(case.body, case.path)
            pointed(case, file_id)
            response = case.call(base_url=server.url, timeout=_SECONDS)
            statuses[str(response.status_code)] += 1
            case.validate_response(response, checks=CHECKS)

        send()
    return statuses


def _modes(operation: Any) -> list[GenerationMode]:
    """Right and wrong requests; only right ones if nothing can be wrong."""
    return list(GenerationMode) if operation.body else [GenerationMode.POSITIVE]


def main() -> int:
    """Fuzzes a server of the tiny model."""
    parser = argparse.ArgumentParser(prog="python -m tests.server.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mimo-tiny.gguf"
        convert(ROOT / "examples" / "mimo-tiny", out=file, types="F16")
        options = SessionOptions(n_threads=1, n_draft=1, n_prompt_rows=64)
        with (
            LLM(file, max_model_len=1024, max_num_seqs=4, options=options) as llm,
            serving(llm, limits=Limits(time_s=10), files_dir=Path(folder) / "files") as server,
        ):
            statuses = fuzz(server, given.count, given.seed)
            alive = server.get("/health").status_code == 200
    print(json.dumps({"requests": statuses.total(), "statuses": dict(sorted(statuses.items())), "alive": alive}))
    return 0 if alive and "500" not in statuses else 1


if __name__ == "__main__":
    sys.exit(main())
