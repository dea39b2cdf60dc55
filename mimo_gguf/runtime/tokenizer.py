"""The model's tokenizer, with the names of Hugging Face's tokenizers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mimo_gguf.chat.messages import cut_after_last, read_messages
from mimo_gguf.chat.template import ChatTemplate, Message
from mimo_gguf.core.numbers import is_whole
from mimo_gguf.llama.vocabulary import Vocabulary
from mimo_gguf.runtime.prompts import read_prompt


class Tokenizer:
    """Converts text to token ids and back, and conversations to prompts."""

    def __init__(self, vocabulary: Vocabulary, template: ChatTemplate) -> None:
        self._vocabulary = vocabulary
        self._template = template

    def __len__(self) -> int:
        return self._vocabulary.n_tokens

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text. MiMo has no special tokens around a text, so `add_special_tokens` has no effect.

        Raises:
            UsageError: it is not a text.
        """
        return list(read_prompt({"prompt": text}, self._vocabulary).tokens)

    def decode(self, token_ids: int | Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of token ids; broken UTF-8 becomes U+FFFD.

        Raises:
            UsageError: the model has no such token.
        """
        ids = [token_ids] if is_whole(token_ids) else token_ids
        tokens = read_prompt({"prompt_token_ids": ids}, self._vocabulary).tokens
        pieces = (self._vocabulary.piece(token, special=not skip_special_tokens) for token in tokens)
        return b"".join(pieces).decode("utf-8", "replace")

    def apply_chat_template(
        self,
        conversation: Iterable[Message],
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str | list[int]:
        """The prompt of a conversation, as text or token ids. No system message is added.

        Raises:
            UsageError: the template refuses the conversation.
        """
        messages = read_messages(conversation)
        text = self._template.render(messages, add_generation_prompt=add_generation_prompt, **variables)
        if continue_final_message:
            text = cut_after_last(text, messages)
        return self.encode(text) if tokenize else text
