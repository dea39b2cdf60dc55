"""From a Hub id to an answer with one command: what it says, what it asks, and every way in which it ends early."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from huggingface_hub import constants

from mimo_gguf.cli import finding
from mimo_gguf.fit.solver import Wishes
from mimo_gguf.hardware.devices import host_device
from mimo_gguf.store.resolve import resolve_model
from tests.cli.command_line import assert_clear_error, run_here
from tests.conversion.fake_hub import FakeHub
from tests.reference import MIMO_TINY
from tests.store.conftest import hub, point_at  # noqa: F401 - a fixture

MODEL = "me/mimo-tiny"
ASK = ("-p", "What is 17 + 25?", "--temp", "0", "--ctx", "512", "--threads", "1")


@pytest.fixture
def served(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> FakeHub:  # noqa: F811 - the fixture
    """A hub with the tiny model. Kernels are not timed for the estimate, which takes a second."""
    monkeypatch.setattr("mimo_gguf.store.making._computing_s", lambda work, *, weights_here: 2.0)
    hub.repositories[MODEL] = MIMO_TINY
    return hub


def chat(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_here(tmp_path, "chat", *arguments)


def test_from_nothing_to_an_answer_and_again_without_a_network(
    served: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = chat(tmp_path, MODEL, *ASK, "--yes")
    assert first.returncode == 0, first.stderr
    assert "42" in first.stdout
    said = first.stderr[first.stderr.index("make  ") :].splitlines()
    assert said[0] == f"make       {MODEL} as Q8_0, the best type that fits"
    assert [line.split()[0] for line in said[1:4]] == ["download", "write", "time"]
    point_at("http://127.0.0.1:9", monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    again = chat(tmp_path, MODEL, *ASK)
    assert again.returncode == 0 and again.stdout == first.stdout
    listed = run_here(tmp_path, "models", "--json")
    (model,) = json.loads(listed.stdout)["models"]
    assert model["name"] == f"{MODEL}:Q8_0" and model["complete"] and model["source"] == MODEL
    path = run_here(tmp_path, "models", "path", f"{MODEL}:q8_0").stdout.strip()
    assert path == model["path"] == str(tmp_path / "models" / "hub" / "me--mimo-tiny" / "mimo-tiny-Q8_0.gguf")
    assert resolve_model("mimo-tiny-Q8_0") == Path(path)  # by the file's name
    removed = run_here(tmp_path, "models", "rm", f"{MODEL}:Q8_0")
    assert removed.returncode == 0 and not Path(path).exists()


def test_a_batch_takes_what_chat_takes(served: FakeHub, tmp_path: Path) -> None:
    row = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x", "max_tokens": 4}}
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    words = ("batch", "in.jsonl", "-o", "out.jsonl", "--ctx", "512", "--parallel", "1", "-t", "1")
    refused = run_here(tmp_path, *words, "--model", f"{MODEL}:Q4_K_M")
    assert_clear_error(refused, f"{MODEL}:Q4_K_M: is not here yet: a download of 7.", code=2)
    assert not (tmp_path / "out.jsonl").exists() and not (tmp_path / "models").exists()
    done = run_here(tmp_path, *words, "--model", f"{MODEL}:Q4_K_M", "--yes")
    assert done.returncode == 0, done.stderr
    answer = json.loads((tmp_path / "out.jsonl").read_text())["response"]
    assert answer["status_code"] == 200 and answer["body"]["model"] == "mimo-tiny-Q4_K_M"
    plan = run_here(tmp_path, *words, "--model", "mimo-tiny-Q4_K_M", "--dry-run")  # by the file's name
    assert plan.returncode == 0 and "1, 1 of them answered already" in plan.stdout, plan.stderr


def test_without_a_terminal_it_asks_for_yes(served: FakeHub, tmp_path: Path) -> None:
    done = chat(tmp_path, MODEL, *ASK)
    assert_clear_error(done, f"{MODEL}:Q8_0: is not here yet: a download of 7.", "at 100 Mbit/s", code=2)
    assert "--yes" in done.stderr
    assert not (tmp_path / "models").exists() and served.sent_bytes < 2e6


def test_a_type_that_does_not_fit_is_refused_before_anything_is_downloaded(
    served: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    little = (replace(host_device(), free_bytes=1 << 20),)
    monkeypatch.setattr("mimo_gguf.store.choosing.list_devices", lambda: little)
    done = chat(tmp_path, f"{MODEL}:Q8_0", *ASK, "--yes")
    assert_clear_error(done, "needs", "are free", code=3)
    assert not (tmp_path / "models").exists() and served.sent_bytes < 2e6


@pytest.mark.parametrize(
    ("name", "error", "hint"),
    [
        ("XiaomiMiMo/MiMo-7B-RM", "no such model on the Hub", "did you mean XiaomiMiMo/MiMo-7B-RL"),
        ("me/gated", "access must be granted first", "hf auth login"),
        (f"{MODEL}@v9", "no such revision", "leave @revision out"),
        (f"{MODEL}:Q4_K_X", "no file type or profile 'Q4_K_X'", "did you mean Q4_K_M"),
        ("zzz", "no such file or folder", "give a GGUF file"),
    ],
)
def test_names_that_lead_nowhere(served: FakeHub, tmp_path: Path, name: str, error: str, hint: str) -> None:
    served.gated.add("me/gated")
    done = chat(tmp_path, name, *ASK, "--yes")
    assert_clear_error(done, error, code=2 if "file" in error else 1)
    assert hint in done.stderr


def test_no_network(served: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at("http://127.0.0.1:9", monkeypatch)
    assert_clear_error(chat(tmp_path, MODEL, *ASK, "--yes"), "the Hub could not be reached")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_clear_error(chat(tmp_path, MODEL, *ASK, "--yes"), "HF_HUB_OFFLINE")


def test_no_room_and_no_permission(served: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mimo_gguf.store.plan.free_bytes", lambda folder: 1000)
    done = chat(tmp_path, MODEL, *ASK, "--yes")
    assert_clear_error(done, "needed, 1000 B free on this disk")
    assert "--models-dir" in done.stderr
    (tmp_path / "file").touch()
    done = chat(tmp_path, MODEL, *ASK, "--yes", "--models-dir", str(tmp_path / "file"))
    assert_clear_error(done, "cannot be written")
    assert served.sent_bytes < 3e6 and not (tmp_path / "models").exists()


@pytest.mark.parametrize("answer", [True, False])
def test_on_a_terminal_it_asks(answer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(typer, "confirm", lambda text, **_: asked.append(text) or answer)
    how = {"yes": False, "models_dir": tmp_path / "made", "quiet": True}
    if answer:
        assert finding.find_model(f"{MIMO_TINY}:Q4_K_M", Wishes(n_ctx=512), **how).is_file()  # type: ignore[arg-type]
    else:
        with pytest.raises(typer.Exit):
            finding.find_model(f"{MIMO_TINY}:Q4_K_M", Wishes(n_ctx=512), **how)  # type: ignore[arg-type]
        assert not (tmp_path / "made").exists()
    assert len(asked) == 1
