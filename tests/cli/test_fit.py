"""`mimo-gguf fit` and `mimo-gguf gpus` from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import typer
from typer.testing import CliRunner, Result

from mimo_gguf.cli import fit
from mimo_gguf.core.errors import DoesNotFit, UsageError
from mimo_gguf.core.geometry import STEP35
from mimo_gguf.core.units import GIB
from mimo_gguf.hardware import devices
from mimo_gguf.hardware.devices import CPU, GPU, IGPU, Device
from mimo_gguf.memory.allocator import DeviceTraits
from tests import full_size
from tests.checkpoints import write_checkpoint
from tests.cli import command_line
from tests.conversion.fake_hub import serve_hub
from tests.hardware.fake_nvml import fake_nvml


def run(command: object, *args: str) -> Result:
    app = typer.Typer()
    app.command()(command)  # type: ignore[type-var]
    return CliRunner().invoke(app, list(args))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(full_size.write_header_only(tmp_path_factory.mktemp("cli") / "MiMo-Q4_K_M.gguf", STEP35, "Q4_K_M"))


def test_the_table_and_the_json_tell_the_same(file: str) -> None:
    shown = run(fit.command, file, "--vram", "24GiB")
    assert shown.exit_code == 0
    assert max(len(line) for line in shown.stdout.splitlines()[2:]) <= 80
    document = json.loads(run(fit.command, file, "--vram", "24GiB", "--json").stdout)
    assert document["fits"] and document["settings"]["n_gpu_layers"] == 38
    needed = document["devices"][0]["needed_bytes"] / (1 << 30)
    assert f"{needed:.2f} GiB" in shown.stdout and "fits" in shown.stdout


def test_what_does_not_fit_is_an_error_with_exit_code_3(file: str) -> None:
    result = run(fit.command, file, "--vram", "5GiB", "--gpu-layers", "-1")
    assert isinstance(result.exception, DoesNotFit)
    assert result.exception.exit_code == 3 and "--gpu-layers" in str(result.exception.hint)
    assert "would fit:" in result.stdout


def test_asked_agrees(file: str) -> None:
    document = json.loads(run(fit.command, file, "--asked", "--json", "--gpu-layers", "0").stdout)
    by_llama_cpp = ("weights", "KV cache", "compute buffers")
    trees = [device["tree"]["parts"] for device in document["devices"]]
    counted = [sum(part["bytes"] for part in parts if part["name"] in by_llama_cpp) for parts in trees]
    assert list(document["asked_bytes"].values()) == counted


@pytest.mark.parametrize("options", [("--vram", "8GiB"), (), ("--auto",)])
def test_a_plan_needs_no_llama_cpp(file: str, options: tuple[str, ...]) -> None:
    code = (
        "import sys; sys.modules['llama_cpp'] = None; from mimo_gguf.cli.app import main; "
        f"sys.argv = ['mimo-gguf', 'fit', {file!r}, *{options!r}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "MiMo-Q4_K_M.gguf" in done.stdout, done.stderr


def test_several_conversations_are_planned_as_they_run(file: str) -> None:
    """Two rows of logits for each, and what llama.cpp itself counts for that."""
    document = json.loads(
        run(fit.command, file, "--parallel", "4", "--ctx", "16384", "--gpu-layers", "0", "--asked", "--json").stdout
    )
    assert (document["settings"]["n_seq_max"], document["settings"]["n_outputs_max"]) == (4, 8)
    by_llama_cpp = ("weights", "KV cache", "compute buffers")
    parts = document["devices"][-1]["tree"]["parts"]
    assert document["asked_bytes"]["CPU"] == sum(part["bytes"] for part in parts if part["name"] in by_llama_cpp)
    assert "4 contexts of 4096" in run(fit.command, file, "--parallel", "4", "--ctx", "16384").stdout


def test_several_types_are_compared_and_one_is_chosen(file: str, tmp_path: Path) -> None:
    source = str(full_size.write_header_only(tmp_path / "MiMo-F16.gguf", STEP35, "F16"))
    compared = run(fit.command, source, "--type", "Q8_0", "--type", "q4_k_m", "--vram", "8G")
    assert compared.exit_code == 0
    assert compared.stdout.index("Q4_K_M") < compared.stdout.index("Q8_0")
    chosen = json.loads(
        run(fit.command, source, "--auto", "--type", "Q4_K_M", "--type", "Q6_K", "--vram", "8G", "--json").stdout
    )
    assert chosen["file_type"] == "Q6_K" and chosen["gave_up"]
    shown = run(fit.command, file, "--auto", "--gpu", "RTX 3060 Ti").stdout
    assert f"to run it  mimo-gguf chat {file} --ctx" in shown and "speed      about 68 tok/s" in shown


def test_what_does_not_exist_yet_is_made_first(tmp_path: Path) -> None:
    """The commands printed are those that make and run what was chosen."""
    source = str(full_size.write_header_only(tmp_path / "My MiMo-F16.gguf", STEP35, "F16"))
    shown = run(fit.command, source, "--auto", "--type", "Q4_K_M", "--vram", "5.6GiB").stdout
    assert f"to make it mimo-gguf quantize '{source}' --type Q4_K_M" in shown
    assert f"to run it  mimo-gguf chat '{tmp_path}/My MiMo-Q4_K_M.gguf' --ctx" in shown
    write_checkpoint(tmp_path / "hf")
    shown = run(fit.command, str(tmp_path / "hf"), "--auto", "--type", "Q8_0").stdout
    assert f"to make it mimo-gguf convert {tmp_path}/hf --type Q8_0" in shown
    assert "to run it  mimo-gguf chat hf-Q8_0.gguf" in shown


def test_a_card_by_name(file: str) -> None:
    """The one meant is told where the name leaves it open, and what nothing runs on is called so."""
    shown = run(fit.command, file, "--gpu", "RTX 3060")
    assert "taking the RTX 3060 8GB; there is also the RTX 3060 12GB" in " ".join(shown.stderr.split())
    assert "GPU is RTX 3060 8GB" in shown.stdout and "about 36 tok/s, 54 with MTP" in shown.stdout
    assert not run(fit.command, file, "--gpu", "RTX 3060 12GB").stderr
    assert "does not run on the Tesla K20X" in " ".join(run(fit.command, file, "--gpu", "k20x").stderr.split())
    unknown = run(fit.command, file, "--gpu", "Voodoo 2").exception
    assert isinstance(unknown, UsageError) and "or give its memory: --vram 8GiB" in str(unknown.hint)
    speeds = json.loads(run(fit.command, file, "--gpu", "4090", "--json").stdout)["expected"]
    assert speeds["card"] == "RTX 4090" and 100 < speeds["tps"] < speeds["tps_mtp"]


def machine(monkeypatch: pytest.MonkeyPatch, *gpus: Device, host_gib: int = 32) -> None:
    """ggml lists `gpus`, and the host has so much free."""
    monkeypatch.setattr(devices, "ggml_devices", lambda: list(gpus))
    host = Device("CPU", "host memory", CPU, "CPU", host_gib * GIB, 2 * host_gib * GIB)
    monkeypatch.setattr(devices, "host_device", lambda: host)


def cuda(name: str, free_gib: float, pci_id: str = "") -> Device:
    free = int(free_gib * GIB)
    return Device(name, "a card", GPU, "CUDA", free, 8 * GIB, DeviceTraits(128, 32, True, True), 1, pci_id)


def test_other_programs_on_the_card_are_shown(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cuda("CUDA0", 3, "0000:01:00.0"))
    parent = psutil.Process(os.getppid())
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(b"00000000:01:00.0", [(parent.pid, 5 * GIB)]))
    shown = run(fit.command, file)
    assert f"also on CUDA0: {parent.name()} ({parent.pid}) 5.00 GiB" in " ".join(shown.stdout.split())
    document = json.loads(run(fit.command, file, "--json").stdout)
    assert document["other_programs"]["CUDA0"][0]["n_bytes"] == 5 * GIB
    assert 0 < document["settings"]["n_gpu_layers"] < 38
    assert json.loads(run(fit.command, file, "--vram", "8GiB", "--json").stdout)["other_programs"] == {}


def test_a_card_that_this_llama_cpp_cannot_use_is_named(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml("0000:01:00.0", []))
    shown = run(fit.command, file)
    assert shown.exit_code == 0 and "RTX 4060 with 8.00 GiB" in shown.stderr and "CUDA" in shown.stderr


def test_an_integrated_gpu_shares_the_hosts_memory(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is used where there is no other, its need counts on the host too, and the host's memory is the limit."""
    igpu = Device("Vulkan0", "an iGPU", IGPU, "Vulkan", 24 * GIB, 24 * GIB, DeviceTraits(64, 32), 1)
    machine(monkeypatch, igpu, host_gib=24)
    roomy = json.loads(run(fit.command, file, "--json").stdout)
    on_gpu, on_host = roomy["devices"]
    assert roomy["fits"] and roomy["settings"]["n_gpu_layers"] == 38 and on_gpu["kind"] == "igpu"
    shared = [part["bytes"] for part in on_host["tree"]["parts"] if part["name"].startswith("on devices")]
    assert shared == [on_gpu["needed_bytes"]]
    machine(monkeypatch, igpu, host_gib=6)
    tight = run(fit.command, file)
    assert isinstance(tight.exception, DoesNotFit) and "on CPU" in tight.exception.message
    machine(monkeypatch, igpu, cuda("CUDA0", 7.5))
    both = json.loads(run(fit.command, file, "--json").stdout)
    assert [device["name"] for device in both["devices"]] == ["CUDA0", "CPU"]


def test_auto_is_this_machine(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cuda("CUDA0", 5))
    assert run(fit.command, file, "--gpu", "auto", "--json").stdout == run(fit.command, file, "--json").stdout


def test_two_cards_of_different_size(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes where: by free memory, every layer on one of them, and each within its own."""
    machine(monkeypatch, cuda("CUDA0", 5), cuda("CUDA1", 3))
    document = json.loads(run(fit.command, file, "--json").stdout)
    large, small, _ = document["devices"]
    assert document["fits"] and document["settings"]["n_gpu_layers"] == 38
    assert 0 < small["needed_bytes"] < large["needed_bytes"]


def test_a_small_number_is_a_cards_size_in_gib(file: str) -> None:
    for text in ("12", "12GiB", " 12 ", "12.0", "12884901888"):
        document = json.loads(run(fit.command, file, "--vram", text, "--json").stdout)
        assert document["devices"][0]["total_bytes"] == 12 << 30, text


@pytest.mark.parametrize("option", ["--ctx", "--parallel", "--ubatch", "--gpu-layers", "--vram", "--kv-type"])
@pytest.mark.parametrize("value", ["nan", "inf", "-2", "1e308", "9" * 400, "9" * 5000, "1.5.5", ""])
def test_values_that_are_none(file: str, option: str, value: str) -> None:
    """One clear error each; a number of layers may be as large as it likes."""
    result = run(fit.command, file, f"{option}={value}")
    if option == "--gpu-layers" and value.startswith("9"):
        assert result.exit_code in (0, 2)
    else:
        assert isinstance(result.exception, UsageError) or result.exit_code == 2, result.output


def test_without_a_source_it_is_the_published_model() -> None:
    compared = json.loads(run(fit.command, "--vram", "24", "--json").stdout)
    assert [Path(plan["model"]).name for plan in compared] == [
        f"MiMo-7B-RL-{name}.gguf" for name in ("Q4_K_M", "Q6_K", "Q8_0", "F16")
    ]
    assert all(plan["settings"]["n_layers"] == 38 for plan in compared)
    shown = run(fit.command, "--vram", "8", "--auto").stdout
    assert "to make it mimo-gguf convert XiaomiMiMo/MiMo-7B-RL --type Q6_K" in shown
    assert "to run it  mimo-gguf chat MiMo-7B-RL-Q6_K.gguf" in shown
    assert isinstance(run(fit.command, "--asked").exception, UsageError)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--gpu-layers", "20"), "mimo-gguf doctor"),
        (("--ctx", "65536"), "65536 tokens is more than the 32768"),
        (("--ctx", "32768", "--kv-type", "q4_0"), "4-bit KV cache"),
        (("--ctx", "131072", "--parallel", "4", "--gpu-layers", "0", "--kv-type", "q8_0"), ""),
    ],
)
def test_what_is_possible_but_perhaps_not_meant_is_told(
    file: str, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], said: str
) -> None:
    machine(monkeypatch)
    for more in ((), ("--auto",)):
        warned = run(fit.command, file, *options, *more).stderr
        assert said in warned and (said or "warning" not in warned)


@pytest.mark.parametrize(
    "args",
    [
        ("--vram", "8GiB", "--rpc", "127.0.0.1:1"),
        ("--vram", "8GiB", "--asked"),
        ("--gpu", "Voodoo 2"),
        ("--gpu", "auto", "--gpu", "RTX 4090"),
        ("--gpu", "auto", "--vram", "8GiB"),
        ("--gpu", "RTX 30"),
        ("--auto", "--asked"),
        ("--type", "Q8_0", "--type", "Q4_K_M", "--asked"),
        ("--ubatch", "99999999999"),
        ("--vram", "three"),
        ("--vram", "9999999TiB"),
        ("--vram", "1MiB"),
        ("--vram", "0"),
        ("--kv-type", "q6_k"),
        ("--kv-type", "q8_0", "--no-flash-attn"),
        ("--ctx", "999999999999"),
        ("--type", "Q99"),
        ("--parallel", "257"),
    ],
)
def test_mistakes_are_usage_errors(file: str, args: tuple[str, ...]) -> None:
    result = run(fit.command, file, *args)
    assert isinstance(result.exception, UsageError), result.output
    assert result.exception.hint


def test_a_model_on_the_hub_is_planned_from_its_headers(tmp_path: Path) -> None:
    """Sizes and memory before a download: only configuration and headers are read, no shard is fetched whole."""
    served = tmp_path / "served"
    write_checkpoint(served)
    request = ("fit", "XiaomiMiMo/MiMo-7B-RL", "--type", "Q8_0", "--vram", "8GiB", "--ctx", "512", "--json")
    with serve_hub({"XiaomiMiMo/MiMo-7B-RL": served}) as hub:
        done = command_line.run(tmp_path, *request, HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "hf"))
        whole = [path for method, path, span in hub.requests if method == "GET" and span is None]
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["fits"] and document["settings"]["mtp"] and document["devices"][0]["needed_bytes"] > 0
    assert not [path for path in whole if path.endswith(".safetensors")]
