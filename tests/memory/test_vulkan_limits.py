"""Devices that compute only with tensors up to a size, against llama.cpp's own counts on such a device.

The counts were recorded from llama.cpp on Mesa's lavapipe, which takes tensors up to 128 MiB. `tests/gpu` and
`python -m benchmarks.memory_agreement --gpu` ask a device that is there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import pytest

from mimo_gguf.core.geometry import QWEN2, STEP35
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.units import MIB
from mimo_gguf.memory.allocator import DeviceTraits
from mimo_gguf.memory.predict import layer_bytes, predict_memory
from mimo_gguf.memory.run import Placement, RunSettings
from tests import full_size

LAVAPIPE: Final = DeviceTraits(
    16, 32, True, reorders_nodes=True, chunk_bytes=1 << 30, tensor_bytes=128 * MIB, takes_scattered=False,
    host_alignment=64, host_chunk_bytes=1 << 30,
)  # fmt: skip
# Weights, cache and compute buffers of both contexts; first those of the device, then those of the host.
Count = tuple[int, int, int, int, int]
COUNTS: Final[tuple[tuple[str, str, dict[str, Any], Count, Count], ...]] = (
    (
        STEP35, "Q4_K_M", {"n_ctx": 8192},
        (3950641152, 1207959552, 33554432, 92809232, 11601168), (859115520, 0, 0, 25178176, 3147328),
    ),
    (
        STEP35, "Q4_K_M", {"n_ctx": 8192, "n_gpu_layers": 20},
        (2053718016, 603979776, 33554432, 113461248, 11601168), (2756038656, 603979776, 0, 25178176, 3147328),
    ),
    (  # logits of a whole batch are too large, so they are computed by the host
        STEP35, "F16", {"n_ctx": 32768, "n_gpu_layers": 0, "n_outputs_max": 0},
        (0, 0, 0, 283133952, 141574400), (15667912704, 4831838208, 134217728, 327419904, 6293056),
    ),
    (
        QWEN2, "Q6_K", {"n_ctx": 2048, "n_outputs_max": 0},
        (5235294208, 301989888, 0, 86519808, 0), (1019289600, 0, 0, 327419904, 0),
    ),
    (  # a head's rows of a quantized K lie apart, and without flash attention the host multiplies with them
        STEP35, "Q8_0", {"n_ctx": 2048, "flash_attn": False, "type_k": GgmlType.Q8_0},
        (7004381184, 231211008, 6422528, 285284352, 19398672), (1320222720, 0, 0, 159457344, 21169216),
    ),
    (  # the product of queries and keys is too large; the host's buffer is in chunks of 1 GiB
        STEP35, "Q4_K_M", {"n_ctx": 65536, "flash_attn": False, "n_gpu_layers": 20},
        (2053718016, 4831838208, 268435456, 92817408, 10551312), (2756038656, 4831838208, 0, 8749326400, 823657536),
    ),
    (
        STEP35, "Q4_K_M",
        {"n_ctx": 8192, "n_seq_max": 3, "kv_unified": False, "type_k": GgmlType.Q4_0, "type_v": GgmlType.Q4_0,
         "n_outputs_max": 6},
        (3950641152, 350355456, 9732096, 87556688, 12079424), (859115520, 0, 0, 19793728, 3361600),
    ),
)  # fmt: skip
# With GGML_VK_SUBALLOCATION_BLOCK_SIZE=67108864.
SMALL_CHUNKS: Final[tuple[tuple[str, str, dict[str, Any], Count, Count], ...]] = (
    (
        STEP35, "F16", {"n_ctx": 32768, "n_gpu_layers": 0, "n_outputs_max": 0},
        (0, 0, 0, 283133952, 295714816), (15667912704, 4831838208, 134217728, 360986624, 6293056),
    ),
    (
        QWEN2, "Q4_K_M", {"n_ctx": 32768, "flash_attn": False},
        (3819274240, 4831838208, 0, 96999424, 0), (859115520, 0, 0, 2369790016, 0),
    ),
)  # fmt: skip


def predicted(layout: str, file_type: str, given: dict[str, Any], traits: DeviceTraits) -> list[Count]:
    sizes = full_size.sizes(layout, file_type)
    return [
        (m.weights.n_bytes, m.kv_cache.target, m.kv_cache.mtp, m.compute.target, m.compute.mtp)
        for m in predict_memory(sizes, RunSettings(**given), [Placement("Vulkan0", 1 << 31, traits)])
    ]


@pytest.mark.parametrize(("layout", "file_type", "given", "device", "host"), COUNTS)
def test_what_llama_cpp_counted_on_lavapipe(
    layout: str, file_type: str, given: dict[str, Any], device: Count, host: Count
) -> None:
    assert predicted(layout, file_type, given, LAVAPIPE) == [device, host]


@pytest.mark.parametrize(("layout", "file_type", "given", "device", "host"), SMALL_CHUNKS)
def test_what_it_counted_there_with_small_chunks(
    layout: str, file_type: str, given: dict[str, Any], device: Count, host: Count
) -> None:
    chunked = replace(LAVAPIPE, chunk_bytes=64 * MIB, host_chunk_bytes=64 * MIB)
    assert predicted(layout, file_type, given, chunked) == [device, host]


def test_a_layer_counts_only_what_the_device_takes() -> None:
    """The solver deals layers out by these sums: the output matrix of 486 MiB is not on the device."""
    sizes, settings = full_size.sizes(STEP35, "Q4_K_M"), RunSettings(n_ctx=8192)
    unlimited = replace(LAVAPIPE, tensor_bytes=DeviceTraits().tensor_bytes)
    limited, all_of_it = (layer_bytes(sizes, settings, traits) for traits in (LAVAPIPE, unlimited))
    assert limited[:-1] == all_of_it[:-1]
    assert limited[-1] < MIB and all_of_it[-1] > 480 * MIB


def test_a_device_that_takes_any_tensor_is_as_before() -> None:
    """A limit that nothing reaches changes no byte: 4 GiB, as most cards have it."""
    sizes, settings = full_size.sizes(STEP35, "F16"), RunSettings(n_ctx=8192, n_gpu_layers=20)
    roomy, unlimited = replace(LAVAPIPE, tensor_bytes=(4 << 30) - 1), replace(LAVAPIPE, tensor_bytes=1 << 62)
    first, second = (predict_memory(sizes, settings, [Placement("GPU", 1 << 40, t)]) for t in (roomy, unlimited))
    assert first == second
