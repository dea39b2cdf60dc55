"""A model whose matrices are encoded already, as a source like any other.

The ordinary quantization runs over it: matrices in the type that their profile wants are copied through, and all the
rest (norms, the embedding, checksums, splitting, resuming) is the same code as for any file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mimo_gguf.calibration.passes import encoded_name
from mimo_gguf.calibration.work import WorkFolder
from mimo_gguf.core.digests import FINGERPRINT
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.model_source import Bytes, Metadata, ModelSource, SourceTensor, TensorInfo


def calibrated_source(
    source: ModelSource, work: WorkFolder, types: Mapping[str, GgmlType], metadata: Metadata, identity: str
) -> ModelSource:
    """The source with the matrices of `types` as they lie encoded in the work folder; the other tensors are its own.

    Args:
        types: the type of each encoded matrix.
        metadata: what the file will say about its calibration.
        identity: everything that decides the encoded bytes, as text, for the fingerprint.

    Raises:
        OutputError: an encoded matrix cannot be read.
    """
    tensors = tuple(
        _encoded(tensor, work, types[tensor.info.name]) if tensor.info.name in types else tensor
        for tensor in source.tensors
    )
    return replace(
        source,
        tensors=tensors,
        metadata={**source.metadata, **metadata},
        fingerprint=FINGERPRINT.hex(f"{source.fingerprint}\n{identity}".encode()),
        close=lambda: None,
    )


def _encoded(tensor: SourceTensor, work: WorkFolder, ggml_type: GgmlType) -> SourceTensor:
    name = encoded_name(tensor.info.name, ggml_type)
    rows = work.load_array(name, mapped=True)

    def read_rows(first: int, last: int, out: Bytes) -> None:
        out[...] = rows[first:last]

    info = TensorInfo(tensor.info.name, tensor.info.shape, ggml_type)
    return SourceTensor(info, str(work.path / name), read_rows)
