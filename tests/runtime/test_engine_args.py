"""vLLM's arguments of an engine: what means something does it, the rest is said once or refused."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mimo_gguf.core.errors import DoesNotFit, UsageError
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.units import GIB
from mimo_gguf.engine.session import SessionOptions
from mimo_gguf.hardware.devices import host_device, imagined_gpu
from mimo_gguf.runtime.engine_args import chosen_devices, read_arguments
from mimo_gguf.runtime.llm import LLM
from mimo_gguf.runtime.params import SamplingParams
from tests.runtime.test_model import trained_path

__all__ = ["trained_path"]

HOST = replace(host_device(), free_bytes=8 * GIB, total_bytes=16 * GIB)
CARDS = tuple(imagined_gpu(8 * GIB, f"GPU{i}") for i in range(2))


@pytest.mark.parametrize(
    ("given", "n_draft", "has_mtp"),
    [
        ({"num_speculative_tokens": 0}, 1, False),
        ({"num_speculative_tokens": 3}, 3, True),
        ({"speculative_config": {"method": "mimo_mtp", "num_speculative_tokens": 2}}, 2, True),
        ({"speculative_config": {"method": "mtp", "num_speculative_tokens": 0}}, 1, False),
        ({}, 1, True),
    ],
    ids=str,
)
def test_drafts_window_cache_and_batch(trained_path: Path, given: dict[str, Any], n_draft: int, has_mtp: bool) -> None:
    options = SessionOptions(n_threads=1)
    how: dict[str, Any] = {"kv_cache_dtype": "fp8", "max_num_batched_tokens": 96, **given}
    with LLM(trained_path, max_model_len=300, max_num_seqs=3, options=options, **how) as llm:
        model = llm.model
        assert model.session.options.n_draft == n_draft and model.has_mtp is has_mtp
        assert model.session.window >= 300 and len(model.session.slots) == 3
        assert model.plan is not None and model.plan.settings.type_k is GgmlType.Q8_0
        assert model.session.options.n_batch == 96


@pytest.mark.parametrize("how", [{"exact": True}, {"options": SessionOptions(exact=True)}], ids=["argument", "option"])
def test_an_exact_llm(trained_path: Path, how: dict[str, Any]) -> None:
    with LLM(trained_path, max_model_len=300, max_num_seqs=2, **how) as llm:
        assert llm.model.plan is not None and llm.model.plan.settings.is_exact
        assert llm.model.session.options.exact


def test_shares_of_memory(trained_path: Path) -> None:
    assert [device.name for device in chosen_devices((*CARDS, HOST), 1, None)] == ["GPU0", "CPU"]
    limited = chosen_devices((*CARDS, HOST), 2, 0.5)
    assert [device.free_bytes for device in limited] == [4 * GIB, 4 * GIB, HOST.free_bytes]
    assert chosen_devices((HOST,), None, 0.25)[0].free_bytes == 4 * GIB
    assert chosen_devices((HOST,), 1, 1.0)[0].free_bytes == HOST.free_bytes
    with pytest.raises(UsageError, match="3 GPUs are requested, 2 found"):
        chosen_devices((*CARDS, HOST), 3, None)
    with pytest.raises(DoesNotFit):
        LLM(trained_path, gpu_memory_utilization=0.001, devices=(HOST,))


def test_two_sizes_are_multiplied() -> None:
    args, _ = read_arguments({"tensor_parallel_size": 2, "pipeline_parallel_size": 3})
    assert args.n_gpus == 6


def test_what_means_nothing_is_said_once(trained_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="mimo_gguf")
    names: dict[str, Any] = {
        "trust_remote_code": True,
        "dtype": "bfloat16",
        "enforce_eager": True,
        "swap_space": 4,
        "task": "generate",
    }
    LLM(trained_path, max_model_len=128, options=SessionOptions(n_threads=1), **names).close()
    assert [record.getMessage() for record in caplog.records] == [
        "ignored, because they have no effect with llama.cpp: dtype, enforce_eager, swap_space, trust_remote_code"
    ]


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"max_modellen": 5}, "max_model_len"), ({"tensor_paralel_size": 2}, "tensor_parallel_size"),
        ({"max_model_len": "512"}, "whole"), ({"max_num_seqs": 0}, "whole"), ({"max_num_seqs": None}, "whole"),
        ({"num_speculative_tokens": 9}, "whole"), ({"num_speculative_tokens": 1.0}, "whole"),
        ({"speculative_config": {"model": "x"}}, "mtp"), ({"speculative_config": {"method": "ngram"}}, "mtp"),
        ({"speculative_config": 5}, "num_speculative_tokens"), ({"gpu_memory_utilization": 1.5}, "0.9"),
        ({"gpu_memory_utilization": "0.9"}, "0.9"), ({"kv_cache_dtype": 8}, "auto"), ({"seed": 1.5}, "whole"),
        ({"enable_lora": True}, "merge"), ({"tokenizer": "x"}, "in the file"), ({"task": "embed"}, "no embeddings"),
        ({"kv_type": "f16", "kv_cache_dtype": "fp8"}, "leave one out"), ({"tensor_parallel_size": 99}, "leave"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be(trained_path: Path, wrong: dict[str, Any], hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        LLM(trained_path, **wrong)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("model", [None, 5, b"x", "", "no/such/folder/here", "nothing.gguf"])
def test_what_is_no_model(model: Any) -> None:
    with pytest.raises(Exception, match=r"not a model|no such|nothing\.gguf") as caught:
        LLM(model)
    assert type(caught.value).__name__ in ("UsageError", "GgufError")


def test_the_log_is_silent_by_itself(trained_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Warnings, too, which `logging` prints for a logger without any handler."""
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("mimo_gguf").handlers)
    with LLM(trained_path, max_model_len=64, disable_log_stats=False, enforce_eager=True) as llm:
        llm.generate("a", SamplingParams(max_tokens=2))
    assert capfd.readouterr() == ("", "")
