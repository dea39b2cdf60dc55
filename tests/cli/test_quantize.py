"""`mimo-gguf quantize`, `verify` and `profiles` as a user meets them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from mimo_gguf.cli.app import main
from mimo_gguf.quantization import kernel_loading
from tests.checkpoints import write_checkpoint
from tests.cli.command_line import PROGRAM, assert_clear_error, hear_interrupts, run_here
from tests.quantization.models import Model, write_random
from tests.quantization.test_importance import sums_of, write_dat

MODEL = Model(n_trunk=1, width=64, ffn=96, vocab=72, heads=2, kv_heads=1, head_dim=32)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_random(tmp_path / "Random-BF16.gguf", MODEL)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_several_types_in_one_read_named_after_the_model(source: Path, tmp_path: Path) -> None:
    done = run_here(tmp_path, "quantize", source, "--type", "q8_0", "--type", "FP16", "-o", "models/")
    assert done.returncode == 0, done.stderr
    assert names(tmp_path / "models") == {
        f"Random-{name}.gguf{more}" for name in ("Q8_0", "F16") for more in ("", ".sums.json")
    }
    assert "bits per weight" in done.stdout
    assert "bit for bit" in done.stdout


def test_the_default_place_is_beside_a_gguf_and_here_for_a_checkpoint(source: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    write_checkpoint(tmp_path / "My-MiMo")
    assert run_here(here, "quantize", source, "--type", "Q8_0").returncode == 0
    assert (tmp_path / "Random-Q8_0.gguf").is_file()
    assert run_here(here, "quantize", tmp_path / "My-MiMo", "--type", "Q8_0").returncode == 0
    assert (here / "My-MiMo-Q8_0.gguf").is_file()


def test_a_dry_run_writes_nothing_and_knows_the_sizes(source: Path, tmp_path: Path) -> None:
    before = names(tmp_path)
    shown = run_here(tmp_path, "quantize", source, "--type", "Q4_K_M", "-o", "new/", "--dry-run")
    assert "new/Random-Q4_K_M.gguf" in shown.stdout
    assert "time       about" in shown.stdout
    plan = json.loads(
        run_here(tmp_path, "quantize", source, "--type", "Q4_K_M", "-o", "new/", "--dry-run", "--json").stdout
    )
    assert names(tmp_path) == before
    expected = plan["expected"]
    assert expected["seconds"] > max(expected["computing_s"], expected["reading_s"]) > 0
    report = json.loads(run_here(tmp_path, "quantize", source, "--type", "Q4_K_M", "-o", "new/", "--json").stdout)
    assert plan["outputs"][0]["n_bytes"] == report["outputs"][0]["n_bytes"]
    assert Path(tmp_path, report["outputs"][0]["paths"][0]).stat().st_size == report["outputs"][0]["n_bytes"]


def test_a_dry_run_tells_what_a_run_would_meet(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("quantize", source, "--type", "Q8_0", "--type", "F16", "--dry-run")
    (tmp_path / "Random-Q8_0.gguf").write_bytes(b"there")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 5))
    done = run_here(tmp_path, *command)
    assert done.returncode == 0
    assert "5 B free there" in done.stdout
    assert "Random-Q8_0.gguf: there already; a run needs --force" in done.stderr
    assert "the disk does not have that much free" in done.stderr
    document = json.loads(run_here(tmp_path, *command, "-o", "none/yet/", "--json").stdout)
    assert (document["free_bytes"], document["existing"]) == (5, [])
    monkeypatch.undo()
    assert run_here(tmp_path, "quantize", source, "--type", "F16").returncode == 0
    again = run_here(tmp_path, *command)
    assert "Random-F16.gguf: complete already" in again.stderr
    assert "Random-F16.gguf: there already" not in again.stderr


def test_what_an_importance_matrix_lacks_is_said_once(tmp_path: Path) -> None:
    model = Model(n_trunk=1, width=256, ffn=256, vocab=64)
    write_random(tmp_path / "Wide-BF16.gguf", model)
    sums = {name: entry for name, entry in sums_of(model).items() if not name.startswith("blk.1.")}
    write_dat(tmp_path / "m.dat", sums)
    command = ("quantize", "Wide-BF16.gguf", "--type", "Q4_K_M", "--type", "IQ4_XS", "--imatrix", "m.dat")
    plan = run_here(tmp_path, *command, "--type", "IQ3_XXS", "--dry-run")  # making an IQ3_XXS takes seconds
    done = run_here(tmp_path, *command)
    assert plan.returncode == done.returncode == 0
    for said in (plan, done):
        assert len([line for line in said.stderr.splitlines() if "no importance entries for" in line]) == 1
    lines = plan.stderr.splitlines()
    assert len([line for line in lines if line.startswith("warning: IQ3_XXS: Q4_K instead of IQ")]) == 2
    assert "Q4_K by importance, " in done.stdout and "kernel     Q4_K, " in done.stdout


def test_types_can_be_chosen(source: Path, tmp_path: Path) -> None:
    options = [
        "--mtp-type",
        "Q8_0",
        "--tensor-type",
        "attn_k=F16",
        "--output-type",
        "q5_0",
        "--token-embedding-type",
        "Q4_1",
    ]
    plan = json.loads(run_here(tmp_path, "quantize", source, "--type", "Q4_0", *options, "--dry-run", "--json").stdout)
    types = {tensor["name"]: tensor["to"] for tensor in plan["outputs"][0]["tensors"]}
    assert types["blk.1.ffn_up.weight"] == "Q8_0"
    assert types["blk.0.ffn_up.weight"] == "Q4_0"
    assert types["blk.0.attn_k.weight"] == "F16"
    assert (types["output.weight"], types["token_embd.weight"]) == ("Q5_0", "Q4_1")


def test_a_profile_of_ones_own(source: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('summary = "x"\nfile_type = "Q8_0"\ndefault = "Q8_0"\n[mtp]\ntype = "F16"\n')
    assert run_here(tmp_path, "profiles", "--check", "mine.toml").returncode == 0
    assert run_here(tmp_path, "quantize", source, "--profile", "mine.toml").returncode == 0
    assert (tmp_path / "Random-mine.gguf").is_file()
    for mtp in ("F16", "F32"):  # ggml's number of F32 is 0
        (tmp_path / "mine.toml").write_text(
            f'summary = "x"\nfile_type = "Q8_0"\ndefault = "Q8_0"\n[mtp]\ntype = "{mtp}"\n'
        )
        assert json.loads(run_here(tmp_path, "profiles", "--check", "mine.toml", "--json").stdout)["mtp"] == mtp
    (tmp_path / "mine.toml").write_text('summary = "x"\nfile_type = "Q8_0"\ndefault = "Q8"\n')
    assert_clear_error(run_here(tmp_path, "profiles", "--check", "mine.toml"), "mine.toml: default: 'Q8'")


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["none.gguf", "--type", "Q8_0"], "none.gguf", 1),
        (["Random-BF16.gguf"], "no output", 2),
        (["Random-BF16.gguf", "--type", "Q9"], "'Q9'", 2),
        (["Random-BF16.gguf", "--type", "Q8_0", "--type", "F16", "-o", "a.gguf"], "2 outputs", 2),
        (["Random-BF16.gguf", "--type", "Q8_0", "-o", "a.bin"], "neither ends in .gguf nor is a folder", 2),
        (["Random-BF16.gguf", "--type", "Q8_0", "-o", "none/a.gguf"], "none: no such folder", 1),
        (["Random-BF16.gguf", "--type", "BF16"], "is the source itself", 2),
        (["Random-BF16.gguf", "--type", "Q8_0", "-o", "Random-BF16.gguf"], "is the source itself", 2),
        (["Random-BF16.gguf", "--type", "Q8_0", "--mtp-type", "Q1"], "'Q1'", 2),
        (["Random-BF16.gguf", "--type", "Q8_0", "--output-type", "I32"], "'I32' is not a type", 2),
        (["Random-BF16.gguf", "--type", "Q8_0", "--type", "q8_0"], "two outputs", 2),
        (["Random-BF16.gguf", "--type", "Q8_0", "--tensor-type", "ffn_dwn=Q6_K"], "ffn_dwn: no matrix", 2),
        (["Random-BF16.gguf", "--type", "Q8_0", "--split-max-size", "2"], "parts of 2 B are too small", 2),
        (["Random-BF16.gguf", "--type", "Q8_0", "--tensor-type", "x"], "PATTERN=TYPE", 2),
        (["Random-BF16.gguf", "--type", "Q8_0", "--imatrix", "none.dat"], "none.dat", 1),
        (["Random-BF16.gguf", "--type", "Q8_0", "--split-max-size", "much"], "'much' is not a size", 2),
    ],
)
def test_wrong_arguments_are_explained(
    arguments: list[str],
    message: str,
    code: int,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = names(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["mimo-gguf", "quantize", *arguments])
    with pytest.raises(SystemExit) as caught:  # in this process: a dozen starts of the program would take too long
        main()
    shown = capsys.readouterr()
    done = subprocess.CompletedProcess(arguments, int(caught.value.code or 0), shown.out, shown.err)
    assert_clear_error(done, message, code=code)
    assert names(tmp_path) == before


@pytest.mark.parametrize("dry_run", [(), ("--dry-run",)])
@pytest.mark.parametrize(("how", "told"), [((), True), (("--json",), True), (("--quiet",), False)])
def test_compiling_is_told_in_every_mode_but_quiet(
    how: tuple[str, ...],
    told: bool,
    dry_run: tuple[str, ...],
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first run on a machine takes up to half a minute before anything moves."""
    monkeypatch.setattr(kernel_loading, "have_to_compile", lambda: True)
    done = run_here(tmp_path, "quantize", source, "--type", "Q4_0", *how, *dry_run)
    assert done.returncode == 0, done.stderr
    assert (kernel_loading.COMPILING in done.stderr) is told
    if how == ("--json",):
        json.loads(done.stdout)


def test_a_kernel_that_takes_long_is_told_of_too(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other kernels were compiled before, but not this one."""
    from mimo_gguf.quantization.kernels import kernel_for

    monkeypatch.setattr(kernel_loading, "have_to_compile", lambda: False)
    monkeypatch.setattr(kernel_loading, "_PATIENCE_S", 0.05)
    monkeypatch.setattr(kernel_loading, "kernel_for", lambda *key: time.sleep(0.3) or kernel_for(*key))
    assert kernel_loading.COMPILING in run_here(tmp_path, "quantize", source, "--type", "Q4_0", "--json").stderr


def test_quiet_says_nothing_on_stderr(source: Path, tmp_path: Path) -> None:
    assert run_here(tmp_path, "quantize", source, "--type", "Q8_0", "--quiet").stderr == ""


def test_existing_outputs_of_another_run_need_force(source: Path, tmp_path: Path) -> None:
    assert run_here(tmp_path, "quantize", source, "--type", "Q8_0").returncode == 0
    again = run_here(tmp_path, "quantize", source, "--type", "Q8_0")
    assert again.returncode == 0 and "complete already" in again.stdout and "MB/s" not in again.stdout
    other = ("quantize", source, "--type", "Q8_0", "--mtp-type", "F16")
    assert_clear_error(run_here(tmp_path, *other), "exists already")
    assert run_here(tmp_path, *other, "--force").returncode == 0


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    source = write_random(tmp_path / "Random-BF16.gguf", Model(n_trunk=12, width=256, ffn=512))
    command = [*PROGRAM, "quantize", str(source), "--type", "IQ4_XS", "--threads", "1"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=hear_interrupts)
    journal = tmp_path / ".Random-IQ4_XS.gguf.journal"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (journal.exists() and journal.stat().st_size > 300):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "the same command goes on from here" in errors
    report = json.loads(run_here(tmp_path, *command[len(PROGRAM) :], "--json").stdout)
    assert report["outputs"][0]["resumed_bytes"] > 0


# ---- verify and profiles


def test_verify_says_intact_or_where_the_damage_is(source: Path, tmp_path: Path) -> None:
    run_here(tmp_path, "quantize", source, "--type", "Q8_0", "-o", "a.gguf")
    shown = run_here(tmp_path, "verify", "a.gguf")
    assert shown.returncode == 0
    sha256 = hashlib.sha256((tmp_path / "a.gguf").read_bytes()).hexdigest()
    assert f"sha256     {sha256}" in shown.stdout
    assert "sha256 written into a.gguf.sums.json" in shown.stderr
    assert json.loads((tmp_path / "a.gguf.sums.json").read_text())["sha256"] == sha256
    data = bytearray((tmp_path / "a.gguf").read_bytes())
    data[-500] ^= 16
    (tmp_path / "a.gguf").write_bytes(data)
    damaged = run_here(tmp_path, "verify", "a.gguf", "--json")
    assert damaged.returncode == 1
    assert json.loads(damaged.stdout)["problems"] == ["a.gguf: the data of output.weight changed"]
    assert "output.weight" in run_here(tmp_path, "verify", "a.gguf").stdout
    assert_clear_error(run_here(tmp_path, "verify", "none.gguf"), "none.gguf")


def test_profiles_lists_every_file_type_with_its_size(tmp_path: Path) -> None:
    listed = json.loads(run_here(tmp_path, "profiles", "--json").stdout)
    assert listed["model"] == "MiMo-7B"
    sizes = {profile["name"]: profile["n_bytes"] for profile in listed["profiles"]}
    assert len(sizes) == 30
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    table = run_here(tmp_path, "profiles").stdout
    assert all(name in table for name in sizes)


def test_profiles_shows_one_with_its_reasons(tmp_path: Path) -> None:
    shown = run_here(tmp_path, "profiles", "q4_k_m", COLUMNS="200").stdout
    assert "4.90 bits per weight, 4.47 GiB" in shown
    assert "V passes its error straight into the attended values" in shown
    document = json.loads(run_here(tmp_path, "profiles", "Q4_K_M", "--json").stdout)
    assert document["tensors"]["blk.36.nextn.eh_proj.weight"] == "Q4_K"
    assert_clear_error(run_here(tmp_path, "profiles", "Q77"), "'Q77'", code=2)
