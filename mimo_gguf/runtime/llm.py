"""`LLM` with vLLM's names, for scripts that were written for vLLM: many prompts at a time.

from mimo_gguf import LLM, SamplingParams

llm = LLM("MiMo-7B-RL-Q4_K_M.gguf")
conversations = [[{"role": "user", "content": question}] for question in ("What is 17 + 25?", "Who are you?")]
for output in llm.chat(conversations, SamplingParams(max_tokens=500)):
    print(output.outputs[0].text)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

from mimo_gguf.chat.messages import cut_after_last, no_conversation, read_messages
from mimo_gguf.chat.template import ChatTemplate, Message
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.kinds import check_kind
from mimo_gguf.engine.session import SessionOptions
from mimo_gguf.runtime.engine_args import model_source, read_arguments
from mimo_gguf.runtime.model import Model, wishes_of
from mimo_gguf.runtime.outputs import RequestOutput
from mimo_gguf.runtime.params import SamplingParams
from mimo_gguf.runtime.progress_bar import PromptsBar, Wanted
from mimo_gguf.runtime.prompts import Prompt, PromptType, list_prompts, read_prompt
from mimo_gguf.runtime.requests import Asked, Gathering, Seeds, ask, request_ids
from mimo_gguf.runtime.throughput import ThroughputLog
from mimo_gguf.runtime.tokenizer import Tokenizer
from mimo_gguf.store.resolve import resolve_model

Params = SamplingParams | Sequence[SamplingParams] | None
Messages = Iterable[Message]
_PLANNED: Final = ("n_ctx", "kv_type", "mtp", "n_ubatch", "n_gpu_layers")  # arguments of `Model.load` for the plan
_EVERY_S: Final = 1.0  # between two events of an answer, which only the log looks at
_OWN_VARIABLES: Final = frozenset({"messages", "system", "template", "tools", "add_generation_prompt"})


class LLM:
    """A model that answers many prompts, `max_num_seqs` at a time, independently. Any number of threads may use it."""

    def __init__(
        self,
        model: str | Path,
        *,
        max_model_len: int | None = None,
        max_num_seqs: int = 4,
        quantization: str | None = None,
        revision: str | None = None,
        download_dir: str | Path | None = None,
        disable_log_stats: bool = True,
        options: SessionOptions | None = None,
        **arguments: Any,
    ) -> None:
        """Loads a GGUF, or converts a checkpoint and loads the result.

        Args:
            model: a GGUF file, a checkpoint folder, or `org/name` on the Hub. The latter two are converted, once.
            max_model_len: tokens of one prompt and its answer together, at most; None means as many as fit into memory.
            max_num_seqs: number of prompts answered at a time; they share the KV cache.
            quantization: file type that a checkpoint is converted to; None means the best that fits.
            revision: branch, tag or commit on the Hub.
            download_dir: the models folder; None means `MIMO_GGUF_MODELS`, or one in the user's data.
            disable_log_stats: False writes throughput into the log ("mimo_gguf" of `logging`).
            options: threads, drafts and so on.
            arguments: other arguments of vLLM, see docs/engine.md, and those of `Model.load`.

        Raises:
            UsageError: an argument does not exist, is refused, or is out of range.
            GgufError, CheckpointError, HubError, DoesNotFit, BackendError: as `Model.load` and the conversion.
        """
        check_kind("options", options, SessionOptions, "options=SessionOptions(n_threads=8)", or_none=True)
        check_kind("download_dir", download_dir, (str, Path), "give a folder", or_none=True)
        args, load = read_arguments({"max_model_len": max_model_len, "max_num_seqs": max_num_seqs, **arguments})
        source = model_source(model)
        load = args.load_options(load)
        session = args.session_options(options)
        planned = replace(session, exact=session.exact or bool(load.get("exact")))
        file = resolve_model(
            source,
            wishes_of(planned, **{name: value for name, value in load.items() if name in _PLANNED}),
            devices=load.get("devices"),
            quantization=quantization,
            revision=revision,
            folder=download_dir,
            force=bool(load.get("force")),
        )
        self._begin(Model.load(file, options=session, **load), args.seed, disable_log_stats=disable_log_stats)

    @classmethod
    def of_model(cls, model: Model) -> LLM:
        """An LLM that answers with a loaded model, and closes it at its own end."""
        llm = cls.__new__(cls)
        llm._begin(model, None, disable_log_stats=True)
        return llm

    def _begin(self, model: Model, seed: int | None, *, disable_log_stats: bool) -> None:
        self.model = model
        self._seeds = Seeds(seed)
        self._next_id = request_ids()
        self._log = None if disable_log_stats else ThroughputLog(model.driver.scheduler)

    def close(self) -> None:
        """Frees contexts and weights."""
        self.model.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer, with `encode`, `decode` and `apply_chat_template`."""
        return Tokenizer(self.model.vocabulary, self.model.template)

    def get_default_sampling_params(self) -> SamplingParams:
        """The parameters that are used if none are given: those that Xiaomi recommends."""
        return SamplingParams()

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: Params = None,
        use_tqdm: Wanted = True,
        *,
        chat_template: str | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        system: str | None = "",
    ) -> list[RequestOutput]:
        """Answers one or several conversations. The outputs are in their order.

        Args:
            sampling_params: one for all conversations, or one for each.
            use_tqdm: show a progress bar, if stderr is a terminal; or the function to call instead of `tqdm.tqdm`.
            chat_template: jinja2 text to use instead of the file's own template.
            chat_template_content_format: has no effect: content in parts is always joined to one text.
            add_generation_prompt: False renders the conversation without the beginning of an answer.
            continue_final_message: continue the text of the last message.
            tools: descriptions of functions that the model may call, as the template expects them.
            chat_template_kwargs: further variables of the template.
            system: as for `Model.chat`.

        Raises:
            UsageError: the template refuses a conversation, a parameter is out of range, or their number is wrong.
            BackendError: llama.cpp failed.
        """
        how: dict[str, Any] = {
            "chat_template": chat_template,
            "chat_template_content_format": chat_template_content_format,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "tools": tools,
            "chat_template_kwargs": chat_template_kwargs,
            "system": system,
        }
        prompts = [self.render(conversation, **how) for conversation in _conversations(messages)]
        return self._answer(prompts, sampling_params, use_tqdm, split_reasoning=True)

    def generate(
        self,
        prompts: PromptType | Sequence[PromptType],
        sampling_params: Params = None,
        use_tqdm: Wanted = True,
    ) -> list[RequestOutput]:
        """Continues one or several prompts, without a template and without splitting reasoning; otherwise as `chat`.

        Args:
            prompts: a text, token ids, `{"prompt": text}`, `{"prompt_token_ids": ids}`, or a list of these.
        """
        return self._answer(list_prompts(prompts), sampling_params, use_tqdm, split_reasoning=False)

    def render(
        self,
        messages: Messages,
        *,
        chat_template: str | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        system: str | None = "",
    ) -> str:
        """The prompt of one conversation; the arguments are those of `chat`.

        Raises:
            UsageError: the template refuses the conversation.
        """
        if continue_final_message and add_generation_prompt:
            raise UsageError(
                "continue_final_message and add_generation_prompt together", hint="add_generation_prompt=False"
            )
        check_kind("chat_template", chat_template, str, "give jinja2 text", or_none=True)
        check_kind("chat_template_kwargs", chat_template_kwargs, Mapping, "give a dict", or_none=True)
        if taken := _OWN_VARIABLES.intersection(chat_template_kwargs or ()):
            raise UsageError(
                f"chat_template_kwargs has {', '.join(sorted(taken))}", hint="they have arguments of their own"
            )
        found, own = read_messages(messages), self.model.template
        template = own if chat_template is None else ChatTemplate(chat_template, special_tokens=own.special_tokens)
        variables = {"tools": tools, **(chat_template_kwargs or {}), "add_generation_prompt": add_generation_prompt}
        text = self.model.prompt_text(found, system=system, template=template, **variables)
        return cut_after_last(text, found) if continue_final_message else text

    def ask(self, prompt: Any, params: SamplingParams | None, *, split_reasoning: bool) -> Asked:
        """The requests that answer one prompt. Raises UsageError as `generate`."""
        vocabulary = self.model.vocabulary
        read = prompt if isinstance(prompt, Prompt) else read_prompt(prompt, vocabulary)
        return ask(read, params or SamplingParams(), vocabulary, self._seeds, split_reasoning=split_reasoning)

    def _answer(
        self, prompts: Sequence[Any], given: Params, use_tqdm: Wanted, *, split_reasoning: bool
    ) -> list[RequestOutput]:
        params = [given or SamplingParams()] * len(prompts) if not isinstance(given, Sequence) else given
        if len(params) != len(prompts):
            raise UsageError(f"{len(params)} parameters for {len(prompts)} prompts", hint="give one, or one for each")
        asked = [
            self.ask(prompt, each, split_reasoning=split_reasoning)
            for prompt, each in zip(prompts, params, strict=True)
        ]
        self._check_prompts(asked)
        return self._serve(asked, PromptsBar(len(asked), use_tqdm))

    def _check_prompts(self, asked: Sequence[Asked]) -> None:
        for number, each in enumerate(asked, 1):
            try:
                self.model.slot.check_prompt(each.prompt.tokens)
            except UsageError as error:
                raise type(error)(error.message.replace("the prompt", f"prompt {number}"), hint=error.hint) from None

    def _serve(self, asked: Sequence[Asked], bar: PromptsBar) -> list[RequestOutput]:
        """Answers all of these. The outputs are in their order."""
        if self._log is not None:
            self._log.begin()
        requests = [replace(request, every_s=_EVERY_S) for each in asked for request in each.requests]
        ticket = self.model.driver.submit(requests)
        gatherings, by_id, ids = [], {}, iter(ticket.ids)
        for each in asked:
            own = [next(ids) for _ in each.requests]
            gatherings.append(Gathering(self._next_id(), each, own, self.model.vocabulary))
            by_id.update(dict.fromkeys(own, gatherings[-1]))
        try:
            for event in ticket.events():
                gathering = by_id[event.id]
                gathering.add(event)
                if gathering.is_done:
                    bar.note(gathering.output())
                if self._log is not None:
                    self._log.note()
        finally:
            ticket.cancel()
            bar.close()
        if self._log is not None:
            self._log.write()
        return [gathering.output() for gathering in gatherings]


def _conversations(messages: Any) -> list[Messages]:
    """A list of conversations, made of one or several: it is one if its first element is a message."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Iterable):
        raise no_conversation(messages)
    found = list(messages)
    is_one = bool(found) and (isinstance(found[0], Mapping) or not isinstance(found[0], Iterable))
    return [found] if is_one else cast("list[Messages]", found)
