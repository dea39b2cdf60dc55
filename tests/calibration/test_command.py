"""`mimo-gguf quantize --calibrate` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mimo_gguf.core.gguf_file import read_gguf
from mimo_gguf.quantization.profiles import load_profile
from tests.cli.command_line import assert_clear_error, run_here

TINY = Path(__file__).parents[2] / "examples/mimo-tiny"
TEXT = ("-f", "arithmetic", "-n", "1536")


def test_a_file_is_made_and_its_types_can_be_given_back(tmp_path: Path) -> None:
    words = ("quantize", TINY, "--type", "Q4_K_M", "--calibrate", *TEXT, "--quiet")
    done = run_here(tmp_path, *words, "--json")
    assert done.returncode == 0, done.stderr
    (file,) = json.loads(done.stdout)["files"]
    path = tmp_path / "mimo-tiny-Q4_K_M-calibrated.gguf"
    assert tmp_path / file["path"] == path
    assert file["predicted_after"] < file["predicted_before"]
    assert len(file["matrices"]) == 3 * 7 + 8 + 1
    assert all(matrix["error"] <= matrix["plain_error"] for matrix in file["matrices"])
    profile = load_profile(tmp_path / file["profile"])
    assert profile.file_type.name == "MOSTLY_Q4_K_M"
    again = run_here(tmp_path, *words)
    assert "by an earlier run" in again.stdout
    types = {info.name: info.ggml_type for info in read_gguf(path).infos()}
    plain = run_here(tmp_path, "quantize", TINY, "--profile", path.with_suffix(".toml").name, "-o", "back.gguf", "-q")
    assert plain.returncode == 0, plain.stderr
    assert {info.name: info.ggml_type for info in read_gguf(tmp_path / "back.gguf").infos()} == types


@pytest.mark.parametrize(
    ("words", "most_bytes"),
    [
        (("--type", "Q4_K_M", "--bytes", "2.5MB"), range(2_300_000, 2_500_000)),
        (("--bpw", "4.25"), range(2_000_000, 2_060_000)),
        (("--for", "RTX 3060 12GB", "--ctx", "2048"), range(11 << 30, 12 << 30)),
    ],
)
def test_bytes_that_are_asked_for(words: tuple[str, ...], most_bytes: range, tmp_path: Path) -> None:
    done = run_here(tmp_path, "quantize", TINY, "--calibrate", *TEXT, *words, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    (output,) = plan["outputs"]
    assert output["most_bytes"] in most_bytes
    assert plan["expected"]["seconds"] > 0
    assert list(tmp_path.iterdir()) == []


def test_answers_of_the_model_can_be_the_text(tmp_path: Path) -> None:
    lines = []
    for number in range(80):
        question, answer = f"What is {number} plus {number}?", f"{number} + {number} = {2 * number}. " * 6
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages}))  # as `quality --write-text` writes them
    (tmp_path / "answers.jsonl").write_text("\n".join(lines))
    words = ("-f", "answers.jsonl", "-n", "1024", "--type", "Q4_K_M", "--dry-run", "--json")
    done = run_here(tmp_path, "quantize", TINY, "--calibrate", *words)
    assert done.returncode == 0, done.stderr
    text = json.loads(done.stdout)["text"]
    assert text["n_tokens"] == 1024
    assert text["n_held_out"] >= 512


def test_a_plan_is_shown(tmp_path: Path) -> None:
    done = run_here(tmp_path, "quantize", TINY, "--type", "Q4_K_M", "--calibrate", *TEXT, "--dry-run")
    assert done.returncode == 0, done.stderr
    for words in ("1536 tokens to encode with", "memory", "time", "few for the 768 columns of ffn_down"):
        assert words in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("-f", "arithmetic"), "--text is about calibration"),
        (("--calibrate", "--imatrix", "x.gguf"), "measures the importance itself"),
        (("--calibrate", "--bytes", "4GiB", "--bpw", "4"), "both say how large"),
        (("--calibrate", "--ctx", "4096"), "the context that a card has to hold"),
        (("--calibrate", "--mix", "all"), "'all' is not one of its values"),
        (("--calibrate", "--bpw", "99"), "99 bits per weight"),
        (("--calibrate",), "no output asked for"),
    ],
)
def test_what_contradicts_itself_is_refused(words: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    assert_clear_error(run_here(tmp_path, "quantize", TINY, *words), expected, code=2)


def test_a_card_that_is_not_known_has_a_way_out_that_this_command_has(tmp_path: Path) -> None:
    done = run_here(tmp_path, "quantize", TINY, "--calibrate", "--for", "RTX 9999")
    assert_clear_error(done, "no card 'RTX 9999'", code=2)
    assert "--bytes 4.4GiB" in done.stderr and "--vram" not in done.stderr
