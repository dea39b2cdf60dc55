"""`mimo-gguf convert` and `inspect` as a user meets them, wrong input included."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.gguf_header import lay_out
from mimo_gguf.core.model_source import TensorInfo, string
from tests.checkpoints import CONFIG, tensor_shapes, write_checkpoint, write_hollow, write_tokenizer
from tests.cli.command_line import PROGRAM, assert_clear_error, hear_interrupts, run, run_here

ROOT = Path(__file__).resolve().parents[2]
NAN = b"\xc0\x7f"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "My-MiMo")
    return tmp_path / "My-MiMo"


def gguf_files(folder: Path) -> set[str]:
    """Everything in `folder` that is no checkpoint: outputs, and whatever might have been left behind."""
    return {path.name for path in folder.iterdir() if path.is_file()}


def test_convert_names_its_output_and_says_what_it_did(tmp_path: Path, model: Path) -> None:
    done = run(tmp_path, "convert", model)
    assert done.returncode == 0, done.stderr
    assert "My-MiMo-BF16.gguf" in gguf_files(tmp_path)
    for text in ("step35, with 1 MTP layer", "43, ", "swap_halves on model.mtp_layers.0.input_proj.weight"):
        assert text in done.stdout


def test_fp16_is_f16(tmp_path: Path, model: Path) -> None:
    assert run_here(tmp_path, "convert", model, "--type", "fp16").returncode == 0
    assert "My-MiMo-F16.gguf" in gguf_files(tmp_path)


def test_json_is_one_document(tmp_path: Path, model: Path) -> None:
    done = run_here(tmp_path, "convert", model, "--type", "Q8_0", "-o", "x.gguf", "--json")
    document = json.loads(done.stdout)
    assert document["layout"] == "step35"
    assert document["n_mtp"] == 1
    assert len(document["mapped"]) == 43
    assert document["outputs"][0]["paths"] == ["x.gguf"]
    assert document["outputs"][0]["n_bytes"] == (tmp_path / "x.gguf").stat().st_size


def test_dry_run_writes_nothing_and_knows_the_size(tmp_path: Path, model: Path) -> None:
    dry = json.loads(run_here(tmp_path, "convert", model, "--dry-run", "--json").stdout)
    assert gguf_files(tmp_path) == set()
    assert run_here(tmp_path, "convert", model).returncode == 0
    assert dry["outputs"][0]["n_bytes"] == (tmp_path / "My-MiMo-BF16.gguf").stat().st_size


def test_a_large_file_is_split_when_asked(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "Wide", config=CONFIG | {"hidden_size": 256, "intermediate_size": 768, "head_dim": 64})
    assert run_here(tmp_path, "convert", "Wide", "--split-max-size", "1MB", "-o", "out/").returncode == 0
    parts = sorted(path.name for path in (tmp_path / "out").glob("*.gguf"))
    assert len(parts) > 2
    assert parts[1] == f"Wide-BF16-00002-of-{len(parts):05d}.gguf"
    assert run_here(tmp_path, "convert", "Wide").returncode == 0
    assert run_here(tmp_path, "quantize", f"out/{parts[1]}", "--type", "Q8_0", "-o", "split.gguf").returncode == 0
    assert run_here(tmp_path, "quantize", "Wide-BF16.gguf", "--type", "Q8_0", "-o", "whole.gguf").returncode == 0
    assert (tmp_path / "split.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_same_input_same_bytes(tmp_path: Path, model: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        assert run_here(tmp_path, "convert", model, "-o", name).returncode == 0
        os.utime(next(model.glob("*.safetensors")))
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_script_for_people_used_to_llama_cpp(tmp_path: Path, model: Path) -> None:
    script = [PROGRAM[0], str(ROOT / "convert" / "hf_to_gguf.py")]
    done = subprocess.run([*script, str(model)], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "My-MiMo-BF16.gguf" in gguf_files(tmp_path)


def test_existing_output_is_kept(tmp_path: Path, model: Path) -> None:
    (tmp_path / "My-MiMo-BF16.gguf").write_bytes(b"precious")
    assert_clear_error(run_here(tmp_path, "convert", model), "My-MiMo-BF16.gguf: exists already")
    assert (tmp_path / "My-MiMo-BF16.gguf").read_bytes() == b"precious"
    assert run_here(tmp_path, "convert", model, "--force").returncode == 0
    assert (tmp_path / "My-MiMo-BF16.gguf").stat().st_size > 100_000


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["convert", "nothing-here"], 1, "no such folder"),
        (["convert", "x" * 5000], 1, "no such folder"),
        (["convert", "[/red]"], 1, "[/red]: no such folder"),
        (["convert", "a\x1b[2Jb\nc"], 1, r"a\x1b[2Jb\nc: no such folder"),
        (["convert", "My-MiMo", "--type", ""], 2, "no file type or profile ''"),
        (["convert", "My-MiMo", "--mtp-layers", "My-MiMo/config.json"], 1, "is a file, not a folder"),
        (["convert", "My-MiMo", "--mtp-layers", "My-MiMo"], 1, "no MTP layers that My-MiMo lacks"),
        (["convert", "My-MiMo", "-o", "y" * 300 + ".gguf"], 1, "the name is too long"),
        (["convert", "My-MiMo", "-o", "a.bin"], 2, "a.bin: neither ends in .gguf nor is a folder"),
        (["convert", "My-MiMo", "-o", "My-MiMo/config.json/"], 1, "My-MiMo/config.json: File exists"),
        (["convert", "My-MiMo/config.json"], 1, "is a file, not a checkpoint folder"),
        (["convert", "My-MiMo", "--type", "Q99"], 2, "no file type or profile 'Q99'"),
        (["convert", "My-MiMo", "--layout", "llama"], 2, "no layout 'llama'"),
        (["convert", "My-MiMo", "--layout", "step35", "--no-mtp"], 2, "--no-mtp leaves none"),
        (["convert", "My-MiMo", "--mtp-layers", "nothing-here"], 1, "nothing-here: no such folder"),
        (["convert", "My-MiMo", "-o", "no/such/folder/x.gguf"], 1, "no such folder"),
        (["inspect", "My-MiMo"], 1, "My-MiMo: is a folder, not a GGUF file"),
        (["inspect", "nothing.gguf"], 1, "nothing.gguf: No such file"),
        (["inspect", "My-MiMo/config.json"], 1, "not a GGUF file"),
    ],
)
def test_wrong_arguments(tmp_path: Path, model: Path, arguments: list[str], code: int, expected: str) -> None:
    assert_clear_error(run_here(tmp_path, *arguments), expected, code=code)
    assert gguf_files(tmp_path) == set()


def test_a_gguf_is_no_source(tmp_path: Path, model: Path) -> None:
    run_here(tmp_path, "convert", model, "-o", "x.gguf")
    done = run_here(tmp_path, "convert", "x.gguf")
    assert_clear_error(done, "x.gguf: is a GGUF file already")
    assert "hint: mimo-gguf quantize x.gguf" in done.stderr


def test_folder_of_the_output_is_made(tmp_path: Path, model: Path) -> None:
    assert run_here(tmp_path, "convert", model, "-o", "a/b").returncode == 0
    assert (tmp_path / "a" / "b" / "My-MiMo-BF16.gguf").is_file()
    assert run_here(tmp_path, "convert", model, "-o", "c/d", "--dry-run").returncode == 0
    assert not (tmp_path / "c").exists()


def test_straight_to_a_quantized_type(tmp_path: Path) -> None:
    config = CONFIG | {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
    write_checkpoint(tmp_path / "wide", config=config, shapes=tensor_shapes(config))
    assert run_here(tmp_path, "convert", "wide", "--type", "q4_k_m").returncode == 0
    document = json.loads(run_here(tmp_path, "inspect", "wide-Q4_K_M.gguf", "--json").stdout)
    assert document["ftype"] == "Q4_K_M"
    assert "Q4_K" in document["mtp_types"]


def test_mixed_types_are_warned_of(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "mixed", dtypes={"lm_head.weight": "F32", "model.norm.weight": "F32"})
    done = run_here(tmp_path, "convert", "mixed")
    assert done.returncode == 0
    assert "warning: the checkpoint mixes types (1 in F32): BF16 rounds these, --type F32 does not" in done.stderr
    assert "warning" not in run_here(tmp_path, "convert", "mixed", "--type", "F32").stderr


@pytest.mark.parametrize("name", ["Мимо 7B 🙂", "[bold]m[x]", "a'b\"c"])
def test_names_of_any_kind(tmp_path: Path, name: str) -> None:
    try:
        write_checkpoint(tmp_path / name)
    except OSError:
        pytest.skip("no such name here")
    done = run_here(tmp_path, "convert", name)
    assert done.returncode == 0, done.stderr
    assert name in done.stdout
    assert name in run_here(tmp_path, "inspect", f"{name}-BF16.gguf").stdout


def test_nothing_in_a_file_moves_the_cursor(tmp_path: Path) -> None:
    """Names and texts in a GGUF are untrusted: no escape sequence of theirs reaches the terminal, no markup acts."""
    metadata = {"general.architecture": string("llama"), "general.name": string("[/x]\x1b[2Jname")}
    layout = lay_out(metadata, [TensorInfo("[/bold]\x1b]0;t\x07", (1, 32), GgmlType.F32)])
    (tmp_path / "x.gguf").write_bytes(layout.header + bytes(128))
    done = run_here(tmp_path, "inspect", "x.gguf", "--tensors", "--metadata")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout and "\x07" not in done.stdout
    assert r"[/x]\x1b[2Jname" in done.stdout and r"[/bold]\x1b]0;t\x07" in done.stdout


@pytest.mark.skipif(os.name == "nt", reason="a pipe's end is told otherwise")
def test_reader_that_goes_away(tmp_path: Path, model: Path) -> None:
    run_here(tmp_path, "convert", model, "-o", "x.gguf")
    done = subprocess.run(
        f"'{PROGRAM[0]}' -m mimo_gguf inspect x.gguf --tensors --metadata --json | head -c 10",
        cwd=tmp_path, shell=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""


def test_nan_is_named_and_nothing_is_left(tmp_path: Path, model: Path) -> None:
    path = model / "model-00001-of-00002.safetensors"
    raw = path.read_bytes()
    header = 8 + int.from_bytes(raw[:8], "little")
    entry = json.loads(raw[8:header])[
        "model.embed_tokens.weight" if b"embed_tokens" in raw[:header] else "lm_head.weight"
    ]
    at = header + entry["data_offsets"][0] + 2 * CONFIG["hidden_size"] * 5
    path.write_bytes(raw[:at] + NAN + raw[at + 2 :])
    done = run_here(tmp_path, "convert", model)
    assert_clear_error(done, "row 5 holds Inf or NaN", ".weight in model-00001-of-00002.safetensors")
    assert gguf_files(tmp_path) == set()


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes everywhere")
def test_read_only_folder(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    assert_clear_error(run_here(tmp_path, "convert", model, "-o", folder), "read-only")


@pytest.mark.skipif(os.name == "nt", reason="no limits on file sizes")
def test_disk_full(tmp_path: Path, model: Path) -> None:
    """A file size limit stands for a full disk: the write fails in the middle."""
    import resource

    done = subprocess.run(
        [*PROGRAM, "convert", str(model), "-o", "x.gguf"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert_clear_error(done, "x.gguf")
    assert "x.gguf" not in gguf_files(tmp_path)
    assert run_here(tmp_path, "convert", model, "-o", "x.gguf").returncode == 0
    assert not [name for name in gguf_files(tmp_path) if name.startswith(".")]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_interrupted_run_goes_on(tmp_path: Path) -> None:
    """Ctrl-C in the middle: exit code 130, no traceback, no output under its name; the same command completes it."""
    config = CONFIG | {"vocab_size": 60_000, "hidden_size": 1024, "head_dim": 256}
    shapes = tensor_shapes(config)
    write_hollow(tmp_path / "big", config, dict.fromkeys(shapes, "model-00001-of-00001.safetensors"), shapes)
    write_tokenizer(tmp_path / "big")
    process = subprocess.Popen(
        [*PROGRAM, "convert", "big", "--type", "F32"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        preexec_fn=hear_interrupts,
    )
    for _ in range(600):
        if any(path.stat().st_blocks > 10_000 for path in tmp_path.glob(".*")):
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert b"Traceback" not in errors
    assert "big-F32.gguf" not in gguf_files(tmp_path)
    assert run_here(tmp_path, "convert", "big", "--type", "F32").returncode == 0
    assert gguf_files(tmp_path) == {"big-F32.gguf", "big-F32.gguf.sums.json"}


def test_inspect(tmp_path: Path, model: Path) -> None:
    run_here(tmp_path, "convert", model)
    done = run_here(tmp_path, "inspect", "My-MiMo-BF16.gguf", "--tensors", "--metadata")
    assert done.returncode == 0, done.stderr
    for text in (
        "My MiMo",
        "step35: trunk and 1 MTP layer",
        "blk.2.nextn.eh_proj.weight",
        "step35.nextn_predict_layers = 1",
        "2 + 1 blocks",
    ):
        assert text in done.stdout, text
    document = json.loads(run_here(tmp_path, "inspect", "My-MiMo-BF16.gguf", "--json").stdout)
    assert document["n_mtp"] == 1
    assert document["mtp_types"] == {"BF16": 8, "F32": 8}
    assert {group["group"] for group in document["groups"]} == {"embedding", "trunk", "mtp", "output"}


def test_inspect_of_the_trunk_alone(tmp_path: Path, model: Path) -> None:
    run_here(tmp_path, "convert", model, "--layout", "qwen2", "-o", "trunk.gguf")
    done = run_here(tmp_path, "inspect", "trunk.gguf")
    assert "qwen2: trunk only, no MTP" in done.stdout
    assert json.loads(run_here(tmp_path, "inspect", "trunk.gguf", "--json").stdout)["n_mtp"] == 0
