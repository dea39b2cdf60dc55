"""The Python API: loads a GGUF, chats with it, completes text.

from mimo_gguf import Model

with Model.load("MiMo-7B-RL-Q4_K_M.gguf") as model:
    for piece in model.chat([{"role": "user", "content": "Why is the sky blue?"}], stream=True):
        print(piece.text, end="", flush=True)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, overload

from mimo_gguf.chat.answer import Answer, AnswerOptions, FinishReason, stop_texts
from mimo_gguf.chat.messages import read_messages
from mimo_gguf.chat.template import ChatTemplate, Message, with_system
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.gguf_file import GgufFile
from mimo_gguf.core.kinds import check_kind
from mimo_gguf.core.kv_cache import parse_kv_type
from mimo_gguf.core.near_matches import name_hint
from mimo_gguf.core.numbers import is_whole
from mimo_gguf.core.runnable import read_runnable
from mimo_gguf.engine.sampling import SamplingOptions
from mimo_gguf.engine.session import Session, SessionOptions
from mimo_gguf.engine.single import OnRead
from mimo_gguf.fit.plan import FitPlan
from mimo_gguf.fit.refusal import check_fit
from mimo_gguf.fit.solver import Wishes
from mimo_gguf.hardware.devices import Device
from mimo_gguf.llama.api import LlamaModel, ModelOptions, load_model
from mimo_gguf.llama.vocabulary import Vocabulary
from mimo_gguf.runtime.driver import Driver
from mimo_gguf.runtime.launch import choose_plan, launch
from mimo_gguf.runtime.prompts import read_prompt
from mimo_gguf.runtime.scheduler import Request, Scheduler
from mimo_gguf.runtime.stream import AnswerStream
from mimo_gguf.store.resolve import resolve_model

__all__ = ["Answer", "AnswerOptions", "AnswerStream", "FinishReason", "Model"]


class Model:
    """A loaded model with the KV cache of one conversation: only what is new in a prompt is evaluated.

    Attributes:
        plan: what `load` chose; None after `open`.
        launch_note: one line if a first plan failed, else empty.
    """

    def __init__(self, file: GgufFile, native: LlamaModel, session: Session) -> None:
        """Joins what was loaded; use `Model.load` or `Model.open`."""
        self.file = file
        self.native = native
        self.session = session
        self.slot = session.slot
        self.vocabulary = Vocabulary(native)
        self.template = ChatTemplate.of_file(file)
        self.driver = Driver(Scheduler(session, self.vocabulary))
        self.plan: FitPlan | None = None
        self.launch_note = ""
        self._running: AnswerStream | None = None
        self._starting = threading.RLock()

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
        exact: bool = False,
        force: bool = False,
        on_plan: Callable[[FitPlan], None] | None = None,
    ) -> Model:
        """Loads a model in the best way for the free memory. What is None is chosen; the rest is kept as given.

        Args:
            path: a GGUF file; or a checkpoint folder or Hub id, of which the GGUF is made, once (`resolve_model`).
            n_ctx: the total context in tokens, which `options.n_parallel` conversations share in equal parts; 0 means
                the context that the model was trained with.
            kv_type: the type of the KV cache: "f16", "q8_0", ...
            mtp: draft with the file's MTP layer.
            n_ubatch: micro-batch: prompt tokens computed at a time.
            n_gpu_layers: number of layers on the GPU; -1 for all.
            devices: the devices that may be used, the host last; None means all that `list_devices` gives.
            options: threads, drafts and so on. Its context, KV type, MTP and micro-batch are ignored.
            exact: compute every row alone, so that texts are the same to the token in any batch, with and without
                drafts. Neither saves time then, and by default nothing is drafted. Prompts are read more slowly.
            force: start even if the plan does not fit.
            on_plan: called with the plan before anything is loaded.

        Raises:
            UsageError: an argument is out of range or of the wrong kind.
            GgufError: the file is damaged, or its values are impossible.
            CheckpointError, HubError, OutputError: the GGUF cannot be made.
            DoesNotFit: the model needs more memory than is free; the hint names what would fit.
            BackendError: llama.cpp cannot load the model or make its contexts.
        """
        ready = _prepare(
            path, n_ctx=n_ctx, kv_type=kv_type, mtp=mtp, n_ubatch=n_ubatch, n_gpu_layers=n_gpu_layers,
            devices=devices, options=options, exact=exact, force=force,
        )  # fmt: skip
        if not force:
            check_fit(ready.plan)
        if on_plan is not None:
            on_plan(ready.plan)
        started = launch(ready.file, ready.plan, ready.wishes, ready.options)
        model = cls._of(ready.file, started.native, started.session)
        model.plan, model.launch_note = started.plan, started.note
        return model

    @classmethod
    def plan_load(cls, path: str | Path, **settings: Any) -> FitPlan:
        """The plan that `load` would make with these arguments, whether it fits or not. Raises as `load`."""
        return _prepare(path, **settings).plan

    @classmethod
    def open(cls, path: str | Path, session: SessionOptions, model: ModelOptions | None = None) -> Model:
        """Loads a GGUF with exactly these options, without a plan and without a check of the memory.

        Raises:
            GgufError, BackendError: as `load`.
        """
        file = read_runnable(path)
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
        """Frees contexts and weights. Answers that are being generated, in any thread, end with "abort".

        Raises:
            UsageError: a signal handler called it during a pass.
        """
        self.driver.close()
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
        """Whether tokens are drafted with an MTP layer."""
        return self.session.drafter is not None

    def cancel(self) -> None:
        """Ends the answer that is being generated. May be called from any thread or a signal handler."""
        running = self._running
        if running is not None:
            running.cancel()

    def forget(self) -> None:
        """Empties the KV cache, so that the next prompt is read from its beginning. Works after an interrupt, too."""
        self.native.check_here()
        with self._starting:
            self.stop_running()
            self.session.reset(self.slot)

    def prompt_tokens(self, messages: Iterable[Message], *, system: str | None = "", **variables: Any) -> list[int]:
        """The tokens of the prompt that `chat` would evaluate for `messages`."""
        return self.vocabulary.tokenize(self.prompt_text(messages, system=system, **variables))

    def prompt_text(
        self,
        messages: Iterable[Message],
        *,
        system: str | None = "",
        template: ChatTemplate | None = None,
        **variables: Any,
    ) -> str:
        """The text of the prompt that `chat` would evaluate for `messages`.

        Args:
            system: as for `chat`.
            template: used instead of the file's own template.
            variables: further variables of the template.

        Raises:
            UsageError: `messages` is not a conversation, or the template refuses it.
        """
        return (template or self.template).render(with_system(read_messages(messages), system), **variables)

    @overload
    def chat(
        self, messages: Iterable[Message], *, stream: Literal[True], system: str | None = ...,
        sampling: SamplingOptions | None = ..., options: AnswerOptions | None = ..., progress: OnRead | None = ...,
        **overrides: Any,
    ) -> AnswerStream: ...  # fmt: skip
    @overload
    def chat(
        self, messages: Iterable[Message], *, stream: Literal[False] = ..., system: str | None = ...,
        sampling: SamplingOptions | None = ..., options: AnswerOptions | None = ..., progress: OnRead | None = ...,
        **overrides: Any,
    ) -> Answer: ...  # fmt: skip
    def chat(
        self,
        messages: Iterable[Message],
        *,
        stream: bool = False,
        system: str | None = "",
        sampling: SamplingOptions | None = None,
        options: AnswerOptions | None = None,
        progress: OnRead | None = None,
        **overrides: Any,
    ) -> Answer | AnswerStream:
        """Answers a conversation: a list of {"role": ..., "content": ...}.

        Args:
            stream: return an AnswerStream to iterate over instead of the whole Answer.
            system: the system message if `messages` has none; "" gives an empty one, None leaves it to the template.
            progress: called with (tokens evaluated, tokens to evaluate) while the prompt is read.
            overrides: any field of SamplingOptions or AnswerOptions by name: temperature=0, max_tokens=100.

        Raises:
            UsageError: an option is unknown or out of range, the template refuses the conversation, or the prompt is
                too long.
            BackendError: llama.cpp failed.
        """
        prompt = self.prompt_text(messages, system=system)
        return self._answer(prompt, stream, sampling, options, progress, overrides)

    @overload
    def complete(
        self, prompt: str | Sequence[int], *, stream: Literal[True], sampling: SamplingOptions | None = ...,
        options: AnswerOptions | None = ..., progress: OnRead | None = ...,
        **overrides: Any,
    ) -> AnswerStream: ...  # fmt: skip
    @overload
    def complete(
        self, prompt: str | Sequence[int], *, stream: Literal[False] = ..., sampling: SamplingOptions | None = ...,
        options: AnswerOptions | None = ..., progress: OnRead | None = ...,
        **overrides: Any,
    ) -> Answer: ...  # fmt: skip
    def complete(
        self,
        prompt: str | Sequence[int],
        *,
        stream: bool = False,
        sampling: SamplingOptions | None = None,
        options: AnswerOptions | None = None,
        progress: OnRead | None = None,
        **overrides: Any,
    ) -> Answer | AnswerStream:
        """Continues a text or token ids, without a template and without splitting reasoning; otherwise as `chat`."""
        options = options or AnswerOptions(split_reasoning=False)
        return self._answer(prompt, stream, sampling, options, progress, overrides)

    def _answer(
        self, prompt: str | Sequence[int], stream: bool, sampling: SamplingOptions | None,
        options: AnswerOptions | None, progress: OnRead | None, overrides: dict[str, Any],
    ) -> Answer | AnswerStream:  # fmt: skip
        check_kind("sampling", sampling, SamplingOptions, "sampling=SamplingOptions(temperature=0)", or_none=True)
        check_kind("options", options, AnswerOptions, "options=AnswerOptions(max_tokens=100)", or_none=True)
        if progress is not None and not callable(progress):
            raise UsageError(f"progress is {progress!r:.60}", hint="give a function of two numbers")
        sampling, options = _overridden(sampling or SamplingOptions(), options or AnswerOptions(), overrides)
        self.native.check_here()
        read = read_prompt(prompt, self.vocabulary)
        request = Request(read.tokens, sampling, options, read.opened)
        with self._starting:
            self.stop_running()
            answers = self._running = AnswerStream(self.driver, request, progress)
        if stream:
            return answers
        answer = answers.read()
        if answers.was_stopped:  # before it began, by another thread that asked at the same moment
            raise UsageError("another answer is being generated", hint="one at a time; several: LLM")
        return answer

    def stop_running(self) -> None:
        """Ends an unfinished answer of this model, which has one conversation at a time.

        Raises:
            UsageError: the answer is being generated, by the caller or in another thread.
        """
        with self._starting:
            if self._running is not None:
                self._running.close()
                self._running = None


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What is known before anything is loaded."""

    file: GgufFile
    wishes: Wishes
    options: SessionOptions
    plan: FitPlan


def _prepare(
    path: str | Path, *, n_ctx: int | None = None, kv_type: str | None = None, mtp: bool | None = None,
    n_ubatch: int | None = None, n_gpu_layers: int | None = None, devices: Sequence[Device] | None = None,
    options: SessionOptions | None = None, exact: bool = False, force: bool = False,
) -> _Prepared:  # fmt: skip
    """Checks the arguments of `Model.load`, finds the file, reads its header and makes the plan."""
    _check_places(path, devices, n_gpu_layers=n_gpu_layers)
    _check_settings(options, kv_type, mtp, n_ctx=n_ctx, n_ubatch=n_ubatch, n_gpu_layers=n_gpu_layers)
    options = options or SessionOptions()
    options = replace(options, exact=exact or options.exact)
    wishes = wishes_of(options, n_ctx=n_ctx, kv_type=kv_type, mtp=mtp, n_ubatch=n_ubatch, n_gpu_layers=n_gpu_layers)
    file = read_runnable(resolve_model(path, wishes, devices=devices, force=force))
    return _Prepared(file, wishes, options, choose_plan(file, wishes, devices))


def _check_places(path: Any, devices: Any, n_gpu_layers: Any) -> None:
    """Refuses a path or devices of the wrong kind."""
    check_kind("path", path, (str, Path), "give a GGUF file, a checkpoint folder or a Hub id")
    if is_whole(n_gpu_layers) and n_gpu_layers < -1:
        raise UsageError(f"n_gpu_layers is {n_gpu_layers}", hint="-1 puts all layers on the GPU")
    if devices is None:
        return
    hint = "give what list_devices() gives, or some of it, the host last"
    check_kind("devices", devices, Sequence, hint)
    for device in devices:
        check_kind("a device", device, Device, hint)
    if devices and devices[-1].is_gpu:
        raise UsageError("the last device is not the host", hint=hint)


def _check_settings(options: Any, kv_type: Any, mtp: Any, **numbers: Any) -> None:
    """Refuses settings of the wrong kind."""
    check_kind("options", options, SessionOptions, "options=SessionOptions(n_threads=8)", or_none=True)
    check_kind("kv_type", kv_type, str, 'kv_type="q8_0"', or_none=True)
    check_kind("mtp", mtp, bool, "True, False, or None for what fits", or_none=True)
    for name, value in numbers.items():
        if value is not None and not is_whole(value):
            raise UsageError(f"{name} is {value!r}", hint=f"give a whole number: {name}=4096")


def wishes_of(
    options: SessionOptions,
    *,
    n_ctx: int | None = None,
    kv_type: str | None = None,
    mtp: bool | None = None,
    n_ubatch: int | None = None,
    n_gpu_layers: int | None = None,
) -> Wishes:
    """The wishes for a plan: arguments of `Model.load`, and what the session's options add to them.

    Raises:
        UsageError: a KV type that does not exist.
    """
    return Wishes(
        n_ctx=n_ctx,
        kv_type=None if kv_type is None else parse_kv_type(kv_type),
        mtp=mtp,
        n_ubatch=n_ubatch,
        n_gpu_layers=n_gpu_layers,
        n_seq_max=options.n_parallel,
        n_outputs_max=options.n_outputs_max,
        flash_attn=options.flash_attn is not False,
        exact=options.exact,
        parked_bytes=options.parked_bytes,
    )


def _overridden(
    sampling: SamplingOptions, options: AnswerOptions, overrides: dict[str, Any]
) -> tuple[SamplingOptions, AnswerOptions]:
    of_sampling = {k: v for k, v in overrides.items() if k in SamplingOptions.__dataclass_fields__}
    of_answer = {k: v for k, v in overrides.items() if k in AnswerOptions.__dataclass_fields__}
    if unknown := sorted(overrides.keys() - of_sampling.keys() - of_answer.keys()):
        known = [*SamplingOptions.__dataclass_fields__, *AnswerOptions.__dataclass_fields__]
        raise UsageError(f"no option {', '.join(unknown)}", hint=name_hint(unknown[0], known))
    if "stop" in of_answer:
        of_answer["stop"] = stop_texts(of_answer["stop"])
    return replace(sampling, **of_sampling), replace(options, **of_answer)
