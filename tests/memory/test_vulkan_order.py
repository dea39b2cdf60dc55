"""Vulkan's order of a graph: every node once, behind what it needs; on a device the sums are compared in `test-gpu`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mimo_gguf.core.geometry import QWEN2, STEP35
from mimo_gguf.memory.allocator import DeviceTraits
from mimo_gguf.memory.graph import GraphSettings, Op, Tensor, mtp_graph, trunk_graph
from mimo_gguf.memory.predict import predict_memory
from mimo_gguf.memory.run import Placement, RunSettings
from mimo_gguf.memory.vulkan_order import vulkan_order
from tests import full_size

N_BLOCKS = 3


def graph_nodes(layout: str, *, flash_attn: bool, quantized: bool, is_mtp: bool = False) -> list[Tensor]:
    geometry = full_size.sizes(layout, "Q4_K_M", n_trunk=N_BLOCKS).geometry
    settings = GraphSettings(
        n_tokens=64, n_outputs=4, n_kv=256, n_streams=1, k_is_quantized=quantized,
        v_is_quantized=quantized and flash_attn,
        k_is_f16=not quantized, v_is_f16=not quantized, k_bytes=0, v_bytes=0,
        flash_attn=flash_attn, layer_home=[0] * geometry.block_count,
        output_home=0, host=1, is_fully_offloaded=True,
    )  # fmt: skip
    return (mtp_graph if is_mtp else trunk_graph)(geometry, settings, lambda _, home: (0, home)).nodes


@pytest.mark.parametrize("layout", [STEP35, QWEN2])
@pytest.mark.parametrize(("flash_attn", "quantized"), [(True, False), (True, True), (False, False)])
def test_every_node_once_and_behind_what_it_reads(layout: str, flash_attn: bool, quantized: bool) -> None:
    nodes = graph_nodes(layout, flash_attn=flash_attn, quantized=quantized)
    ordered = vulkan_order(nodes)
    place = {node: number for number, node in enumerate(ordered)}
    assert len(ordered) == len(place) == len(nodes) and set(place) == set(nodes)
    for node in nodes:
        assert all(place[source] < place[node] for source in node.sources if source in place)


def test_the_store_of_k_follows_its_rotation() -> None:
    """The three are computed as one on Vulkan; in llama.cpp's own order V's projection stands between them."""
    nodes = graph_nodes(STEP35, flash_attn=True, quantized=False)
    ops = [node.op for node in vulkan_order(nodes)]
    stored = sum(ops[i : i + 3] == [Op.ROPE, Op.VIEW, Op.SET_ROWS] for i in range(len(ops)))
    assert stored == N_BLOCKS
    assert sum([n.op for n in nodes[i : i + 3]] == [Op.ROPE, Op.VIEW, Op.SET_ROWS] for i in range(len(nodes))) == 0


def test_the_order_decides_the_compute_buffer() -> None:
    sizes, settings = full_size.sizes(STEP35, "Q4_K_M"), RunSettings(n_ctx=8192)
    traits = DeviceTraits(64, 32, True)
    usual, vulkan = (
        predict_memory(sizes, settings, [Placement("GPU", 1 << 40, each)])[0]
        for each in (traits, replace(traits, reorders_nodes=True))
    )
    assert vulkan.compute.target != usual.compute.target
    assert vulkan.weights == usual.weights and vulkan.kv_cache == usual.kv_cache
