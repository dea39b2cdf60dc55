"""Headers byte for byte against gguf's own writer."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType, GGUFWriter
from hypothesis import given
from hypothesis import strategies as st

from mimo_gguf.core.ggml_types import GgmlType, block_size
from mimo_gguf.core.gguf_header import lay_out
from mimo_gguf.core.model_source import Metadata, MetaValue, TensorInfo, string

INTEGERS = {
    GGUFValueType.UINT8: (0, 255),
    GGUFValueType.INT8: (-128, 127),
    GGUFValueType.UINT16: (0, 65535),
    GGUFValueType.INT32: (-(1 << 31), (1 << 31) - 1),
    GGUFValueType.UINT32: (0, (1 << 32) - 1),
    GGUFValueType.UINT64: (0, (1 << 64) - 1),
    GGUFValueType.INT64: (-(1 << 63), (1 << 63) - 1),
}
TYPES = (GgmlType.F32, GgmlType.BF16, GgmlType.Q8_0, GgmlType.Q4_K, GgmlType.IQ4_XS)


def values(value_type: GGUFValueType) -> st.SearchStrategy[Any]:
    if value_type in INTEGERS:
        return st.integers(*INTEGERS[value_type])
    if value_type is GGUFValueType.STRING:
        return st.text(max_size=9)
    if value_type is GGUFValueType.BOOL:
        return st.booleans()
    return st.floats(width=32, allow_nan=False)


VALUE_TYPES = [*INTEGERS, GGUFValueType.STRING, GGUFValueType.BOOL, GGUFValueType.FLOAT32]
entries = st.sampled_from(VALUE_TYPES).flatmap(
    lambda kind: st.one_of(
        values(kind).map(lambda value: MetaValue(kind, value)),
        st.lists(values(kind), min_size=1, max_size=4).map(lambda items: MetaValue(GGUFValueType.ARRAY, items, kind)),
    )
)
keys = st.text("abc.é", min_size=1, max_size=6).filter(lambda key: key != "general.alignment")
tensors = st.lists(
    st.tuples(st.sampled_from(TYPES), st.integers(1, 3), st.lists(st.integers(1, 5), max_size=2)), max_size=5
).map(
    lambda rows: [
        TensorInfo(f"t{number}.weight", (*shape, blocks * block_size(kind)), kind)
        for number, (kind, blocks, shape) in enumerate(rows)
    ]
)


def through_gguf(metadata: Metadata, infos: list[TensorInfo], path: Path) -> bytes:
    writer = GGUFWriter(None, "step35", use_temp_file=False)
    for key, entry in metadata.items():
        if key != "general.architecture":
            writer.add_key_value(key, entry.value, entry.value_type, entry.item_type)
    for info in infos:
        # any dtype but uint8, which the writer would take for a shape in bytes
        writer.add_tensor_info(info.name, info.shape, np.dtype(np.float32), info.n_bytes, info.ggml_type)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path.read_bytes()


@given(st.dictionaries(keys, entries, max_size=6), tensors)
def test_headers_are_those_of_ggufs_writer(metadata: Metadata, infos: list[TensorInfo]) -> None:
    metadata = {**metadata, "general.architecture": string("step35")}
    with tempfile.TemporaryDirectory() as folder:
        expected = through_gguf(metadata, infos, Path(folder) / "header")
    layout = lay_out(metadata, infos)
    assert layout.header == expected + bytes(-len(expected) % 32)
    ends = [offset + info.n_bytes for offset, info in zip(layout.offsets, infos, strict=True)]
    starts = [*layout.offsets[1:], layout.n_bytes]
    assert all(0 <= start - end < 32 and start % 32 == 0 for start, end in zip(starts, ends, strict=False))


def test_an_empty_array_is_left_out() -> None:
    empty = MetaValue(GGUFValueType.ARRAY, [], GGUFValueType.STRING)
    architecture = {"general.architecture": string("step35")}
    assert lay_out({**architecture, "x": empty}, []) == lay_out(architecture, [])
