"""A repository of GGUF files is used as it is: the file that fits, checked, and nothing that is not a model."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mimo_gguf.core.errors import DoesNotFit, GgufError, HubError, MimoGgufError, UsageError
from mimo_gguf.core.units import MIB
from mimo_gguf.fit.solver import Wishes
from mimo_gguf.hardware.devices import Device, host_device
from mimo_gguf.store.plan import MakingPlan
from mimo_gguf.store.resolve import resolve_model
from mimo_gguf.verbs import quantize
from tests.conversion.fake_hub import FakeHub
from tests.reference import MIMO_TINY
from tests.store.conftest import point_at

WISHES = Wishes(n_ctx=512)


def host(n_mib: int) -> tuple[Device]:
    return (replace(host_device(), free_bytes=n_mib * MIB),)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository: three types, one of them in two parts, an image encoder, and statistics."""
    folder = tmp_path_factory.mktemp("gguf-repository")
    quantize(MIMO_TINY, types=["Q4_K_M", "F16"], out=folder)
    quantize(MIMO_TINY, types="Q8_0", out=folder, split_max_size="2MB")
    for sums in folder.glob("*.json"):
        sums.unlink()
    for name in ("mmproj-mimo-tiny-Q8_0.gguf", "mimo-tiny.imatrix.gguf"):
        (folder / name).write_bytes(b"GGUF")
    (folder / "README.md").write_text("types of a model")
    return folder


@pytest.fixture
def hub_of_files(hub: FakeHub, files: Path) -> FakeHub:
    hub.repositories["me/tiny-GGUF"] = files
    return hub


def test_the_file_that_fits(
    hub_of_files: FakeHub, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the types that make sense the best: here the split one. The second time nobody is asked."""
    plans: list[MakingPlan] = []
    path = resolve_model("me/tiny-GGUF", WISHES, devices=host(4096), on_plan=plans.append)
    (plan,) = plans
    assert path == plan.path == tmp_path / "models" / "hub" / "me--tiny-GGUF" / path.name
    parts = sorted(files.glob("*Q8_0-0*"))
    assert len(parts) > 1 and path.name == parts[0].name
    assert all((path.parent / part.name).read_bytes() == part.read_bytes() for part in parts)
    assert plan.download_bytes == plan.written_bytes == sum(part.stat().st_size for part in parts)
    assert str(plan.name) == "me/tiny-GGUF:Q8_0" and "the best type that fits" in plan.title
    assert not list(path.parent.glob(".*.download"))
    point_at("http://127.0.0.1:9", monkeypatch)
    assert resolve_model("me/tiny-GGUF", WISHES, devices=host(4096)) == path
    assert resolve_model("me/tiny-GGUF:q8_0", WISHES, devices=host(1)) == path


def test_the_type_that_was_asked_for(hub_of_files: FakeHub, files: Path) -> None:
    path = resolve_model("me/tiny-GGUF:Q4_K_M", WISHES, devices=host(4096))
    assert path.read_bytes() == (files / "mimo-tiny-Q4_K_M.gguf").read_bytes()
    with pytest.raises(UsageError, match="no file of type Q6_K") as caught:
        resolve_model("me/tiny-GGUF:Q6_K", WISHES, devices=host(4096))
    assert "Q4_K_M" in str(caught.value.hint)


def test_what_does_not_fit_is_not_downloaded(hub_of_files: FakeHub, tmp_path: Path) -> None:
    for name in ("me/tiny-GGUF", "me/tiny-GGUF:F16"):
        with pytest.raises(DoesNotFit):
            resolve_model(name, WISHES, devices=host(1))
    assert hub_of_files.sent_bytes < 3e6  # headers
    assert not (tmp_path / "models").exists()


def test_a_wrong_bit_is_found_and_a_broken_download_goes_on(hub_of_files: FakeHub, tmp_path: Path) -> None:
    hub_of_files.flipped.add("mimo-tiny-Q4_K_M.gguf")
    with pytest.raises(HubError, match="sha256"):
        resolve_model("me/tiny-GGUF:Q4_K_M", WISHES, devices=host(4096))
    assert not list(tmp_path.rglob("*.gguf"))
    hub_of_files.flipped.clear()
    hub_of_files.break_after["mimo-tiny-Q4_K_M.gguf"] = 2_000_000
    for _ in range(3):
        try:
            path = resolve_model("me/tiny-GGUF:Q4_K_M", WISHES, devices=host(4096))
            break
        except HubError:
            continue
    assert path.is_file()


def test_what_is_no_model(hub: FakeHub, files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    hub.repositories["me/other"] = folder
    for name in ("mmproj-x-F16.gguf", "a-Q8_0-00001-of-00003.gguf"):
        (folder / name).write_bytes(b"GGUF")
    errors: list[tuple[type[MimoGgufError], str]] = [(UsageError, "no models"), (GgufError, "on the Hub")]
    for kind, text in errors:
        with pytest.raises(kind, match=text):
            resolve_model("me/other", WISHES, devices=host(4096))
        shutil.copy(files / "mimo-tiny.imatrix.gguf", folder / "broken-Q8_0.gguf")
