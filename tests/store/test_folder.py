"""The models folder: places and their names, what is there, what belongs to a model, and what is removed with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.file_lock import held
from mimo_gguf.store.folder import (
    MAKING,
    complete_files,
    kept_models,
    mark_used,
    models_folder,
    place_of,
    remove_model,
    source_of,
)
from mimo_gguf.store.names import ModelName

HUB = ModelName("hub", "org/name@refs/pr/1")


@pytest.mark.parametrize("name", [ModelName("hub", "org/name"), HUB, ModelName("hub", "elsewhere:org/name")])
def test_a_place_tells_its_source(name: ModelName, tmp_path: Path) -> None:
    place = place_of(name, tmp_path)
    assert place.is_relative_to(tmp_path)
    assert source_of(place, tmp_path) == name.source


def test_the_place_of_a_folder_tells_it_too(tmp_path: Path) -> None:
    source = tmp_path / "my--models" / "tune"
    place = place_of(ModelName("folder", str(source)), tmp_path / "kept")
    assert Path(source_of(place, tmp_path / "kept")) == source.resolve()


def write(folder: Path, name: ModelName, *files: str) -> Path:
    place = place_of(name, folder)
    place.mkdir(parents=True, exist_ok=True)
    for file in files:
        (place / file).write_bytes(bytes(1000))
    return place


def test_what_is_there(tmp_path: Path) -> None:
    place = write(
        tmp_path, HUB, "a-Q4_K_M.gguf", "a-Q4_K_M.gguf.sums.json",
        ".a-Q6_K.gguf.journal", ".a-Q6_K.gguf.partial",
        "a-Q8_0-00001-of-00002.gguf", "a-Q8_0-00002-of-00002.gguf",
        "a-F16-00001-of-00002.gguf",  # its second part has not come
        "b-Q4_0.gguf", ".b-Q4_0.gguf.journal",  # not yet sealed
    )  # fmt: skip
    (place / ".c-Q5_K_M.gguf.download").mkdir()
    (place / ".c-Q5_K_M.gguf.download" / "half").write_bytes(bytes(500))
    assert [path.name for path in complete_files(place)] == ["a-Q4_K_M.gguf", "a-Q8_0-00001-of-00002.gguf"]
    found = {(model.name, model.is_complete, model.n_bytes) for model in kept_models(tmp_path)}
    assert found == {
        ("org/name@refs/pr/1:Q4_K_M", True, 2000),
        ("org/name@refs/pr/1:Q6_K", False, 2000),
        ("org/name@refs/pr/1:Q8_0", True, 2000),
        ("org/name@refs/pr/1:Q4_0", False, 2000),
        ("org/name@refs/pr/1:Q5_K_M", False, 500),
        ("org/name@refs/pr/1:F16", False, 1000),
    }


def test_the_time_of_use_is_kept(tmp_path: Path) -> None:
    place = write(tmp_path, HUB, "a-Q4_K_M.gguf")
    os.utime(place / "a-Q4_K_M.gguf", (1000, 1000))
    assert [model.used_at for model in kept_models(tmp_path)] == [1000]
    mark_used(place / "a-Q4_K_M.gguf")
    assert [model.used_at > 1e9 for model in kept_models(tmp_path)] == [True]
    mark_used(tmp_path / "no such folder" / "a.gguf")  # it does without


def test_removing_takes_all_that_belongs_to_it_and_nothing_else(tmp_path: Path) -> None:
    place = write(
        tmp_path, HUB, "a-Q4_K_M.gguf", "a-Q4_K_M.gguf.sums.json", ".a-Q4_K_M.gguf.used", "aa-Q4_K_M.gguf",
        "a-Q4_K_Mx.gguf", "a-Q8_0-00001-of-00002.gguf", "a-Q8_0-00002-of-00002.gguf",
    )  # fmt: skip
    models = {model.path.name: model for model in kept_models(tmp_path)}
    remove_model(models["a-Q4_K_M.gguf"], tmp_path)
    assert {path.name for path in place.iterdir()} == {
        "aa-Q4_K_M.gguf", "a-Q4_K_Mx.gguf", "a-Q8_0-00001-of-00002.gguf", "a-Q8_0-00002-of-00002.gguf"
    }  # fmt: skip
    for model in kept_models(tmp_path):
        remove_model(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_being_made_is_not_removed(tmp_path: Path) -> None:
    place = write(tmp_path, HUB, ".a-Q4_K_M.gguf.partial")
    (model,) = kept_models(tmp_path)
    with held(place / MAKING), pytest.raises(BlockingIOError):
        remove_model(model, tmp_path)
    assert (place / ".a-Q4_K_M.gguf.partial").exists()


def test_where_the_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option, the variable, the configuration, what an earlier version used, the usual one: in this order."""
    for variable, value in {"XDG_DATA_HOME": "data", "XDG_CACHE_HOME": "cache", "XDG_CONFIG_HOME": "config"}.items():
        monkeypatch.setenv(variable, str(tmp_path / value))
    monkeypatch.delenv("MIMO_GGUF_MODELS", raising=False)
    monkeypatch.delenv("MIMO_GGUF_CONFIG", raising=False)
    assert models_folder() == tmp_path / "data" / "mimo-gguf" / "models"
    (tmp_path / "cache" / "mimo-gguf" / "models").mkdir(parents=True)
    assert models_folder() == tmp_path / "cache" / "mimo-gguf" / "models"
    (tmp_path / "data" / "mimo-gguf" / "models").mkdir(parents=True)
    assert models_folder() == tmp_path / "data" / "mimo-gguf" / "models"
    (tmp_path / "config" / "mimo-gguf").mkdir(parents=True)
    (tmp_path / "config" / "mimo-gguf" / "config.toml").write_text('models_dir = "/in/the/file"\n')
    assert models_folder() == Path("/in/the/file")
    monkeypatch.setenv("MIMO_GGUF_MODELS", "~/in/the/variable")
    assert models_folder() == Path("~/in/the/variable").expanduser()
    assert models_folder("/given") == Path("/given")
    monkeypatch.delenv("MIMO_GGUF_MODELS")
    (tmp_path / "config" / "mimo-gguf" / "config.toml").write_text("models_dir = 7\n")
    with pytest.raises(UsageError, match="models_dir is 7"):
        models_folder()
