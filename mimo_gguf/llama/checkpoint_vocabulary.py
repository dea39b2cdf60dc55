"""The vocabulary of a model that need not be a GGUF: llama.cpp tokenizes for a checkpoint from its metadata alone."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mimo_gguf.core.errors import CheckpointError
from mimo_gguf.core.gguf_header import lay_out
from mimo_gguf.core.model_source import ModelSource
from mimo_gguf.core.vocabulary_rules import has_vocabulary, vocabulary_fault
from mimo_gguf.llama.api import ModelOptions, load_model
from mimo_gguf.llama.vocabulary import Vocabulary


def vocabulary_of(source: ModelSource) -> Vocabulary:
    """The vocabulary of a model, with the same ids as the GGUF that is made of it. No weights are read.

    The model's metadata goes into a temporary GGUF without tensors, which llama.cpp loads and no longer needs then.
    What it loaded is freed with the vocabulary.

    Raises:
        CheckpointError: the model has no vocabulary, or one that llama.cpp cannot use.
        BackendError: llama.cpp refused it; the message has its reason.
    """
    _check_vocabulary(source)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        path.write_bytes(lay_out(source.metadata, ()).header)
        return Vocabulary(load_model(path, ModelOptions(n_gpu_layers=0, vocab_only=True, use_mmap=False)))


def _check_vocabulary(source: ModelSource) -> None:
    """Raises CheckpointError if llama.cpp could not tokenize with the model's vocabulary, or would end the process."""
    embedding = next((tensor.info for tensor in source.tensors if tensor.info.name == "token_embd.weight"), None)
    if embedding is None:
        fault: str | None = "it has no token embedding, so its vocabulary cannot be checked"
    elif not has_vocabulary(source.metadata):
        fault = "it has no vocabulary"
    else:
        fault = vocabulary_fault(source.metadata, embedding.n_rows)
    if fault is not None:
        raise CheckpointError(f"{source.label}: {fault}", hint="give a whole model, with its tokenizer")
