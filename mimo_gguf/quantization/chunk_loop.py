"""The loop over a model's chunks on many threads: read, check, convert to every output's type, write.

Each worker reads the rows of the next chunk once, then runs a kernel for every output and writes the result in its
place. There are more workers than kernels may run at once, so that some compute while others wait for the disk. All
buffers are allocated once per worker.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from gguf.quants import dequantize
from numpy.typing import NDArray

from mimo_gguf.core.arrival import arrival_bytes
from mimo_gguf.core.data_file import FileBuffer
from mimo_gguf.core.digests import CHUNK
from mimo_gguf.core.errors import MimoGgufError, WeightsError
from mimo_gguf.core.ggml_types import FLOAT_TYPES, GgmlType
from mimo_gguf.core.model_source import Bytes, SourceTensor, TensorInfo
from mimo_gguf.core.progress import Job
from mimo_gguf.quantization.agenda import Agenda
from mimo_gguf.quantization.block_scales import are_zeros, first_bad_row
from mimo_gguf.quantization.chunks import Chunk, chunk_rows
from mimo_gguf.quantization.kernel_loading import KernelKey
from mimo_gguf.quantization.kernels import Kernel, first_f16_overflow, first_nonfinite
from mimo_gguf.quantization.output_writer import OutputWriter
from mimo_gguf.quantization.plan import OutputPlan, QuantizePlan, TensorPlan

_NO_BLOCK_HOLDS: Final = 2.0**28  # Q6_K, the widest: f16 scale 65504 x block scale 127 x level 32
_DRAIN_EVERY_S: Final = 0.2


def kernel_keys(output: OutputPlan) -> set[KernelKey]:
    """The keys of the kernels that an output needs."""
    return {key for tensor in output.tensors if (key := kernel_key(tensor)) is not None}


def kernel_key(tensor: TensorPlan) -> KernelKey | None:
    """The key of the kernel that converts a tensor, or None for a plain copy."""
    stored = tensor.source.info.ggml_type
    if tensor.info.ggml_type is stored:
        return None
    return tensor.info.ggml_type, stored if stored in FLOAT_TYPES else GgmlType.F32, tensor.importance is not None


@dataclass(slots=True)
class Loop:
    """The chunks of a run and what its workers share.

    Attributes:
        n_threads: how many kernels may run at once.
        error: the first error of any worker, which stops them all.
        done: bytes of each output that are in place, `resumed` included.
        resumed: bytes of each output that an earlier run had left.
    """

    plan: QuantizePlan
    kernels: dict[KernelKey, Kernel]
    chunks: tuple[Chunk, ...]
    writers: tuple[OutputWriter, ...]
    n_threads: int
    error: BaseException | None = None
    read_bytes: int = 0
    written_bytes: int = 0
    done: list[int] = field(default_factory=list)
    resumed: list[int] = field(default_factory=list)
    agenda: Agenda = field(init=False)
    _counted: list[set[int]] = field(init=False)
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _slots: threading.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self.agenda = Agenda(self.plan.source, self.chunks, self.writers)
        self._counted = [set() for _ in self.writers]
        self._slots = threading.Semaphore(self.n_threads)
        for writer in self.writers:
            self.resumed.append(sum(place.n_bytes for place in writer.places) if writer.finished else 0)
        self.done = list(self.resumed)

    def stop(self) -> None:
        """Makes every worker stop after its chunk."""
        self._stop.set()
        self.agenda.stop()

    def jobs(self) -> list[Job]:
        """The files that `progress` tells about: each output, and before them what has to be downloaded."""
        outputs = [Job(w.plan.path.name, sum(place.n_bytes for place in w.places)) for w in self.writers]
        arrival = self.plan.source.arrival
        return outputs if arrival is None else [Job("download", arrival_bytes(arrival), is_download=True), *outputs]

    def progress(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The bytes of each job that are done, and those that an earlier run had done."""
        arrival, done, resumed = self.plan.source.arrival, tuple(self.done), tuple(self.resumed)
        if arrival is None:
            return done, resumed
        spared = self.agenda.spared_bytes
        return (min(spared + arrival.fetched_bytes, arrival_bytes(arrival)), *done), (spared, *resumed)

    def check(self) -> None:
        """Reads back the chunks that an earlier run has recorded, until none is left or something fails."""
        buffers = None
        try:
            while (number := self.agenda.next_recorded()) is not None:
                buffers = buffers or _Buffers.for_plan(self.plan)
                for i, writer in enumerate(self.writers):
                    is_there = not writer.finished and writer.holds(number, buffers.output(number, writer))
                    if is_there and self.agenda.hold(i, number):
                        self._count(i, number, resumed=True)
        except BaseException as error:
            self._fail(error)

    def start(self) -> None:
        """Plans what is left to do, after `check` and before `work`."""
        if self.error is None:
            self.agenda.start()

    def work(self) -> None:
        """Does one chunk after another until none is left, the run is stopped, or something fails."""
        try:
            buffers = _Buffers.for_plan(self.plan)
            while (number := self.agenda.next()) is not None:
                self.agenda.done(number, self._do_chunk(number, self.chunks[number], buffers))
        except BaseException as error:
            self._fail(error)

    def drain(self) -> None:
        """Sends written pages to the disk, and checks that the files are in place, until the run is stopped."""
        try:
            while not self._stop.wait(_DRAIN_EVERY_S):
                for writer in self.writers:
                    writer.check_in_place()
                    writer.drain()
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self.error = self.error or error
        self.stop()

    def _do_chunk(self, number: int, chunk: Chunk, buffers: _Buffers) -> WeightsError | None:
        """Does a chunk in every output that lacks it.

        Returns:
            An error in weights that have been fetched: they may be damaged, which is known at the end of their file.
        """
        source = self.plan.source.tensors[chunk.tensor]
        stored = buffers.source(chunk, source)
        self._read(source, chunk, stored)
        with self._slots:
            digest = CHUNK.of(stored)
        wanted = []
        for i in self.agenda.wanted(number):
            if number in self.agenda.held[i] and self.writers[i].is_made_of(number, digest):
                self._count(i, number, resumed=True)
            else:
                wanted.append(i)
        try:
            self._make(number, wanted, stored, digest, buffers)
        except WeightsError as error:
            if source.place is None:
                raise
            return error
        return None

    def _read(self, source: SourceTensor, chunk: Chunk, stored: Bytes) -> None:
        try:
            source.read_rows(chunk.first, chunk.last, stored)
        except OSError as error:
            raise MimoGgufError(
                f"{source.origin}: cannot be read: {error.strerror or error}", hint="check the disk and run again"
            ) from None
        with self._lock:
            self.read_bytes += stored.size

    def _make(self, number: int, wanted: Sequence[int], stored: Bytes, digest: bytes, buffers: _Buffers) -> None:
        """Makes a chunk in the outputs with these numbers, from its rows as they are stored."""
        if not wanted:
            return
        chunk = self.chunks[number]
        source = self.plan.source.tensors[chunk.tensor]
        with self._slots:
            has_large = _check_values(stored, source.info, chunk, source.origin)
            rows = _as_floats(stored, source.info, [self.writers[i].plan.tensors[chunk.tensor] for i in wanted])
        for i in wanted:
            tensor = self.writers[i].plan.tensors[chunk.tensor]
            with self._slots:
                data = self._converted(tensor, chunk, stored, rows, buffers.output(number, self.writers[i]), has_large)
            self.writers[i].put(number, data, digest)
            self.agenda.hold(i, number)
            self._count(i, number)

    def _converted(
        self, tensor: TensorPlan, chunk: Chunk, stored: Bytes, rows: NDArray[np.generic], out: Bytes, has_large: bool
    ) -> Bytes:
        key = kernel_key(tensor)
        if key is None:
            return stored
        self.kernels[key](rows, out, tensor.importance)
        if has_large and (row := _first_row_not_held(rows, out, tensor)) is not None:
            raise _too_large(tensor, chunk.first + row)
        if tensor.importance is not None:
            _check_by_importance(rows, out, tensor, chunk)
        return out

    def _count(self, output: int, number: int, *, resumed: bool = False) -> None:
        """Counts a chunk that is in place, even if it is done again later."""
        n_bytes = self.writers[output].places[number].n_bytes
        with self._lock:
            if number in self._counted[output]:
                return
            self._counted[output].add(number)
            self.done[output] += n_bytes
            if resumed:
                self.resumed[output] += n_bytes
            else:
                self.written_bytes += n_bytes


@dataclass(frozen=True, slots=True)
class _Buffers:
    """One worker's memory, used again for every chunk: rows as read, and rows of one output."""

    _source: FileBuffer
    _output: Bytes

    @classmethod
    def for_plan(cls, plan: QuantizePlan) -> _Buffers:
        """Allocates buffers for the largest chunks of the source and of any output."""

        def largest_chunk(infos: Sequence[TensorInfo]) -> int:
            rows = (min(chunk_rows(info, plan.options.chunk_weights), info.n_rows) for info in infos)
            return max((n_rows * info.row_bytes for n_rows, info in zip(rows, infos, strict=True)), default=0)

        return cls(
            FileBuffer(largest_chunk([tensor.info for tensor in plan.source.tensors])),
            np.empty(max(largest_chunk([t.info for t in output.tensors]) for output in plan.outputs), np.uint8),
        )

    def source(self, chunk: Chunk, tensor: SourceTensor) -> Bytes:
        """The buffer for a chunk's rows as they are stored in the source: uint8, rows x row bytes."""
        n_rows, row_bytes = chunk.last - chunk.first, tensor.info.row_bytes
        rows = self._source.at(tensor.offset + chunk.first * row_bytes, n_rows * row_bytes)
        return rows.reshape(n_rows, row_bytes)

    def output(self, number: int, writer: OutputWriter) -> Bytes:
        """The buffer for a chunk's rows in an output: uint8, rows x row bytes."""
        chunk = writer.chunks[number]
        return self._output[: writer.places[number].n_bytes].reshape(chunk.last - chunk.first, -1)


def _check_values(stored: Bytes, info: TensorInfo, chunk: Chunk, origin: str) -> bool:
    """Refuses Inf and NaN. True if a value may be too large for a 16-bit float or scale."""
    if info.ggml_type not in FLOAT_TYPES:
        if (row := first_bad_row(stored, info.ggml_type)) is not None:
            raise _not_finite(info, chunk.first + row, origin)
        return True
    if first_f16_overflow(stored, info.ggml_type) is None:
        return False
    if (at := first_nonfinite(stored, info.ggml_type)) is not None:
        raise _not_finite(info, chunk.first + at[0], origin)
    return True


def _first_row_not_held(rows: NDArray[np.generic], out: Bytes, tensor: TensorPlan) -> int | None:
    """The first row that became infinite or holds a weight that no block can; ggml writes some of these as zeros."""
    row = first_bad_row(out, tensor.info.ggml_type)
    if row is not None or tensor.info.ggml_type in FLOAT_TYPES or tensor.source.info.ggml_type is GgmlType.F16:
        return row
    if tensor.source.info.ggml_type is GgmlType.BF16:
        weights = (rows.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        weights = rows.view(np.float32)
    beyond = (np.abs(weights) >= _NO_BLOCK_HOLDS).any(axis=1)
    return int(beyond.argmax()) if beyond.any() else None


def _check_by_importance(rows: NDArray[np.generic], out: Bytes, tensor: TensorPlan, chunk: Chunk) -> None:
    """Refuses rows that importance values spoiled: those that llama-quantize refuses, and chunks of zeros."""
    bad = first_bad_row(out, tensor.info.ggml_type)
    if bad is None and not (are_zeros(out, tensor.info.ggml_type) and rows.view(np.uint8).any()):
        return
    what = "all zeros" if bad is None else "Inf or NaN"
    raise WeightsError(
        f"{tensor.info.name}: row {chunk.first + (bad or 0)} became {what} with these importance values",
        hint="make the importance matrix again with llama-imatrix, or quantize without it",
    )


def _not_finite(info: TensorInfo, row: int, origin: str) -> WeightsError:
    return WeightsError(
        f"{info.name}: row {row} holds Inf or NaN ({origin})",
        hint="the weights are damaged; download them again",
    )


def _too_large(tensor: TensorPlan, row: int) -> WeightsError:
    return WeightsError(
        f"{tensor.info.name}: row {row} holds a value too large for {tensor.info.ggml_type.name} "
        f"({tensor.source.origin})",
        hint=f"keep this tensor as it is: --tensor-type {tensor.info.name}=BF16",
    )


def _as_floats(stored: Bytes, info: TensorInfo, wanted: Sequence[TensorPlan]) -> NDArray[np.generic]:
    """The rows as the kernels read them: the stored floats, or a quantized source widened to float32."""
    if info.ggml_type in FLOAT_TYPES or all(kernel_key(tensor) is None for tensor in wanted):
        return stored
    rows: NDArray[np.generic] = np.ascontiguousarray(dequantize(stored, info.ggml_type), np.float32)
    return rows
