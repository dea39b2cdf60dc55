"""`mimo-gguf gpus` from the command line."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from mimo_gguf.cli import gpus
from mimo_gguf.cli.gpus_plot import need_curves
from mimo_gguf.core.errors import MimoGgufError, UsageError
from mimo_gguf.core.geometry import STEP35
from mimo_gguf.core.published_model import published_model
from mimo_gguf.core.units import GIB
from mimo_gguf.fit import verdicts
from mimo_gguf.fit.speeds import Speeds
from mimo_gguf.fit.weigh import plan_model
from mimo_gguf.hardware.devices import host_device, imagined_gpu
from mimo_gguf.memory.run import RunSettings
from tests import full_size


def run(command: object, *args: str) -> Result:
    app = typer.Typer()
    app.command()(command)  # type: ignore[type-var]
    return CliRunner().invoke(app, list(args))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(full_size.write_header_only(tmp_path_factory.mktemp("cli") / "MiMo-Q4_K_M.gguf", STEP35, "Q4_K_M"))


def test_gpus(file: str) -> None:
    shown = run(gpus.command, "--budget", "200")
    assert shown.exit_code == 0 and max(map(len, shown.stdout.splitlines())) <= 80
    assert "RTX 2060 6GB" in shown.stdout and "RTX 4090" not in shown.stdout
    listed = json.loads(run(gpus.command, "--json").stdout)
    assert len(listed) >= 120 and all(card["source"] for card in listed)
    assert len(json.loads(run(gpus.command, "--best", "--json", "--file", file).stdout)) >= 2
    nothing = run(gpus.command, "--min-tps", "9999")
    assert nothing.exit_code == 0 and "no card passes" in nothing.stderr
    for args in (("--vendor", "3dfx"), ("--sort", "beauty"), ("--best", "--budget", "1"), ("--type", "Q99")):
        assert isinstance(run(gpus.command, *args).exception, MimoGgufError)


def test_only_the_cards_named() -> None:
    """A name without the memory size means each of them; of a picture it means the smallest."""
    listed = json.loads(run(gpus.command, "--gpu", "RTX 3060", "--gpu", "4090", "--json").stdout)
    assert [card["name"] for card in listed] == ["RTX 3060 8GB", "RTX 3060 12GB", "RTX 4090"]
    unknown = run(gpus.command, "--gpu", "Voodoo 2").exception
    assert isinstance(unknown, UsageError)
    assert "--vram" not in str(unknown.hint)  # an option of fit


def test_a_speed_that_was_measured_here_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Speeds(123.0, 199.0, "measured", "measured here on 2026-11-28 with mine.gguf")
    monkeypatch.setattr(verdicts, "cards_here", lambda model: {"RTX 4090": measured})
    shown = run(gpus.command, "--gpu", "4090", "--gpu", "RTX 4080 SUPER")
    (line,) = [line for line in shown.stdout.splitlines() if line.startswith("RTX 4090")]
    assert "123*" in line and " 199 " in line and shown.stdout.count("*") == 1
    assert "* RTX 4090: measured here on 2026-11-28 with mine.gguf" in shown.stderr


NO_NUMBERS = ("nan", "inf", "-inf", "-1", "-1e308", "1e999", "ten", "")


@pytest.mark.parametrize("option", ["--budget", "--min-tps"])
@pytest.mark.parametrize("value", NO_NUMBERS)
def test_amounts_that_are_none(option: str, value: str) -> None:
    result = run(gpus.command, f"{option}={value}")
    assert isinstance(result.exception, UsageError) or result.exit_code == 2, result.output


@pytest.mark.parametrize("value", ["-1", "nan", "1e308", "99999999999999999999999999", ""])
def test_contexts_that_are_none(value: str) -> None:
    result = run(gpus.command, f"--ctx={value}")
    assert isinstance(result.exception, UsageError) or result.exit_code == 2, result.output


def test_any_real_amount_is_taken() -> None:
    everything = len(json.loads(run(gpus.command, "--json").stdout))
    assert len(json.loads(run(gpus.command, "--min-tps", "0", "--json").stdout)) < everything  # only what runs it
    assert json.loads(run(gpus.command, "--budget", "0", "--json").stdout) == []
    assert len(json.loads(run(gpus.command, "--budget", "1e308", "--json").stdout)) > 50


def run_gpus(*arguments: str | Path) -> None:
    result = run(gpus.command, *map(str, arguments))
    if isinstance(result.exception, MimoGgufError):
        raise result.exception
    assert result.exit_code == 0, result.output


def test_the_picture(tmp_path: Path) -> None:
    run_gpus("--plot", tmp_path / "m.svg", "--gpu", "RTX 3060 12GB", "--gpu", "RTX 4090")
    picture = (tmp_path / "m.svg").read_text()
    assert picture.startswith("<?xml") and "</svg>" in picture
    run_gpus("--plot", tmp_path / "m.png")
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    for wrong in (
        ("--plot", tmp_path / "m.pdf"),
        ("--plot", tmp_path / "no" / "m.png"),
        ("--plot", tmp_path / "m.png", "--gpu", "x9"),
    ):
        with pytest.raises(UsageError) as caught:
            run_gpus(*wrong)
        assert caught.value.hint


def test_a_picture_needs_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MimoGgufError, match="matplotlib") as caught:
        run_gpus("--plot", tmp_path / "m.png")
    assert caught.value.hint and "plot" in caught.value.hint and not list(tmp_path.iterdir())


def test_the_documents_table_of_published_figures_is_what_we_plan() -> None:
    text = (Path(__file__).parents[2] / "docs/memory.md").read_text()
    rows = re.findall(
        r"^\| (\w+) \| ([\d.]+) GB \| ([\d.]+) GiB \| ([\d.]+) GiB \| ([\d.]+) GiB \|$", text, re.MULTILINE
    )
    assert [(name, theirs) for name, theirs, *_ in rows] == [
        ("Q4_K_M", "4.4"), ("Q6_K", "6.2"), ("Q8_0", "7.5"), ("FP16", "14.5"),
    ]  # fmt: skip
    for name, _, *ours in rows:
        model = gpus._model(None, name.replace("FP16", "F16"))
        card, host = plan_model(model, RunSettings(8192), (imagined_gpu(64 * GIB), host_device()), -1).devices
        planned = (card.memory.weights.n_bytes, card.needed_bytes, host.needed_bytes)
        assert ours == [f"{n / GIB:.{d}f}" for n, d in zip(planned, (2, 2, 1), strict=True)], name


def test_curves_rise_and_cross_where_the_plan_says() -> None:
    (curve,) = need_curves([("Q4_K_M", published_model())])
    needs = [n_bytes for _, n_bytes in curve.points]
    assert needs == sorted(needs) and curve.points[-1][0] == published_model().geometry.context_length
