"""Observers of passes: they see what matrices read, disturb nothing, and what they raise comes out of the pass."""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mimo_gguf.core.gguf_file import open_gguf
from mimo_gguf.llama.api import ContextOptions, LlamaModel, ggml_function, open_context, open_mtp_context
from mimo_gguf.llama.batch import Batch
from mimo_gguf.llama.running_pass import GgmlTensor, TensorAccess, weights_name

TOKENS = [5, 90, 33, 7, 7, 26, 41, 18, 3, 77]


class Recorder:
    """Keeps the rows of the matrices it wants; `on_see` is called each time."""

    def __init__(self, *wanted: str, on_see: Callable[[], object] = lambda: None) -> None:
        self.wanted = wanted
        self.on_see = on_see
        self.asked: list[str] = []
        self.rows: dict[str, list[NDArray[np.float32]]] = {}

    def wants(self, matrix: str) -> bool:
        self.asked.append(matrix)
        return not self.wanted or matrix in self.wanted

    def see(self, matrix: str, rows: NDArray[np.float32]) -> None:
        self.on_see()
        self.rows.setdefault(matrix, []).append(rows.copy())


def options(observer: Recorder | None, n_ubatch: int = 512) -> ContextOptions:
    return ContextOptions(n_ctx=256, n_ubatch=n_ubatch, n_outputs_max=16, n_threads=1, observer=observer)


def matrix(path: Path, name: str) -> NDArray[np.float32]:
    with open_gguf(path) as source:
        (tensor,) = (tensor for tensor in source.tensors if tensor.info.name == name)
        raw = np.empty((tensor.info.n_rows, tensor.info.row_bytes), np.uint8)
        tensor.read_rows(0, tensor.info.n_rows, raw)
    return raw.view(np.float32)


@pytest.mark.parametrize("n_ubatch", [512, 4])
def test_an_observer_sees_what_a_matrix_reads(tiny: LlamaModel, tiny_path: Path, n_ubatch: int) -> None:
    seen = Recorder("blk.0.attn_q.weight", "output.weight")
    with open_context(tiny, options(seen, n_ubatch)) as context:
        assert context.decode(Batch(16).fill(TOKENS, 0, n_outputs=3)) == 0
        logits = context.logits(len(TOKENS) - 1).copy()
    embedded = matrix(tiny_path, "token_embd.weight")[TOKENS]
    with open_gguf(tiny_path) as source:
        epsilon = float(source.metadata["step35.attention.layer_norm_rms_epsilon"].value)
    normed = embedded / np.sqrt(np.square(embedded).mean(axis=1, keepdims=True) + epsilon)
    expected = normed * matrix(tiny_path, "blk.0.attn_norm.weight")
    np.testing.assert_allclose(np.concatenate(seen.rows["blk.0.attn_q.weight"]), expected, rtol=1e-5, atol=1e-6)
    (read_by_head,) = seen.rows["output.weight"][-1:]
    np.testing.assert_allclose(matrix(tiny_path, "output.weight") @ read_by_head[-1], logits, rtol=1e-4, atol=1e-4)
    assert {"blk.0.attn_k.weight", "blk.1.ffn_down.weight"} <= set(seen.asked)
    assert set(seen.rows) == {"blk.0.attn_q.weight", "output.weight"}


def test_an_observer_disturbs_nothing(tiny: LlamaModel) -> None:
    batch, logits = Batch(16), []
    for observer in (None, Recorder("nothing"), Recorder()):
        with open_context(tiny, options(observer)) as context:
            assert context.decode(batch.fill(TOKENS, 0, n_outputs=1)) == 0
            logits.append(context.logits(len(TOKENS) - 1).copy())
    assert np.array_equal(logits[0], logits[1])
    assert np.array_equal(logits[0], logits[2])


def test_the_mtp_context_has_the_observer_of_its_target(tiny: LlamaModel) -> None:
    seen = Recorder()
    with open_context(tiny, options(seen)) as target, open_mtp_context(target) as mtp:
        assert target.decode(Batch(16).fill(TOKENS, 0, n_outputs=1)) == 0
        first = set(seen.rows)
        batch = Batch(16, tiny.n_embd)
        assert batch.hidden is not None
        batch.hidden[:9] = target.hidden(10)[:9]
        assert mtp.decode(batch.fill(TOKENS[1:], 1, n_outputs=1)) == 0
    last = max(int(name.split(".")[1]) for name in seen.rows if name.startswith("blk."))
    assert set(seen.rows) - first == {
        f"blk.{last}.{part}.weight"
        for part in (
            "attn_k", "attn_output", "attn_q", "attn_v", "ffn_down", "ffn_gate", "ffn_up", "nextn.eh_proj",
        )
    }  # fmt: skip
    (joined,) = seen.rows[f"blk.{last}.nextn.eh_proj.weight"]
    assert joined.shape == (9, 2 * tiny.n_embd)


class Unwelcome(Exception):
    """Raised by an observer."""


def test_what_an_observer_raises_comes_out_of_the_pass_and_the_context_goes_on(tiny: LlamaModel) -> None:
    calls: list[int] = []

    def refuse() -> None:
        calls.append(1)
        raise Unwelcome

    seen = Recorder(on_see=refuse)
    with open_context(tiny, options(seen)) as context:
        for on_see, error in ((refuse, Unwelcome), (lambda: signal.raise_signal(signal.SIGINT), KeyboardInterrupt)):
            seen.on_see = on_see
            with pytest.raises(error):
                context.decode(Batch(16).fill(TOKENS, 0, n_outputs=1))
            context.forget(0)
        assert calls == [1], "it is not called again in that pass"
        seen.on_see = lambda: None
        assert context.decode(Batch(16).fill(TOKENS, 0, n_outputs=1)) == 0


def test_the_layout_of_a_tensor_is_ggmls_own(tiny: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """ggml's functions read the same from the same address."""
    pointer, addresses = ctypes.c_void_p, []
    rows = TensorAccess.rows

    def remember(self: TensorAccess, address: int) -> NDArray[np.float32]:
        addresses.append(address)
        for function, kind, value in (
            ("ggml_nbytes", ctypes.c_size_t, rows(self, address).nbytes),
            ("ggml_nelements", ctypes.c_int64, rows(self, address).size),
            ("ggml_get_data", pointer, GgmlTensor.from_address(address).data),
            ("ggml_get_name", ctypes.c_char_p, GgmlTensor.from_address(address).name),
        ):
            assert ggml_function(function, kind, pointer)(address) == value, function
        return rows(self, address)

    monkeypatch.setattr(TensorAccess, "rows", remember)
    with open_context(tiny, options(Recorder())) as context:
        assert context.decode(Batch(16).fill(TOKENS, 0, n_outputs=1)) == 0
    assert len(addresses) > 10


def test_rows_that_lie_elsewhere_are_copied(tiny: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those on a GPU: ggml copies them."""
    here, there = Recorder(), Recorder()
    of = TensorAccess.of
    for seen, access in (
        (here, of(ggml_function)),
        (there, TensorAccess(of(ggml_function).mul_mat, lambda _: False, of(ggml_function).copy)),
    ):
        monkeypatch.setattr(TensorAccess, "of", lambda _, access=access: access)
        with open_context(tiny, options(seen)) as context:
            assert context.decode(Batch(16).fill(TOKENS, 0, n_outputs=1)) == 0
    assert here.rows.keys() == there.rows.keys()
    assert all(
        np.array_equal(a, b) for name in here.rows for a, b in zip(here.rows[name], there.rows[name], strict=True)
    )


def test_a_copy_on_a_device_has_the_name_of_its_matrix() -> None:
    assert weights_name(b"blk.0.attn_k.weight") == "blk.0.attn_k.weight"
    assert weights_name(b"CUDA0#blk.0.attn_k.weight#0") == "blk.0.attn_k.weight"
