"""The binding: a failed load says why, nothing is printed, pointers are freed once."""

from __future__ import annotations

import gc
import io
from dataclasses import replace
from pathlib import Path

import pytest

from mimo_gguf.core.errors import BackendError
from mimo_gguf.core.gguf_file import open_gguf
from mimo_gguf.core.model_source import float32
from mimo_gguf.llama.api import (
    ContextOptions,
    LlamaModel,
    ModelOptions,
    default_threads,
    load_model,
    open_context,
    open_mtp_context,
)
from mimo_gguf.llama.log import LOG, LogRing, use_log
from tests.tiny_models import write_gguf


def test_a_failed_load_gives_llamas_reason(tmp_path: Path, capfd: pytest.CaptureFixture[str], tiny_path: Path) -> None:
    garbage = tmp_path / "garbage.gguf"
    garbage.write_bytes(b"not a model at all")
    with pytest.raises(BackendError, match="invalid magic"):
        load_model(garbage)
    with pytest.raises(BackendError, match="No such file"):
        load_model(tmp_path / "absent.gguf")
    with open_gguf(tiny_path) as source:
        fewer = replace(source, tensors=tuple(t for t in source.tensors if t.info.name != "blk.0.attn_output.weight"))
        write_gguf(fewer, tmp_path / "fewer.gguf")
        metadata = {**source.metadata}
        del metadata["step35.embedding_length"]
        write_gguf(replace(source, metadata=metadata), tmp_path / "headless.gguf")
        write_gguf(replace(source, metadata={**source.metadata, "x.y": float32(1)}), tmp_path / "fine.gguf")
    with pytest.raises(BackendError, match=r"it: tensor .blk.0.attn_output.weight. not found"):
        load_model(tmp_path / "fewer.gguf")
    with pytest.raises(BackendError, match=r"step35\.embedding_length"):
        load_model(tmp_path / "headless.gguf")
    load_model(tmp_path / "fine.gguf").close()
    assert capfd.readouterr() == ("", "")


def test_a_refused_context_gives_llamas_reason(tiny: LlamaModel) -> None:
    with pytest.raises(BackendError, match="context of 256 tokens"):
        open_context(tiny, ContextOptions(n_ctx=256, type_v=8, type_k=8, flash_attn=False))


def test_a_file_without_mtp_has_no_mtp_context(tiny_path: Path) -> None:
    with (
        load_model(tiny_path, ModelOptions(load_mtp=False)) as model,
        open_context(model, ContextOptions(n_ctx=256)) as context,
    ):
        assert model.n_mtp == 0
        assert context.n_cells == 256


def test_the_log_can_be_had(tiny_path: Path) -> None:
    stream = io.StringIO()
    use_log(copy_to=stream)
    try:
        load_model(tiny_path).close()
    finally:
        use_log(copy_to=None)
    assert "step35" in stream.getvalue()
    assert any("step35" in line for line in LOG.lines())


def test_the_log_ring() -> None:
    ring = LogRing(n_lines=3)
    ring.write(2, "llama_x: one\nllama_x: tw")
    ring.write(5, "o\n")
    mark = ring.mark
    ring.write(4, "llama_model_load: error loading model: bad shape\n")
    ring.write(4, "llama_model_load_from_file_impl: failed to load model\n")
    assert ring.lines() == ["llama_x: two", *ring.lines(mark)]
    assert ring.reason(mark) == "bad shape"
    assert ring.reason(ring.mark) == "llama.cpp gave no reason"


def test_pointers_are_freed_once(tiny_path: Path) -> None:
    model = load_model(tiny_path)
    context = open_context(model, ContextOptions(n_ctx=256, n_threads=1))
    mtp = open_mtp_context(context)
    for owner in (mtp, context, model):
        assert not owner.closed
        owner.close()
        owner.close()
        assert owner.closed
    forgotten = load_model(tiny_path)
    finalizer = forgotten._finalizer
    del forgotten
    gc.collect()
    assert not finalizer.alive


def test_threads() -> None:
    assert default_threads() >= 1
