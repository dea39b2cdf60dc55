"""vLLM's `SamplingParams`, converted to the options for sampling, end and form of an answer."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, Self

from mimo_gguf.chat.answer import AnswerOptions, stop_texts
from mimo_gguf.chat.structured import grammar_after_reasoning, grammar_of
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.near_matches import name_hint
from mimo_gguf.core.numbers import is_number, is_whole
from mimo_gguf.engine.sampling import MAX_SEED, SamplingOptions
from mimo_gguf.llama.vocabulary import Vocabulary

_ALL_TOKENS: Final = 1 << 20  # penalties count the whole answer
_MOST_ANSWERS: Final = 10_000
# Names that vLLM has or had, and that are not possible here.
_REFUSED: Final = {
    "best_of": "draw several answers with n, and choose among them",
    "use_beam_search": "there is no beam search; n draws several answers",
    "logits_processors": "use logit_bias, allowed_token_ids or structured_outputs",
    "extra_args": "leave it out",
}


@dataclass(slots=True)
class StructuredOutputsParams:
    """The form of an answer. At most one of these may be given.

    Attributes:
        json: a JSON schema: a dict, a text, or a pydantic model.
        regex: a regular expression that the whole answer matches.
        choice: texts, one of which is the answer.
        grammar: a grammar in GBNF, llama.cpp's language for grammars.
        json_object: any JSON object.
    """

    json: Any = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None

    @property
    def gbnf(self) -> str | None:
        """The form as GBNF; None if none is given. Raises UsageError if a grammar cannot express it."""
        return grammar_of(**{each.name: getattr(self, each.name) for each in fields(self)})


GuidedDecodingParams = StructuredOutputsParams  # vLLM's name for it until 0.11


class RequestOutputKind(enum.Enum):
    """What `AsyncLLM.generate` yields: everything so far, what is new, or the finished output only."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass(slots=True)
class SamplingParams:
    """vLLM's names for `SamplingOptions` and `AnswerOptions`, with their defaults, which Xiaomi recommends.

    As in vLLM, the values may be changed until they are used. They are checked now and when they are used.

    Attributes:
        n: number of answers to each prompt.
        presence_penalty, frequency_penalty: count the tokens of the answer.
        repetition_penalty: counts the tokens of prompt and answer.
        top_k: 0 and -1 switch it off.
        seed: the seed of the first of `n` answers; the others have the next numbers.
        stop_token_ids: tokens that end an answer, besides the model's own.
        bad_words: texts that may not come, with or without a space before them.
        max_tokens: None lets an answer go on until the model ends it or its window is full. vLLM's default is 16.
        min_tokens: number of tokens before which nothing ends the answer.
        logprobs, prompt_logprobs: number of likeliest tokens whose scores are given at each position, besides the score
            of the token itself; -1 for all.
        detokenize: False gives no text.
        truncate_prompt_tokens: number of last tokens of the prompt to use.
        thinking_token_budget: `AnswerOptions.think_budget`.
        structured_outputs, guided_decoding: the form of the answer. With `LLM.chat` free reasoning may come first.
        spaces_between_special_tokens: has no effect, because MiMo's tokenizer adds no spaces.
    """

    n: int = 1
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = None
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    logit_bias: Mapping[int, float] | None = field(default=None)
    allowed_token_ids: Sequence[int] | None = None
    truncate_prompt_tokens: int | None = None
    thinking_token_budget: int | None = None
    structured_outputs: StructuredOutputsParams | None = None
    guided_decoding: StructuredOutputsParams | None = None
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE

    def __new__(cls, *_: Any, **given: Any) -> Self:
        """Raises UsageError for a name that does not exist, as for every other mistake."""
        for name in given:
            if name not in cls.__dataclass_fields__:
                hint = _REFUSED.get(name) or name_hint(name, cls.__dataclass_fields__)
                raise UsageError(f"SamplingParams has no {name}", hint=hint)
        return object.__new__(cls)  # super() does not know a class that has got slots

    def __post_init__(self) -> None:
        """Raises UsageError as `check`."""
        self.check()

    def check(self) -> None:
        """Raises UsageError for a value out of range or of the wrong kind."""
        for name, low, high in (("n", 0, _MOST_ANSWERS), ("truncate_prompt_tokens", 1, _ALL_TOKENS)):
            value = getattr(self, name)
            if value is None and name != "n":
                continue
            if not is_whole(value) or not low <= value <= high:
                what = f"{value!r} answers to a prompt" if name == "n" else f"{name} is {value!r}"
                raise UsageError(what, hint=f"give a whole number from {low} to {high}")
        if self.stop and not self.detokenize:
            raise UsageError("stop texts without text", hint="leave detokenize=False out, or use stop_token_ids")
        for name in ("include_stop_str_in_output", "ignore_eos", "detokenize", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} is {getattr(self, name)!r}", hint="True or False")
        if not isinstance(self.output_kind, RequestOutputKind):
            raise UsageError(f"output_kind is {self.output_kind!r}", hint="RequestOutputKind.DELTA, for one")
        _texts("bad_words", self.bad_words)
        self.sampling()
        self.ending(split_reasoning=True)
        self.form()

    def sampling(
        self, number: int = 0, vocabulary: Vocabulary | None = None, grammar: str | None = None
    ) -> SamplingOptions:
        """The sampling options of answer `number` of `n`, each of which has a seed of its own.

        Args:
            vocabulary: tokenizes `bad_words`, which are ignored without it.
            grammar: the result of `form`.

        Raises:
            UsageError: a value is out of range.
        """
        seed = self.seed
        if seed is not None and number and is_whole(seed):
            seed = (seed + number) % (MAX_SEED + 1)
        return SamplingOptions(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=0 if self.top_k == -1 else self.top_k,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repeat_penalty=self.repetition_penalty,
            penalty_last_n=_ALL_TOKENS,
            penalizes_prompt=False,
            seed=seed,
            grammar=grammar,
            logit_bias=_biases(self.logit_bias),
            allowed_tokens=_tokens("allowed_token_ids", self.allowed_token_ids),
            bad_tokens=() if vocabulary is None else _bad_tokens(self.bad_words or (), vocabulary),
        )

    def ending(self, *, split_reasoning: bool) -> AnswerOptions:
        """The options for the end and the scores of an answer. Raises UsageError as `sampling`."""
        return AnswerOptions(
            max_tokens=self.max_tokens,
            stop=stop_texts(self.stop),
            think_budget=self.thinking_token_budget,
            split_reasoning=split_reasoning,
            min_tokens=self.min_tokens,
            stop_tokens=_tokens("stop_token_ids", self.stop_token_ids) or (),
            ignore_eos=self.ignore_eos,
            include_stop=self.include_stop_str_in_output,
            skip_special=self.skip_special_tokens,
            logprobs=self.logprobs,
            prompt_logprobs=self.prompt_logprobs,
        )

    def form(self, *, split_reasoning: bool = False, inside: bool = False) -> str | None:
        """The grammar of the answer; None without a form. With `split_reasoning` free reasoning may come first.

        Args:
            inside: whether the prompt has opened a reasoning block.

        Raises:
            UsageError: two forms are given, or a grammar cannot express the form.
        """
        given = [each for each in (self.structured_outputs, self.guided_decoding) if each is not None]
        if len(given) > 1:
            raise UsageError("structured_outputs and guided_decoding together", hint="they are the same: give one")
        if not given:
            return None
        if not isinstance(given[0], StructuredOutputsParams):
            raise UsageError(f"not a form of an answer: {given[0]!r:.60}", hint="StructuredOutputsParams(json=...)")
        grammar = given[0].gbnf
        if grammar is None or not split_reasoning:
            return grammar
        return grammar_after_reasoning(grammar, inside=inside)


def _texts(name: str, given: Any) -> None:
    if given is not None and (isinstance(given, str) or not all(isinstance(each, str) and each for each in given)):
        raise UsageError(f"{name} is {given!r:.60}", hint=f'give texts: {name}=["a", "b"]')


def _tokens(name: str, given: Any) -> tuple[int, ...] | None:
    if given is None:
        return None
    if isinstance(given, str | bytes | Mapping) or not hasattr(given, "__iter__") or not all(map(is_whole, given)):
        raise UsageError(f"{name} is {given!r:.60}", hint=f"give token ids: {name}=[5, 7]")
    return tuple(int(token) for token in given)


def _biases(given: Any) -> dict[int, float]:
    """Reads `logit_bias`. Its token ids may be texts, as in JSON."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise UsageError(f"logit_bias is {given!r:.60}", hint="logit_bias: token id -> number")
    read = {
        int(token) if isinstance(token, str) and token.isdecimal() else token: given[token] for token in given or ()
    }
    return {token: max(-100.0, min(100.0, bias)) if is_number(bias) else bias for token, bias in read.items()}


def _bad_tokens(words: Sequence[str], vocabulary: Vocabulary) -> tuple[tuple[int, ...], ...]:
    """The tokens of each word, without and with a space before it."""
    spellings = [spelling for word in words for spelling in (word.lstrip(), f" {word.lstrip()}")]
    tokens = [tuple(vocabulary.tokenize(spelling, parse_special=False)) for spelling in spellings]
    return tuple(each for each in dict.fromkeys(tokens) if each)
