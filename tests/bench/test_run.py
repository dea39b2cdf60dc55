"""The benchmark measures what it says: every way makes the same text, and the figures belong together."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from mimo_gguf.bench.bandwidth import find_bandwidth, measure_host, weight_reads
from mimo_gguf.bench.peers import PeerOptions, measure_peer
from mimo_gguf.bench.run import BenchOptions, BenchReport, EndlessSampler, run_bench
from mimo_gguf.bench.same_text import is_same_text
from mimo_gguf.chat.template import CHATML, ChatTemplate
from mimo_gguf.cli import bench, fit
from mimo_gguf.core.errors import BackendError, UsageError
from mimo_gguf.core.gguf_file import read_gguf
from mimo_gguf.engine.sampling import Sampler, SamplingOptions
from mimo_gguf.engine.session import Session, SessionOptions
from mimo_gguf.engine.single import next_token, read_prompt
from mimo_gguf.hardware.devices import imagined_gpu
from mimo_gguf.llama.api import LlamaContext, LlamaModel, load_model, open_context
from tests.tiny_models import make_model, quantized

QUICK = BenchOptions(n_prompt=20, n_generate=10, drafts=(0, 1, 2), kinds=("code",), repetitions=2)
PEER = PeerOptions(n_prompt=8, n_generate=4, n_threads=1, n_gpu_layers=0, n_ctx=256, repetitions=1)


def test_no_end_token_is_drawn(tiny: LlamaModel) -> None:
    """Against llama.cpp's own logit bias, with which llama-server ignores ends."""
    options = SessionOptions(n_ctx=256, n_threads=1, adaptive=False)
    free: list[int] = []
    with Session(tiny, options) as session:
        for _ in range(2):
            ends = set(free[::7])
            texts = []
            bias = SamplingOptions(temperature=0, logit_bias=dict.fromkeys(ends, -1e9))
            for sampler in (EndlessSampler(tiny, ends), Sampler(tiny, bias)):
                session.reset(session.slot)
                read_prompt(session, [1, 2, 3])
                with sampler:
                    texts.append([next_token(session, sampler) for _ in range(60)])
            assert texts[0] == texts[1] != free and not ends & set(texts[0])
            free = texts[0]


def test_figures(tiny: LlamaModel) -> None:
    said: list[str] = []
    reports: list[BenchReport] = []
    report = run_bench(
        tiny,
        ChatTemplate(CHATML),
        SessionOptions(n_ctx=0, n_threads=1),
        QUICK,
        load_s=1.0,
        on_start=said.append,
        on_figure=reports.append,
    )
    assert [len(each.generation) for each in reports] == [0, 1, 2, 3] and reports[-1] == report
    assert [figure.n_draft for figure in report.generation] == [0, 1, 2]
    assert all(figure.same_text and figure.tokens_per_s > 0 for figure in report.generation)
    assert report.generation[0].tokens_per_pass == 1.0 and report.generation[0].acceptance == ()
    assert len(report.generation[2].acceptance) == 2
    assert report.speed_up(report.generation[0]) is None
    assert report.speed_up(report.generation[1]) == pytest.approx(
        report.generation[1].tokens_per_s / report.generation[0].tokens_per_s
    )
    assert report.prompt_tokens_per_s > 0 and 0 < report.first_token_s < 60
    assert "code, plain (1 of 3)" in said and "code, 2 drafts (3 of 3)" in said
    assert report.memory_bytes["CPU"] > tiny.size_bytes
    plain = report.generation[0]
    assert report.bandwidth is not None and report.bandwidth.bytes_per_s > 1e8
    assert report.bandwidth_share(plain) == plain.read_bytes_per_s / report.bandwidth.bytes_per_s
    document = json.loads(json.dumps(report.as_json()))
    assert document["generation"][1]["n_draft"] == 1 and document["options"]["n_generate"] == 10


def test_the_weights_that_a_token_reads(tiny_path: Path) -> None:
    """Counted here by name: the trunk and the output for a pass, the MTP block and the output for a draft."""
    file = read_gguf(tiny_path)
    sizes = {info.name: info.n_bytes for info in file.infos()}
    n_trunk = int(file.value("step35.block_count")) - 1
    mtp = sum(n for name, n in sizes.items() if name.startswith(f"blk.{n_trunk}."))
    output = sizes["output.weight"] + sizes["output_norm.weight"]
    reads = weight_reads(file)
    assert reads.per_pass == sum(sizes.values()) - sizes["token_embd.weight"] - mtp
    assert reads.per_draft == mtp + output


def run_command(*arguments: str | Path) -> Result:
    app = typer.Typer()
    app.command()(bench.command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_kept_speed_is_shown_by_fit_as_measured(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--json`, so that the figures are known; without threads, as runs are without being told."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    short = ("--tokens", "5", "--prompt-tokens", "9", "-r", "1", "--kinds", "maths", "--drafts", "0,1")
    done = run_command(tiny_path, *short, "--save", "--json")
    assert done.exit_code == 0 and str(tmp_path / "mimo-gguf" / "speeds.json") in done.stderr
    plain, drafting = json.loads(done.stdout)["generation"]
    app = typer.Typer()
    app.command()(fit.command)
    shown = CliRunner().invoke(app, [str(tiny_path), "--json", "--ctx", "256"])
    expected = json.loads(shown.stdout)["expected"]
    assert (expected["mark"], expected["card"]) == ("measured", None) and tiny_path.name in expected["source"]
    speeds = [plain["tokens_per_s"], drafting["tokens_per_s"]]
    assert [expected["tps"], expected["tps_mtp"]] == [round(speed, 1) for speed in speeds]
    for wrong in (("--exact",), ("--threads", "77"), ("--drafts", "1")):
        assert isinstance(run_command(tiny_path, *short, *wrong, "--save").exception, UsageError)


SHORT = ("--tokens", "5", "--prompt-tokens", "9", "-r", "1", "--kinds", "maths", "--threads", "1")


def test_a_table_for_people_and_one_document_for_programs(tiny_path: Path) -> None:
    result = run_command(tiny_path, *SHORT)
    assert result.exit_code == 0
    table = result.stdout.splitlines()
    assert not [line for line in table if line.startswith("{")]
    assert [line.split()[:2] for line in table if line.startswith("maths")] == [
        ["maths", "plain"], ["maths", "1"], ["maths", "2"], ["maths", "3"],
    ]  # fmt: skip
    assert all(len(line) <= 80 for line in table)
    assert "measuring maths, 3 drafts (4 of 4)" in result.stderr
    line = run_command(tiny_path, *SHORT, "--json").stdout
    document = json.loads(line)
    assert line.count("\n") == 1 and document["peers"] == []
    assert {figure["n_draft"] for figure in document["generation"]} == {0, 1, 2, 3}


def test_a_file_that_cannot_draft(tmp_path: Path) -> None:
    path = make_model(tmp_path, n_mtp=0)
    result = run_command(path, *SHORT)
    assert "no MTP layer: plain generation only" in result.stderr
    assert len([line for line in result.stdout.splitlines() if line.startswith("maths")]) == 1
    error = run_command(path, *SHORT, "--drafts", "1,2").exception
    assert isinstance(error, UsageError) and "nothing drafts" in error.message


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
            list(measure_peer(tmp_path / name, tmp_path / "x.gguf", PEER, {}))


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-ins are scripts")
def test_a_peer_that_fails_is_told(tmp_path: Path) -> None:
    for name in ("llama-bench", "llama-server"):
        program = tmp_path / name
        program.write_text("#!/bin/sh\necho no such model >&2\nexit 1\n")
        program.chmod(0o755)
        with pytest.raises(BackendError, match="no such model"):
            list(measure_peer(program, tmp_path / "x.gguf", PEER, {"code": "a"}))


SERVER = f"""#!{sys.executable}
import http.server, json, sys
drafting = "--spec-type" in sys.argv
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.do_POST()
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{{}}")
        timings = {{"prompt_per_second": 50.0, "predicted_per_second": 8.0 if drafting else 10.0}}
        if drafting:
            timings |= {{"draft_n": asked.get("n_predict"), "draft_n_accepted": 1}}
        self.send_response(200)
        self.end_headers()
        tokens = [7] * asked.get("n_predict", 0) if asked.get("return_tokens") and len(asked["prompt"]) == 1 else []
        self.wfile.write(json.dumps({{"timings": timings, "tokens": tokens}}).encode())
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Answers).serve_forever()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-ins are scripts")
def test_peers_stand_beside_ours(tiny_path: Path, tmp_path: Path) -> None:
    rows = [{"n_prompt": 8, "n_gen": 0, "avg_ts": 80.0}, {"n_prompt": 0, "n_gen": 4, "avg_ts": 9.5}]
    for name, text in (("llama-bench", f"#!/bin/sh\necho '{json.dumps(rows)}'\n"), ("llama-server", SERVER)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    against = [part for name in ("llama-bench", "llama-server") for part in ("--against", tmp_path / name)]
    document = json.loads(run_command(tiny_path, *SHORT, "--drafts", "0,1", "--json", *against).stdout)
    table = run_command(tiny_path, *SHORT, "--drafts", "0,1", *against).stdout.splitlines()
    assert [(peer["program"], peer["kind"], peer["n_draft"]) for peer in document["peers"]] == [
        ("llama-bench", "", 0), ("llama-server", "maths", 0), ("llama-server", "maths", 1),
    ]  # fmt: skip
    assert [peer["tokens_per_s"] for peer in document["peers"]] == [9.5, 10.0, 8.0]
    assert document["peers"][2]["acceptance"] == 1 / 5
    plain, drafted = (float(line.split()[at]) for line in table for way, at in (("plain", 2), ("1 draft ", 3))
                      if line.startswith(f"maths  {way}"))  # fmt: skip
    prompt = next(float(line.split()[1]) for line in table if line.startswith("prompt "))
    ratios = {line.partition(":")[0]: [float(number) for number in re.findall(r"\d+\.\d\d", line)] for line in table}
    assert ratios["ours / llama-bench"] == pytest.approx([plain / 9.5, prompt / 80], rel=0.02, abs=0.02)
    assert ratios["ours / llama-server"] == pytest.approx([plain / 10, drafted / 8], rel=0.02, abs=0.02)
    assert any(line.split() == ["maths", "llama-server,", "1", "draft", "8.00", "20%"] for line in table)


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-ins are scripts")
def test_a_peer_is_asked_for_its_text(tmp_path: Path) -> None:
    server = tmp_path / "llama-server"
    server.write_text(SERVER)
    server.chmod(0o755)
    options = replace(PEER, drafts=(0,))
    prompts = {"code": "a", "prose": "b", "maths": "c"}
    texts = {"code": [7, 7, 7, 7, 7], "prose": [7, 8, 7, 7, 7]}
    figures = measure_peer(server, tmp_path / "x.gguf", options, prompts, texts)
    assert [figure.same_text for figure in figures] == [True, False, None]


def test_the_same_text() -> None:
    assert is_same_text([1, 2, 3], (1, 2)) and is_same_text((1, 2), [1, 2, 3])
    assert not is_same_text([1, 2, 3], [1, 3]) and not is_same_text([], [1])


@pytest.mark.parametrize("exact", [False, True])
def test_all_ways_read_a_prompt_in_equal_passes(tiny_path: Path, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With drafts one token more had to be read again for the next text, and so another number of rows."""
    passes: list[list[int]] = []
    decode = LlamaContext.decode

    def open_and_list(*arguments: Any) -> LlamaContext:
        passes.append([])
        return open_context(*arguments)

    def decode_and_note(context: LlamaContext, native: Any, stop_when: Any = None) -> int:
        if context.other is None and native.n_tokens > 3:
            passes[-1].append(native.n_tokens)
        return decode(context, native, stop_when)

    monkeypatch.setattr("mimo_gguf.engine.session.open_context", open_and_list)
    monkeypatch.setattr(LlamaContext, "decode", decode_and_note)
    options = replace(QUICK, kinds=("code", "prose"))
    with load_model(quantized(tiny_path, "BF16")) as model:
        session = SessionOptions(n_ctx=0, n_threads=1, exact=exact)
        report = run_bench(model, ChatTemplate(CHATML), session, options, load_s=1.0)
    _, plain, one_draft, two_drafts = passes
    assert len(plain) == 4 and plain == one_draft == two_drafts
    if exact:
        assert all(figure.same_text for figure in report.generation)


def test_a_peer_that_is_not_there_is_told_before_anything_is_measured(tiny_path: Path, tmp_path: Path) -> None:
    result = run_command(tiny_path, *SHORT, "--against", tmp_path / "llama-bench")
    assert isinstance(result.exception, UsageError) and "measuring" not in result.stderr


def test_the_bandwidth_of_what_holds_the_weights() -> None:
    card = imagined_gpu(12 << 30, "CUDA0", "NVIDIA GeForce RTX 3060 12GB")
    known = find_bandwidth([card], 1)
    assert known is not None and known.bytes_per_s == 360e9
    assert find_bandwidth([card, card], 1) is None
    assert find_bandwidth([imagined_gpu(1 << 30, "CUDA0", "no such card")], 1) is None
    assert 1e8 < measure_host(2, 1 << 22).bytes_per_s < 1e14
