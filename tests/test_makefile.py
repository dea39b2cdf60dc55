"""The Makefile with a pip that only pretends: which build is made, kept and installed, and what is said."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tools import build_llama_wheel
from tools.build_llama_wheel import Line, cause, format_time, read_step

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="make and sh are not Windows'")

PYTHON = f"""#!/bin/sh
case "$1" in
-m) [ "$2" = venv ] || exit 0; mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; cp "$(dirname "$0")"/tools/* "$3/bin/" ;;
*) exec "{sys.executable}" "$@" ;;
esac
"""

OLD_PYTHON = """#!/bin/sh
case "$1" in --version) echo Python 3.9.2 ;; *) exit 1 ;; esac
"""

PIP = """#!/bin/sh
echo "$@" >> "$PIP_LOG"
[ "$1" = wheel ] || exit 0
echo "  [1/4] Building CXX object a.o with $CMAKE_ARGS"
[ -z "$BREAK" ] || { echo "$BREAK"; exit 1; }
while [ "$1" != -w ]; do shift; done
echo wheel > "$2/llama_cpp_python-1.whl"
"""

MIMO_GGUF = """#!/bin/sh
echo "ran $@"
"""


@dataclass
class Workshop:
    """A folder with pretended programs, a virtual environment and a cache of wheels."""

    folder: Path

    def make(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """`make ARGUMENTS`, as if nobody had made anything here, and as if no other make ran this test."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        environment = kept | {"PIP_LOG": str(self.folder / "pip.log"), "HOME": str(self.folder)} | variables
        places = [f"VENV={self.venv}", f"CACHE={self.folder / 'cache'}", f"DEMO={self.folder / 'demo'}"]
        if not any(argument.startswith("PYTHON=") for argument in arguments):
            places.append(f"PYTHON={self.folder / 'python'}")
        return subprocess.run(
            ["make", *places, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
        )

    @property
    def venv(self) -> Path:
        return self.folder / "venv"

    def calls(self) -> list[str]:
        """What pip was asked to do since the last call, a word for each: wheel, reinstall, package, dev or upgrade."""
        log = self.folder / "pip.log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        words = {"wheel -v": "wheel", "--force-reinstall": "reinstall", "[dev]": "dev", "-e .": "package"}
        return [next((name for mark, name in words.items() if mark in line), "upgrade") for line in lines]


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    (tmp_path / "tools").mkdir()
    for name, text in {"python": PYTHON, "old": OLD_PYTHON, "tools/pip": PIP, "tools/mimo-gguf": MIMO_GGUF}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return Workshop(tmp_path)


def made(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_other_options_install_another_build(workshop: Workshop) -> None:
    cuda = "CMAKE_ARGS=-DGGML_CUDA=on"
    assert "built with -DGGML_RPC=on" in made(workshop.make("install"))
    assert workshop.calls() == ["upgrade", "wheel", "reinstall", "package"]
    made(workshop.make("install"))
    assert workshop.calls() == []
    said = made(workshop.make("install", cuda))
    assert "Compiling llama-cpp-python" in said and "built with -DGGML_CUDA=on" in said
    assert workshop.calls() == ["wheel", "reinstall", "package"]
    made(workshop.make("test"))  # knows what was chosen, and goes on with it
    assert workshop.calls() == ["dev"]
    said = made(workshop.make("install", "CMAKE_ARGS=-DGGML_RPC=on"))
    assert "Compiling" not in said and "built with -DGGML_RPC=on" in said
    assert workshop.calls() == ["reinstall", "package"]
    made(workshop.make("install", CMAKE_ARGS="-DGGML_CUDA=on"))  # by the environment
    assert workshop.calls() == ["reinstall", "package"]


def test_another_environment_finds_the_wheel(workshop: Workshop) -> None:
    made(workshop.make("install"))
    shutil.rmtree(workshop.venv)
    workshop.calls()
    assert "Compiling" not in made(workshop.make("install"))
    assert workshop.calls() == ["upgrade", "reinstall", "package"]


def test_a_build_that_fails_is_told_in_one_line_and_tried_again(workshop: Workshop) -> None:
    failed = workshop.make("install", BREAK="CMake Error: No CMAKE_CXX_COMPILER could be found.")
    assert failed.returncode != 0
    ours = [line for line in failed.stderr.splitlines() if not line.startswith("make")]
    (told, where) = ours
    assert re.fullmatch(r"Compiling failed after 0:0\d min: there is no C\+\+ compiler: apt install .*dnf.*", told)
    log = Path(where.removeprefix("The full log: "))
    assert "[1/4] Building CXX" in log.read_text() and "No CMAKE_CXX_COMPILER" in log.read_text()
    assert "reinstall" not in workshop.calls()
    made(workshop.make("install"))
    assert workshop.calls() == ["wheel", "reinstall", "package"]


def test_an_old_python_is_refused_first(workshop: Workshop) -> None:
    refused = workshop.make("demo", f"PYTHON={workshop.folder / 'old'}")
    assert refused.returncode != 0
    first = refused.stderr.splitlines()[0]
    assert first.startswith("Python 3.11 or newer is needed;") and "Python 3.9.2" in first
    assert "make demo PYTHON=python3.12" in first
    assert not workshop.venv.exists() and workshop.calls() == []
    missing = workshop.make("install", "PYTHON=python-that-nobody-has")
    assert missing.returncode != 0 and missing.stderr.startswith("Python 3.11 or newer is needed;")


def test_the_demo_ends_with_commands_that_work(workshop: Workshop) -> None:
    said = made(workshop.make("demo"))
    activate = f". {workshop.venv}/bin/activate"
    assert said.count("ran ") == 5 and activate in said and "\x1b" not in said  # into a log
    assert "ran chat" in said and "--stats" in said and "compiles its kernels" in said
    assert said.index(activate) < said.index("mimo-gguf convert XiaomiMiMo/MiMo-7B-RL --type Q4_K_M")
    on_path = made(workshop.make("demo", PATH=f"{workshop.venv / 'bin'}:{os.environ['PATH']}"))
    assert "activate" not in on_path and "mimo-gguf chat MiMo-7B-RL-Q4_K_M.gguf" in on_path


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("  [120/521] /usr/bin/c++ -DNDEBUG", "120 of 521 steps"),
        ("[ 23%] Building CXX object", "23 %"),
        ("[100%] Built target llama", "100 %"),
        ("-- Configuring done [1/2]", ""),
        ("", ""),
    ],
)
def test_steps_of_ninja_and_make(line: str, step: str) -> None:
    assert read_step(line) == step


def test_a_log_hears_of_progress_line_by_line_and_a_terminal_in_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build_llama_wheel, "EVERY_S", 0.0)
    line = Line()
    for text in ("[1/4] a", "nothing", "[2/4] b"):
        line.hear(text)
    line.end()
    assert capsys.readouterr().out == "  1 of 4 steps, 0:00 min\n  2 of 4 steps, 0:00 min\n"
    line.is_terminal = True
    line.told_s -= 1
    line.hear("[3/4] c")
    line.hear("[4/4] d")  # within half a second
    line.end()
    assert capsys.readouterr().out == "\r  3 of 4 steps, 0:00 min\x1b[K\r\x1b[K"


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("Could NOT find CUDAToolkit (missing: CUDA_CUDART)", "no CUDA toolkit"),
        ("Could NOT find Vulkan (missing: Vulkan_LIBRARY glslc)", "no Vulkan SDK"),
        ("c++: fatal error: Killed signal terminated program cc1plus", "CMAKE_BUILD_PARALLEL_LEVEL=1"),
        ("write: No space left on device", "disk is full"),
        ("ERROR: Could not find a version that satisfies the requirement", "could not download"),
        ("fine\n  a.cpp:5: error: no such thing\nerror: later", "a.cpp:5: error: no such thing"),
        ("", "no more than is in its log"),
    ],
)
def test_causes(log: str, words: str) -> None:
    assert words in cause(log)


def test_times() -> None:
    assert [format_time(s) for s in (0, 61, 605.4)] == ["0:00 min", "1:01 min", "10:05 min"]
