"""Running a plan: one read of the source makes every output; an interrupted run goes on where it stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Final

from mimo_gguf.core.errors import OutputError, WeightsError
from mimo_gguf.core.ggml_types import parse_ggml_type
from mimo_gguf.core.machine import available_cores
from mimo_gguf.core.output_file import check_free_space, sync_folder
from mimo_gguf.core.progress import Job, Progress, Silence
from mimo_gguf.quantization.chunk_loop import KernelKey, Loop, kernel_key, kernel_keys
from mimo_gguf.quantization.chunks import Chunk, cut_into_chunks
from mimo_gguf.quantization.kernels import Kernel, kernel_for
from mimo_gguf.quantization.output_writer import (
    OutputWriter,
    check_places,
    missing_bytes,
    open_output,
    output_fingerprint,
)
from mimo_gguf.quantization.plan import QuantizePlan
from mimo_gguf.quantization.report import FileReport, QuantizeReport

_POLL_S: Final = 0.1
# A cold chunk takes about as long to read and write as to quantize. Measured on two threads, of the cores' time idle:
# 15 % with two workers each, 11 % with three, no less with four.
_WORKERS_PER_THREAD: Final = 3
_WORTH_A_NOTE_BYTES: Final = 1 << 28  # the final sync of less is over before it is read
# types whose search tables libggml builds on first use
_SLOW_TABLES: Final = frozenset(
    parse_ggml_type(name) for name in ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
)


def run_quantization(plan: QuantizePlan, progress: Progress | None = None) -> QuantizeReport:
    """Makes every output of the plan in one read of its source.

    Interrupted (Ctrl-C, an error, a kill), it leaves hidden partial files from which the same call goes on.

    Raises:
        OutputError: an output exists, another run is writing it, or the disk is full or failing.
        WeightsError: Inf, NaN or values that the type cannot hold; the source changed while it was read. As going on is
            impossible, nothing is left behind.
    """
    watcher = progress or Silence()
    started = time.perf_counter()
    check_places(plan.outputs, force=plan.options.force)
    kernels = _load_kernels(plan, watcher)
    chunks = cut_into_chunks([tensor.info for tensor in plan.source.tensors], plan.options.chunk_weights)
    with ExitStack() as stack:
        writers = _open_outputs(plan, kernels, chunks, stack)
        for writer in writers:
            if writer.journal.replaced:
                watcher.note(
                    f"{writer.plan.path.name}: an earlier run was of another source, profile, option or version; "
                    "starting afresh"
                )
        stack.push(partial(_tidy_up, writers))
        _check_space(writers, chunks)
        loop = Loop(plan, kernels, chunks, writers, plan.options.n_threads or available_cores())
        _watch(loop, watcher)
        plan.source.check_unchanged()
        if loop.written_bytes > _WORTH_A_NOTE_BYTES:
            watcher.note("syncing to disk")
        _complete(writers, chunks, force=plan.options.force)
        return _report(loop, time.perf_counter() - started)


def _tidy_up(
    writers: Sequence[OutputWriter], _: type[BaseException] | None, error: BaseException | None, __: object
) -> None:
    """After a failure: removes what the next run could not go on from."""
    for writer in writers:
        if not writer.finished and (isinstance(error, WeightsError) or (error is not None and not writer.journal.done)):
            writer.abandon()


def _load_kernels(plan: QuantizePlan, progress: Progress) -> dict[KernelKey, Kernel]:
    keys = sorted(set().union(*map(kernel_keys, plan.outputs)))
    if slow := sorted({key[0].name for key in keys if key[0] in _SLOW_TABLES}):
        progress.note(f"libggml builds its tables for {', '.join(slow)}: this takes some seconds")
    return {key: kernel_for(*key) for key in keys}


def _open_outputs(
    plan: QuantizePlan, kernels: dict[KernelKey, Kernel], chunks: Sequence[Chunk], stack: ExitStack
) -> tuple[OutputWriter, ...]:
    writers: list[OutputWriter] = []
    for output in plan.outputs:
        names = [kernels[key].name for key in sorted(kernel_keys(output))]
        try:
            writer = open_output(output, output_fingerprint(output, plan.source, names), force=plan.options.force)
        except OutputError:
            # Killed while it tidied up, the last run may have left journals of outputs that are done.
            _complete([writer for writer in writers if writer.finished], chunks, force=plan.options.force)
            raise
        stack.callback(writer.close)
        writers.append(writer)
    return tuple(writers)


def _check_space(writers: Sequence[OutputWriter], chunks: Sequence[Chunk]) -> None:
    """One check per disk, because outputs may lie on several."""
    needed: dict[int, tuple[OutputWriter, int]] = {}
    for writer in writers:
        disk = writer.plan.path.parent.stat().st_dev
        needed[disk] = (writer, needed.get(disk, (writer, 0))[1] + missing_bytes(writer, chunks))
    for writer, n_bytes in needed.values():
        check_free_space(writer.plan.path.parent, n_bytes)


def _watch(loop: Loop, progress: Progress) -> None:
    """Runs the workers while this thread tells how far they are and listens for Ctrl-C."""
    jobs = [
        Job(writer.plan.path.name, sum(writer.chunk_bytes(chunk) for chunk in loop.chunks)) for writer in loop.writers
    ]
    workers = [
        threading.Thread(target=loop.work, name=f"quantize-{i}") for i in range(_WORKERS_PER_THREAD * loop.n_threads)
    ]
    drain = threading.Thread(target=loop.drain, name="quantize-drain")
    progress.start(jobs)
    try:
        for thread in (*workers, drain):
            thread.start()
        for worker in workers:
            while worker.is_alive():
                worker.join(_POLL_S)
                progress.update(tuple(loop.done), tuple(loop.resumed))
    finally:
        loop.stop()
        for thread in (*workers, drain):
            if thread.ident is not None:
                thread.join()
        progress.finish()
    if loop.error is not None:
        raise loop.error


def _complete(writers: Sequence[OutputWriter], chunks: Sequence[Chunk], *, force: bool) -> None:
    """Everything durable first, then all names, then the journals go: at every moment a crash can be resumed."""
    for writer in writers:
        if not writer.finished:
            writer.seal(chunks)
    for writer in writers:
        writer.publish(chunks, force=force)
    for folder in {writer.plan.path.parent for writer in writers}:
        sync_folder(folder)
    for writer in reversed(writers):
        writer.journal.discard()


def _report(loop: Loop, seconds: float) -> QuantizeReport:
    return QuantizeReport(
        source=loop.plan.source.label,
        source_digest=loop.writers[0].source_digest(loop.chunks),
        outputs=tuple(
            FileReport(
                profile=writer.plan.profile.name,
                paths=tuple(part.path for part in writer.plan.parts),
                n_bytes=writer.plan.n_bytes,
                bits_per_weight=writer.plan.bits_per_weight,
                resumed_bytes=resumed,
                n_copied=sum(kernel_key(tensor) is None for tensor in writer.plan.tensors),
                n_tensors=len(writer.plan.tensors),
                notes=writer.plan.notes,
            )
            for writer, resumed in zip(loop.writers, loop.resumed, strict=True)
        ),
        seconds=seconds,
        n_threads=loop.n_threads,
        read_bytes=loop.read_bytes,
        written_bytes=loop.written_bytes,
        kernels={
            f"{ggml_type.name} by importance" if by_importance else ggml_type.name: f"{kernel.name}; {kernel.note}"
            for (ggml_type, _, by_importance), kernel in loop.kernels.items()
        },
    )
