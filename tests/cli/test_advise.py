"""`mimo-gguf advise` from the command line: one JSON document with the figures of the screen, one line for errors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mimo_gguf.cli.advise import number
from tests.cli.command_line import assert_clear_error, run_here

BUDGET = ("advise", "--budget", "900", "--users", "2", "--kwh-price", "0.3")


@pytest.mark.parametrize("arguments", [BUDGET, ("advise", "--have", "RTX 3060 12GB", "--kwh-price", "0.3")])
def test_the_document_has_the_figures_of_the_screen(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    shown, document = run_here(tmp_path, *arguments), json.loads(run_here(tmp_path, *arguments, "--json").stdout)
    assert shown.returncode == 0, shown.stderr
    choices = [*filter(None, [document["now"]]), *document["choices"]]
    blocks = re.split(r"\n(?=now: |\d+\. )", shown.stdout)[1:]
    assert len(blocks) == len(choices) >= 3
    for block, choice in zip(blocks, choices, strict=True):
        assert block.partition("\n")[0].endswith(choice["name"]) and choice["why"] in block
        for figure, unit in (
            ("tps", " tok/s"), ("tps_mtp", " with MTP"), ("board_watts", " W"), ("power_supply_watts", " W"),
            ("kwh_per_million_tokens", " kWh"), ("cost_per_million_tokens", " at 0.3 per kWh"),
            ("ram_gb", " GB of RAM"), ("disk_gib", " GiB of disk"), ("bandwidth_gbs", " GB/s of memory"),
            ("price_usd", " USD"),
        ):  # fmt: skip
            if choice[figure] and choice[figure]["value"] and (figure != "bandwidth_gbs" or not choice["tps"]):
                assert number(choice[figure]["value"]) + unit in block, (figure, block)
        if choice["next_step"]:
            assert choice["next_step"] in block
        if not choice["price_usd"]:
            assert "price     not known" in block
        for better in choice["better_types"]:
            assert f"{better['type']} at {number(better['tps_all_users']['value'])} tok/s" in block


def figures(value: Any) -> list[dict[str, Any]]:
    """Every figure of a document."""
    if isinstance(value, dict):
        return [value] if "mark" in value else [each for inner in value.values() for each in figures(inner)]
    return [each for inner in value for each in figures(inner)] if isinstance(value, list) else []


def test_every_figure_has_a_mark_and_a_source(tmp_path: Path) -> None:
    found = figures(json.loads(run_here(tmp_path, *BUDGET, "--json").stdout))
    assert len(found) > 40
    for figure in found:
        assert figure["mark"] in ("measured", "published", "estimated") and figure["source"], figure
        if figure["mark"] == "published":
            assert "https://" in figure["source"] or "published GPU list" in figure["source"], figure


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--budget", "0"), "buys nothing"), (("--budget", "cheap"), "--budget"),
        (("--have", "Voodoo 2"), "'Voodoo 2'"), (("--type", "Q99"), "Q99"),
        (("--ctx", "50000"), "50000"), (("--users", "0"), "--users 0"),
        (("--file", "no-such.gguf"), "no-such.gguf"), (("--kwh-price", "-1"), "--kwh-price -1"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_clear_line(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    done = run_here(tmp_path, "advise", *arguments)
    assert_clear_error(done, said, code=1 if "--file" in arguments else 2)
    assert len(done.stderr.splitlines()) == 2 and not done.stdout


@pytest.mark.parametrize("command", [("fit",), ("gpus", "--gpu", "4090"), ("advise",)])
def test_damaged_speeds_are_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    (tmp_path / "mimo-gguf").mkdir()
    (tmp_path / "mimo-gguf" / "speeds.json").write_text("{")
    done = run_here(tmp_path, *command, "--json")
    assert done.stderr.count("speeds.json: not valid JSON") == 1 and json.loads(done.stdout)
    assert "speeds measured here are not used" in done.stderr


def test_a_budget_for_nothing_names_one_for_something(tmp_path: Path) -> None:
    done = run_here(tmp_path, "advise", "--budget", "20")
    assert_clear_error(done, "no card of a known price does what is asked for 20 USD", code=3)
    words = done.stderr.rpartition("mimo-gguf ")[2].split()
    assert run_here(tmp_path, *words).returncode == 0
