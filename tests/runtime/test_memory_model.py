"""The analytic model against llama.cpp's own count, on the full geometry, on the CPU and on RPC devices."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mimo_gguf.core.errors import BackendError, UsageError
from mimo_gguf.core.geometry import QWEN2, STEP35
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.runtime import memory_model
from mimo_gguf.runtime.devices import Device, add_workers
from mimo_gguf.runtime.memory_allocator import DeviceTraits
from mimo_gguf.runtime.memory_model import Part, Placement, RunSettings, layer_homes, predict_memory
from mimo_gguf.runtime.memory_probe import AskedMemory, ask_memory, header_only_file
from tests.runtime import full_size
from tests.runtime.workers import running_worker

F16, Q8_0, Q4_0 = GgmlType.F16, GgmlType.Q8_0, GgmlType.Q4_0
KV_CHOICES = ((F16, F16, True), (F16, F16, False), (Q8_0, Q8_0, True), (Q4_0, Q4_0, True), (Q8_0, F16, False))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    folder = tmp_path_factory.mktemp("headers")
    return {
        (layout, kind): full_size.write_header_only(folder / f"{layout}-{kind}.gguf", layout, kind)
        for layout, kind in itertools.product((STEP35, QWEN2), full_size.FILE_TYPES)
    }


@pytest.fixture(scope="module")
def workers() -> Iterator[tuple[Device, ...]]:
    with running_worker() as first, running_worker() as second:
        yield add_workers([first, second])


def grid() -> list[tuple[str, str, RunSettings]]:
    """Every cell of the agreement grid."""
    cells = []
    for layout, kind, n_ctx, (k, v, flash), ubatch, layers, outputs in itertools.product(
        (STEP35, QWEN2), full_size.FILE_TYPES, (2048, 8192, 32768, 65536), KV_CHOICES, (64, 512), (0, 20, -1), (4, 0)
    ):
        settings = RunSettings(
            n_ctx=n_ctx, n_ubatch=ubatch, type_k=k, type_v=v, flash_attn=flash, n_gpu_layers=layers,
            n_outputs_max=outputs,
        )  # fmt: skip
        cells.append((layout, kind, settings))
    return cells


def placements(devices: tuple[Device, ...]) -> list[Placement]:
    return [Placement(device.name, device.free_bytes, device.traits) for device in devices]


def as_asked(tree: Part) -> AskedMemory:
    """A predicted tree in the probe's terms."""
    parts = {part.name: part for part in tree.parts}

    def of(name: str, part: str) -> int:
        return parts[name].find(part) if name in parts else 0

    return AskedMemory(
        of("weights", "weights"), of("KV cache", "target"), of("KV cache", "MTP"),
        of("compute buffers", "target"), of("compute buffers", "MTP"),
    )  # fmt: skip


def assert_agrees(
    path: Path, sizes: memory_model.ModelSizes, settings: RunSettings, devices: tuple[Device, ...]
) -> None:
    predicted = tuple(as_asked(tree) for tree in predict_memory(sizes, settings, placements(devices)))
    assert predicted == ask_memory(path, settings, devices), settings


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_llama_cpp_to_the_byte(
    seed: int, files: dict[tuple[str, str], Path], workers: tuple[Device, ...]
) -> None:
    for layout, kind, settings in random.Random(seed).sample(grid(), 20):
        sizes = full_size.sizes(layout, kind)
        for devices in ((), workers[:1]):
            assert_agrees(files[layout, kind], sizes, settings, devices)


def test_agrees_on_two_devices(files: dict[tuple[str, str], Path], workers: tuple[Device, ...]) -> None:
    """All layers on several asynchronous devices run as a pipeline, with four copies of what passes between them."""
    for layout, layers, split, parallel in itertools.product((STEP35, QWEN2), (20, -1), ((), (1.0, 3.0)), (1, 2)):
        settings = RunSettings(
            n_ctx=4096, n_gpu_layers=layers, tensor_split=split, n_seq_max=parallel, mtp=parallel == 1
        )
        assert_agrees(files[layout, "Q4_K_M"], full_size.sizes(layout, "Q4_K_M"), settings, workers)


def test_agrees_without_mtp_and_with_three_layers_of_it(tmp_path: Path) -> None:
    for n_mtp, mtp in ((1, False), (3, True), (3, False)):
        path = full_size.write_header_only(tmp_path / f"{n_mtp}.gguf", STEP35, "Q6_K", n_mtp=n_mtp)
        settings = RunSettings(n_ctx=2048, n_gpu_layers=0, mtp=mtp)
        assert_agrees(path, full_size.sizes(STEP35, "Q6_K", n_mtp=n_mtp), settings, ())


def test_odd_contexts_and_batches(files: dict[tuple[str, str], Path]) -> None:
    sizes = full_size.sizes(STEP35, "Q8_0")
    for n_ctx, ubatch in ((1, 512), (300, 512), (1000, 17), (5000, 1)):
        assert_agrees(files[STEP35, "Q8_0"], sizes, RunSettings(n_ctx=n_ctx, n_ubatch=ubatch, n_gpu_layers=0), ())


def test_few_blocks_need_the_same_compute_buffer_as_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shortcut of replaying a few blocks only changes nothing (llama.cpp agrees with both)."""
    sizes = full_size.sizes(STEP35, "Q4_K_M")
    devices = [Placement("a", 8 << 30), Placement("b", 4 << 30)]
    for layers, flash in itertools.product((0, 5, 20, 38), (True, False)):
        settings = RunSettings(n_ctx=4096, n_gpu_layers=layers, flash_attn=flash)
        quick = predict_memory(sizes, settings, devices)
        with monkeypatch.context() as patch:
            patch.setattr(memory_model, "_condensed", lambda geometry, graph_settings: (geometry, graph_settings))
            assert predict_memory(sizes, settings, devices) == quick


def test_parts_sum_up_and_context_costs_what_the_geometry_says() -> None:
    def walk(part: Part) -> None:
        assert not part.parts or part.n_bytes == sum(inner.n_bytes for inner in part.parts)
        for inner in part.parts:
            walk(inner)

    sizes = full_size.sizes(STEP35, "Q4_K_M")
    (tree,) = predict_memory(sizes, RunSettings(n_ctx=8192))
    walk(tree)
    assert tree.find("KV cache") == 8192 * (144 + 4) * 1024  # 36 blocks and one of MTP, 4 KiB each
    assert tree.find("weights") == sizes.file_bytes


def test_need_grows_with_context_batch_and_precision() -> None:
    sizes = full_size.sizes(STEP35, "Q6_K")
    gpu = [Placement("gpu", 8 << 30, DeviceTraits(128, 32, True))]

    def need(settings: RunSettings) -> list[int]:
        return [tree.n_bytes for tree in predict_memory(sizes, settings, gpu)]

    base = RunSettings(n_ctx=8192, type_k=Q8_0, type_v=Q8_0)
    for change in ({"n_ctx": 8193}, {"n_ubatch": 1024, "n_batch": 1024}, {"type_k": F16}, {"n_outputs_max": 64}):
        grown = need(replace(base, **change))  # type: ignore[arg-type]
        assert sum(grown) > sum(need(base)), change
        assert grown[0] >= need(base)[0], change
    assert sum(need(replace(base, mtp=False))) < sum(need(base))


def test_a_gpu_that_copies_host_weights_needs_room_for_them() -> None:
    """CUDA and its like compute large batches with weights that stayed on the host; RPC devices do not."""
    sizes = full_size.sizes(STEP35, "F16")
    settings = RunSettings(n_ctx=2048, n_gpu_layers=10)
    copying, plain = (
        predict_memory(sizes, settings, [Placement("gpu", 8 << 30, traits)])[0].find("compute buffers")
        for traits in (DeviceTraits(32, 32), DeviceTraits(32, None))
    )
    largest_block_matrix = 4096 * 11008 * 2
    assert copying - plain >= largest_block_matrix


def test_layers_are_dealt_out_from_the_end() -> None:
    geometry = full_size.sizes(STEP35, "F16").geometry
    one = [Placement("a", 1)]
    assert layer_homes(geometry, RunSettings(n_ctx=1, n_gpu_layers=1), one) == [1] * 37 + [0]
    assert layer_homes(geometry, RunSettings(n_ctx=1, n_gpu_layers=999), one) == [0] * 38
    assert layer_homes(geometry, RunSettings(n_ctx=1, n_gpu_layers=0), one) == [1] * 38
    halves = [Placement("a", 5), Placement("b", 5)]
    assert layer_homes(geometry, RunSettings(n_ctx=1), halves) == [0] * 19 + [1] * 19


def test_llama_cpp_can_be_asked_about_a_file_that_does_not_exist_yet() -> None:
    infos = full_size.tensors(STEP35, "Q8_0")
    settings = RunSettings(n_ctx=2048, n_gpu_layers=0)
    with header_only_file(full_size.metadata(STEP35), infos) as path:
        (asked,) = ask_memory(path, settings)
    assert not path.exists()
    assert asked == as_asked(predict_memory(full_size.sizes(STEP35, "Q8_0"), settings)[0])


@pytest.mark.parametrize(
    "change",
    [
        {"n_ctx": 0}, {"n_ctx": 1 << 30}, {"n_ubatch": 0}, {"n_seq_max": 0}, {"type_k": GgmlType.Q6_K},
        {"type_v": Q8_0, "flash_attn": False},
    ],
)  # fmt: skip
def test_settings_that_llama_cpp_refuses_are_refused(change: dict[str, object]) -> None:
    settings = replace(RunSettings(n_ctx=2048), **change)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        predict_memory(full_size.sizes(STEP35, "Q8_0"), settings)


def test_llama_cpp_refuses_a_quantized_v_cache_without_flash_attention(files: dict[tuple[str, str], Path]) -> None:
    settings = RunSettings(n_ctx=2048, type_v=Q8_0, flash_attn=False, n_gpu_layers=0)
    with pytest.raises(BackendError):
        ask_memory(files[QWEN2, "Q8_0"], settings)
