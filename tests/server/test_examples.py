"""Every example of docs/serve.md runs, and every path has one."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mimo_gguf.core.log import LOGGER
from mimo_gguf.runtime.llm import LLM
from mimo_gguf.server.openapi import ENDPOINTS, FILE_ENDPOINTS
from tests.server.serving import SUM, Serving, serving

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")
PLACE = "127.0.0.1:8080"
COMMANDS = re.findall(rf"^    (curl .*{PLACE}.*)$", PAGE, re.MULTILINE)
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


class Answered(logging.Handler):
    """What was asked for with success, as (method, path)."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, str]] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.args, tuple) and len(record.args) == 5:
            _, method, path, status, _ = record.args
            if status == 200:
                self.seen.add((str(method), str(path)))


@pytest.fixture(scope="module")
def answered() -> Iterator[Answered]:
    handler, level = Answered(), LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    yield handler
    LOGGER.removeHandler(handler)
    LOGGER.setLevel(level)


@pytest.fixture
def named(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    """A server that keeps files; where the examples run there are rows for a batch."""
    body = {"messages": SUM, "max_tokens": 10, "ignore_eos": True}
    row = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    rows = [json.dumps({"custom_id": f"row-{n}", **row}) + "\n" for n in range(24)]  # so that one can be stopped
    (tmp_path / "requests.jsonl").write_text("".join(rows), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with serving(llm, names=("MiMo-7B-RL-Q4_K_M",), files_dir=tmp_path / "batches") as running:
        yield running


def curl(server: Serving, command: str) -> Any:
    """What curl's command does, in its options that the page uses."""
    words = shlex.split(command.replace(f"http://{PLACE}", server.url))[1:]
    (url,) = [word for word in words if word.startswith("http")]
    if "-F" in words:
        fields = dict(word.split("=", 1) for before, word in itertools.pairwise(words) if before == "-F")
        file = Path(fields.pop("file").removeprefix("@"))
        return server.client.post(url, data=fields, files={"file": (file.name, file.read_bytes())})
    if "--json" not in words:
        return server.client.get(url)
    body = words[words.index("--json") + 1]
    return server.client.post(url, content=body, headers={"content-type": "application/json"})


def test_every_path_has_an_example_that_runs(named: Serving, answered: Answered) -> None:
    for command in COMMANDS:
        answer = curl(named, command)
        assert answer.status_code == 200, (command, answer.text)
        if "text/" not in answer.headers["content-type"]:
            json.loads(answer.text)
    known: dict[str, Any] = {}
    for block in BLOCKS:  # one after the other, as a reader would type them
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(block.replace(f"http://{PLACE}", named.url), "docs/serve.md", "exec"), known)
        assert said.getvalue().strip(), block
    for endpoint in ENDPOINTS + FILE_ENDPOINTS:
        pattern = re.sub(r"\\{\w+\\}", "[^/]+", re.escape(endpoint.path))
        assert any(method == endpoint.method and re.fullmatch(pattern, path) for method, path in answered.seen), (
            f"docs/serve.md has no example of {endpoint.method} {endpoint.path}"
        )
