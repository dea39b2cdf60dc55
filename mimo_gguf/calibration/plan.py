"""Plans a calibrated quantization from headers and tokens alone: types, bytes, memory, disk. `--dry-run` shows it.

The order of the work, and why one pass over the text is enough for all of it, is told in `gram.py`.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.calibration.encode import EncodeOptions, damping_for
from mimo_gguf.calibration.gram import PRODUCT_ROWS
from mimo_gguf.calibration.mix import mixed_types
from mimo_gguf.calibration.solved_profile import solved_name
from mimo_gguf.calibration.type_plan import MixKind, TypesWanted, check_budget, wanted_types
from mimo_gguf.core.digests import WORK
from mimo_gguf.core.errors import GgufError, UsageError
from mimo_gguf.core.geometry import Geometry, read_geometry
from mimo_gguf.core.ggml_types import FLOAT_TYPES, GgmlType, row_bytes
from mimo_gguf.core.gguf_file import read_part
from mimo_gguf.core.model_source import ModelSource
from mimo_gguf.core.version import __version__
from mimo_gguf.quantization.plan import OutputRequest, QuantizeOptions, plan_quantization
from mimo_gguf.quantization.type_choice import EMBEDDING

Tokens = NDArray[np.int32]

RUN: Final = "mimo_gguf.calibration.run"
SAMPLE_TOKENS: Final = 2048  # whose gradients are computed
SAMPLE_WINDOW: Final = 256
_HEADER_BYTES: Final = 4096  # a file's own metadata about its calibration, and the padding of its tensors


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """The text to calibrate with, as tokens.

    Attributes:
        used, held_out: windows int32 [n], all of one length: to encode with, and to judge by.
        digest: of the documents that they were cut from.
        notes: what the user should know about the text.
    """

    used: tuple[Tokens, ...] = field(repr=False)
    held_out: tuple[Tokens, ...] = field(repr=False)
    digest: str
    notes: tuple[str, ...] = ()

    @property
    def n_tokens(self) -> int:
        """The tokens that are encoded with."""
        return sum(map(len, self.used))

    @property
    def n_held_out(self) -> int:
        """The tokens that are judged by."""
        return sum(map(len, self.held_out))


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """The choices about a calibration.

    Attributes:
        mix: whether the types are solved, and which.
        budget_bytes: the most bytes of the tensors; None means those that the profile's own types have.
        work: the work folder, kept afterwards; None means one beside the outputs, removed when they are complete.
    """

    mix: MixKind = "solve"
    budget_bytes: int | None = None
    encode: EncodeOptions = field(default_factory=EncodeOptions)
    work: Path | None = None


@dataclass(frozen=True, slots=True)
class CalibratedOutput:
    """One file of a calibration.

    Attributes:
        wanted: its types before solving.
        budget_bytes: the most bytes of its tensors.
        run: the hex digest of everything that decides the file.
    """

    wanted: TypesWanted
    budget_bytes: int
    path: Path
    run: str

    @property
    def name(self) -> str:
        """The name of the profile that will be solved for it."""
        return solved_name(self.wanted.profile)


@dataclass(frozen=True, slots=True)
class CalibrationPlan:
    """What a calibration will do.

    Attributes:
        complete: paths of outputs that an earlier run like this one has made.
        disk_bytes: what the work folder will hold at most.
        memory_bytes: what the process will need at most.
        notes: what the user should know.
    """

    source: ModelSource
    geometry: Geometry
    text: CalibrationText
    outputs: tuple[CalibratedOutput, ...]
    options: CalibrationOptions
    quantize: QuantizeOptions
    work: Path
    complete: tuple[Path, ...]
    disk_bytes: int
    memory_bytes: int
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The plan as a JSON document."""
        return {
            "source": self.source.label,
            "text": {"digest": self.text.digest, "n_tokens": self.text.n_tokens, "n_held_out": self.text.n_held_out},
            "mix": self.options.mix,
            "outputs": [
                {
                    "path": str(output.path),
                    "base": output.wanted.profile.name,
                    "most_bytes": output.budget_bytes,
                    "n_solved": len(output.wanted.solved),
                }
                for output in self.outputs
            ],
            "complete": list(map(str, self.complete)),
            "work": str(self.work),
            "disk_bytes": self.disk_bytes,
            "memory_bytes": self.memory_bytes,
            "notes": list(self.notes),
        }


def plan_calibration(
    source: ModelSource,
    requests: Sequence[OutputRequest],
    text: CalibrationText,
    options: CalibrationOptions,
    quantize: QuantizeOptions,
) -> CalibrationPlan:
    """Plans a calibration of `source`; it reads no weights and touches no files.

    Args:
        requests: the profiles that the files start from, and their paths.
        quantize: as for an ordinary quantization; an importance matrix is not used.

    Raises:
        UsageError: options that contradict each other or match nothing, a quantized source, or too few bytes.
        GgufError: a source of another architecture.
    """
    infos = [tensor.info for tensor in source.tensors]
    geometry = read_geometry(source.metadata, infos, where=source.label)
    _check_request(requests, options)
    wanted = [wanted_types(request.profile, geometry, infos, quantize.types, options.mix) for request in requests]
    plan_quantization(source, requests, quantize)  # for what it refuses
    identity = work_identity(source, text, options)
    outputs = tuple(_plan_output(r.path, types, options, identity) for r, types in zip(requests, wanted, strict=True))
    return CalibrationPlan(
        source=source,
        geometry=geometry,
        text=text,
        outputs=outputs,
        options=options,
        quantize=quantize,
        work=options.work or requests[0].path.parent / f".{source.name}.calibration",
        complete=tuple(o.path for o in outputs if not quantize.force and _is_complete(o)),
        disk_bytes=_disk_bytes(geometry, text, outputs),
        memory_bytes=_memory_bytes(geometry, text, options.encode.threads),
        notes=(*source.notes, *text.notes, *_damping_notes(geometry, text, options)),
    )


def _check_request(requests: Sequence[OutputRequest], options: CalibrationOptions) -> None:
    if options.budget_bytes is not None and len(requests) > 1:
        raise UsageError("a number of bytes is for one file", hint="name one type with --type")
    if options.budget_bytes is not None and options.mix == "profile":
        raise UsageError("with --mix profile the types decide the bytes", hint="leave --mix out")
    for request in requests:
        if request.profile.default in FLOAT_TYPES:
            raise UsageError(f"{request.profile.name}: nothing to calibrate", hint="for example --type Q4_K_M")


def work_identity(source: ModelSource, text: CalibrationText, options: CalibrationOptions) -> str:
    """Everything that decides what is in the work folder, as text. Types do not: several may share a folder."""
    tokens = WORK.hex(*(np.ascontiguousarray(window, np.int32).data for window in (*text.used, *text.held_out)))
    encode = options.encode
    return (
        f"{__version__} {source.fingerprint} {tokens} {len(text.used)} {len(text.held_out)} "
        f"{encode.damping} {encode.passes} {SAMPLE_TOKENS} {SAMPLE_WINDOW}"
    )


def _plan_output(path: Path, wanted: TypesWanted, options: CalibrationOptions, identity: str) -> CalibratedOutput:
    budget = wanted.n_bytes if options.budget_bytes is None else options.budget_bytes
    if options.mix != "profile":
        budget -= _HEADER_BYTES
        check_budget(wanted, budget)
    types = " ".join(f"{choice.info.name}={choice.info.ggml_type.name}" for choice in wanted.choices)
    run = WORK.hex(f"{identity} {wanted.profile.digest} {types} {options.mix} {budget}".encode())
    return CalibratedOutput(wanted, budget, path, run)


def _is_complete(output: CalibratedOutput) -> bool:
    """Whether an earlier run like this one has completed the output."""
    path = output.path
    if path.with_name(f".{path.name}.journal").exists():
        return False
    first_parts = sorted(path.parent.glob(f"{glob.escape(path.stem)}-00001-of-*.gguf"))
    for candidate in [path, *first_parts]:
        try:
            entry = read_part(candidate).metadata.get(RUN)
        except (OSError, GgufError):
            continue
        if entry is not None and entry.value == output.run:
            return True
    return False


# ---- what it needs


def sample_of(text: CalibrationText) -> Tokens:
    """The tokens whose gradients are computed, int32 [windows, n]: beginnings of windows, from all over the text."""
    length = min(SAMPLE_WINDOW, len(text.used[0]))
    count = min(len(text.used), max(1, SAMPLE_TOKENS // length))
    places = np.linspace(0, len(text.used) - 1, count).round().astype(int)
    return np.stack([text.used[place][:length] for place in places])


def encoded_types(outputs: Sequence[CalibratedOutput], source: ModelSource) -> dict[str, int]:
    """The most bytes that each matrix may take in the work folder, over all outputs."""
    sizes: dict[str, int] = {}
    infos = {tensor.info.name: tensor.info for tensor in source.tensors}
    for output in outputs:
        for choice in output.wanted.choices:
            name, info = choice.info.name, infos[choice.info.name]
            if choice.info.ggml_type in FLOAT_TYPES or name == EMBEDDING:
                continue
            largest = choice.info.row_bytes
            if name in output.wanted.solved:
                largest = max(
                    _row_bytes_or_zero(ggml_type, info.n_columns) for ggml_type in mixed_types(info.n_columns)
                )
            sizes[name] = sizes.get(name, 0) + largest * info.n_rows
    return sizes


def _row_bytes_or_zero(ggml_type: GgmlType, n_columns: int) -> int:
    try:
        return row_bytes(ggml_type, n_columns)
    except ValueError:
        return 0


def _disk_bytes(geometry: Geometry, text: CalibrationText, outputs: Sequence[CalibratedOutput]) -> int:
    """The bytes of the work folder: encoded matrices, and states between blocks, of which two are there at a time."""
    n_tokens = text.n_tokens + text.n_held_out
    states = 2 * n_tokens * geometry.embedding_length * 4
    sample = 2 * (geometry.n_trunk + 1) * sample_of(text).size * geometry.embedding_length * 4
    return sum(min(output.budget_bytes, output.wanted.n_bytes) for output in outputs) + max(states, sample)


def _memory_bytes(geometry: Geometry, text: CalibrationText, n_threads: int) -> int:
    """The most memory of the three heaviest moments: a block's forward pass, a factorization, the head's gradients.

    In the forward pass every thread has a window of its own, with the inputs of a block's matrices kept.
    """
    g = geometry
    widths = [g.embedding_length] * 2 + [g.head_count * g.value_length, g.feed_forward_length]
    if g.n_mtp:
        widths.append(2 * g.embedding_length)
    grams = sum(2 * 4 * width * width for width in widths)
    widest = max(widths)
    block = 4 * g.embedding_length * (2 * g.head_count * g.key_length + 2 * g.head_count_kv * g.key_length)
    block += 3 * 4 * g.embedding_length * g.feed_forward_length
    states = 4 * g.embedding_length * (text.n_tokens + text.n_held_out)
    windows = n_threads * len(text.used[0]) * 4 * (6 * g.embedding_length + 3 * g.feed_forward_length)
    waiting = sum(2 * 4 * PRODUCT_ROWS * width for width in widths)
    forward = block + states + grams + waiting + windows
    factorization = grams + 3 * 8 * widest * widest + 3 * 4 * g.embedding_length * widest
    head = int(1.5 * 4 * g.vocab_size * sample_of(text).size)
    return max(forward, factorization, head) + (512 << 20)


def _damping_notes(geometry: Geometry, text: CalibrationText, options: CalibrationOptions) -> Iterator[str]:
    least = options.encode.damping
    widths = {"attn_output": geometry.head_count * geometry.value_length, "ffn_down": geometry.feed_forward_length}
    for part, width in {"attn_q and others": geometry.embedding_length, **widths}.items():
        damping = damping_for(text.n_tokens, width, least)
        if damping > least:
            yield (
                f"{text.n_tokens} tokens are few for the {width} columns of {part}: damping {damping:.2g} instead of "
                f"{least:g}; {20 * width} tokens would be plenty"
            )
