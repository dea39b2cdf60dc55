"""MiMo-7B as the package knows it, against what is published of it."""

from __future__ import annotations

from mimo_gguf.core.geometry import STEP35, tensor_group
from mimo_gguf.core.published_model import published_model
from tests.quantization.models import MIMO_7B, infos


def test_it_has_as_many_parameters_as_the_published_index_says() -> None:
    """2 bytes each: model.safetensors.index.json has a total_size of 15,666,819,072."""
    counts = {"embedding": 0, "trunk": 0, "mtp": 0, "output": 0}
    model = published_model()
    for info in model.tensors:
        counts[tensor_group(info.name, model.geometry.n_trunk)] += info.n_elements
    assert 2 * sum(counts.values()) == 15_666_819_072
    assert counts["mtp"] == 210_790_400
    assert len(model.tensors) == 451


def test_its_names_and_shapes_are_those_of_the_layout() -> None:
    """`tests.quantization.models` spells the layout out by itself, for any size."""
    assert MIMO_7B.layout == STEP35
    assert {info.name: info.shape for info in published_model().tensors} == {
        info.name: info.shape for info in infos(MIMO_7B)
    }
