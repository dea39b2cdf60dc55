"""Texts to calibrate with and to judge by: documents, their split in two parts, and windows of tokens.

A document is text or a conversation. Which part it belongs to is told by the digest of its content, so nobody who
splits by `part_of` ever judges a file by what the file was calibrated with. Everything here is deterministic: the same
documents give the same windows, in the same order, on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.core.digests import TEXT
from mimo_gguf.core.errors import UsageError

if TYPE_CHECKING:
    from mimo_gguf.chat.template import ChatTemplate
    from mimo_gguf.llama.vocabulary import Vocabulary

Tokens = NDArray[np.int32]
Part = Literal["calibration", "judgement"]

_JUDGED_OF: Final = 4  # one document in four is for judging: calibration needs more tokens


@dataclass(frozen=True, slots=True)
class Document:
    """A text, or a conversation that the file's own chat template makes a text of.

    Attributes:
        kind: what kind of text it is, like "code"; figures are given for each kind.
        name: where it comes from, for messages.
        text: the text, or None for a conversation.
        messages: the messages of a conversation, each with `role` and `content`.
    """

    kind: str
    name: str
    text: str | None = None
    messages: tuple[Mapping[str, Any], ...] = ()

    @property
    def digest(self) -> str:
        """The SHA-256 of the content: the text, or of a conversation its longest message.

        So a passage that a conversation was made of has the digest of the passage, and stays in its part.
        """
        content = self.text
        if content is None:
            content = max((str(message.get("content") or "") for message in self.messages), key=len, default="")
        return TEXT.hex(content.strip().encode("utf-8", "surrogatepass"))


@dataclass(frozen=True, slots=True)
class Window:
    """A piece of text as the model reads it: int32 tokens [n_ctx], all of one kind."""

    kind: str
    tokens: Tokens


Tokenize = Callable[[Document], Sequence[int]]


def part_of(document: Document) -> Part:
    """The part that a document belongs to: one in four is for judging, the others are for calibration."""
    return "judgement" if int(document.digest[:8], 16) % _JUDGED_OF == 0 else "calibration"


def digest_of(documents: Iterable[Document]) -> str:
    """The SHA-256 of a set of documents, whatever their order, as lower-case hexadecimal digits."""
    lines = sorted(f"{document.kind} {document.digest}\n" for document in documents)
    return TEXT.hex("".join(lines).encode())


def tokenizer_of(vocabulary: Vocabulary, template: ChatTemplate) -> Tokenize:
    """A function that turns a document into tokens as the model's own tokenizer and chat template do.

    In a plain text no control token is recognised, as in llama-perplexity; in a rendered conversation they all are.
    """

    def tokenize(document: Document) -> Sequence[int]:
        if document.text is not None:
            return vocabulary.tokenize(document.text, parse_special=False)
        prompt = template.render(document.messages, add_generation_prompt=False)
        return vocabulary.tokenize(prompt)

    return tokenize


def windows_of(
    documents: Sequence[Document],
    tokenize: Tokenize,
    n_ctx: int,
    n_tokens: int | None,
    part: Part | None,
) -> list[Window]:
    """Cuts documents into windows, kind by kind, in the order in which the kinds appear.

    A kind gets an equal share of the tokens, and takes one window from each document before it takes a second one. Of
    a single long document the windows are consecutive, from its first token on, as llama-perplexity's chunks are.
    Documents that are shorter than a window are put together.

    Args:
        documents: all documents; those of the other part are left out here.
        tokenize: gives the tokens of a document.
        n_ctx: tokens of a window.
        n_tokens: tokens of all windows, at most; None takes every whole window there is.
        part: the part to take, or None for all documents.

    Raises:
        UsageError: fewer tokens than a window asked for, or a kind without text enough for one window.
    """
    if n_ctx < 2:
        raise UsageError(f"a window of {n_ctx} tokens", hint="--ctx 512")
    kinds: dict[str, list[Document]] = {}
    for document in documents:
        kinds.setdefault(document.kind, [])
        if part is None or part_of(document) == part:
            kinds[document.kind].append(document)
    if not kinds:
        raise UsageError("no text was given", hint="-f TEXT.txt")
    n_each = None if n_tokens is None else n_tokens // (len(kinds) * n_ctx)
    if n_each == 0:
        wanted = f"{n_tokens} tokens in {len(kinds)} kinds of text"
        raise UsageError(f"{wanted} are less than a window of {n_ctx} each", hint=f"--tokens {len(kinds) * n_ctx}")
    windows = []
    for kind, of_kind in kinds.items():
        found = list(_windows(kind, of_kind, tokenize, n_ctx, n_each))
        _check_enough(kind, of_kind, found, n_ctx, part)
        windows += found
    return windows


def _check_enough(
    kind: str, documents: Sequence[Document], found: Sequence[Window], n_ctx: int, part: str | None
) -> None:
    """Raises UsageError if a kind has no window."""
    if found:
        return
    what = "document" if part is None else f"document for {part}"
    if not documents:
        raise UsageError(f"{kind}: no {what}; documents are split by their content", hint="give more text")
    raise UsageError(f"{kind}: the text is shorter than one window of {n_ctx} tokens", hint="give more text, or --ctx")


def _windows(
    kind: str, documents: Sequence[Document], tokenize: Tokenize, n_ctx: int, n_windows: int | None
) -> Iterator[Window]:
    """Yields windows round by round; documents are tokenized as they are reached, and only once."""
    # The order by digest is as good as drawn, and does not depend on the order of files in a folder.
    ordered = sorted(documents, key=lambda document: document.digest)
    rests: list[Iterator[Tokens]] = []
    short: list[int] = []
    given = 0
    for document in ordered:
        if given == n_windows:
            return
        tokens = np.asarray(tokenize(document), np.int32)
        if len(tokens) < n_ctx:
            short += tokens.tolist()
            pieces = iter([np.array(short[:n_ctx], np.int32)] if len(short) >= n_ctx else [])
            short = short[n_ctx:] if len(short) >= n_ctx else short
        else:
            pieces = _pieces(tokens, n_ctx, from_start=len(ordered) == 1)
            rests.append(pieces)
        if (first := next(pieces, None)) is not None:
            given += 1
            yield Window(kind, first)
    while rests and given != n_windows:
        pieces = rests.pop(0)
        if (piece := next(pieces, None)) is not None:
            rests.append(pieces)
            given += 1
            yield Window(kind, piece)


def _pieces(tokens: Tokens, n_ctx: int, *, from_start: bool) -> Iterator[Tokens]:
    """Yields the whole windows of a document: in order, or from a third of it on, because beginnings are all alike."""
    n = len(tokens) // n_ctx
    first = 0 if from_start else n // 3
    for i in range(n):
        at = (first + i) % n * n_ctx
        yield tokens[at : at + n_ctx]
