"""Builds the wheel of llama-cpp-python that the Makefile installs, and tells how far the compiler is.

    python tools/build_llama_wheel.py --pip .venv/bin/pip --into FOLDER llama-cpp-python==VERSION

CMAKE_ARGS of the environment says which backends. Everything that pip, CMake and the compiler print goes into
FOLDER/build.log; a terminal sees one line that is kept up to date, a log one line every half minute.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

EVERY_S: Final = 30.0  # between two lines, if nobody watches

NINJA: Final = re.compile(r"\s*\[(\d+)/(\d+)\]")
MAKE: Final = re.compile(r"\s*\[ *(\d+)%\]")

# What the log says if something is missing -> what to do about it.
CAUSES: Final = {
    r"No CMAKE_(C|CXX)_COMPILER could be found|CMAKE_CXX_COMPILER not set": (
        "there is no C++ compiler: apt install build-essential, or: dnf install gcc-c++ make"
    ),
    r"CUDA Toolkit not found|No CMAKE_CUDA_COMPILER could be found|Could NOT find CUDAToolkit|nvcc: .*not found": (
        "CMake finds no CUDA toolkit: install it, and see that `nvcc --version` answers"
    ),
    r"Could NOT find Vulkan|glslc.*(not found|NOTFOUND)|spirv.*not found": (
        "CMake finds no Vulkan SDK: apt install libvulkan-dev glslc spirv-headers, "
        "or: dnf install vulkan-loader-devel vulkan-headers glslc spirv-headers-devel"
    ),
    r"Could not find a package configuration file provided by \"hip\"|hipcc.*not found": (
        "CMake finds no ROCm: install its HIP SDK, and see that `hipconfig` answers"
    ),
    r"No space left on device": "the disk is full",
    r"Killed signal terminated program|out of memory": (
        "the compiler ran out of memory: set CMAKE_BUILD_PARALLEL_LEVEL=1 in the environment"
    ),
    r"Could not find a version that satisfies|Temporary failure in name resolution|Connection (refused|timed out)": (
        "pip could not download the source"
    ),
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Builds the wheel of llama-cpp-python, and tells how far it is.")
    parser.add_argument("requirement")
    parser.add_argument("--pip", required=True)
    parser.add_argument("--into", required=True, type=Path)
    asked = parser.parse_args(arguments)
    asked.into.mkdir(parents=True, exist_ok=True)
    log = asked.into / "build.log"
    for left_over in asked.into.glob("*.whl"):
        left_over.unlink()
    command = [asked.pip, "wheel", "-v", "--no-deps", "--no-cache-dir", "--no-binary", "llama-cpp-python"]
    print(f"Compiling {asked.requirement} with {os.environ.get('CMAKE_ARGS') or 'no CMAKE_ARGS'}, once. Log: {log}")
    started_s = time.monotonic()
    try:
        code = run([*command, "-w", str(asked.into), asked.requirement], log)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    took = format_time(time.monotonic() - started_s)
    if code or not list(asked.into.glob("*.whl")):
        print(f"Compiling failed after {took}: {cause(log.read_text(errors='replace'))}", file=sys.stderr)
        print(f"The full log: {log}", file=sys.stderr)
        return 1
    print(f"Compiled in {took}; the wheel is kept in {asked.into}")
    return 0


def run(command: list[str], log: Path) -> int:
    """Exit code of pip, whose output goes into `log` while its steps are told."""
    line = Line()
    with (
        log.open("w", encoding="utf-8", errors="replace") as copy,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace"
        ) as pip,
    ):
        for text in pip.stdout or ():
            copy.write(text)
            copy.flush()
            line.hear(text)
    line.end()
    return pip.returncode


class Line:
    """How far the compiler is: one line, rewritten on a terminal, repeated in a log."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdout.isatty()
        self.started_s = self.told_s = time.monotonic()

    def hear(self, text: str) -> None:
        step = read_step(text)
        now_s = time.monotonic()
        if step and now_s - self.told_s >= (0.5 if self.is_terminal else EVERY_S):
            self.told_s = now_s
            told = f"  {step}, {format_time(now_s - self.started_s)}"
            print(f"\r{told}\x1b[K" if self.is_terminal else told, end="" if self.is_terminal else "\n", flush=True)

    def end(self) -> None:
        if self.is_terminal:
            print("\r\x1b[K", end="", flush=True)


def read_step(text: str) -> str:
    """`120 of 521 steps` of a line of ninja's, `23 %` of one of make's, else nothing."""
    if match := NINJA.match(text):
        return f"{match[1]} of {match[2]} steps"
    match = MAKE.match(text)
    return f"{match[1]} %" if match else ""


def cause(log: str) -> str:
    """Why a build failed, in one line: a known cause, or the log's first line that speaks of an error."""
    for pattern, words in CAUSES.items():
        if re.search(pattern, log, re.IGNORECASE):
            return words
    lines = [line.strip() for line in log.splitlines() if re.search(r"\berror\b", line, re.IGNORECASE)]
    return lines[0] if lines else "pip says no more than is in its log"


def format_time(seconds: float) -> str:
    return f"{seconds // 60:.0f}:{seconds % 60:02.0f} min"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
