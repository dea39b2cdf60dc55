"""Whatever the geometry, as long as llama.cpp can run it: a plan, its ways out and its verdicts come, and come soon."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from mimo_gguf.core.errors import MimoGgufError
from mimo_gguf.core.geometry import QWEN2, STEP35, read_geometry
from mimo_gguf.core.ggml_types import GgmlType, block_size
from mimo_gguf.core.kv_cache import KV_TYPES
from mimo_gguf.core.model_rules import MATRIX_TYPES, model_fault
from mimo_gguf.core.model_sizes import ModelSizes
from mimo_gguf.core.model_source import TensorInfo, uint32
from mimo_gguf.core.units import GIB, MIB
from mimo_gguf.fit.refusal import check_fit, plan_json
from mimo_gguf.fit.solver import Candidate, Wishes, solve
from mimo_gguf.fit.verdicts import expectation, judge_cards
from mimo_gguf.fit.ways_out import find_ways_out, smaller_types
from mimo_gguf.fit.weigh import largest_context, plan_model
from mimo_gguf.hardware.cards import cards
from mimo_gguf.hardware.devices import CPU, GPU, Device
from mimo_gguf.memory.allocator import DeviceTraits
from mimo_gguf.memory.run import RunSettings
from tests.quantization.models import Model, infos, metadata

TYPES = sorted(MATRIX_TYPES, key=int)
MOST_SECONDS = 5.0  # of CPU time for one example; most take milliseconds


@st.composite
def models(draw: st.DrawFn) -> ModelSizes:
    """A model that the rules accept, in any of ggml's types, whose rows may not be whole numbers of blocks."""
    layout = draw(st.sampled_from([STEP35, QWEN2]))
    head_dim = 2 * draw(st.sampled_from([1, 3, 8, 16, 20, 32, 64, 65, 128]))
    kv_heads = draw(st.sampled_from([1, 2, 3, 8]))
    heads = kv_heads * draw(st.sampled_from([1, 2, 5]))
    width = draw(st.sampled_from([1, 17, 31, 32, 100, 256, 4096, 4100]))
    shape = Model(
        layout=layout,
        n_trunk=draw(st.sampled_from([1, 2, 5, 36, 100])),
        n_mtp=draw(st.sampled_from([1, 2, 5])),
        width=heads * head_dim if layout == QWEN2 else width,
        ffn=draw(st.sampled_from([1, 31, 33, 96, 11008, 1 << 20])),
        vocab=draw(st.sampled_from([1, 7, 288, 151680])),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        tied=layout == QWEN2 and draw(st.booleans()),
    )
    kinds = draw(st.lists(st.sampled_from(TYPES), min_size=1, max_size=3))
    tensors = tuple(_typed(info, kinds[number % len(kinds)]) for number, info in enumerate(infos(shape)))
    context = draw(st.sampled_from([1, 255, 512, 32768, 1 << 20]))
    entries = metadata(shape) | {f"{layout}.context_length": uint32(context)}
    assert model_fault(entries, tensors) is None
    return ModelSizes("any.gguf", read_geometry(entries, tensors, where="any"), tensors)


def _typed(info: TensorInfo, kind: GgmlType) -> TensorInfo:
    is_possible = len(info.shape) > 1 and info.n_columns % block_size(kind) == 0
    return replace(info, ggml_type=kind) if is_possible else info


BYTES = st.sampled_from([0, 1, 300 * MIB, 2 * GIB, 8 * GIB, 80 * GIB, 1 << 50])
CUDA_LIKE = DeviceTraits(128, 32, True, True)
DEVICES = st.tuples(
    st.lists(
        BYTES.map(lambda n: Device(f"GPU{n}", "a card", GPU, "CUDA", n, n, CUDA_LIKE)),
        max_size=3,
        unique_by=lambda device: device.name,
    ),
    BYTES.map(lambda n: Device("CPU", "host memory", CPU, "CPU", n, n)),
).map(lambda parts: (*parts[0], parts[1]))
SETTINGS = st.builds(
    RunSettings,
    n_ctx=st.sampled_from([1, 256, 8192, 100_000, 1 << 24]),
    n_ubatch=st.sampled_from([1, 7, 512, 4096]),
    n_seq_max=st.sampled_from([1, 3, 256]),
    n_outputs_max=st.sampled_from([0, 1, 4]),
    type_k=st.sampled_from(KV_TYPES),
    type_v=st.sampled_from(KV_TYPES),
    flash_attn=st.booleans(),
    mtp=st.booleans(),
)
WISHES = st.builds(
    Wishes,
    n_ctx=st.none() | st.sampled_from([1, 4096, 1 << 20]),
    kv_type=st.none() | st.sampled_from(KV_TYPES),
    mtp=st.none() | st.booleans(),
    n_ubatch=st.none() | st.sampled_from([1, 512]),
    n_gpu_layers=st.none() | st.sampled_from([-1, 0, 1, 1000]),
    n_seq_max=st.sampled_from([1, 5, 256]),
    flash_attn=st.booleans(),
)


@settings(max_examples=25, deadline=None)
@given(model=models(), devices=DEVICES, run=SETTINGS, layers=st.none() | st.sampled_from([-1, 0, 1, 20]))
def test_a_plan_and_its_ways_out(
    model: ModelSizes, devices: tuple[Device, ...], run: RunSettings, layers: int | None
) -> None:
    start = time.process_time()
    with contextlib.suppress(MimoGgufError):
        plan = plan_model(model, run, devices, layers)
        plan.summary()
        expectation(plan)
        plan_json(plan)
        for way in find_ways_out(plan):
            assert way.needed_bytes > 0 or "--gpu-layers" in way.options, "0 says that the device is left out"
        largest_context(plan, model.geometry.context_length)
        check_fit(plan)
    assert time.process_time() - start < MOST_SECONDS


@settings(max_examples=12, deadline=None)
@given(model=models(), devices=DEVICES, wishes=WISHES)
def test_the_solver_and_the_cards(model: ModelSizes, devices: tuple[Device, ...], wishes: Wishes) -> None:
    start = time.process_time()
    candidates = [Candidate(name, smaller) for name, smaller in reversed(smaller_types(model))]
    with contextlib.suppress(MimoGgufError):
        solve([*candidates, Candidate("as it is", model)], devices, wishes).as_json()
    judge_cards(model, 256, cards()[:3])
    assert time.process_time() - start < 4 * MOST_SECONDS


@settings(max_examples=40, deadline=None)
@given(model=models())
def test_a_smaller_type_can_be_stored(model: ModelSizes) -> None:
    """The types offered as a way out are ones whose blocks make up the rows; none makes a matrix of the file larger."""
    for _, smaller in smaller_types(model):
        assert smaller.file_bytes < model.file_bytes
        for info in smaller.tensors:
            assert info.n_columns % block_size(info.ggml_type) == 0
