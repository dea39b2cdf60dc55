"""Documents are held to the program: commands and options they name exist, every command is documented, links lead.

Their sentences are short, too.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from mimo_gguf.cli.app import COMMANDS, build_app

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "LOG.md"])
INVOCATION = re.compile(r"mimo-gguf (?!on your PATH)([a-z][a-z-]*)([^`\n|]*)")
OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z-]*)")


def options_of_commands() -> dict[str, set[str]]:
    """Command -> its options, and those of the commands that it has itself."""
    program: Any = typer.main.get_command(build_app())
    return {
        name: {
            option
            for each in (command, *getattr(command, "commands", {}).values())
            for parameter in each.params
            for option in (*parameter.opts, *parameter.secondary_opts)
        }
        for name, command in program.commands.items()
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page: Path) -> None:
    known = options_of_commands()
    for command, rest in INVOCATION.findall(page.read_text(encoding="utf-8")):
        assert command in known, f"{page.name}: mimo-gguf {command}"
        for option in OPTION.findall(rest.split("#")[0]):
            assert option in known[command], f"{page.name}: mimo-gguf {command} {option}"


@pytest.mark.parametrize(
    ("page", "command"),
    [(name, name) for name in ("convert", "quantize", "imatrix", "chat", "quality", "advise")],
)
def test_options_in_tables_exist(page: str, command: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `--") or "| `--" in line]
    assert rows
    known = options_of_commands()[command]
    for row in rows:
        for option in OPTION.findall(row):
            assert option in known, f"docs/{page}.md: {option}"


def test_every_command_is_documented() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for command in COMMANDS:
        assert f"mimo-gguf {command}" in text, command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_headings(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", page.read_text(encoding="utf-8")):
        aim = (page.parent / target if target else page).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.*)$", aim, re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in anchors, f"{page.name}: {target}#{anchor}"


FORMS = sorted([*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml"])


@pytest.mark.parametrize("page", [*PAGES, *FORMS], ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    for targets in re.findall(r"(?:^    |`|run: )make ((?:[a-z-]+ ?)+)", text, re.MULTILINE):
        for target in targets.split():
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name}: make {target}"


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_workflows_and_forms_are_read(form: Path) -> None:
    """They are YAML, run on what they claim, and ask for what exists."""
    table = yaml.safe_load(form.read_text(encoding="utf-8"))
    for job in table.get("jobs", {}).values():
        assert job["runs-on"]
        assert all(("uses" in step) != ("run" in step) for step in job["steps"])
    if form.name == "ci.yml":
        matrix = table["jobs"]["test"]["strategy"]["matrix"]
        assert matrix == {"os": ["ubuntu-latest", "macos-latest"], "python": ["3.11", "3.13"]}
    if form.name == ".pre-commit-config.yaml":
        for word in re.findall(r"tests/\w+\.py", form.read_text(encoding="utf-8")):
            assert (ROOT / word).exists()


def test_python_of_the_readme_runs(tmp_path: Path) -> None:
    """The ten lines of the README, word for word, on the tiny model."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    make = [sys.executable, "-m", "mimo_gguf", "quantize", str(ROOT / "examples" / "mimo-tiny"), "--quiet"]
    subprocess.run(
        [*make, "--type", "Q4_K_M", "-o", "MiMo-7B-RL-Q4_K_M.gguf"], cwd=tmp_path, check=True, capture_output=True
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_trips_lead_through_what_exists() -> None:
    """docs/developing.md names files and functions of the package: `folder/file.py: name, name`."""
    text = (ROOT / "docs" / "developing.md").read_text(encoding="utf-8")
    stops = re.findall(r"((?:\w+/)+\w+\.py): ([\w, ]*\w)", text)
    assert len(stops) > 25
    for path, names in stops:
        source = (ROOT / "mimo_gguf" / path).read_text(encoding="utf-8")
        for name in re.split(r", ?", names.partition("  ")[0]):
            assert re.search(rf"^(def|class) {name}\b", source, re.MULTILINE), f"docs/developing.md: {path}: {name}"


LONGEST_SENTENCE = 30  # words
PROSE = [*PAGES, ROOT / "examples" / "mimo-tiny" / "README.md"]


def paragraphs(text: str) -> Iterator[str]:
    """The prose of a page, without code blocks, tables, headings and comments; each item of a list by itself."""
    text = re.sub(r"\A---\n.*?^---$|^```.*?^```$|<!--.*?-->", "", text, flags=re.DOTALL | re.MULTILINE)
    lines: list[str] = []
    for line in [*text.splitlines(), ""]:
        item = re.match(r" *(?:[-*]|\d+\.) ", line)
        if item or not line.strip() or line.lstrip().startswith(("|", "#")):
            if lines:
                yield " ".join(lines)
            lines = [line[item.end() :]] if item else []
        elif lines or not line.startswith("    "):
            lines.append(line.strip())


def sentences(text: str) -> Iterator[str]:
    """The sentences of a page. What stands between backticks is one word, and a link is its text."""
    for paragraph in paragraphs(text):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"`[^`]*`", "code", paragraph))
        yield from re.split(r"(?<=[.!?])[)*\"]*\s+", plain)


def n_words(sentence: str) -> int:
    return sum(any(letter.isalnum() for letter in word) for word in sentence.split())


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.name)
def test_sentences_are_short(page: Path) -> None:
    long = [each for each in sentences(page.read_text(encoding="utf-8")) if n_words(each) > LONGEST_SENTENCE]
    assert not long, f"{page.name}: more than {LONGEST_SENTENCE} words: {long}"


def test_sentences_are_told_apart() -> None:
    thirty = " ".join(["word"] * 30)
    page = (
        f"# {thirty} heading\n\n{thirty}. One\ntwo [three](url).\n\n    {thirty} code\n    {thirty} more\n\n"
        f"| {thirty} | table |\n- {thirty}\n  end\n- `{thirty}` -> item\n\n```text\n{thirty} fence\n```\n{thirty}: last"
    )
    assert [n_words(each) for each in sentences(page)] == [30, 3, 31, 2, 31]
