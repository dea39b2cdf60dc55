"""Makes an output's final headers and its checksums from the journal's records. All functions are pure.

records of chunks ──> OutputDigests (source, one per tensor) ──> headers with the digests filled in
                                                            └──> one Checksums per part
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mimo_gguf.core.digests import SOURCE, TENSOR, TENSORS
from mimo_gguf.core.gguf_header import GgufLayout, lay_out
from mimo_gguf.core.model_source import TensorInfo, string
from mimo_gguf.core.tensor_table import digest_table
from mimo_gguf.quantization.checksums import Checksums, TensorSum
from mimo_gguf.quantization.chunks import Chunk, chunk_rows
from mimo_gguf.quantization.journal import Record
from mimo_gguf.quantization.plan import SOURCE_DIGEST, TABLE_DIGEST, TENSORS_DIGEST, OutputPlan, PartPlan


@dataclass(frozen=True, slots=True)
class OutputDigests:
    """The digests of a finished output.

    Attributes:
        source: hex digest of what was read: names, shapes, types and contents, whichever files they came from.
        table: hex digest of the output's tensor table.
        tensors: one digest per tensor of the output, in order.
    """

    source: str
    table: str
    tensors: tuple[bytes, ...]


def digest_output(plan: OutputPlan, chunks: Sequence[Chunk], records: Mapping[int, Record]) -> OutputDigests:
    """Computes the digests of an output whose chunks are all recorded."""
    read: list[list[bytes]] = [[] for _ in plan.tensors]
    written: list[list[bytes]] = [[] for _ in plan.tensors]
    for number, chunk in enumerate(chunks):
        read[chunk.tensor].append(records[number].source)
        written[chunk.tensor].append(records[number].output)
    return OutputDigests(
        source=digest_tensors_read([tensor.source.info for tensor in plan.tensors], read),
        table=_digest_plan(plan),
        tensors=tuple(map(TENSOR.of_digests, written)),
    )


def digest_tensors_read(infos: Sequence[TensorInfo], digests: Sequence[Sequence[bytes]]) -> str:
    """Computes the hex digest of a source from its tensors and the digests of their chunks, in order."""
    lines = (
        f"{info.name} {info.shape} {info.ggml_type.name} {TENSOR.of_digests(chunks).hex()}\n".encode()
        for info, chunks in zip(infos, digests, strict=True)
    )
    return SOURCE.hex(*lines)


def _digest_plan(plan: OutputPlan) -> str:
    return digest_table(
        (number, tensor.info, offset - len(part.layout.header))
        for number, part in enumerate(plan.parts)
        for tensor, offset in zip(plan.tensors[part.first : part.last], part.layout.offsets, strict=True)
    )


def digest_tensors(digests: Mapping[str, bytes]) -> str:
    """Computes the hex digest of all tensors, sorted by name: other programs may order or split them differently."""
    return TENSORS.of_digests(digests[name] for name in sorted(digests)).hex()


def fill_in(plan: OutputPlan, digests: OutputDigests) -> tuple[GgufLayout, ...]:
    """Lays out the parts again with the digests in their metadata."""
    names = (tensor.info.name for tensor in plan.tensors)
    values = {
        SOURCE_DIGEST: digests.source,
        TABLE_DIGEST: digests.table,
        TENSORS_DIGEST: digest_tensors(dict(zip(names, digests.tensors, strict=True))),
    }
    return tuple(_fill_in_part(plan, part, values) for part in plan.parts)


def _fill_in_part(plan: OutputPlan, part: PartPlan, values: Mapping[str, str]) -> GgufLayout:
    metadata = {key: string(values[key]) if key in values else value for key, value in part.metadata.items()}
    layout = lay_out(metadata, [tensor.info for tensor in plan.tensors[part.first : part.last]])
    assert layout.offsets == part.layout.offsets  # digests have a fixed width
    return layout


def checksums_of(
    plan: OutputPlan, layouts: Sequence[GgufLayout], digests: OutputDigests, run: str
) -> tuple[Checksums, ...]:
    """Makes the checksums of each part.

    Args:
        layouts: the final layout of each part.
        run: see `run_digest`.
    """
    return tuple(
        Checksums.of(
            part.path.name,
            layout,
            [
                TensorSum(
                    name=plan.tensors[number].info.name,
                    offset=offset,
                    n_bytes=plan.tensors[number].info.n_bytes,
                    chunk_bytes=_chunk_bytes(plan.tensors[number].info, plan.chunk_weights),
                    digest=digests.tensors[number],
                )
                for number, offset in zip(range(part.first, part.last), layout.offsets, strict=True)
            ],
            run,
        )
        for part, layout in zip(plan.parts, layouts, strict=True)
    )


def _chunk_bytes(info: TensorInfo, chunk_weights: int) -> int:
    return chunk_rows(info, chunk_weights) * info.row_bytes
