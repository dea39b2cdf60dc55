"""Makes windows of tokens for a calibration: some to encode with, and some from other documents to judge by.

Documents that are for judging files (`quality.texts.part_of`) take no part at all, so that a file can be judged by
texts that its calibration never saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mimo_gguf.calibration.plan import CalibrationText
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.model_source import ModelSource
from mimo_gguf.quality.text_sources import read_texts
from mimo_gguf.quality.texts import Document, Tokenize, Window, digest_of, part_of, tokenizer_of, windows_of

DEFAULT_TOKENS: Final = 32_768
WINDOW_TOKENS: Final = 512
_HELD_OUT_OF: Final = 8  # one document in eight of those for calibration, and one token for eight that are used


def calibration_text(
    source: ModelSource, names: Sequence[str] = (), n_tokens: int = DEFAULT_TOKENS, n_ctx: int = WINDOW_TOKENS
) -> CalibrationText:
    """Reads texts and tokenizes them as the model does, conversations through its chat template.

    Args:
        names: what `-f` takes: names of texts, files, folders; none means the texts that every machine has.
        n_tokens: tokens to encode with, at most.
        n_ctx: tokens of a window.

    Raises:
        UsageError: no such text, or too little of it.
        CheckpointError, GgufError: the model has no vocabulary or template that can be used.
    """
    from mimo_gguf.chat.template import ChatTemplate
    from mimo_gguf.llama.checkpoint_vocabulary import vocabulary_of

    documents = read_texts(names)
    tokenize = tokenizer_of(vocabulary_of(source), ChatTemplate.of_metadata(source.metadata))
    return split_text(documents, tokenize, n_tokens, n_ctx)


def split_text(documents: Sequence[Document], tokenize: Tokenize, n_tokens: int, n_ctx: int) -> CalibrationText:
    """Cuts documents into windows to encode with and windows to judge by.

    Raises:
        UsageError: too little text for one window of each kind.
    """
    ours = [document for document in documents if part_of(document) == "calibration"]
    used = windows_of([document for document in ours if not _is_held_out(document)], tokenize, n_ctx, n_tokens, None)
    held_out = _held_out([document for document in ours if _is_held_out(document)], tokenize, n_tokens, n_ctx)
    notes: tuple[str, ...] = ()
    if not held_out:
        used, held_out = _without_every(_HELD_OUT_OF, used)
        notes = ("too little text for held-out documents: matrices are judged by other pieces of the same documents",)
    if not held_out:
        notes = ("too little text: matrices are judged by the text that they are encoded with",)
    kinds = sorted({window.kind for window in used})
    short = [kind for kind in kinds if sum(window.kind == kind for window in used) * len(kinds) * n_ctx < n_tokens // 2]
    if short:
        notes += (f"less text than asked for of {', '.join(short)}",)
    return CalibrationText(
        used=tuple(window.tokens for window in used),
        held_out=tuple(window.tokens for window in held_out),
        digest=digest_of(ours),
        notes=notes,
    )


def _is_held_out(document: Document) -> bool:
    return int(document.digest[8:16], 16) % _HELD_OUT_OF == 0


def _held_out(documents: Sequence[Document], tokenize: Tokenize, n_tokens: int, n_ctx: int) -> list[Window]:
    """The windows to judge by: of each kind that has text enough for one."""
    kinds = {document.kind: None for document in documents}
    each = max(n_ctx, n_tokens // (_HELD_OUT_OF * max(1, len(kinds))))
    windows: list[Window] = []
    for kind in kinds:
        try:
            windows += windows_of([d for d in documents if d.kind == kind], tokenize, n_ctx, each, None)
        except UsageError:
            continue  # shorter than a window
    return windows


def _without_every(step: int, windows: list[Window]) -> tuple[list[Window], list[Window]]:
    """The windows without every `step`-th, and those."""
    out = windows[step - 1 :: step]
    return [window for place, window in enumerate(windows) if place % step != step - 1], out
