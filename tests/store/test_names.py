"""What a text names: a file, a checkpoint folder or a model on the Hub, with a type or without."""

from __future__ import annotations

from pathlib import Path

import pytest

from mimo_gguf.store.names import ModelName, file_type_of, no_such_model, parse_model_name


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("model.gguf", ModelName("file", "model.gguf")),
        ("org/model.GGUF", ModelName("file", "org/model.GGUF")),
        ("here", ModelName("folder", "here")),
        ("here:q6_k", ModelName("folder", "here", "Q6_K")),
        ("./here:Q6_K", ModelName("folder", "./here", "Q6_K")),
        ("a file", ModelName("file", "a file")),
        ("org/name", ModelName("hub", "org/name")),
        ("org/name:Q4_K_M", ModelName("hub", "org/name", "Q4_K_M")),
        ("org/name@main:q8_0", ModelName("hub", "org/name@main", "Q8_0")),
        ("org/name@refs/pr/1", ModelName("hub", "org/name@refs/pr/1")),
        ("org/name:", None),
        ("org/name:Q4_K_M:Q6_K", None),
        ("name", None),
        ("nothing/", None),
        ("", None),
    ],
)
def test_what_a_text_names(text: str, meant: ModelName | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "a file").touch()
    assert parse_model_name(text) == meant
    if meant is not None and meant.kind != "file":
        assert parse_model_name(str(meant)) == meant


@pytest.mark.parametrize(
    ("file", "file_type"),
    [
        ("MiMo-7B-RL-Q4_K_M.gguf", "Q4_K_M"),
        ("MiMo-7B-RL.IQ2_XXS-00001-of-00003.gguf", "IQ2_XXS"),
        ("mimo-7b-rl-q8_0.gguf", "Q8_0"),
        ("MiMo-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("model-BF16.gguf", "BF16"),
        ("model-f16.gguf", "F16"),
        ("MiMo-7B-RL.gguf", ""),
        ("Q4_K_M.txt", ""),
    ],
)
def test_the_type_in_a_files_name(file: str, file_type: str) -> None:
    assert file_type_of(file) == file_type


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("mimo-7b-rl", "did you mean XiaomiMiMo/MiMo-7B-RL?"),
        ("MiMo-7B-SFR", "XiaomiMiMo/MiMo-7B-SFT"),
        ("my-tune:Q4", "did you mean me/my-tune:Q4_K_M?"),
        ("zzz", "give a GGUF file, a checkpoint folder or a Hub id"),
    ],
)
def test_what_was_meant(text: str, hint: str) -> None:
    assert hint in str(no_such_model(text, ("me/my-tune:Q4_K_M",)).hint)
