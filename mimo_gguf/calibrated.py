"""The verb `calibrate`: files of the usual types and bytes that are nearer to the model, by calibration.

    plan_calibrate, calibrate     behind `mimo-gguf quantize --calibrate`, with the defaults of the command

It joins conversion, quality's texts, calibration and quantization, which do not import each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimo_gguf.verb_arguments import Names, destination_of, make_output_folder, part_bytes, profiles_of, type_options

if TYPE_CHECKING:
    from mimo_gguf.calibration.calibrate import CalibrationReport
    from mimo_gguf.calibration.estimate import TimeExpected
    from mimo_gguf.calibration.plan import CalibrationOptions, CalibrationPlan
    from mimo_gguf.core.model_source import ModelSource
    from mimo_gguf.core.progress import Progress
    from mimo_gguf.quantization.plan import QuantizeOptions

__all__ = ["calibrate", "plan_calibrate"]

# The types that bytes are compared with if no type is named, smallest first.
_BASES = ("Q3_K_M", "IQ4_XS", "Q4_K_M", "Q5_K_M", "Q6_K")


def plan_calibrate(
    src: str | Path,
    *,
    types: Names = (),
    out: str | Path | None = None,
    texts: str | Sequence[str] = (),
    tokens: int | None = None,
    mix: str | None = None,
    most_bytes: str | int | None = None,
    bpw: float | None = None,
    work: str | Path | None = None,
    mtp_type: str | None = None,
    tensor_types: str | Sequence[str] = (),
    output_type: str | None = None,
    token_embedding_type: str | None = None,
    allow_requantize: bool = False,
    threads: int | None = None,
    split_max_size: str | int | None = None,
    force: bool = False,
) -> tuple[CalibrationPlan, TimeExpected]:
    """Plans what `calibrate` with the same arguments would do, and estimates its time from a measured sample.

    Raises:
        MimoGgufError: as `calibrate`, except for errors that only the weights show.
    """
    from mimo_gguf.calibration.estimate import estimate_time

    options = _options(mix, work, threads)
    quantize = _quantize_options(
        mtp_type, tensor_types, output_type, token_embedding_type, allow_requantize, threads, split_max_size, force
    )
    with _planned(src, types, out, texts, tokens, most_bytes, bpw, options, quantize, headers_only=True) as plan:
        return plan, estimate_time(plan)


def calibrate(
    src: str | Path,
    *,
    types: Names = (),
    out: str | Path | None = None,
    texts: str | Sequence[str] = (),
    tokens: int | None = None,
    mix: str | None = None,
    most_bytes: str | int | None = None,
    bpw: float | None = None,
    work: str | Path | None = None,
    mtp_type: str | None = None,
    tensor_types: str | Sequence[str] = (),
    output_type: str | None = None,
    token_embedding_type: str | None = None,
    allow_requantize: bool = False,
    threads: int | None = None,
    split_max_size: str | int | None = None,
    force: bool = False,
    on_plan: Callable[[CalibrationPlan], None] | None = None,
    progress: Progress | None = None,
) -> CalibrationReport:
    """Quantizes a model with calibration: types solved for the bytes, matrices encoded with error feedback.

    An interrupted call can be repeated: it goes on where it stopped, and gives the same bytes.

    Args:
        src: a checkpoint folder, a float GGUF, or `org/name` or `org/name@revision` on the Hub.
        types: file types like "Q4_K_M", or TOML files of profiles; without any, the nearest below the bytes given.
        out: NAME.gguf, or a folder that is made if it is missing; None means a GGUF's own folder, or the current one.
        texts: files, folders, JSONL files of conversations, names (docs/quality.md); none: what every machine has.
        tokens: tokens to calibrate with; None means 32768.
        mix: "solve" (None means this), "free" (head and embedding, too) or "profile" (the types of the file type).
        most_bytes: the most bytes of the file, or a text like "4.4GiB"; None means those of the file type.
        bpw: the most bits per weight, instead.
        work: a folder for what is measured and encoded, kept afterwards; None: one beside the file, until it is done.
        mtp_type, tensor_types, output_type, token_embedding_type: types that are not solved, as in `quantize`.
        allow_requantize, threads, split_max_size, progress: as in `quantize`.
        force: whether existing outputs are replaced, and a run is started that may need more memory than is free.
        on_plan: called with the plan before anything is computed.

    Raises:
        UsageError: options that contradict each other or match nothing, no such text, or too few bytes.
        DoesNotFit: too little free memory.
        MimoGgufError: as `quantize`.
    """
    from mimo_gguf.calibration.calibrate import run_calibration

    options = _options(mix, work, threads)
    quantize = _quantize_options(
        mtp_type, tensor_types, output_type, token_embedding_type, allow_requantize, threads, split_max_size, force
    )
    with _planned(src, types, out, texts, tokens, most_bytes, bpw, options, quantize) as plan:
        if on_plan is not None:
            on_plan(plan)
        make_output_folder(out, plan.outputs[0].path)
        return run_calibration(plan, progress)


@contextmanager
def _planned(
    src: str | Path,
    types: Names,
    out: str | Path | None,
    texts: str | Sequence[str],
    tokens: int | None,
    most_bytes: str | int | None,
    bpw: float | None,
    options: CalibrationOptions,
    quantize: QuantizeOptions,
    *,
    headers_only: bool = False,
) -> Iterator[CalibrationPlan]:
    """Plans a calibration; its source is open until the end of the `with` block."""
    from dataclasses import replace

    from mimo_gguf.calibration.plan import plan_calibration
    from mimo_gguf.calibration.solved_profile import solved_name
    from mimo_gguf.calibration.text import DEFAULT_TOKENS, calibration_text
    from mimo_gguf.conversion.open_model import is_gguf, open_model
    from mimo_gguf.core.output_file import name_outputs
    from mimo_gguf.quantization.plan import OutputRequest

    profiles, destination = profiles_of(types), destination_of(out)
    with open_model(str(src), headers_only=headers_only) as source:
        budget = _budget_bytes(source, most_bytes, bpw)
        profiles = profiles or profiles_of(_nearest_type(source, budget))
        beside = Path(src).parent if is_gguf(str(src)) else Path()
        paths = name_outputs(destination, beside, source.name, [solved_name(profile) for profile in profiles])
        requests = [OutputRequest(profile, path) for profile, path in zip(profiles, paths, strict=True)]
        named = [texts] if isinstance(texts, str) else list(texts)
        text = calibration_text(source, named, DEFAULT_TOKENS if tokens is None else tokens)
        yield plan_calibration(source, requests, text, replace(options, budget_bytes=budget), quantize)


def _options(mix: str | None, work: str | Path | None, threads: int | None) -> CalibrationOptions:
    from typing import cast

    from mimo_gguf.calibration.encode import EncodeOptions
    from mimo_gguf.calibration.plan import CalibrationOptions
    from mimo_gguf.calibration.type_plan import MIXES, MixKind
    from mimo_gguf.core.errors import UsageError
    from mimo_gguf.core.near_matches import name_hint

    kind = mix or "solve"
    if kind not in MIXES:
        raise UsageError(f"--mix: {kind!r} is not one of its values", hint=name_hint(kind, MIXES))
    folder = None if work is None else Path(work).expanduser()
    return CalibrationOptions(mix=cast(MixKind, kind), encode=EncodeOptions(n_threads=threads), work=folder)


def _quantize_options(
    mtp_type: str | None,
    tensor_types: str | Sequence[str],
    output_type: str | None,
    token_embedding_type: str | None,
    allow_requantize: bool,
    threads: int | None,
    split_max_size: str | int | None,
    force: bool,
) -> QuantizeOptions:
    from mimo_gguf.quantization.plan import QuantizeOptions

    return QuantizeOptions(
        types=type_options(mtp_type, tensor_types, output_type, token_embedding_type),
        n_threads=threads,
        split_max_bytes=part_bytes(split_max_size),
        force=force,
        allow_requantize=allow_requantize,
    )


def _budget_bytes(source: ModelSource, most_bytes: str | int | None, bpw: float | None) -> int | None:
    """The most bytes of the tensors that the user allows, or None; of a file's bytes its header takes a share."""
    from mimo_gguf.core.certificate_room import CERTIFICATE_KEY, empty_room
    from mimo_gguf.core.errors import UsageError
    from mimo_gguf.core.gguf_header import lay_out
    from mimo_gguf.core.units import parse_size

    if most_bytes is not None and bpw is not None:
        raise UsageError("--bytes and --bpw both say how large the file may be", hint="give one of them")
    if bpw is not None:
        if not 0 < bpw <= 32:
            raise UsageError(f"{bpw:g} bits per weight", hint="--bpw 4.25")
        return int(bpw * sum(tensor.info.n_elements for tensor in source.tensors) / 8)
    if most_bytes is None:
        return None
    infos = [tensor.info for tensor in source.tensors]
    header = lay_out({**source.metadata, CERTIFICATE_KEY: empty_room()}, infos).header
    return parse_size(str(most_bytes)) - len(header)


def _nearest_type(source: ModelSource, budget: int | None) -> Any:
    """The largest of the usual types that has no more bytes; the smallest if all have more; none without bytes."""
    from mimo_gguf.core.geometry import read_geometry
    from mimo_gguf.quantization.profiles import load_profile
    from mimo_gguf.quantization.type_choice import choose_types

    if budget is None:
        return ()
    infos = [tensor.info for tensor in source.tensors]
    geometry = read_geometry(source.metadata, infos, where=source.label)
    sizes = {
        name: sum(choice.info.n_bytes for choice in choose_types(load_profile(name), geometry, infos))
        for name in _BASES
    }
    return next((name for name in reversed(_BASES) if sizes[name] <= budget), _BASES[0])
