"""What a measurement will do, decided from headers and texts: windows, base, where everything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mimo_gguf.conversion.open_model import is_gguf, open_model
from mimo_gguf.core.digests import TEXT
from mimo_gguf.core.errors import DoesNotFit, UsageError
from mimo_gguf.core.gguf_file import GgufFile, open_gguf
from mimo_gguf.core.model_sizes import ModelSizes, model_sizes
from mimo_gguf.core.model_source import Metadata
from mimo_gguf.core.near_matches import name_hint
from mimo_gguf.core.paths import command_word
from mimo_gguf.core.runnable import read_runnable
from mimo_gguf.core.units import format_size
from mimo_gguf.engine.drafting import HiddenState
from mimo_gguf.quality.backend import UBATCH, n_judged
from mimo_gguf.quality.report import Arithmetic, BaseInfo, BaseWay, KindInfo, TextInfo
from mimo_gguf.quality.text_sources import ALWAYS_THERE, read_texts
from mimo_gguf.quality.texts import Document, Part, Window, digest_of, part_of, tokenizer_of, windows_of

N_CTX: Final = 512  # llama-perplexity's default
N_TOKENS: Final = 16384


@dataclass(frozen=True, slots=True)
class QualityOptions:
    """How files are judged.

    Attributes:
        n_ctx: tokens of a window; the second half is judged.
        n_tokens: tokens to read in all, the same number of each kind of text; None reads everything.
        arithmetic: "backend" reads through llama.cpp; "float32" computes with the weights in float32. None means
            backend if all files fit into memory.
        hidden: states that the MTP block is given; empty leaves it out. Files without MTP are judged without it.
        needs_mtp: refuse files without MTP.
        all_text: also read what is for calibration.
        n_threads: 0 means the physical cores.
        n_gpu_layers: None means all blocks on the GPU if they fit there, else none.
    """

    n_ctx: int = N_CTX
    n_tokens: int | None = N_TOKENS
    arithmetic: Arithmetic | None = None
    hidden: tuple[HiddenState, ...] = ("pre",)
    needs_mtp: bool = False
    all_text: bool = False
    n_threads: int = 0
    n_gpu_layers: int | None = None


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file to judge: its header, its sizes, and the states that its MTP block is given."""

    header: GgufFile
    sizes: ModelSizes
    fingerprint: str
    hidden: tuple[HiddenState, ...]

    @property
    def path(self) -> Path:
        return self.header.path


@dataclass(frozen=True, slots=True)
class QualityPlan:
    """Everything that a run needs to know.

    Attributes:
        notes: what was decided and is not obvious, in words.
    """

    files: tuple[PlannedFile, ...]
    base: BaseInfo | None
    windows: tuple[Window, ...]
    texts: TextInfo
    options: QualityOptions
    arithmetic: Arithmetic
    n_gpu_layers: int
    notes: tuple[str, ...] = ()


def plan_quality(files: Sequence[Path], base: str | None, texts: Sequence[str], options: QualityOptions) -> QualityPlan:
    """Plans a measurement. Headers are read, and the texts are cut into windows.

    Raises:
        UsageError: no such text, too little of it, or a base with another vocabulary.
        GgufError, CheckpointError, HubError: a file or base that cannot be read.
        DoesNotFit: a file needs more memory than is free.
    """
    if not files:
        raise UsageError("no file was given", hint="mimo-gguf quality FILE.gguf")
    planned = [_planned_file(path, options) for path in files]
    first, notes = planned[0], []
    for other in planned[1:]:
        _check_vocabulary(other.path.name, other.header.metadata, first.path.name, first.header.metadata)
    arithmetic, n_gpu_layers = _place(planned, options)
    if arithmetic != (options.arithmetic or arithmetic) or (options.arithmetic is None and arithmetic == "float32"):
        notes.append("the files do not fit into memory: their weights are judged in float32, one block at a time")
    info = None if base is None else _base_info(base, planned, options, arithmetic, n_gpu_layers)
    if options.hidden and not any(file.hidden for file in planned):
        notes.append("no file has an MTP layer")
    documents = read_texts(texts, whole=options.all_text)
    windows = _windows(first, documents, options)
    text_info = _text_info(texts, documents, windows, options)
    return QualityPlan(tuple(planned), info, tuple(windows), text_info, options, arithmetic, n_gpu_layers, tuple(notes))


def _planned_file(path: Path, options: QualityOptions) -> PlannedFile:
    header = read_runnable(path)
    sizes = model_sizes(header)
    if options.needs_mtp and not sizes.has_mtp:
        raise UsageError(f"{path.name}: has no MTP layer", hint="leave --mtp out")
    with open_gguf(path) as source:
        fingerprint = source.fingerprint
    return PlannedFile(header, sizes, fingerprint, options.hidden if sizes.has_mtp else ())


def _base_info(
    base: str, files: Sequence[PlannedFile], options: QualityOptions, arithmetic: Arithmetic, n_gpu_layers: int
) -> BaseInfo:
    with open_model(base, headers_only=True) as source:
        first = files[0]  # all files have the same vocabulary
        _check_vocabulary(first.path.name, first.header.metadata, source.label, source.metadata)
    with open_model(base) as source:  # of a Hub id the files are downloaded now: headers alone have no lasting name
        fingerprint = source.fingerprint
    sizes = model_sizes(read_runnable(base)) if arithmetic == "backend" and is_gguf(base) else None
    return BaseInfo(base, fingerprint, _way(files, sizes, options, n_gpu_layers))


def _check_vocabulary(name: str, metadata: Metadata, other_name: str, other: Metadata) -> None:
    """Raises UsageError if two models do not read a text as the same tokens."""
    for key in ("tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens", "tokenizer.ggml.merges"):
        mine, theirs = (list(each[key].value) if key in each else None for each in (metadata, other))
        if mine == theirs:
            continue
        what = f"{len(mine or ())} and {len(theirs or ())} tokens" if key.endswith("tokens") else "other tokenizers"
        if key.endswith("tokens") and len(mine or ()) == len(theirs or ()):
            what = "other tokens"
        raise UsageError(
            f"{name} and {other_name} cannot be compared: their vocabularies have {what}",
            hint="compare files of the same model",
        )


def _windows(first: PlannedFile, documents: Sequence[Document], options: QualityOptions) -> list[Window]:
    from mimo_gguf.chat.template import ChatTemplate
    from mimo_gguf.llama.checkpoint_vocabulary import vocabulary_of

    if options.n_ctx > first.sizes.geometry.context_length:
        most = first.sizes.geometry.context_length
        raise UsageError(f"a window of {options.n_ctx} tokens: the model has {most}", hint=f"--ctx {most}")
    with open_gguf(first.path) as source:
        vocabulary = vocabulary_of(source)
    tokenize = tokenizer_of(vocabulary, ChatTemplate.of_file(first.header))
    part: Part | None = None if options.all_text else "judgement"
    return windows_of(documents, tokenize, options.n_ctx, options.n_tokens, part)


def _text_info(
    names: Sequence[str], documents: Sequence[Document], windows: Sequence[Window], options: QualityOptions
) -> TextInfo:
    used = [document for document in documents if options.all_text or part_of(document) == "judgement"]
    kinds = {}
    for kind in dict.fromkeys(window.kind for window in windows):
        n = sum(window.kind == kind for window in windows)
        n_documents = sum(document.kind == kind for document in used)
        kinds[kind] = KindInfo(n_documents, n, n * options.n_ctx, n * n_judged(options.n_ctx))
    return TextInfo(
        names=tuple(names) or ALWAYS_THERE,
        digest=digest_of(used),
        windows_digest=TEXT.hex(*(window.tokens.tobytes() for window in windows)),
        kinds=kinds,
        n_left_out=len(documents) - len(used),
    )


# ---- where it is computed


def _way(files: Sequence[PlannedFile], base: ModelSizes | None, options: QualityOptions, n_gpu_layers: int) -> BaseWay:
    """How the base's predictions come: as fast as memory allows, and computed once if there are several files."""
    if base is None:
        return "block by block"
    base_bytes = _needed_bytes(base, options, n_gpu_layers, mtp=False)
    free = _free_bytes(n_gpu_layers)
    if len(files) == 1:
        file_bytes = _needed_bytes(files[0].sizes, options, n_gpu_layers, mtp=bool(files[0].hidden))
        if base_bytes + file_bytes <= free:
            return "in step"
    return "states" if base.has_mtp and base_bytes <= free else "block by block"


def _place(files: Sequence[PlannedFile], options: QualityOptions) -> tuple[Arithmetic, int]:
    """The arithmetic, and the number of layers on the GPUs.

    Raises:
        DoesNotFit: llama.cpp was asked for, and a file does not fit into memory.
    """
    if options.arithmetic == "float32":
        return "float32", 0
    n_gpu_layers = options.n_gpu_layers
    if n_gpu_layers is None:
        n_gpu_layers = -1 if _has_gpu() and all(_fits(file, options, -1) for file in files) else 0
    for file in files:
        if _fits(file, options, n_gpu_layers):
            continue
        if options.arithmetic is None:
            return "float32", 0
        needed = format_size(_needed_bytes(file.sizes, options, n_gpu_layers, mtp=bool(file.hidden)))
        raise DoesNotFit(
            f"{file.path.name}: needs {needed}, and {format_size(_free_bytes(n_gpu_layers))} are free",
            hint=f"one block at a time: mimo-gguf quality {command_word(file.path)} --arithmetic float32",
        )
    return "backend", n_gpu_layers


def _fits(file: PlannedFile, options: QualityOptions, n_gpu_layers: int) -> bool:
    needed = _needed_bytes(file.sizes, options, n_gpu_layers, mtp=bool(file.hidden))
    return needed <= _free_bytes(n_gpu_layers)


def _needed_bytes(model: ModelSizes, options: QualityOptions, n_gpu_layers: int, *, mtp: bool) -> int:
    """The bytes of weights, caches and buffers together, wherever they lie."""
    from mimo_gguf.memory.predict import predict_memory
    from mimo_gguf.memory.run import RunSettings

    rows = n_judged(options.n_ctx) + 1
    settings = RunSettings(
        n_ctx=options.n_ctx,
        n_batch=options.n_ctx,
        n_ubatch=min(options.n_ctx, UBATCH),
        kv_unified=False,
        n_outputs_max=rows,
        mtp=mtp,
        mtp_n_ubatch=options.n_ctx,
        mtp_n_outputs_max=rows,
    )
    return sum(memory.n_bytes for memory in predict_memory(model, settings))


def _has_gpu() -> bool:
    from mimo_gguf.hardware.devices import list_devices

    return any(device.is_gpu for device in list_devices())


def _free_bytes(n_gpu_layers: int) -> int:
    """The bytes that are free where the blocks will lie, less a margin for the driver and for logits."""
    from mimo_gguf.hardware.devices import CONTEXT_OVERHEAD, host_device, list_devices

    if not n_gpu_layers:
        return host_device().free_bytes
    gpus = [device for device in list_devices() if device.is_gpu]
    return sum(max(gpu.free_bytes - CONTEXT_OVERHEAD.get(gpu.backend, 0), 0) for gpu in gpus)


# ---- options as people write them


def parse_options(
    *,
    ctx: int,
    tokens: int,
    arithmetic: str | None,
    hidden: str,
    mtp: bool | None,
    all_text: bool,
    threads: int | None,
    gpu_layers: int | None,
) -> QualityOptions:
    """The options of a run from those of the command.

    Raises:
        UsageError: a value that an option does not have.
    """
    _check_choice("--arithmetic", arithmetic, ("backend", "float32"))
    _check_choice("--hidden", hidden, tuple(_HIDDEN))
    if ctx < 2 or tokens < 0:
        raise UsageError("a window has at least 2 tokens", hint="--ctx 512 --tokens 16384")
    return QualityOptions(
        n_ctx=ctx,
        n_tokens=tokens or None,
        arithmetic=None if arithmetic is None else ("float32" if arithmetic == "float32" else "backend"),
        hidden=() if mtp is False else _HIDDEN[hidden],
        needs_mtp=bool(mtp),
        all_text=all_text,
        n_threads=threads or 0,
        n_gpu_layers=gpu_layers,
    )


_HIDDEN: Final[dict[str, tuple[HiddenState, ...]]] = {"pre": ("pre",), "post": ("post",), "both": ("pre", "post")}


def _check_choice(option: str, value: str | None, choices: Sequence[str]) -> None:
    if value is not None and value not in choices:
        raise UsageError(f"{option}: {value!r} is not one of its values", hint=name_hint(value, choices))
