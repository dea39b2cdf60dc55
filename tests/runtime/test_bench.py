"""The benchmark measures what it says: every way makes the same text, and the figures belong together."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from mimo_gguf.cli import bench
from mimo_gguf.core.errors import BackendError, UsageError
from mimo_gguf.runtime.bandwidth import find_bandwidth, measure_host
from mimo_gguf.runtime.bench import BenchOptions, run_bench
from mimo_gguf.runtime.bench_peers import PeerOptions, measure_peer
from mimo_gguf.runtime.chat_template import CHATML, ChatTemplate
from mimo_gguf.runtime.devices import imagined_gpu
from mimo_gguf.runtime.llama_api import LlamaModel
from mimo_gguf.runtime.session import SessionOptions

QUICK = BenchOptions(n_prompt=20, n_generate=10, drafts=(0, 1, 2), kinds=("code",), repetitions=2)
PEER = PeerOptions(n_prompt=8, n_generate=4, n_threads=1, n_gpu_layers=0, n_ctx=256, repetitions=1)


def test_figures(tiny: LlamaModel) -> None:
    heard: list[str] = []
    report = run_bench(
        tiny, ChatTemplate(CHATML), SessionOptions(n_ctx=0, n_threads=1), QUICK, load_s=1.0, tell=heard.append
    )
    assert [figure.n_draft for figure in report.generation] == [0, 1, 2]
    assert all(figure.same_text and figure.tokens_per_s > 0 for figure in report.generation)
    assert report.generation[0].tokens_per_pass == 1.0 and report.generation[0].acceptance == ()
    assert len(report.generation[2].acceptance) == 2
    assert report.speed_up(report.generation[0]) is None
    assert report.speed_up(report.generation[1]) == pytest.approx(
        report.generation[1].tokens_per_s / report.generation[0].tokens_per_s
    )
    assert report.prompt_tokens_per_s > 0 and 0 < report.first_token_s < 60
    assert "code, plain" in heard
    assert report.memory_bytes["CPU"] > tiny.size_bytes
    plain = report.generation[0]
    assert report.bandwidth is not None and report.bandwidth.bytes_per_s > 1e8
    assert report.bandwidth_share(plain) == report.read_bytes_per_s(plain) / report.bandwidth.bytes_per_s
    assert json.loads(json.dumps(report.as_json()))["generation"][1]["n_draft"] == 1


def test_the_command_ends_with_one_json_document(tiny_path: Path) -> None:
    app = typer.Typer()
    app.command()(bench.command)
    arguments = [
        str(tiny_path),
        "--tokens",
        "5",
        "--prompt-tokens",
        "9",
        "-r",
        "1",
        "--kinds",
        "maths",
        "--threads",
        "1",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    document = json.loads(result.stdout.splitlines()[-1])
    assert {figure["n_draft"] for figure in document["generation"]} == {0, 1, 2, 3}
    assert "plain" in result.stdout and "measuring" in result.stderr
    assert json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)["peers"] == []


def test_what_cannot_be_measured(tiny: LlamaModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="poems"):
        BenchOptions(kinds=("poems",))
    with pytest.raises(UsageError):
        BenchOptions(drafts=(0, 99))
    with pytest.raises(UsageError, match="window"):
        run_bench(tiny, ChatTemplate(CHATML), SessionOptions(n_ctx=16), QUICK, load_s=0)
    for name in ("absent", "llama-other"):
        (tmp_path / "llama-other").touch()
        with pytest.raises(UsageError):
            measure_peer(tmp_path / name, tmp_path / "x.gguf", PEER, [])


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-ins are scripts")
def test_a_peer_that_fails_is_told(tmp_path: Path) -> None:
    for name in ("llama-bench", "llama-server"):
        program = tmp_path / name
        program.write_text("#!/bin/sh\necho no such model >&2\nexit 1\n")
        program.chmod(0o755)
        with pytest.raises(BackendError, match="no such model"):
            measure_peer(program, tmp_path / "x.gguf", PEER, ["a"])


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a script")
def test_llama_bench_is_read(tmp_path: Path) -> None:
    program = tmp_path / "llama-bench"
    rows = [{"n_prompt": 8, "n_gen": 0, "avg_ts": 80.0}, {"n_prompt": 0, "n_gen": 4, "avg_ts": 9.5}]
    program.write_text(f"#!/bin/sh\necho '{json.dumps(rows)}'\n")
    program.chmod(0o755)
    (figure,) = measure_peer(program, tmp_path / "x.gguf", PEER, [])
    assert (figure.prompt_tokens_per_s, figure.tokens_per_s) == (80.0, 9.5)


def test_the_bandwidth_of_what_holds_the_weights() -> None:
    card = imagined_gpu(12 << 30, "CUDA0", "NVIDIA GeForce RTX 3060 12GB")
    known = find_bandwidth([card], 1)
    assert known is not None and known.bytes_per_s == 360e9
    assert find_bandwidth([card, card], 1) is None
    assert find_bandwidth([imagined_gpu(1 << 30, "CUDA0", "no such card")], 1) is None
    assert 1e8 < measure_host(2, 1 << 22).bytes_per_s < 1e14
