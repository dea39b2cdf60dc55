"""Several models in one server: loaded at the first request, unloaded for another's sake, none in another's way."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mimo_gguf.core.errors import BackendError
from mimo_gguf.engine.session import SessionOptions
from mimo_gguf.fit.plan import FitPlan
from mimo_gguf.runtime.llm import LLM
from mimo_gguf.runtime.model import Model
from mimo_gguf.server.engine import Limits
from mimo_gguf.server.models import Models, Served
from mimo_gguf.server.settings import Settings
from tests.server.serving import SUM, Serving, serving_models
from tests.server.test_limits import wait_until

PATH = "/v1/chat/completions"
OPTIONS = SessionOptions(n_ctx=1024, n_threads=1, n_parallel=2)


@dataclass
class Slow:
    """A file that is loaded only when the test says so, in a memory that holds `room` models."""

    path: Path
    room: int = 1
    error: Exception | None = None
    may_load: threading.Event = field(default_factory=threading.Event)
    n_loads: int = 0
    beside: int = 0  # other models that were loaded at the last time

    def fits_beside(self, held: Sequence[FitPlan]) -> bool:
        return len(held) < self.room

    def load(self, held: Sequence[FitPlan], on_plan: Callable[[FitPlan], None] | None = None) -> LLM:
        assert self.may_load.wait(20)
        self.n_loads, self.beside = self.n_loads + 1, len(held)
        if self.error is not None:
            raise self.error
        plan = Model.plan_load(self.path, options=OPTIONS)
        model = Model.open(self.path, OPTIONS)
        model.plan = plan
        return LLM.of_model(model)


@contextlib.contextmanager
def two(llm: LLM, room: int = 1, **settings: Any) -> Iterator[tuple[Serving, Slow, Slow]]:
    """A server with the models a and b, of which `room` fit into the memory at a time."""
    a, b = Slow(llm.model.file.path, room), Slow(llm.model.file.path, room)
    a.may_load.set()
    given = Settings(port=0, names=("a", "first"), limits=Limits(**settings))
    models = Models([Served(given.names, a), Served(("b",), b)], given.limits)
    try:
        with serving_models(models, given) as server:
            yield server, a, b
    finally:
        models.close()


def body(model: str, n: int = 3) -> dict[str, Any]:
    return {"model": model, "messages": SUM, "temperature": 0, "max_tokens": n, "ignore_eos": True}


def loaded(server: Serving) -> dict[str, bool]:
    return {each["id"]: each["loaded"] for each in server.get("/v1/models").json()["data"]}


def test_a_model_is_loaded_at_its_first_request(llm: LLM) -> None:
    with two(llm, room=2) as (server, a, b):
        b.may_load.set()
        assert loaded(server) == {"a": False, "first": False, "b": False}
        wrong = server.post(PATH, body("c"))
        assert wrong.status_code == 404 and wrong.json()["error"]["code"] == "model_not_found"
        assert server.post(PATH, body("first")).json()["model"] == "first"
        assert loaded(server) == {"a": True, "first": True, "b": False}
        said = [server.post(PATH, body(name)).json()["choices"][0]["message"] for name in ("a", "b")]
        assert said[0] == said[1] and loaded(server) == {"a": True, "first": True, "b": True}
        assert (a.n_loads, b.n_loads, b.beside) == (1, 1, 1)
        assert server.get("/v1/models/b").json()["max_model_len"] == 512
        assert server.get("/props?model=b").json()["model_alias"] == "b"
        assert server.post("/tokenize", {"content": "x", "model": "b"}).status_code == 200
        metrics = server.get("/metrics").text
        assert 'mimo_gguf_generated_tokens_total{model="b"} 3.0' in metrics


def test_others_answer_while_one_is_loaded(llm: LLM) -> None:
    with two(llm, room=2, n_waiting=2) as (server, _, b), ThreadPoolExecutor(8) as pool:
        assert server.post(PATH, body("a")).status_code == 200
        waiting = [pool.submit(server.post, PATH, body("b")) for _ in range(3)]
        wait_until(lambda: server.models.find("b").n_waiting == 3)
        assert server.post(PATH, body("a")).status_code == 200
        assert server.post(PATH, body("b")).status_code == 429, "the queue of those who wait for it is bounded"
        b.may_load.set()
        assert [each.result().status_code for each in waiting] == [200] * 3 and b.n_loads == 1


def test_the_least_recently_used_goes_when_its_answers_have_ended(llm: LLM) -> None:
    with two(llm) as (server, a, b), ThreadPoolExecutor(8) as pool:
        long = pool.submit(server.post, PATH, body("a", 300))
        wait_until(lambda: (engine := server.models.find("a").engine) is not None and engine.n_running == 1)
        b.may_load.set()
        other = pool.submit(server.post, PATH, body("b"))
        wait_until(lambda: server.models.find("a").is_leaving)
        late = pool.submit(server.post, PATH, body("a"))  # waits until it is loaded again
        assert long.result().json()["usage"]["completion_tokens"] == 300, "a running answer is not broken off"
        assert other.result().status_code == late.result().status_code == 200
        assert (a.n_loads, a.beside, b.n_loads, b.beside) == (2, 0, 1, 0)
        assert loaded(server) == {"a": True, "first": True, "b": False}
        counts = server.get("/metrics").text
        assert 'mimo_gguf_generated_tokens_total{model="a"} 303.0' in counts, "counts go on"
        assert 'mimo_gguf_loaded{model="b"} 0.0' in counts


def test_one_that_cannot_be_loaded_is_an_error_for_its_requests(llm: LLM) -> None:
    with two(llm) as (server, _, b):
        b.error = BackendError(f"{b.path}: llama.cpp cannot load it: bad magic", hint="look at it")
        b.may_load.set()
        wrong = server.post(PATH, body("b"))
        assert wrong.status_code == 503
        assert wrong.json()["error"]["code"] == "model_not_loaded" and "bad magic" in wrong.text
        assert str(b.path.parent) not in wrong.text, "no path of the server's machine is told"
        assert server.post(PATH, body("a")).status_code == 200
        b.error = None
        assert server.post(PATH, body("b")).status_code == 200, "the file was mended"


def test_who_does_not_wait_long_enough(llm: LLM) -> None:
    with two(llm, time_s=0.2) as (server, _, b):
        late = server.post(PATH, body("b"))
        assert late.status_code == 503 and late.json()["error"]["code"] == "timeout"
        b.may_load.set()
        wait_until(lambda: loaded(server)["b"])


def test_a_stop_while_one_is_loaded(llm: LLM) -> None:
    with two(llm) as (server, _, b), ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(server.post, PATH, body("b"))
        wait_until(lambda: server.models.find("b").n_waiting == 1)
        stopping = threading.Timer(0.1, b.may_load.set)
        stopping.start()
        server.stop()
        assert waiting.result().status_code == 200, "what was taken on is answered"
