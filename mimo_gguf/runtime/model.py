"""The Python API: load a GGUF, chat with it, complete text.

from mimo_gguf import Model

with Model.load("MiMo-7B-RL-Q4_K_M.gguf") as model:
    for piece in model.chat([{"role": "user", "content": "Why is the sky blue?"}], stream=True):
        print(piece.text, end="", flush=True)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, overload

from mimo_gguf.chat.answer import Answer, AnswerOptions, AnswerText, FinishReason, stop_texts
from mimo_gguf.chat.reasoning import Kind, Piece, opened_block
from mimo_gguf.chat.template import ChatTemplate, Message, with_system
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.ggml_types import parse_ggml_type
from mimo_gguf.core.gguf_file import GgufFile, read_gguf
from mimo_gguf.engine.sampling import Sampler, SamplingOptions
from mimo_gguf.engine.session import Session, SessionOptions
from mimo_gguf.engine.slot import Cancelled, Progress, Slot, WindowFull
from mimo_gguf.engine.stats import SessionStats
from mimo_gguf.fit.plan import FitPlan
from mimo_gguf.fit.refusal import check_fit
from mimo_gguf.fit.solver import Wishes
from mimo_gguf.hardware.devices import Device
from mimo_gguf.llama.api import LlamaModel, ModelOptions, load_model
from mimo_gguf.llama.vocabulary import Vocabulary
from mimo_gguf.runtime.launch import choose_plan, launch

__all__ = ["Answer", "AnswerOptions", "AnswerStream", "FinishReason", "Model"]


class AnswerStream(Iterator[Piece]):
    """An answer while it is generated: iterate over its pieces, or `read` it to the end.

    Leaving it early (`close`, a `with` block, `Model.cancel` from elsewhere) keeps what was said in `answer`.
    """

    def __init__(
        self, slot: Slot, vocabulary: Vocabulary, prompt: Sequence[int], sampling: SamplingOptions,
        options: AnswerOptions, progress: Progress | None = None, opened: str | None = None,
    ) -> None:  # fmt: skip
        """`opened`: what the prompt says after a `<think>` of its own, None where it opened no block."""
        self._slot = slot
        self._prompt = list(prompt)
        self._progress = progress
        self._sampling = sampling.seeded()
        self._before = slot.stats.copy()
        self._stats: SessionStats | None = None  # of the whole answer, once it has ended
        self._said = AnswerText(vocabulary, options, opened)
        self._pieces = self._generate()

    def __next__(self) -> Piece:
        return next(self._pieces)

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the answer here. Harmless when it has ended.

        Raises:
            UsageError: it is at work, below (in `progress`) or in another thread.
        """
        if inspect.getgeneratorstate(self._pieces) == inspect.GEN_RUNNING:
            raise UsageError("an answer is being generated", hint="one at a time: Model.cancel stops it; several: LLM")
        self._pieces.close()
        self._end()

    def read(self) -> Answer:
        """Generates to the end."""
        for _ in self:
            pass
        return self.answer

    @property
    def n_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self._said.tokens)

    @property
    def answer(self) -> Answer:
        """What has come so far; complete once the iteration has ended."""
        return Answer(
            text=self._said.text(Kind.ANSWER),
            reasoning=self._said.text(Kind.REASONING),
            tokens=tuple(self._said.tokens),
            finish_reason=self._said.reason,
            n_prompt=len(self._prompt),
            seed=None if self._sampling.greedy else self._sampling.seed,
            stats=self._stats or self._slot.stats.since(self._before),
        )

    def _end(self) -> list[Piece]:
        """Nothing more will come: the pieces that were held back. The counts from here on are another answer's."""
        if self._stats is None:
            self._stats = self._slot.stats.since(self._before)
        return self._said.finish()

    def _generate(self) -> Generator[Piece, None, None]:
        said = self._said
        with Sampler(self._slot.session.model, self._sampling, self._prompt) as sampler:
            try:
                self._slot.feed(self._prompt, self._progress)
                while not said.ended:
                    if closing := said.closing(sampler):
                        self._slot.insert(closing, sampler)
                        yield from said.put(closing)
                    else:
                        yield from said.take(self._slot.next_token(sampler))
            except WindowFull:
                said.end("context")
            except Cancelled:
                said.end("cancelled")
            finally:
                self._slot.settle()
                rest = self._end()
            yield from rest


class Model:
    """A loaded model with one conversation's cache: turns that share a beginning evaluate only what is new."""

    def __init__(self, file: GgufFile, native: LlamaModel, session: Session) -> None:
        """Use `Model.load`, or `Model.open`."""
        self.file = file
        self.native = native
        self.session = session
        self.slot = session.slot
        self.vocabulary = Vocabulary(native)
        self.template = ChatTemplate.of_file(file)
        self.plan: FitPlan | None = None  # what `load` chose
        self.launch_note = ""  # one line where a first plan had failed
        self._running: AnswerStream | None = None

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        n_ctx: int | None = None,
        kv_type: str | None = None,
        mtp: bool | None = None,
        n_ubatch: int | None = None,
        n_gpu_layers: int | None = None,
        devices: Sequence[Device] | None = None,
        options: SessionOptions | None = None,
        force: bool = False,
        tell: Callable[[FitPlan], None] = lambda _: None,
    ) -> Model:
        """Loads a GGUF in the best way for the memory that is free; what is None is chosen, the rest kept as given.

        Args:
            n_ctx: context window in tokens; 0 takes what the model was trained with.
            kv_type: "f16", "q8_0", ...: type of the KV cache.
            mtp: draft with the file's MTP layer.
            n_ubatch: prompt tokens computed at a time.
            n_gpu_layers: layers on the GPU; -1 all.
            devices: where it may lie, the host last; None: this machine's, as `devices.list_devices` gives them.
            options: threads, drafts and so on; context, KV type, MTP and micro-batch are not taken from it.
            force: start even where the plan does not fit.
            tell: hears the plan before anything is loaded.

        Raises:
            GgufError: the file is broken.
            DoesNotFit: it needs more memory than is free; the hint names what would fit.
            BackendError: llama.cpp cannot load it or make its contexts.
        """
        file = read_gguf(path)
        options = options or SessionOptions()
        wishes = Wishes(
            n_ctx=n_ctx,
            kv_type=None if kv_type is None else parse_ggml_type(kv_type),
            mtp=mtp,
            n_ubatch=n_ubatch,
            n_gpu_layers=n_gpu_layers,
            n_seq_max=options.n_parallel,
            n_outputs_max=options.n_rows_drawing,
            flash_attn=options.flash_attn is not False,
        )
        plan = choose_plan(file, wishes, devices)
        if not force:
            check_fit(plan)
        tell(plan)
        started = launch(file, plan, wishes, options)
        model = cls._of(file, started.native, started.session)
        model.plan, model.launch_note = started.plan, started.note
        return model

    @classmethod
    def open(cls, path: str | Path, session: SessionOptions, model: ModelOptions | None = None) -> Model:
        """Loads a GGUF exactly so, with no plan made and no memory looked at.

        Raises:
            GgufError, BackendError: as `load`.
        """
        file = read_gguf(path)
        native = load_model(file.path, model or ModelOptions(load_mtp=session.mtp))
        try:
            started = Session(native, session)
        except BaseException:
            native.close()
            raise
        return cls._of(file, native, started)

    @classmethod
    def _of(cls, file: GgufFile, native: LlamaModel, session: Session) -> Model:
        try:
            return cls(file, native, session)
        except BaseException:
            session.close()
            native.close()
            raise

    def close(self) -> None:
        """Frees contexts and weights."""
        self.stop_running()
        self.session.close()
        self.native.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def has_mtp(self) -> bool:
        """Whether tokens are being drafted with an MTP layer."""
        return self.session.drafter is not None

    def cancel(self) -> None:
        """Stops the answer being generated; from any thread or a signal handler."""
        self.slot.cancel()

    def prompt_tokens(self, messages: Sequence[Message], *, system: str | None = "", **variables: Any) -> list[int]:
        """The prompt that `chat` would evaluate for `messages`."""
        return self.vocabulary.tokenize(self.prompt_text(messages, system=system, **variables))

    def prompt_text(self, messages: Sequence[Message], *, system: str | None = "", **variables: Any) -> str:
        """The same before it becomes tokens.

        Raises:
            UsageError: no message, something else than messages, or a conversation the template does not take.
        """
        if not messages or not all(isinstance(each, Mapping) for each in messages):
            raise UsageError(
                f"no conversation: {messages!r:.60}", hint='give a list of {"role": "user", "content": "..."}'
            )
        return self.template.render(with_system(messages, system), **variables)

    @overload
    def chat(
        self, messages: Sequence[Message], *, stream: Literal[True], system: str | None = ...,
        sampling: SamplingOptions | None = ..., options: AnswerOptions | None = ..., progress: Progress | None = ...,
        **overrides: Any,
    ) -> AnswerStream: ...  # fmt: skip
    @overload
    def chat(
        self, messages: Sequence[Message], *, stream: Literal[False] = ..., system: str | None = ...,
        sampling: SamplingOptions | None = ..., options: AnswerOptions | None = ..., progress: Progress | None = ...,
        **overrides: Any,
    ) -> Answer: ...  # fmt: skip
    def chat(
        self,
        messages: Sequence[Message],
        *,
        stream: bool = False,
        system: str | None = "",
        sampling: SamplingOptions | None = None,
        options: AnswerOptions | None = None,
        progress: Progress | None = None,
        **overrides: Any,
    ) -> Answer | AnswerStream:
        """Answers a conversation: a list of {"role": ..., "content": ...}.

        Args:
            stream: give an AnswerStream to iterate over instead of the whole Answer.
            system: system message where `messages` has none; "" says an empty one, None leaves it to the template.
            progress: called with (tokens evaluated, tokens to evaluate) while the prompt is read.
            overrides: any field of SamplingOptions or AnswerOptions by name: temperature=0, max_tokens=100.

        Raises:
            UsageError: an unknown option, a value out of range, a conversation the template does not take.
        """
        prompt = self.prompt_text(messages, system=system)
        return self._answer(prompt, stream, sampling, options, progress, overrides)

    @overload
    def complete(
        self, prompt: str, *, stream: Literal[True], sampling: SamplingOptions | None = ...,
        options: AnswerOptions | None = ..., progress: Progress | None = ...,
        **overrides: Any,
    ) -> AnswerStream: ...  # fmt: skip
    @overload
    def complete(
        self, prompt: str, *, stream: Literal[False] = ..., sampling: SamplingOptions | None = ...,
        options: AnswerOptions | None = ..., progress: Progress | None = ...,
        **overrides: Any,
    ) -> Answer: ...  # fmt: skip
    def complete(
        self,
        prompt: str,
        *,
        stream: bool = False,
        sampling: SamplingOptions | None = None,
        options: AnswerOptions | None = None,
        progress: Progress | None = None,
        **overrides: Any,
    ) -> Answer | AnswerStream:
        """Continues `prompt` as it stands: no template, no splitting of reasoning. Otherwise as `chat`."""
        options = options or AnswerOptions(split_reasoning=False)
        return self._answer(prompt, stream, sampling, options, progress, overrides)

    def _answer(
        self, prompt: str, stream: bool, sampling: SamplingOptions | None, options: AnswerOptions | None,
        progress: Progress | None, overrides: dict[str, Any],
    ) -> Answer | AnswerStream:  # fmt: skip
        self.stop_running()
        self.slot.forget_cancel()
        sampling, options = _overridden(sampling or SamplingOptions(), options or AnswerOptions(), overrides)
        tokens = self.vocabulary.tokenize(prompt)
        answers = AnswerStream(self.slot, self.vocabulary, tokens, sampling, options, progress, opened_block(prompt))
        self._running = answers
        return answers if stream else answers.read()

    def stop_running(self) -> None:
        """Ends an unfinished answer where it is: one cache serves one at a time."""
        if self._running is not None:
            self._running.close()
            self._running = None


def _overridden(
    sampling: SamplingOptions, options: AnswerOptions, overrides: dict[str, Any]
) -> tuple[SamplingOptions, AnswerOptions]:
    of_sampling = {k: v for k, v in overrides.items() if k in SamplingOptions.__dataclass_fields__}
    of_answer = {k: v for k, v in overrides.items() if k in AnswerOptions.__dataclass_fields__}
    if unknown := overrides.keys() - of_sampling.keys() - of_answer.keys():
        known = ", ".join([*SamplingOptions.__dataclass_fields__, *AnswerOptions.__dataclass_fields__])
        raise UsageError(f"no option {', '.join(sorted(unknown))}", hint=f"one of: {known}")
    if "stop" in of_answer:
        of_answer["stop"] = stop_texts(of_answer["stop"])
    return replace(sampling, **of_sampling), replace(options, **of_answer)
