"""Text to tokens and tokens to bytes, through llama.cpp's own tokenizer."""

from __future__ import annotations

import ctypes
from functools import cached_property

from mimo_gguf.core.errors import BackendError
from mimo_gguf.llama.api import LlamaModel, api


class Vocabulary:
    """The tokenizer of a loaded model."""

    def __init__(self, model: LlamaModel) -> None:
        self._model = model  # keeps the vocabulary's owner alive
        self.n_tokens = model.n_vocab
        self._pieces: dict[int, bytes] = {}

    def tokenize(self, text: str, *, parse_special: bool = True) -> list[int]:
        """Token ids of `text`; nothing is put before or after it.

        `parse_special` reads `<|im_start|>` and its like as the tokens they name, wherever they stand: what Hugging
        Face tokenizers do with a rendered chat template, user text included.
        """
        if not text:
            return []
        raw = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").encode()
        room = len(raw) + 2
        tokens = (ctypes.c_int32 * room)()
        n = api().llama_tokenize(self._model.vocab, raw, len(raw), tokens, room, False, parse_special)
        if n < 0:
            raise BackendError(f"llama.cpp cannot tokenize a text of {len(raw)} bytes", hint="give a shorter text")
        return list(tokens[:n])

    def piece(self, token: int) -> bytes:
        """The bytes a token adds to the text, which may be part of a character. Empty for control tokens."""
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._read_piece(token, special=False)
        return known

    def name(self, token: int) -> str:
        """A token as people write it, control tokens too; a byte that is no character by itself is `<E4>`."""
        text = self._read_piece(token, special=True).decode("utf-8", "surrogateescape")
        return "".join(f"<{ord(c) - 0xDC00:02X}>" if "\udc80" <= c <= "\udcff" else c for c in text)

    def _read_piece(self, token: int, *, special: bool) -> bytes:
        room = 128
        while True:
            buffer = ctypes.create_string_buffer(room)
            n = api().llama_token_to_piece(self._model.vocab, token, buffer, room, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            room = -n

    def text(self, tokens: list[int]) -> str:
        """The text of tokens; broken UTF-8 becomes U+FFFD, control tokens vanish."""
        return b"".join(self.piece(token) for token in tokens).decode("utf-8", "replace")

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end an answer (`<|im_end|>`, `<|endoftext|>`)."""
        vocab, is_end = self._model.vocab, api().llama_vocab_is_eog
        return frozenset(token for token in range(self.n_tokens) if is_end(vocab, token))
