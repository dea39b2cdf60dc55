"""`mimo-gguf convert` and `inspect` as a user meets them, wrong input included."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.checkpoints import CONFIG, tensor_shapes, write_checkpoint, write_hollow, write_tokenizer
from tests.cli.command_line import PROGRAM, assert_clear_error, run

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
    assert run(tmp_path, "convert", model, "--type", "fp16").returncode == 0
    assert "My-MiMo-F16.gguf" in gguf_files(tmp_path)


def test_json_is_one_document(tmp_path: Path, model: Path) -> None:
    done = run(tmp_path, "convert", model, "--type", "Q8_0", "-o", "x.gguf", "--json")
    document = json.loads(done.stdout)
    assert document["layout"] == "step35"
    assert document["n_mtp"] == 1
    assert len(document["mapped"]) == 43
    assert document["outputs"][0]["paths"] == ["x.gguf"]
    assert document["outputs"][0]["n_bytes"] == (tmp_path / "x.gguf").stat().st_size


def test_dry_run_writes_nothing_and_knows_the_size(tmp_path: Path, model: Path) -> None:
    dry = json.loads(run(tmp_path, "convert", model, "--dry-run", "--json").stdout)
    assert gguf_files(tmp_path) == set()
    assert run(tmp_path, "convert", model).returncode == 0
    assert dry["outputs"][0]["n_bytes"] == (tmp_path / "My-MiMo-BF16.gguf").stat().st_size


def test_same_input_same_bytes(tmp_path: Path, model: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        assert run(tmp_path, "convert", model, "-o", name).returncode == 0
        os.utime(next(model.glob("*.safetensors")))
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_script_for_people_used_to_llama_cpp(tmp_path: Path, model: Path) -> None:
    script = [PROGRAM[0], str(ROOT / "convert" / "hf_to_gguf.py")]
    done = subprocess.run([*script, str(model)], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "My-MiMo-BF16.gguf" in gguf_files(tmp_path)


def test_existing_output_is_kept(tmp_path: Path, model: Path) -> None:
    (tmp_path / "My-MiMo-BF16.gguf").write_bytes(b"precious")
    assert_clear_error(run(tmp_path, "convert", model), "My-MiMo-BF16.gguf: exists already")
    assert (tmp_path / "My-MiMo-BF16.gguf").read_bytes() == b"precious"
    assert run(tmp_path, "convert", model, "--force").returncode == 0
    assert (tmp_path / "My-MiMo-BF16.gguf").stat().st_size > 100_000


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["convert", "nothing-here"], 1, "no such folder"),
        (["convert", "My-MiMo/config.json"], 1, "is a file, not a checkpoint folder"),
        (["convert", "My-MiMo", "--type", "Q99"], 2, "no file type or profile 'Q99'"),
        (["convert", "My-MiMo", "--layout", "llama"], 2, "no layout 'llama'"),
        (["convert", "My-MiMo", "--layout", "step35", "--no-mtp"], 2, "--no-mtp leaves none"),
        (["convert", "My-MiMo", "--mtp-layers", "nothing-here"], 1, "nothing-here: no such folder"),
        (["convert", "My-MiMo", "-o", "no/such/folder/x.gguf"], 1, "no such folder"),
        (["inspect", "nothing.gguf"], 1, "nothing.gguf: No such file"),
        (["inspect", "My-MiMo/config.json"], 1, "not a GGUF file"),
    ],
)
def test_wrong_arguments(tmp_path: Path, model: Path, arguments: list[str], code: int, expected: str) -> None:
    assert_clear_error(run(tmp_path, *arguments), expected, code=code)
    assert gguf_files(tmp_path) == set()


def test_nan_is_named_and_nothing_is_left(tmp_path: Path, model: Path) -> None:
    path = model / "model-00001-of-00002.safetensors"
    raw = path.read_bytes()
    header = 8 + int.from_bytes(raw[:8], "little")
    entry = json.loads(raw[8:header])[
        "model.embed_tokens.weight" if b"embed_tokens" in raw[:header] else "lm_head.weight"
    ]
    at = header + entry["data_offsets"][0] + 2 * CONFIG["hidden_size"] * 5
    path.write_bytes(raw[:at] + NAN + raw[at + 2 :])
    done = run(tmp_path, "convert", model)
    assert_clear_error(done, "row 5 holds Inf or NaN", ".weight in model-00001-of-00002.safetensors")
    assert gguf_files(tmp_path) == set()


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes everywhere")
def test_read_only_folder(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    assert_clear_error(run(tmp_path, "convert", model, "-o", folder), "read-only")


def test_disk_full(tmp_path: Path, model: Path) -> None:
    """A file size limit stands for a full disk: the write fails in the middle."""
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
    assert run(tmp_path, "convert", model, "-o", "x.gguf").returncode == 0
    assert not [name for name in gguf_files(tmp_path) if name.startswith(".")]


def test_interrupted_run_goes_on(tmp_path: Path) -> None:
    """Ctrl-C in the middle: exit code 130, no traceback, no output under its name; the same command completes it."""
    config = CONFIG | {"vocab_size": 150_000, "hidden_size": 1024, "head_dim": 256}
    shapes = tensor_shapes(config)
    write_hollow(tmp_path / "big", config, dict.fromkeys(shapes, "model-00001-of-00001.safetensors"), shapes)
    write_tokenizer(tmp_path / "big")
    process = subprocess.Popen(
        [*PROGRAM, "convert", "big", "--type", "F32"], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
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
    assert run(tmp_path, "convert", "big", "--type", "F32").returncode == 0
    assert gguf_files(tmp_path) == {"big-F32.gguf", "big-F32.gguf.sums.json"}


def test_inspect(tmp_path: Path, model: Path) -> None:
    run(tmp_path, "convert", model)
    done = run(tmp_path, "inspect", "My-MiMo-BF16.gguf", "--tensors", "--metadata")
    assert done.returncode == 0, done.stderr
    for text in (
        "My MiMo",
        "step35: trunk and 1 MTP layer",
        "blk.2.nextn.eh_proj.weight",
        "step35.nextn_predict_layers = 1",
        "2 + 1 blocks",
    ):
        assert text in done.stdout, text
    document = json.loads(run(tmp_path, "inspect", "My-MiMo-BF16.gguf", "--json").stdout)
    assert document["n_mtp"] == 1
    assert document["mtp_types"] == {"BF16": 8, "F32": 8}
    assert {group["group"] for group in document["groups"]} == {"embedding", "trunk", "mtp", "output"}


def test_inspect_of_the_trunk_alone(tmp_path: Path, model: Path) -> None:
    run(tmp_path, "convert", model, "--layout", "qwen2", "-o", "trunk.gguf")
    done = run(tmp_path, "inspect", "trunk.gguf")
    assert "qwen2: trunk only, no MTP" in done.stdout
    assert json.loads(run(tmp_path, "inspect", "trunk.gguf", "--json").stdout)["n_mtp"] == 0
