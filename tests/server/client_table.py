"""Writes the table of clients in docs/serve.md from the tests that pass.

    python -m tests.server.client_table

A test says what of which client it uses: `@pytest.mark.client("openai", "tools")`. What does not pass, or is left out
because its client is not installed, is not in the table. If a test fails, the exit code is 1.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import pytest

HERE: Final = Path(__file__).resolve().parent
PAGE: Final = HERE.parents[1] / "docs" / "serve.md"
_BEGIN: Final = "<!-- made by python -m tests.server.client_table -->\n"
_END: Final = "<!-- end -->\n"

Features = dict[str, list[str]]  # client -> what is used of it


def declared() -> Features:
    """What the tests say that they use, in the order in which they stand."""
    found: Features = {}
    for path in sorted(HERE.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.client":
                client, *features = (ast.literal_eval(argument) for argument in node.args)
                found.setdefault(client, []).extend(features)
    return found


def written() -> Features:
    """What the page says."""
    text = PAGE.read_text(encoding="utf-8").partition(_BEGIN)[2].partition(_END)[0]
    rows = re.findall(r"^\| `([^`]+)` \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE)
    return {client: features.strip().split(", ") for client, features in rows}


def table(features: Mapping[str, Iterable[str]], versions: Mapping[str, str]) -> str:
    """The table as markdown."""
    rows = [f"| `{client}` | {versions[client]} | {', '.join(used)} |" for client, used in features.items()]
    return "\n".join(["| client | version | what is tested |", "|---|---|---|", *rows, ""])


class Noted:
    """A plugin of pytest that notes which tests of clients did not pass."""

    def __init__(self) -> None:
        self.of_test: dict[str, list[tuple[str, str]]] = {}
        self.missing: set[str] = set()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Notes what each test uses."""
        for item in items:
            marks = [mark.args for mark in item.iter_markers("client")]
            self.of_test[item.nodeid] = [(client, feature) for client, *features in marks for feature in features]

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Notes a test that failed or was left out."""
        if not report.passed:
            self.missing.add(report.nodeid)

    def features(self) -> Features:
        """What passed."""
        found: Features = {}
        for test, used in self.of_test.items():
            for client, feature in used:
                if test not in self.missing:
                    found.setdefault(client, []).append(feature)
        return found


def main() -> int:
    """Runs the tests of clients, and writes the table."""
    noted = Noted()
    code = pytest.main(["-q", "-m", "client", str(HERE)], plugins=[noted])
    passed = noted.features()
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(_BEGIN)
    _, _, after = rest.partition(_END)
    made = table(passed, {client: version(client) for client in passed})
    PAGE.write_text(f"{before}{_BEGIN}{made}{_END}{after}", encoding="utf-8")
    print(made)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
