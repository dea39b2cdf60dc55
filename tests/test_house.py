"""Keeps the house: which folder imports which, which library lives where, how long a file and a function may be.

Each guard reads the sources and gives the faults it finds as lines. `KNOWN` lists the faults that are being mended; a
listed fault that has gone fails the test, too, so that the list only shrinks. docs/developing.md draws the folders and
their arrows; the last tests hold that table to the imports.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import mimo_gguf

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "mimo_gguf"

# folder -> folders that it never imports. Nothing in core imports from another folder at all.
FORBIDDEN = {
    "memory": {"llama", "engine", "hardware"},
    "engine": {"memory", "fit", "chat"},
    "fit": {"engine", "chat"},
    "chat": {"runtime", "fit"},
    "reference": {"llama", "memory", "hardware", "engine", "chat", "fit", "runtime", "quality", "calibration", "cli"},
    "quality": {"fit", "cli"},
    "calibration": {"fit", "cli"},
    "server": {"cli"},
    "batch": {"cli"},
    "evaluation": {"cli"},
    "bench": {"cli"},
    "conversion": {"quantization", "runtime"},
    "quantization": {"conversion", "runtime"},
    "runtime": {"conversion", "quantization"},
}

# what is compiled: kernels that repeat libggml's bytes, the search for better ones, and error feedback
_COMPILED = ("quantization/kernels", "quantization/search", "calibration/encoder")

# library -> the only folder, or folders, that import it
HOMES = {
    "httpx": "evaluation",
    "huggingface_hub": "conversion",
    "jinja2": "chat",
    "llama_cpp": "llama",
    "llvmlite": _COMPILED,
    "langdetect": "evaluation",
    "latex2mathml": "server/page",
    "markdown_it": ("cli", "server/page"),
    "math_verify": "evaluation",
    "matplotlib": "cli",
    "nltk": "evaluation",
    "numba": _COMPILED,
    "prometheus_client": "server",
    "prompt_toolkit": "cli",
    "pyarrow": ("evaluation", "server"),
    "pydantic": "server",
    "pygments": "server/page",
    "python_multipart": "server",
    "ray": "server",
    "rich": "cli",
    "safetensors": "conversion",
    "starlette": "server",
    "tokenizers": "reference",
    "torch": "reference",
    "transformers": "reference",
    "typer": "cli",
    "uvicorn": "server",
}

# libraries whose import takes long or brings others: never while a module is loaded, only inside a function
LATE = {
    "httpx",
    "huggingface_hub",
    "jinja2",
    "langdetect",
    "latex2mathml",
    "llama_cpp",
    "math_verify",
    "matplotlib",
    "nltk",
    "psutil",
    "pyarrow",
    "pynvml",
    "ray",
    "tokenizers",
    "torch",
    "transformers",
}

# module -> the distribution in pyproject.toml that brings it, if that has another name
DISTRIBUTIONS = {
    "llama_cpp": "llama-cpp-python",
    "llvmlite": "numba",
    "markdown_it": "markdown-it-py",
    "pynvml": "nvidia-ml-py",
    "python_multipart": "python-multipart",
    "yaml": "pyyaml",
}

# who may import the files beside the folders: the verbs, and the package itself. Libraries never ask from below.
ABOVE = {"", "cli", "runtime", "bench", "server", "batch", "evaluation"}

LONGEST_FILE = 480
LONGEST_FUNCTION = 60  # of a command of typer's only the body counts: its options are declared in the signature

# guard -> faults that are being mended. Remove a line when its fault is gone; add none.
KNOWN: dict[str, set[str]] = {}


@dataclass(frozen=True, slots=True)
class Import:
    """One name that a module imports: a module of this package, or the top module of a library."""

    name: str
    late: bool


@dataclass(frozen=True, slots=True)
class Source:
    """A file of the package, parsed."""

    path: str
    text: str
    tree: ast.Module

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def folder(self) -> str:
        """Folder within the package, like `quantization/kernels`; "" for the package's own files."""
        return self.path.rpartition("/")[0].removeprefix(PACKAGE).removeprefix("/")

    @property
    def room(self) -> str:
        return self.folder.partition("/")[0]


def read_source(path: str, text: str) -> Source:
    return Source(path, text, ast.parse(text))


def package_sources() -> list[Source]:
    files = sorted((ROOT / PACKAGE).rglob("*.py"))
    return [read_source(file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")) for file in files]


def imports(source: Source, modules: set[str]) -> list[Import]:
    """Everything that a file imports, wherever in the file, for the type checker alone included."""
    found = []
    at_load = {id(node) for node in statements_at_load(source.tree.body)}
    for node in ast.walk(source.tree):
        for name in imported_names(node, modules):
            found.append(Import(name, id(node) not in at_load))
    return found


def statements_at_load(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run while a module is loaded: not those of functions, nor those for the type checker."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            continue
        if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            for part in ("body", "orelse", "finalbody"):
                yield from statements_at_load(getattr(statement, part, []))


def imported_names(node: ast.AST, modules: set[str]) -> list[str]:
    match node:
        case ast.Import():
            names = [alias.name for alias in node.names]
        case ast.ImportFrom(level=0, module=str(module)):
            members = [f"{module}.{alias.name}" for alias in node.names]
            names = [member if member in modules else module for member in members]
        case ast.ImportFrom():
            raise AssertionError(f"a relative import: {ast.unparse(node)}")
        case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name)), *_]):
            names = [name]
        case _:
            names = []
    return [name if name.partition(".")[0] == PACKAGE else name.partition(".")[0] for name in names]


def edges(sources: Sequence[Source]) -> dict[str, set[str]]:
    """Module -> modules of this package that it imports."""
    modules = {source.module for source in sources}
    return {
        source.module: {found.name for found in imports(source, modules) if found.name in modules} - {source.module}
        for source in sources
    }


def room_of(module: str) -> str:
    """`core` of `mimo_gguf.core.units`, "" of the package's own files."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 or (len(parts) == 2 and (ROOT / PACKAGE / parts[1]).is_dir()) else ""


def arrows(sources: Sequence[Source]) -> dict[str, set[str]]:
    """Folder -> folders that it imports."""
    found: dict[str, set[str]] = {source.room: set() for source in sources if source.room}
    for module, targets in edges(sources).items():
        if room_of(module):
            found[room_of(module)] |= {room_of(target) for target in targets} - {room_of(module), ""}
    return found


# -- guards: each gives the faults it finds ------------------------------------------------------------------------


def layers(sources: Sequence[Source]) -> set[str]:
    faults = set()
    for module, targets in edges(sources).items():
        room = room_of(module)
        for target in targets:
            below = room not in ABOVE and not room_of(target)
            if below or room_of(target) in FORBIDDEN.get(room, set()) or (room == "core" and room_of(target) != "core"):
                faults.add(f"{module} imports {target}: never {room} -> {room_of(target) or PACKAGE}")
    return faults


def circles(sources: Sequence[Source]) -> set[str]:
    """Files that import each other, imports for the type checker included. Of several circles one at a time is found,
    so what is known is taken out by its last arrow."""
    graph = edges(sources)
    faults: set[str] = set()
    while True:
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            circle = [str(module) for module in reversed(error.args[1])][:-1]
            start = circle.index(min(circle))
            circle = [*circle[start:], *circle[:start]]
            faults.add(" -> ".join([*circle, circle[0]]))
            graph[circle[-1]].discard(circle[0])
        else:
            return faults


def libraries(sources: Sequence[Source]) -> set[str]:
    faults = set()
    for source in sources:
        for found in imports(source, set()):
            home = HOMES.get(found.name, ())
            homes = (home,) if isinstance(home, str) else home
            if homes and not any(f"{source.folder}/".startswith(f"{one}/") for one in homes):
                faults.add(f"{source.path}: {found.name} belongs in {', '.join(f'{one}/' for one in homes)}")
            if found.name in LATE and not found.late:
                faults.add(f"{source.path}: {found.name} is imported inside the functions that use it")
    return faults


def undeclared(sources: Sequence[Source]) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for name, lines in project["optional-dependencies"].items() if name != "dev" for line in lines]
    declared = {
        re.split(r"[<>=!~\[; ]", line)[0].replace("-", "_").lower() for line in project["dependencies"] + extras
    }
    faults = set()
    for source in sources:
        for name in {found.name for found in imports(source, set())} - sys.stdlib_module_names - {PACKAGE}:
            if DISTRIBUTIONS.get(name, name).replace("-", "_").lower() not in declared and not name.startswith(PACKAGE):
                faults.add(f"{source.path}: {name} is not a dependency in pyproject.toml")
    return faults


def sizes(sources: Sequence[Source]) -> set[str]:
    faults = set()
    for source in sources:
        lines = source.text.count("\n")
        if lines > LONGEST_FILE:
            faults.add(f"{source.path} has more than {LONGEST_FILE} lines: it holds two ideas")
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and length(node, source) > LONGEST_FUNCTION:
                faults.add(f"{source.path}: {node.name} has more than {LONGEST_FUNCTION} lines")
    return faults


def length(node: ast.FunctionDef | ast.AsyncFunctionDef, source: Source) -> int:
    is_command = source.room == "cli" and node.name == "command"
    first = node.body[0].lineno if is_command else node.lineno
    return (node.end_lineno or first) - first + 1


GUARDS: dict[str, Callable[[Sequence[Source]], set[str]]] = {
    guard.__name__: guard for guard in (layers, circles, libraries, undeclared, sizes)
}


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    return package_sources()


@pytest.mark.parametrize("name", GUARDS)
def test_the_house_is_kept(name: str, sources: list[Source]) -> None:
    found, known = GUARDS[name](sources), KNOWN.get(name, set())
    assert not found - known, "\n".join(sorted(found - known))
    assert not known - found, "mended: remove from KNOWN\n" + "\n".join(sorted(known - found))


def test_known_faults_belong_to_guards() -> None:
    assert KNOWN.keys() <= GUARDS.keys()


# -- each guard finds what it is for -------------------------------------------------------------------------------

LONG = "def long():\n" + "    pass\n" * LONGEST_FUNCTION


@pytest.mark.parametrize(
    ("guard", "files", "words"),
    [
        ("layers", {"memory/run.py": "import mimo_gguf.llama.api", "llama/api.py": ""}, "never memory -> llama"),
        ("layers", {"fit/a.py": "def f():\n    from mimo_gguf.chat import b", "chat/b.py": ""}, "never fit -> chat"),
        ("layers", {"core/a.py": "from mimo_gguf.fit.b import x", "fit/b.py": ""}, "never core -> fit"),
        ("layers", {"core/a.py": "import mimo_gguf", "__init__.py": ""}, "never core -> mimo_gguf"),
        ("layers", {"fit/a.py": "from mimo_gguf.verbs import x", "verbs.py": ""}, "never fit -> mimo_gguf"),
        (
            "layers",
            {"bench/a.py": "import importlib\nimportlib.import_module('mimo_gguf.cli.ui')", "cli/ui.py": ""},
            "never bench -> cli",
        ),
        (
            "circles",
            {
                "fit/a.py": "from mimo_gguf.fit import b",
                "fit/b.py": "if TYPE_CHECKING:\n    from mimo_gguf.fit.c import C",
                "fit/c.py": "def f():\n    import mimo_gguf.fit.a",
            },
            "mimo_gguf.fit.a -> mimo_gguf.fit.b -> mimo_gguf.fit.c -> mimo_gguf.fit.a",
        ),
        ("libraries", {"fit/a.py": "def f():\n    from rich.table import Table"}, "rich belongs in cli/"),
        ("libraries", {"cli2/a.py": "import typer"}, "typer belongs in cli/"),
        ("libraries", {"quantization/run.py": "import numba"}, "numba belongs in quantization/kernels/"),
        ("libraries", {"llama/api.py": "try:\n    import llama_cpp\nfinally:\n    pass"}, "inside the functions"),
        ("undeclared", {"core/a.py": "import requests"}, "requests is not a dependency"),
        ("sizes", {"core/a.py": "\n" * (LONGEST_FILE + 1)}, "more than 480 lines"),
        ("sizes", {"core/a.py": LONG}, "long has more than 60 lines"),
        ("sizes", {"cli/a.py": LONG}, "long has more than 60 lines"),
        ("sizes", {"cli/a.py": LONG.replace("long", "command") + "    pass\n"}, "command has more than 60 lines"),
    ],
)  # fmt: skip
def test_guard_finds_the_fault(guard: str, files: dict[str, str], words: str) -> None:
    faults = GUARDS[guard]([read_source(f"{PACKAGE}/{path}", text) for path, text in files.items()])
    assert len(faults) == 1
    assert words in faults.pop()


@pytest.mark.parametrize(
    ("guard", "files"),
    [
        ("layers", {"memory/run.py": "from mimo_gguf.core.units import x", "core/units.py": ""}),
        ("circles", {"fit/a.py": "import mimo_gguf.fit.b", "fit/b.py": ""}),
        ("libraries", {"cli/a.py": "import rich", "quantization/kernels/jit.py": "import numba"}),
        ("libraries", {"llama/api.py": "def api():\n    import llama_cpp"}),
        ("undeclared", {"core/a.py": "import yaml, json, llvmlite"}),
        ("sizes", {"cli/a.py": "def command(\n" + "    a: int = 1,\n" * 90 + ") -> None:\n    pass\n"}),
    ],
)
def test_guard_lets_the_rest_be(guard: str, files: dict[str, str]) -> None:
    assert not GUARDS[guard]([read_source(f"{PACKAGE}/{path}", text) for path, text in files.items()])


# -- the drawing ---------------------------------------------------------------------------------------------------


def drawn() -> dict[str, set[str]]:
    """Folder -> folders in its row of docs/developing.md, in the order of the rows."""
    page = (ROOT / "docs" / "developing.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)/` \| [^|]+ \| ([^|]*) \|$", page, re.MULTILINE)
    return {folder: set(re.findall(r"\w+", targets.replace("nothing", ""))) for folder, targets in rows}


def test_drawing_is_true(sources: list[Source]) -> None:
    table, real = drawn(), arrows(sources)
    assert set(table) == set(real), "the table in docs/developing.md has a row for every folder"
    for folder, targets in real.items():
        missing, untrue = sorted(targets - table[folder]), sorted(table[folder] - targets)
        assert not missing, f"docs/developing.md: draw {folder} -> {missing}, if it may be"
        assert not untrue, f"docs/developing.md: {folder} imports no longer {untrue}; remove it"


def test_arrows_lead_up() -> None:
    """A folder imports only from rows above its own, so that folders make no circle either."""
    above: set[str] = set()
    for folder, targets in drawn().items():
        assert targets <= above, f"{folder} imports from below: {sorted(targets - above)}"
        above.add(folder)


def test_the_readme_names_what_is_public() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("### These names are public")[2].partition("\n#")[0]
    rows = re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE)[1:]  # the first is the table's head
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert len(named) == len(set(named))
    assert set(named) == set(mimo_gguf.__all__), "README.md, These names are public: one row for every name of __all__"
