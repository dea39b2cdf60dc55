"""Collects the log-probabilities of one answer and its prompt from the passes that compute their logits."""

from __future__ import annotations

from collections.abc import Sequence

from mimo_gguf.chat.answer import AnswerOptions
from mimo_gguf.engine.logprobs import Scores, TokenScore, score_token
from mimo_gguf.engine.slot import ReadRows
from mimo_gguf.llama.api import Floats, LlamaContext


class AnswerScores:
    """Scores as far as they were requested, in the order of the tokens."""

    def __init__(self, prompt: Sequence[int], options: AnswerOptions) -> None:
        self._prompt = prompt
        self._n_top, self._n_top_prompt = options.logprobs, options.prompt_logprobs
        self._answer: list[Scores] = []
        self._of_prompt: list[Scores] = [() for _ in prompt]
        self._noted: ReadRows | None = None

    def add_rows(self, rows: ReadRows | None, context: LlamaContext) -> None:
        """Scores the prompt's tokens that come after the tokens of these rows, if that was requested."""
        if self._n_top_prompt is None or rows is None or rows is self._noted:
            return
        self._noted = rows
        for i in range(rows.n):
            place = rows.position + i + 1
            if place < len(self._prompt):
                logits = context.logits(rows.first_row + i)
                self._of_prompt[place] = score_token(logits, self._prompt[place], self._n_top_prompt)

    def add_drawn(self, logits: Floats, token: int) -> None:
        """Scores a token that was drawn."""
        if self._n_top is not None:
            self._answer.append(score_token(logits, token, self._n_top))

    def add_inserted(self, tokens: Sequence[int]) -> None:
        """Notes that these tokens are put into the answer, and so are certain."""
        if self._n_top is not None:
            self._answer += [(TokenScore(token, 0.0, 1),) for token in tokens]

    def of_answer(self, n_tokens: int) -> tuple[Scores, ...] | None:
        """One entry for each of the answer's first `n_tokens` tokens; None if they were not requested."""
        return None if self._n_top is None else tuple(self._answer[:n_tokens])

    @property
    def of_prompt(self) -> tuple[Scores, ...] | None:
        """One entry for each token of the prompt; None if they were not requested."""
        return None if self._n_top_prompt is None else tuple(self._of_prompt)
