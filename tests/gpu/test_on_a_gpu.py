"""The runtime on a GPU: logits, texts, splits, the plan's bytes, memory that really ends, and another program's."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu.memory import ballast
from mimo_gguf.chat.template import ChatTemplate
from mimo_gguf.conversion.checkpoint_source import open_checkpoint
from mimo_gguf.core.errors import BackendError
from mimo_gguf.core.gguf_file import read_gguf
from mimo_gguf.core.model_sizes import model_sizes
from mimo_gguf.core.units import GIB, MIB
from mimo_gguf.engine.session import Session, SessionOptions
from mimo_gguf.fit.breakdown import AskedMemory, read_memory
from mimo_gguf.fit.solver import Wishes
from mimo_gguf.hardware.devices import Device, list_devices
from mimo_gguf.hardware.memory_watch import LOW_BYTES, MemoryWatch
from mimo_gguf.llama.api import LlamaModel, ModelOptions, load_model
from mimo_gguf.llama.vocabulary import Vocabulary
from mimo_gguf.memory.parts import ContextBytes
from mimo_gguf.memory.run import RunSettings
from mimo_gguf.runtime.launch import choose_plan, launch
from mimo_gguf.runtime.llm import LLM
from tests import full_size
from tests.cli.command_line import run
from tests.engine.test_parity import GEOMETRIES, difference, make_case, reference, through_llama, write_model
from tests.engine.test_session import GREEDY, OPTIONS, generate
from tests.gpu.refused import WHOLE
from tests.memory import agreement
from tests.reference import MIMO_TINY
from tests.server.serving import SUM, serving
from tests.tiny_models import make_model, write_gguf

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny trained model, whose answers mean something."""
    with open_checkpoint(MIMO_TINY) as source:
        return write_gguf(source, tmp_path_factory.mktemp("trained") / "mimo-tiny.gguf")


@pytest.fixture(scope="module")
def on_gpu(tiny_path: Path, gpu: Device) -> Iterator[LlamaModel]:
    with load_model(tiny_path, ModelOptions(n_gpu_layers=-1, devices=(gpu.pointer,))) as model:
        yield model


@pytest.mark.parametrize("seed", range(len(GEOMETRIES)))
def test_logits_are_near_the_reference(seed: int, gpu: Device, tmp_path: Path) -> None:
    """GPUs may compute products with 16-bit factors; a wrong layout is a hundred times farther away."""
    case = make_case(seed, **GEOMETRIES[seed])
    there = through_llama(write_model(tmp_path, case), case, loading=ModelOptions(devices=(gpu.pointer,)))
    trunk, mtp = difference(there, reference(case))
    assert trunk < 5e-2 and mtp < 5e-2


@pytest.mark.parametrize("n_draft", [1, 2, 3])
def test_greedy_with_drafts_is_greedy_without(on_gpu: LlamaModel, n_draft: int) -> None:
    with Session(on_gpu, replace(OPTIONS, mtp=False)) as session:
        wanted = generate(session, 60, GREEDY)
    with Session(on_gpu, replace(OPTIONS, n_draft=n_draft)) as session:
        assert generate(session, 60, GREEDY) == wanted
        assert session.stats.n_drafted[0] > 50


def test_every_split_says_the_same(trained: Path, gpu: Device) -> None:
    """From no layer to all of them on the device, with and without MTP, as on the CPU."""
    prompt = ChatTemplate.of_file(read_gguf(trained)).render(SUM)
    n_layers = model_sizes(read_gguf(trained)).geometry.block_count + 1
    texts = set()
    for layers, devices in ((0, ()), *((n, (gpu.pointer,)) for n in (0, 1, n_layers // 2, n_layers))):
        with load_model(trained, ModelOptions(n_gpu_layers=layers, devices=devices)) as model:
            texts |= {greedy_answer(model, prompt, mtp=mtp) for mtp in (True, False)}
    assert len(texts) == 1 and "42" in texts.pop()


def greedy_answer(model: LlamaModel, prompt: str, *, mtp: bool) -> str:
    vocabulary = Vocabulary(model)
    with Session(model, SessionOptions(n_ctx=512, mtp=mtp, adaptive=False)) as session:
        said = generate(session, 60, GREEDY, vocabulary.tokenize(prompt))
    return vocabulary.text(list(itertools.takewhile(lambda token: token not in vocabulary.end_tokens, said)))


def test_a_plan_made_by_itself_puts_every_layer_there(trained: Path, gpu: Device, tmp_path: Path) -> None:
    done = run(tmp_path, "chat", trained, "-p", "Hello", "--auto", "--max-tokens", "5", "--json")
    assert done.returncode == 0, done.stderr
    plan = choose_plan(read_gguf(trained), Wishes())
    assert plan.settings.n_gpu_layers == plan.n_layers and plan.devices[0].device.name == gpu.name


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    return agreement.write_files(tmp_path_factory.mktemp("headers"))


@pytest.mark.parametrize("parallel", [False, True])
def test_the_plan_agrees_with_llama_cpp_to_the_byte(
    parallel: bool, gpu: Device, files: dict[tuple[str, str], Path]
) -> None:
    """Also without flash attention, and with tensors that are too large for the device."""
    cells = agreement.parallel_grid() if parallel else agreement.grid()
    for layout, kind, settings in random.Random(1).sample(cells, 40):
        if not agreement.can_run(full_size.sizes(layout, kind), settings, (gpu,)):
            continue
        difference = agreement.compare(files[layout, kind], full_size.sizes(layout, kind), settings, (gpu,))
        assert difference is None, f"{layout} {kind} {settings}\n{difference}"


@pytest.mark.parametrize("layers", [-1, 2, 0])
@pytest.mark.parametrize("mtp", [True, False])
def test_what_is_allocated_is_what_was_planned(mtp: bool, layers: int, tiny_path: Path, gpu: Device) -> None:
    sizes = model_sizes(read_gguf(tiny_path))
    settings = RunSettings(n_ctx=2048, mtp=mtp, n_gpu_layers=layers)
    *on_gpu, host = agreement.predict(sizes, settings, (gpu,))
    assert read_memory(tiny_path, settings, (gpu,), allocate=True) == (*on_gpu, really_allocated(host, gpu))


def really_allocated(host: AskedMemory, gpu: Device) -> AskedMemory:
    """Vulkan adds 32 bytes to every buffer in host memory, which llama.cpp counts only if it allocates."""
    if gpu.backend != "Vulkan":
        return host

    def more(n_bytes: int) -> int:
        return n_bytes + 32 if n_bytes else 0

    compute = ContextBytes(more(host.compute.target), more(host.compute.mtp))
    return replace(host, weights=more(host.weights), compute=compute)


@pytest.fixture(scope="module")
def with_larger_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache has 2.5 GiB at 32768 tokens, in one piece if llama.cpp is told to."""
    sizes: dict[str, Any] = {"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 128}
    folder = tmp_path_factory.mktemp("refused")
    return make_model(folder, num_hidden_layers=10, max_position_embeddings=32768, **sizes)


@pytest.mark.parametrize("fixed", [False, True])
def test_what_the_driver_refuses_is_a_smaller_run_or_one_clear_error(
    fixed: bool, with_larger_cache: Path, gpu: Device
) -> None:
    """The driver itself says no: one piece of 2.5 GiB, and no allocation may have more than 2 GiB."""
    if gpu.backend != "Vulkan":
        pytest.skip("only Vulkan's driver is known to refuse so little")
    command = [sys.executable, "-m", "tests.gpu.refused", str(with_larger_cache), "32768", *["fixed"] * fixed]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | WHOLE)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["planned"] > 2 * GIB
    if fixed:
        assert "alloc" in answer["error"] and "although the plan left" in answer["hint"]
    else:
        assert answer["note"].startswith("out of memory, although the plan left") and "alloc" in answer["note"]
        assert answer["taken"] < 2 * GIB


@pytest.fixture(scope="module")
def with_large_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small weights and a large cache: 768 MiB at 32768 tokens."""
    heads: dict[str, Any] = {"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 128}
    return make_model(tmp_path_factory.mktemp("cache"), max_position_embeddings=32768, **heads)


def test_memory_that_is_gone_after_planning_is_a_smaller_run_or_one_clear_error(
    with_large_cache: Path, shared_gpu: Device
) -> None:
    """The device really refuses: another process takes all but a little between the plan and the start."""
    file = read_gguf(with_large_cache)
    plan = choose_plan(file, Wishes(n_ctx=32768))
    assert plan.fits
    with ballast(gpu_free() - 400 * MIB):
        try:
            started = launch(file, plan, Wishes(), SessionOptions())
        except BackendError as error:
            assert "alloc" in error.message or "memory" in error.message
            return
        assert started.note.startswith("out of memory, although the plan left")
        started.session.close()
        started.native.close()


def gpu_free() -> int:
    return list_devices()[0].free_bytes


def test_the_watch_sees_another_program_take_the_memory(shared_gpu: Device) -> None:
    watch = MemoryWatch([shared_gpu.name], interval_s=0)
    assert watch.poll() == ()
    with ExitStack() as stack:
        stack.enter_context(ballast(gpu_free() - LOW_BYTES // 2))
        (warning,) = watch.poll()
        assert shared_gpu.name in warning and "answers will slow down" in warning


def test_the_server_answers_from_the_device(trained: Path, gpu: Device) -> None:
    options = SessionOptions(n_draft=1, adaptive=False)
    with LLM(trained, max_model_len=512, max_num_seqs=2, options=options) as llm, serving(llm) as server:
        body = {"model": "mimo-tiny", "messages": SUM, "temperature": 0, "max_tokens": 100}
        answers = [server.post("/v1/chat/completions", body | {"mtp": mtp}).json() for mtp in (True, False)]
    texts = [answer["choices"][0]["message"] for answer in answers]
    assert texts[0] == texts[1] and "42" in texts[0]["content"]


def test_the_ballast_is_memory_of_the_device(shared_gpu: Device) -> None:
    before = gpu_free()
    with ballast(256 * MIB):
        assert before - gpu_free() >= 256 * MIB
    assert np.isclose(gpu_free(), before, atol=64 * MIB)


def test_a_device_tells_what_it_computes_with(gpu: Device) -> None:
    """ggml has no such property; the device is asked about operations without data, and the plan relies on it."""
    traits = gpu.traits
    assert traits.tensor_bytes >= 128 * MIB and traits.chunk_bytes >= 128 * MIB
    if "llvmpipe" in gpu.description:  # vulkaninfo: maxStorageBufferRange, minMemoryMapAlignment
        assert (traits.tensor_bytes, traits.host_alignment, traits.takes_scattered) == (128 * MIB, 64, False)
