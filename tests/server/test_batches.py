"""Files and batches as the official client uses them, over a real server; what a restart finds; who goes first."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from mimo_gguf.batch.open_job import open_job
from mimo_gguf.runtime.llm import LLM
from mimo_gguf.server import batch_runner, files_api
from tests.batch.answerers import names_in
from tests.server.serving import SUM, Serving, serving

CHAT = "/v1/chat/completions"


def line(custom_id: str, **body: Any) -> str:
    body = {"messages": SUM, "temperature": 0, "max_tokens": 6, **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}) + "\n"


@contextlib.contextmanager
def keeping(llm: LLM, folder: Path, **settings: Any) -> Iterator[tuple[Serving, Any]]:
    """A server with a folder for files, and OpenAI's client for it."""
    with serving(llm, files_dir=folder, n_batch_rows=4, **settings) as server:
        yield server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", http_client=server.client)


def upload(client: Any, text: str) -> str:
    return str(client.files.create(file=("rows.jsonl", text.encode()), purpose="batch").id)


def begin(client: Any, text: str, **how: Any) -> Any:
    given = {"endpoint": CHAT, "completion_window": "24h", "input_file_id": upload(client, text), **how}
    return client.batches.create(**given)


def ended(client: Any, batch: Any, seconds: float = 200.0) -> Any:
    end = time.monotonic() + seconds
    while batch.status in {"validating", "in_progress", "finalizing", "cancelling"}:
        assert time.monotonic() < end, batch
        time.sleep(0.02)
        batch = client.batches.retrieve(batch.id)
    return batch


def lines_of(client: Any, file_id: str | None) -> dict[str, Any]:
    assert file_id is not None
    found = [json.loads(each) for each in client.files.content(file_id).text.splitlines()]
    return {each["custom_id"]: each for each in found}


def test_a_batch_from_upload_to_download(llm: LLM, tmp_path: Path) -> None:
    with keeping(llm, tmp_path) as (server, client):
        rows = "".join(line(str(n)) for n in range(5)) + line("bad", speed=9) + line("wrong", model="gpt-4o")
        batch = begin(client, rows, metadata={"for": "a test"})
        assert (batch.status, batch.object, batch.metadata) == ("validating", "batch", {"for": "a test"})
        done = ended(client, batch)
        assert done.status == "completed" and done.completed_at >= done.in_progress_at >= done.created_at
        counts = done.request_counts
        assert (counts.total, counts.completed, counts.failed) == (7, 5, 2)
        answers, failures = lines_of(client, done.output_file_id), lines_of(client, done.error_file_id)
        assert answers.keys() == {"0", "1", "2", "3", "4"} and failures.keys() == {"bad", "wrong"}
        said = server.post(CHAT, json.loads(line("x"))["body"]).json()["choices"]
        assert all(each["response"]["body"]["choices"] == said for each in answers.values())
        assert failures["bad"]["response"]["status_code"] == 400
        assert [each.id for each in client.batches.list().data] == [batch.id]
        about = client.files.retrieve(done.output_file_id)
        assert (about.purpose, about.filename) == ("batch_output", f"{batch.id}_output.jsonl")
        assert client.files.delete(done.error_file_id).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(done.error_file_id)


def test_pages_of_lists(llm: LLM, tmp_path: Path) -> None:
    with keeping(llm, tmp_path) as (server, client):
        ids = {upload(client, line("a")) for _ in range(5)}
        first = client.files.list(limit=2)
        assert len(first.data) == 2 and first.has_more
        assert {each.id for each in client.files.list(limit=2)} == ids  # the client turns the pages
        assert [each.id for each in client.files.list(purpose="assistants")] == []
        batches = [begin(client, line("a")).id for _ in range(3)]
        assert {each.id for each in client.batches.list(limit=1)} == set(batches)
        for query in ("limit=0", "limit=x", "after=nobody"):
            assert server.get(f"/v1/batches?{query}").status_code == 400
        for each in batches:
            ended(client, client.batches.retrieve(each))


@pytest.mark.parametrize(
    ("text", "code", "number"),
    [
        (line("a") + "nonsense\n", "invalid_json_line", 2),
        (line("a") + line("a"), "duplicate_custom_id", 2),
        ('{"method": "POST"}\n', "missing_required_parameter", 1),
        (line("a").replace(CHAT, "/v1/completions"), "mismatched_url", 1),
        (line("a").replace("POST", "GET"), "invalid_method", 1),
        ("\n", "empty_file", 1),
    ],
)
def test_a_file_that_is_wrong_fails_its_batch(llm: LLM, tmp_path: Path, text: str, code: str, number: int) -> None:
    with keeping(llm, tmp_path) as (_, client):
        batch = ended(client, begin(client, text))
        assert batch.status == "failed" and batch.output_file_id is None
        assert [(each.code, each.line) for each in batch.errors.data] == [(code, number)]


def test_what_is_refused(llm: LLM, tmp_path: Path) -> None:
    with keeping(llm, tmp_path, files_bytes=4000) as (server, client):
        file_id = upload(client, line("a"))
        for change in ({"endpoint": "/v1/embeddings"}, {"completion_window": "soon"}, {"colour": "red"}):
            body = {"endpoint": CHAT, "completion_window": "24h", "input_file_id": file_id} | change
            assert server.post("/v1/batches", body).status_code == 400
        for missing in ("file-0123456789abcdef01234567", "../../etc/passwd", "file-..%2f..%2fetc"):
            body = {"endpoint": CHAT, "completion_window": "24h", "input_file_id": missing}
            assert server.post("/v1/batches", body).status_code == 404
            assert server.get(f"/v1/files/{missing}").status_code == 404
            assert server.get(f"/v1/files/{missing}/content").status_code == 404
        with pytest.raises(openai.APIStatusError) as too_long:
            upload(client, "x" * 5000)
        assert too_long.value.status_code == 413
        with pytest.raises(openai.BadRequestError):
            client.files.create(file=("a", b"{}"), purpose="nonsense")
        assert server.post("/v1/files", {}).status_code == 415
        assert server.post(f"/v1/batches/{'batch_' + '0' * 24}/cancel", {}).status_code == 404
        assert len(names_in(tmp_path / "files")) == 2  # the one file, and what is said of it


def test_without_a_folder_there_are_no_files(server: Serving) -> None:
    for path in ("/v1/files", "/v1/batches", "/v1/files/x/content"):
        assert server.get(path).status_code == 404
        assert "--files-dir" in server.get(path).json()["error"]["message"]


def test_a_batch_is_cancelled_and_keeps_its_answers(llm: LLM, tmp_path: Path) -> None:
    rows = "".join(line(str(n), ignore_eos=True, max_tokens=300) for n in range(24))
    with keeping(llm, tmp_path) as (_, client):
        batch = begin(client, rows)
        waiting = begin(client, rows)
        while client.batches.retrieve(batch.id).request_counts.completed < 2:
            time.sleep(0.01)
        with pytest.raises(openai.ConflictError):
            client.files.delete(batch.input_file_id)
        assert client.batches.cancel(batch.id).status == "cancelling"
        assert client.batches.cancel(waiting.id).status == "cancelling"
        done = ended(client, batch)
        assert done.status == "cancelled" and done.cancelled_at and 2 <= done.request_counts.completed < 24
        assert len(lines_of(client, done.output_file_id)) == done.request_counts.completed
        assert ended(client, waiting).output_file_id is None


def test_a_batch_that_is_cancelled_while_it_is_opened_answers_nothing(
    llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, cancelled = threading.Event(), threading.Event()

    def slow(*how: Any) -> Any:
        opening.set()
        assert cancelled.wait(60)
        return open_job(*how)

    with keeping(llm, tmp_path) as (_, client):
        monkeypatch.setattr(batch_runner, "open_job", slow)
        batch = begin(client, "".join(line(str(n), max_tokens=2) for n in range(3)))
        assert opening.wait(60)
        assert client.batches.cancel(batch.id).status == "cancelling"
        cancelled.set()
        done = ended(client, batch)
        assert done.status == "cancelled" and done.output_file_id is None


def test_what_came_too_late_says_so(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "".join(line(str(n), ignore_eos=True, max_tokens=900) for n in range(12))
    with keeping(llm, tmp_path) as (_, client):
        monkeypatch.setitem(files_api._SECONDS, "h", 0)
        done = ended(client, begin(client, rows))
        assert done.status == "expired" and done.request_counts.failed == 12
        codes = {each["error"]["code"] for each in lines_of(client, done.error_file_id).values()}
        assert codes == {"batch_expired"}


def test_the_next_server_goes_on(llm: LLM, tmp_path: Path) -> None:
    """A server that stops leaves its batches as a kill does: on the disk."""
    rows = "".join(line(str(n), ignore_eos=True, max_tokens=60) for n in range(16))
    with keeping(llm, tmp_path) as (_, client):
        batch = begin(client, rows)
        while client.batches.retrieve(batch.id).request_counts.completed < 3:
            time.sleep(0.01)
    (work,) = (tmp_path / "batches").glob("*.partial")
    before = work.read_bytes()
    n_before = before.count(b"\n")
    assert 3 <= n_before < 16
    with work.open("ab") as file:
        file.write(b'{"id":"batch_req_1234')
    with keeping(llm, tmp_path) as (_, client):
        done = ended(client, client.batches.retrieve(batch.id))
        assert done.status == "completed" and done.request_counts.completed == 16
        text = client.files.content(done.output_file_id).text
    assert text.encode().startswith(before) and len(text.splitlines()) == 16
    assert len({json.loads(each)["custom_id"] for each in text.splitlines()}) == 16
    assert not list((tmp_path / "batches").glob("*.jsonl*"))


def wait_until(fact: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_client_goes_before_the_rows_of_a_batch(llm: LLM, tmp_path: Path) -> None:
    """Every slot is taken by long rows; a client is answered at once, and the rows that gave way are answered later."""
    rows = "".join(line(str(n), ignore_eos=True, max_tokens=150) for n in range(4))
    with keeping(llm, tmp_path) as (server, client):
        batch = begin(client, rows)
        wait_until(lambda: server.engine.n_running == 4)
        asked = {"messages": SUM, "temperature": 0, "max_tokens": 4}
        said: list[Any] = []
        asking = [threading.Thread(target=lambda: said.append(httpx.post(server.url + CHAT, json=asked, timeout=60)))
                  for _ in range(2)]  # fmt: skip
        for each in asking:
            each.start()
        for each in asking:
            each.join()
        assert [each.status_code for each in said] == [200, 200]
        assert client.batches.retrieve(batch.id).request_counts.completed == 0  # the rows are still at it
        done = ended(client, batch)
        assert (done.status, done.request_counts.completed) == ("completed", 4)
