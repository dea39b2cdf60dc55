"""Converts text to tokens and tokens to bytes, with llama.cpp's tokenizer."""

from __future__ import annotations

import ctypes
import unicodedata
from functools import cached_property

from mimo_gguf.core.errors import BackendError
from mimo_gguf.core.tokenizer_keys import ADDED_IDS, END_IDS, NORMALIZED_IDS, parse_ids
from mimo_gguf.llama.added_tokens import AddedToken, AddedTokens
from mimo_gguf.llama.api import LlamaModel, api


class Vocabulary:
    """The tokenizer of a loaded model, for any thread. Closing the model waits for a text that is being tokenized."""

    def __init__(self, model: LlamaModel) -> None:
        self._model = model  # owns llama.cpp's vocabulary
        self.n_tokens = model.n_vocab
        self._pieces: dict[tuple[int, bool], bytes] = {}

    def tokenize(self, text: str, *, parse_special: bool = True) -> list[int]:
        """The token ids of `text`, as the model's Hugging Face tokenizer gives them, without special tokens around.

        Added tokens are found first, in the text as it is. The text between them is normalized (NFC for Qwen2), which
        llama.cpp does not do. So `<|im_end|>` stays a token even if a combining mark comes after it.

        Args:
            parse_special: read `<|im_start|>` and other control tokens as the tokens they name, wherever they stand.
                Hugging Face tokenizers do that with a rendered chat template, user text included.

        Raises:
            BackendError: the text has 2 GiB or more.
            UsageError: the model was closed.
        """
        self._model.check_here()  # before any lock that may be held by a thread which a fork has removed
        added = self._added_tokens
        ids: list[int] = []
        # Half a surrogate pair, which Python can hold and UTF-8 cannot, becomes U+FFFD as in other programs.
        whole = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        for part, token in added.split(whole, special=parse_special, normalized=False):
            if token is not None:
                ids.append(token)
                continue
            plain = self._normalized(part)
            for piece, inner in added.split(plain, special=parse_special, normalized=True):
                ids += self._merge(piece) if inner is None else [inner]
        return ids

    def _normalized(self, text: str) -> str:
        return unicodedata.normalize("NFC", text) if self._is_nfc else text

    def _merge(self, text: str) -> list[int]:
        """The token ids of a text without added tokens, as llama.cpp gives them."""
        raw = text.encode()
        room = len(raw) + 2
        tokens = (ctypes.c_int32 * room)()
        with self._model.lock:
            n = api().llama_tokenize(self._model.vocab, raw, len(raw), tokens, room, False, False)
        if n < 0:
            raise BackendError(f"llama.cpp cannot tokenize a text of {len(raw)} bytes", hint="give a shorter text")
        return list(tokens[:n])

    @cached_property
    def _is_nfc(self) -> bool:
        """Whether the model's tokenizer normalizes text to NFC first. Source: `Qwen2Tokenizer` in transformers."""
        return read_text_value(self._model, "tokenizer.ggml.pre") == "qwen2"

    @cached_property
    def _added_tokens(self) -> AddedTokens:
        with self._model.lock:
            return self._read_added_tokens()

    def _read_added_tokens(self) -> AddedTokens:
        vocab, module = self._model.vocab, api()
        normalized = parse_ids(read_text_value(self._model, NORMALIZED_IDS), self.n_tokens)
        tokens = []
        for token in sorted(self._added_ids):
            is_control = bool(module.llama_vocab_get_attr(vocab, token) & module.LLAMA_TOKEN_ATTR_CONTROL)
            tokens.append(AddedToken(token, self._content(token), is_control, token in normalized))
        return AddedTokens(tokens, self._normalized)

    @cached_property
    def _added_ids(self) -> frozenset[int]:
        """The ids of the added tokens: those that the conversion stored, else those that llama.cpp names.

        llama.cpp treats every token that looks like an end token as one, whatever the file says. For Qwen2 that is
        `</s>`, which Hugging Face reads as three ordinary tokens.
        """
        stated = read_text_value(self._model, ADDED_IDS)
        if stated is not None:
            return parse_ids(stated, self.n_tokens)
        vocab, module = self._model.vocab, api()
        whole = module.LLAMA_TOKEN_ATTR_CONTROL | module.LLAMA_TOKEN_ATTR_USER_DEFINED
        found = (token for token in range(self.n_tokens) if module.llama_vocab_get_attr(vocab, token) & whole)
        return frozenset(token for token in found if not (self._is_nfc and self._content(token) == "</s>"))

    def _content(self, token: int) -> str:
        return str(api().llama_vocab_get_text(self._model.vocab, token).decode("utf-8", "replace"))

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes that a token adds to the text, which may be part of a character.

        Control tokens add nothing; with `special` they add their names.
        """
        known = self._pieces.get((token, special))
        if known is None:
            known = self._pieces[token, special] = self._read_piece(token, special=special)
        return known

    def name(self, token: int) -> str:
        """A token's text for people, also of control tokens. A byte that is not a character by itself is `<E4>`."""
        text = self._read_piece(token, special=True).decode("utf-8", "surrogateescape")
        return "".join(f"<{ord(c) - 0xDC00:02X}>" if "\udc80" <= c <= "\udcff" else c for c in text)

    def _read_piece(self, token: int, *, special: bool) -> bytes:
        room = 128
        while True:
            buffer = ctypes.create_string_buffer(room)
            with self._model.lock:
                n = api().llama_token_to_piece(self._model.vocab, token, buffer, room, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            room = -n

    def text(self, tokens: list[int]) -> str:
        """The text of tokens, without control tokens; broken UTF-8 becomes U+FFFD."""
        return b"".join(self.piece(token) for token in tokens).decode("utf-8", "replace")

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """The tokens that end an answer: `<|im_end|>`, `<|endoftext|>`, and those that the checkpoint's files add."""
        further = parse_ids(read_text_value(self._model, END_IDS), self.n_tokens)
        with self._model.lock:
            vocab, module = self._model.vocab, api()
            possible = self._added_ids | {module.llama_vocab_eos(vocab), module.llama_vocab_eot(vocab)}
            return further | {token for token in possible if token >= 0 and module.llama_vocab_is_eog(vocab, token)}


def read_text_value(model: LlamaModel, key: str) -> str | None:
    """A value of the model's metadata as text; None if the key does not exist."""
    room = 256
    while True:
        buffer = ctypes.create_string_buffer(room)
        with model.lock:
            n = api().llama_model_meta_val_str(model.pointer, key.encode(), buffer, room)
        if n < room:
            return None if n < 0 else buffer.value.decode("utf-8", "replace")
        room = n + 1
