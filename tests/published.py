"""The published MiMo-7B for tests: its small files are in tests/data, its vocabulary is that of Qwen2.

vocab.json and merges.txt are too large for the repository. llama.cpp has the same vocabulary, with test vectors, in the
source distribution of llama-cpp-python that every build downloads.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.checkpoints import PUBLISHED, PUBLISHED_FACTS, QWEN2_VOCAB

N_MERGED = 151_643  # tokens that merging makes; what follows are added tokens and padding
HOW = (
    "needs the vocabulary of Qwen2: pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36, unpack "
    "vendor/llama.cpp/models/ggml-vocab-qwen2.gguf* and set MIMO_GGUF_QWEN2_VOCAB to their folder"
)


def qwen2_vocabulary() -> Path:
    """The folder with llama.cpp's Qwen2 vocabulary and its vectors; skips the test if there is none."""
    if not (QWEN2_VOCAB / "ggml-vocab-qwen2.gguf").is_file():
        _leave(QWEN2_VOCAB)
    return QWEN2_VOCAB


def published_folder(scratch: Path) -> Path:
    """A folder with the published tokenizer and configuration; skips the test if the vocabulary is not there."""
    if (PUBLISHED / "vocab.json").is_file() and (PUBLISHED / "merges.txt").is_file():
        return PUBLISHED
    if not (QWEN2_VOCAB / "ggml-vocab-qwen2.gguf").is_file():
        _leave(PUBLISHED, QWEN2_VOCAB)
    from mimo_gguf.core.gguf_file import read_gguf

    vocabulary = read_gguf(QWEN2_VOCAB / "ggml-vocab-qwen2.gguf")
    tokens = vocabulary.value("tokenizer.ggml.tokens")[:N_MERGED]
    merges = vocabulary.value("tokenizer.ggml.merges")
    (scratch / "vocab.json").write_text(json.dumps({token: row for row, token in enumerate(tokens)}))
    (scratch / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    for path in PUBLISHED_FACTS.iterdir():
        shutil.copy(path, scratch)
    return scratch


def _leave(*folders: Path) -> None:
    """Skips the test; where tests decide (CI=true) and the data is there in part, that is a failure."""
    if os.environ.get("CI") == "true" and any(folder.exists() for folder in folders):
        pytest.fail(f"{', '.join(map(str, folders))}: there, but not complete: {HOW}")
    pytest.skip(HOW)
