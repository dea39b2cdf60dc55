"""Runs a plan: one read of the source makes every output, and an interrupted run goes on where it stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Final

from mimo_gguf.core.errors import WeightsError
from mimo_gguf.core.machine import available_cores
from mimo_gguf.core.output_file import check_free_space, sync_folder
from mimo_gguf.core.progress import Progress, Silence
from mimo_gguf.quantization.chunk_loop import Loop, kernel_key, kernel_keys
from mimo_gguf.quantization.chunks import Chunk, cut_into_chunks
from mimo_gguf.quantization.kernel_loading import KernelKey, load_kernels
from mimo_gguf.quantization.kernels import Kernel
from mimo_gguf.quantization.output_state import check_places, is_complete, recorded_source
from mimo_gguf.quantization.output_writer import OutputWriter, open_output
from mimo_gguf.quantization.partial_file import write_error
from mimo_gguf.quantization.plan import OutputPlan, QuantizePlan
from mimo_gguf.quantization.report import FileReport, QuantizeReport

_POLL_S: Final = 0.1
# A cold chunk takes about as long to read and write as to quantize. On two threads the cores were idle for 15 % of the
# time with two workers each, for 11 % with three, and for no less with four.
_WORKERS_PER_THREAD: Final = 3
_WORTH_A_NOTE_BYTES: Final = 1 << 28  # syncing less is over before the note is read


def run_quantization(plan: QuantizePlan, progress: Progress | None = None) -> QuantizeReport:
    """Makes every output of the plan in one read of its source.

    If it is interrupted (Ctrl-C, an error, a kill), it leaves hidden partial files from which the same call goes on.
    Without `force`, outputs that the same call has completed already are left as they are.

    Raises:
        OutputError: another file has an output's name, another run is writing it, or the disk is full or failing.
        WeightsError: Inf, NaN or values that the type cannot hold, or a source that changed while it was read. Going
            on would be impossible, so nothing is left behind.
    """
    started = time.perf_counter()
    outputs = [output for output in plan.outputs if plan.options.force or not is_complete(output, plan.source)]
    progress = progress or Silence()
    loop, source_digest = _run(replace(plan, outputs=tuple(outputs)), progress) if outputs else (None, None)
    return _report(plan, loop, source_digest or recorded_source(plan.outputs[0]), time.perf_counter() - started)


def _run(plan: QuantizePlan, progress: Progress) -> tuple[Loop, str]:
    """Makes all outputs of `plan`; gives the finished loop and the digest of the source."""
    check_places(plan.outputs, force=plan.options.force)
    kernels = load_kernels(set().union(*map(kernel_keys, plan.outputs)), progress, plan.options.search)
    chunks = cut_into_chunks([tensor.info for tensor in plan.source.tensors], plan.options.chunk_weights)
    with ExitStack() as stack:
        writers = _open_outputs(plan, chunks, kernels, stack)
        for writer in writers:
            if writer.journal.replaced:
                progress.note(
                    f"{writer.plan.path.name}: an earlier run was of another source, profile, option or version; "
                    "starting afresh"
                )
        stack.push(partial(_tidy_up, writers))
        _check_space(writers)
        loop = Loop(plan, kernels, chunks, writers, plan.options.n_threads or available_cores())
        _watch(loop, progress)
        plan.source.check_unchanged()
        if loop.written_bytes > _WORTH_A_NOTE_BYTES:
            progress.note("syncing to disk")
        return loop, _complete(writers, force=plan.options.force)


def _tidy_up(
    writers: Sequence[OutputWriter], _: type[BaseException] | None, error: BaseException | None, __: object
) -> None:
    """Removes, after a failure, what the next run could not go on from."""
    for writer in writers:
        if not writer.finished and (isinstance(error, WeightsError) or (error is not None and not writer.journal.done)):
            writer.abandon()


def _open_outputs(
    plan: QuantizePlan, chunks: tuple[Chunk, ...], kernels: dict[KernelKey, Kernel], stack: ExitStack
) -> tuple[OutputWriter, ...]:
    writers: list[OutputWriter] = []
    for output in plan.outputs:
        names = [kernels[key].name for key in sorted(kernel_keys(output))]
        writer = open_output(output, plan.source, chunks, names, force=plan.options.force)
        stack.callback(writer.close)
        writers.append(writer)
    return tuple(writers)


def _check_space(writers: Sequence[OutputWriter]) -> None:
    """Refuses outputs that do not fit on a disk; each disk is checked once, because outputs may lie on several."""
    needed: dict[int, tuple[OutputWriter, int]] = {}
    try:
        for writer in writers:
            disk = writer.plan.path.parent.stat().st_dev
            needed[disk] = (writer, needed.get(disk, (writer, 0))[1] + writer.missing_bytes)
        for writer, n_bytes in needed.values():
            check_free_space(writer.plan.path.parent, n_bytes)
    except OSError as error:  # the folder has just vanished
        raise write_error(writer.plan.path, error) from None


def _watch(loop: Loop, progress: Progress) -> None:
    """Runs the workers, while this thread shows their progress and waits for Ctrl-C."""
    drain = threading.Thread(target=loop.drain, name="quantize-drain")
    crews = [_crew(loop.check, loop.n_threads), _crew(loop.work, loop.n_threads)]
    progress.start(loop.jobs())
    try:
        drain.start()
        for crew in crews:
            for worker in crew:
                worker.start()
            for worker in crew:
                while worker.is_alive():
                    worker.join(_POLL_S)
                    progress.update(*loop.progress())
            if crew is crews[0]:
                loop.start()
    finally:
        loop.stop()
        for thread in (drain, *crews[0], *crews[1]):
            if thread.ident is not None:
                thread.join()
        progress.finish()
    if loop.error is not None:
        raise loop.error


def _crew(work: Callable[[], None], n_threads: int) -> list[threading.Thread]:
    return [threading.Thread(target=work, name=f"quantize-{i}") for i in range(_WORKERS_PER_THREAD * n_threads)]


def _complete(writers: Sequence[OutputWriter], *, force: bool) -> str:
    """Makes everything durable, then renames all files, then removes the journals.

    A crash at any moment can be resumed.

    Returns:
        The digest of the source.
    """
    finished = [writer.finish() for writer in writers]
    for writer, final in zip(writers, finished, strict=True):
        if not writer.finished:
            writer.seal(final)
    for writer, final in zip(writers, finished, strict=True):
        writer.publish(final, force=force)
    for folder in {writer.plan.path.parent for writer in writers}:
        sync_folder(folder)
    for writer in writers:
        writer.check_published()
    for writer in reversed(writers):
        writer.journal.discard()
    return finished[0].source_digest


def _report(plan: QuantizePlan, loop: Loop | None, source_digest: str, seconds: float) -> QuantizeReport:
    """Reports what was done; `loop` is None if all outputs were complete already."""
    resumed = {} if loop is None else {w.plan.path: n for w, n in zip(loop.writers, loop.resumed, strict=True)}
    kernels = {} if loop is None else loop.kernels
    return QuantizeReport(
        source=plan.source.label,
        source_digest=source_digest,
        outputs=tuple(_file_report(output, resumed.get(output.path)) for output in plan.outputs),
        seconds=seconds,
        n_threads=plan.options.n_threads or available_cores(),
        read_bytes=0 if loop is None else loop.read_bytes,
        written_bytes=0 if loop is None else loop.written_bytes,
        kernels={
            f"{ggml_type.name} by importance" if by_importance else ggml_type.name: f"{kernel.name}; {kernel.note}"
            for (ggml_type, _, by_importance), kernel in kernels.items()
        },
    )


def _file_report(output: OutputPlan, resumed_bytes: int | None) -> FileReport:
    """Reports on one output; `resumed_bytes` is None if it was complete already."""
    return FileReport(
        profile=output.profile.name,
        paths=tuple(part.path for part in output.parts),
        n_bytes=output.n_bytes,
        bits_per_weight=output.bits_per_weight,
        resumed_bytes=output.n_bytes if resumed_bytes is None else resumed_bytes,
        was_complete=resumed_bytes is None,
        n_copied=sum(kernel_key(tensor) is None for tensor in output.tensors),
        n_tensors=len(output.tensors),
        notes=output.notes,
    )
