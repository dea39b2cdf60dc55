"""CI's tests on a software GPU, with programs that only pretend: what the step says, and when it fails."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY, DRIVER = "usr/lib/x86_64-linux-gnu/libvulkan.so.1", "usr/share/vulkan/icd.d/lvp.json"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sh is not Windows'")

APT_GET = """#!/bin/sh
echo "apt-get $@" >> "$LOG"
case "$*" in *install*) [ -z "$APT_FAILS" ] || exit 100
mkdir -p "$PREFIX/usr/lib/x86_64-linux-gnu" "$PREFIX/usr/share/vulkan/icd.d"
touch "$PREFIX/usr/lib/x86_64-linux-gnu/libvulkan.so.1" "$PREFIX/usr/share/vulkan/icd.d/lvp.json"
printf '#!/bin/sh\\n' > "$(dirname "$0")/glslc"; chmod +x "$(dirname "$0")/glslc" ;;
esac
"""
MAKE = """#!/bin/sh
echo "make $@" >> "$LOG"
case "$*" in *vulkan-headers) [ -z "$NO_HEADERS" ] || { echo "no mirror"; exit 2; } ;; *) exit "${MAKE_ENDS-0}" ;; esac
"""


@dataclass
class Machine:
    """A folder with pretended programs, another root of the file system, and a log of what was run."""

    folder: Path

    def install(self) -> None:
        for name in (LIBRARY, DRIVER):
            file = self.folder / "root" / name
            file.parent.mkdir(parents=True)
            file.touch()
        self.program("glslc", "#!/bin/sh\n")

    def program(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def run(self, user: int = 1000, **variables: str) -> subprocess.CompletedProcess[str]:
        self.program("id", f"#!/bin/sh\necho {user}\n")
        self.program("make", MAKE)
        environment = {
            "PATH": str(self.folder / "bin"), "PREFIX": str(self.folder / "root"), "LOG": str(self.folder / "log")
        }  # fmt: skip
        script = [shutil.which("sh") or "sh", str(ROOT / "tools" / "test_gpu_in_ci.sh")]
        return subprocess.run(
            script, capture_output=True, text=True, check=False, env=environment | variables, timeout=60
        )

    def log(self) -> list[str]:
        path = self.folder / "log"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    for name in ("sh", "dirname", "ls", "timeout", "mkdir", "touch", "chmod"):
        found = shutil.which(name)
        if found is None:
            pytest.skip(f"{name} is not here")
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).symlink_to(found)
    return made


def test_without_packages_and_without_root_it_says_so_and_goes_on(machine: Machine) -> None:
    machine.program("apt-get", APT_GET)
    done = machine.run()
    assert done.returncode == 0 and machine.log() == []
    assert done.stderr == (
        "NOT RUN: the tests on a software GPU. missing for tests on a GPU: glslc libvulkan1 mesa-vulkan-drivers; "
        "run: apt-get install glslc libvulkan1 mesa-vulkan-drivers\n"
    )


def test_what_is_promised_fails(machine: Machine) -> None:
    done = machine.run(GPU_TESTS_NEEDED="1")
    assert done.returncode == 1 and "NOT RUN" in done.stderr and "promised" in done.stderr


@pytest.mark.parametrize("ends", [0, 2])
def test_root_installs_the_packages_and_runs_the_tests(machine: Machine, ends: int) -> None:
    """And their failure is the step's."""
    machine.program("apt-get", APT_GET)
    assert machine.run(0, MAKE_ENDS=str(ends)).returncode == ends
    update, install, headers, tests = machine.log()
    assert update == "apt-get update -qq" and install.endswith(" glslc libvulkan1 mesa-vulkan-drivers")
    assert headers.endswith("vulkan-headers") and tests == "make test-gpu"


def test_what_is_there_needs_no_root(machine: Machine) -> None:
    machine.install()
    assert machine.run().returncode == 0
    assert machine.log()[-1] == "make test-gpu"


@pytest.mark.parametrize(("needed", "ends"), [("", 0), ("1", 1)])
def test_packages_or_headers_that_cannot_be_had(machine: Machine, needed: str, ends: int) -> None:
    machine.program("apt-get", APT_GET)
    done = machine.run(0, APT_FAILS="1", GPU_TESTS_NEEDED=needed)
    assert done.returncode == ends and "missing for tests on a GPU: glslc" in done.stderr
    done = machine.run(0, NO_HEADERS="1", GPU_TESTS_NEEDED=needed)
    assert done.returncode == ends and "NOT RUN" in done.stderr and "no mirror" in done.stderr
    assert "make test-gpu" not in machine.log()


def test_the_layer_is_compiled_once_and_used(machine: Machine, tmp_path: Path) -> None:
    machine.program("cc", '#!/bin/sh\necho "cc $@" >> "$LOG"\nfor out; do :; done; : > "$out"\n')
    for name in ("env", "cat"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or name)
    environment = {"PATH": str(tmp_path / "bin"), "LOG": str(tmp_path / "log"), "GGML_VK_VISIBLE_DEVICES": "1"}

    def run(script: str, *arguments: str) -> str:
        command = ["sh", str(ROOT / "tools" / script), str(tmp_path / "vulkan"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=60)
        return done.stdout

    def variables() -> dict[str, str]:
        return dict(line.split("=", 1) for line in run("on_gpu.sh", "env").splitlines())

    assert "VK_INSTANCE_LAYERS" not in variables()  # on CUDA there is no such folder
    for _ in range(2):
        run("software_gpu.sh")
    assert len(machine.log()) == 1
    found = variables()
    assert found["GGML_VK_VISIBLE_DEVICES"] == "1"
    assert found["MESA_SHADER_CACHE_DIR"] == str(tmp_path / "vulkan" / "kernels")
    description = json.loads((tmp_path / "vulkan" / "layer" / "software_gpu.json").read_text())
    assert description["layer"]["name"] == found["VK_INSTANCE_LAYERS"]
    assert (Path(found["VK_LAYER_PATH"]) / description["layer"]["library_path"]).is_file()
