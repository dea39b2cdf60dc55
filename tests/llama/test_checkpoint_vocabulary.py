"""The vocabulary of a checkpoint: the ids of the GGUF that is made of it, without reading weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mimo_gguf.conversion.open_model import open_model
from mimo_gguf.core.errors import CheckpointError
from mimo_gguf.core.gguf_file import open_gguf
from mimo_gguf.core.model_source import Bytes, ModelSource, string
from mimo_gguf.llama.api import LlamaModel
from mimo_gguf.llama.checkpoint_vocabulary import vocabulary_of
from mimo_gguf.llama.vocabulary import Vocabulary

TEXTS = [
    "",
    "The quick brown fox, 17 + 25 = 42.\n\n\tdef f(x): return x",
    "<|im_start|>user\nHallo Welt<|im_end|>\n",
    "cafe\u0301 is café, 中文, \N{GRINNING FACE}",
    "</s> and <|endoftext|>",
]


def without_weights(source: ModelSource) -> ModelSource:
    def refuse(first: int, last: int, out: Bytes) -> None:
        raise AssertionError("weights are read")

    return replace(source, tensors=tuple(replace(tensor, read_rows=refuse) for tensor in source.tensors))


def test_a_checkpoint_has_the_ids_of_its_gguf(tiny: LlamaModel, tiny_path: Path) -> None:
    with open_model(str(tiny_path.parent / "hf")) as source:
        vocabulary = vocabulary_of(without_weights(source))
    converted = Vocabulary(tiny)
    assert vocabulary.n_tokens == converted.n_tokens
    for text in TEXTS:
        ids = vocabulary.tokenize(text)
        assert ids == converted.tokenize(text)
        assert vocabulary.text(ids) == converted.text(ids)
    assert vocabulary.end_tokens == converted.end_tokens


def test_a_gguf_has_its_own_ids(tiny: LlamaModel, tiny_path: Path) -> None:
    with open_gguf(tiny_path) as source:
        vocabulary = vocabulary_of(source)
    assert [vocabulary.tokenize(text) for text in TEXTS] == [Vocabulary(tiny).tokenize(text) for text in TEXTS]


def test_a_vocabulary_that_llama_cannot_use_is_refused(tiny_path: Path) -> None:
    with open_gguf(tiny_path) as source:
        tokens = source.metadata["tokenizer.ggml.tokens"]
        twice = replace(tokens, value=[tokens.value[0], *tokens.value[:-1]])
        for key, value, words in (
            ("tokenizer.ggml.model", string("none"), "no vocabulary"),
            ("tokenizer.ggml.model", string("llama"), "'llama'"),
            ("tokenizer.ggml.tokens", twice, "are the same"),
        ):
            with pytest.raises(CheckpointError, match=words):
                vocabulary_of(replace(source, metadata={**source.metadata, key: value}))
        with pytest.raises(CheckpointError, match="no token embedding"):
            vocabulary_of(replace(source, tensors=()))
