"""The built wheel, away from the checkout: recipes and profiles are found, help needs no heavy import, the runtime
dependencies suffice, and a user's program passes the type checker."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest

import mimo_gguf

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def unpacked_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run_python(site: Path, cwd: Path, code: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_shelves_ship_in_the_wheel(unpacked_wheel: Path, tmp_path: Path) -> None:
    code = (
        "from mimo_gguf.core import shelves; import mimo_gguf\n"
        "print(mimo_gguf.__file__)\n"
        "for name in (shelves.CONVERT, shelves.QUANT_PROFILES):\n"
        "    print(shelves.shelf(name), len(shelves.entries(name)))"
    )
    package, convert, profiles = run_python(unpacked_wheel, tmp_path, code).splitlines()
    assert package.startswith(str(unpacked_wheel))
    for line, name in ((convert, "convert"), (profiles, "quant_profiles")):
        folder, count = line.rsplit(" ", 1)
        assert Path(folder) == unpacked_wheel / "mimo_gguf" / "_shipped" / name
        assert int(count) == len(list((ROOT / name).glob("*.toml")))


def test_the_page_ships_in_the_wheel(unpacked_wheel: Path) -> None:
    place = Path("mimo_gguf/server/page/static")
    assert {file.name for file in (unpacked_wheel / place).iterdir()} == {
        file.name for file in (ROOT / place).iterdir()
    }


def test_the_tasks_of_evaluate_ship_in_the_wheel(unpacked_wheel: Path) -> None:
    shipped = {path.name for path in (unpacked_wheel / "mimo_gguf" / "evaluation" / "tasks").iterdir()}
    assert shipped == {path.name for path in (ROOT / "mimo_gguf" / "evaluation" / "tasks").glob("*.toml")}


def test_wheel_holds_only_the_package(unpacked_wheel: Path) -> None:
    assert {path.name for path in unpacked_wheel.iterdir()} == {"mimo_gguf", "mimo_gguf-0.1.0.dist-info"}


def test_help_imports_nothing_heavy(unpacked_wheel: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from mimo_gguf.cli.app import build_app; build_app()\n"
        "heavy = {'torch', 'llama_cpp', 'numba', 'numpy', 'gguf', 'huggingface_hub', 'transformers'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert run_python(unpacked_wheel, tmp_path, code).strip() == "[]"


def runtime_distributions() -> set[str]:
    """Names of the distributions that `pip install mimo-gguf` brings, without any extra."""
    found: set[str] = set()
    waiting = ["mimo-gguf"]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            needed = requires(name) or []
        except PackageNotFoundError:  # for another platform
            continue
        found.add(name)
        waiting += [re.split(r"[^\w.-]", line)[0] for line in needed if "extra ==" not in line]
    return found


BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
from mimo_gguf.__main__ import main
main()
"""


def test_the_runtime_dependencies_suffice(unpacked_wheel: Path, tmp_path: Path) -> None:
    """From a checkpoint to an answer, every module that only development needs hidden."""
    kept = runtime_distributions()
    assert {"numpy", "llama-cpp-python"} <= kept and "torch" not in kept
    blocked = sorted(
        module
        for module, names in packages_distributions().items()
        if not kept & {re.sub(r"[-_.]+", "-", name).lower() for name in names}
    )
    assert {"torch", "transformers", "pytest", "scipy"} <= set(blocked)
    program = f"BLOCKED = {blocked}\n{BLOCK}"
    environment = os.environ | {"PYTHONPATH": str(unpacked_wheel), "MIMO_GGUF_KERNELS": "libggml"}  # no compiling

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("convert", str(ROOT / "examples" / "mimo-tiny"), "--type", "Q4_K_M", "-o", "tiny.gguf", "--quiet")
    assert run("chat", "tiny.gguf", "-p", "What is 17 + 25?", "--temp", "0", "--ctx", "256").strip()


@pytest.fixture(scope="module")
def user_environment(unpacked_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of an environment in which the wheel is installed, without what it depends on: numpy's types alone
    would take the checker longer than all of ours."""
    folder = tmp_path_factory.mktemp("user") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    (site,) = folder.glob("lib/python*/site-packages")
    for path in unpacked_wheel.iterdir():
        (site / path.name).symlink_to(path)
    return folder / "bin" / "python"


def check_types(python: Path, folder: Path, program: str) -> list[str]:
    """What `mypy --strict` says of a user's program."""
    (folder / "program.py").write_text(program, encoding="utf-8")
    (folder / "mypy.ini").write_text("[mypy]\n")
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python), "--no-error-summary"]
    done = subprocess.run([*mypy, "program.py"], cwd=folder, capture_output=True, text=True, timeout=280)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout.splitlines()


USER_PROGRAM = """
from mimo_gguf import LLM, Answer, AnswerStream, Model, SamplingParams
from mimo_gguf import convert, inspect, plan_quantize, quantize, verify

messages = [{"role": "user", "content": "Who are you?"}]


def ask(path: str) -> str:
    with Model.load(path, n_ctx=4096) as model:
        answer: Answer = model.chat(messages, temperature=0)
        stream: AnswerStream = model.chat(messages, stream=True)
        pieces = [piece.text for piece in stream]
        return answer.text + (answer.reasoning or "") + "".join(pieces)


def make(folder: str) -> list[str]:
    convert(folder, out="a.gguf", types=["F16"])
    planned: int = sum(output.n_bytes for output in plan_quantize("a.gguf", types="Q8_0").plan.outputs)
    quantize("a.gguf", types=["Q4_K_M", "Q8_0"], force=True)
    return [str(planned), str(verify("a.gguf")), str(inspect("a.gguf"))]


def ask_many(path: str) -> list[str]:
    with LLM(path, max_model_len=4096, max_num_seqs=4) as llm:
        outputs = llm.chat([messages], SamplingParams(max_tokens=50, temperature=0.6))
        return [output.outputs[0].text for output in outputs]
"""


@pytest.mark.skipif(sys.platform == "win32", reason="another layout of environments")
def test_a_users_program_passes_the_type_checker(user_environment: Path, tmp_path: Path) -> None:
    names = [name for name in mimo_gguf.__all__ if name != "__version__"]
    revealed = [f"reveal_type({name})" for name in names]
    wrong = ["import mimo_gguf", "mimo_gguf.no_such_name", "ask(5)", "Model.load('x').no_such_method()"]
    program = "\n".join([f"from mimo_gguf import {', '.join(names)}", USER_PROGRAM, *revealed, *wrong])
    said = check_types(user_environment, tmp_path, program)
    notes = [line for line in said if "Revealed type" in line]
    assert len(notes) == len(names)
    for name, note in zip(names, notes, strict=True):
        assert not re.search(r'"Any"|-> Any"|Unknown', note), f"{name} has no type: {note}"
    errors = [line.rpartition("[")[2] for line in said if ": error:" in line]
    assert errors == ["attr-defined]", "arg-type]", "attr-defined]"], "\n".join(said)
