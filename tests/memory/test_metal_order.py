"""What Metal adds, by its source: its order of a graph, what it holds longer, and the room behind flash attention.

No device of this kind is compared with; the figures are worked out by hand from the source.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from mimo_gguf.core.geometry import QWEN2, STEP35
from mimo_gguf.core.units import MIB
from mimo_gguf.memory.allocator import DeviceTraits
from mimo_gguf.memory.graph import GraphBuilder, GraphSettings, Op, Tensor
from mimo_gguf.memory.metal_order import metal_order
from mimo_gguf.memory.predict import predict_memory
from mimo_gguf.memory.run import Placement, RunSettings
from tests import full_size
from tests.memory.test_vulkan_order import graph_nodes

METAL = DeviceTraits(32, 32, True, is_metal=True)


@pytest.mark.parametrize("layout", [STEP35, QWEN2])
@pytest.mark.parametrize(("flash_attn", "quantized"), [(True, False), (True, True), (False, False)])
@pytest.mark.parametrize("is_mtp", [False, True])
def test_every_node_once_and_behind_what_it_reads(layout: str, flash_attn: bool, quantized: bool, is_mtp: bool) -> None:
    if is_mtp and layout == QWEN2:
        pytest.skip("has no MTP layer")
    nodes = graph_nodes(layout, flash_attn=flash_attn, quantized=quantized, is_mtp=is_mtp)
    ordered = metal_order(nodes)
    place = {node: number for number, node in enumerate(ordered)}
    assert sum(each.op is not Op.NONE for each in ordered) == len(nodes) and set(nodes) <= set(place)
    for node in nodes:
        assert all(place[source] < place[node] for source in node.sources if source in place)


def test_a_norm_stays_with_its_product_and_both_inputs_are_held() -> None:
    nodes = graph_nodes(STEP35, flash_attn=True, quantized=False)
    ordered = metal_order(nodes)
    norms = [number for number, node in enumerate(ordered) if node.op is Op.RMS_NORM]
    assert norms
    for number in norms:
        norm, product, hold = ordered[number : number + 3]
        assert (product.op, hold.op) == (Op.MUL, Op.NONE)
        assert hold.sources == [norm.sources[0], product.sources[1]]


def node(op: Op, *sources: Tensor) -> Tensor:
    return Tensor(op, (1,), 4, list(sources))


def test_what_can_run_beside_is_moved_forward() -> None:
    """K and V of a block wait for nothing that Q's chain makes, so their products come directly behind Q's."""
    x, weights, bias = node(Op.NONE), [node(Op.NONE) for _ in "qkv"], node(Op.NONE)
    q, k, v = (node(Op.MUL_MAT, weight, x) for weight in weights)
    q_sum, k_sum = node(Op.ADD, q, bias), node(Op.ADD, k, bias)
    q_turned = node(Op.ROPE, q_sum, x)
    assert metal_order([q, q_sum, q_turned, k, k_sum, v]) == [q, k, v, q_sum, k_sum, q_turned]


@pytest.mark.parametrize(
    ("quantized", "n_rows", "expected"),
    [
        # padding for 64 cells and their mask, a byte for each 8 x 64 of the mask, partial results, the cache in f16
        (False, 512, 64 * (8 * 4096 + 1024) + 64 * 128 + 4 * 32 * 32 * 32 * 130 + 8192 * 8 * 512),
        # a converted cache has one head's rows behind each other
        (True, 512, 64 * (8 * 512 + 1024) + 64 * 128 + 4 * 32 * 32 * 32 * 130 + 8192 * 8 * 512),
        # few rows: the vector kernel, one row and 32 cells at a time, and nothing is converted
        (True, 4, 64 * (8 * 2176 + 8) + 4 * 256 + 4 * 4 * 32 * 32 * 130 + 8192 * 8 * 512),
    ],
)
def test_flash_attention_asks_for_more_than_its_result(quantized: bool, n_rows: int, expected: int) -> None:
    row = 1088 if quantized else 2048  # bytes of a cell's K, of 8 heads: q8_0 or f16
    settings = GraphSettings(
        n_tokens=n_rows, n_outputs=4, n_kv=8192, n_streams=1, k_is_quantized=quantized, v_is_quantized=quantized,
        k_is_f16=not quantized, v_is_f16=not quantized, k_bytes=8192 * row, v_bytes=8192 * row, flash_attn=True,
        layer_home=(), output_home=0, host=1, is_fully_offloaded=True,
    )  # fmt: skip
    geometry = full_size.sizes(STEP35, "Q4_K_M").geometry
    assert GraphBuilder(geometry, settings, lambda _, home: (0, home)).metal_scratch() == expected


def test_a_long_context_costs_a_second_copy_of_one_blocks_cache() -> None:
    sizes, settings = full_size.sizes(STEP35, "Q4_K_M"), RunSettings(n_ctx=32768)
    plain, metal = (
        predict_memory(sizes, settings, [Placement("MTL0", 1 << 40, traits)])[0]
        for traits in (replace(METAL, is_metal=False), METAL)
    )
    assert metal.compute.target - plain.compute.target > 80 * MIB  # the feed-forward layer was the tightest before
    assert metal.compute.mtp - plain.compute.mtp > 140 * MIB
    assert metal.weights == plain.weights and metal.kv_cache == plain.kv_cache


def test_only_products_are_offloaded() -> None:
    """A bias or a norm of a layer in RAM is not copied to Metal, as it is to CUDA and Vulkan."""
    product, sum_ = node(Op.MUL_MAT), node(Op.ADD)
    product.n_rows = sum_.n_rows = 512
    assert METAL.offloads(product) and not METAL.offloads(sum_)
    assert replace(METAL, is_metal=False).offloads(sum_)
