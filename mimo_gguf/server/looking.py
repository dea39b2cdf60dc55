"""What a server tells about its model: properties, tokenizer, tokens of a text, the text of a prompt."""

from __future__ import annotations

from typing import Any

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.version import LLAMA_CPP_COMMIT, __version__
from mimo_gguf.fit.refusal import plan_json
from mimo_gguf.runtime.llm import LLM
from mimo_gguf.runtime.params import SamplingParams
from mimo_gguf.server.jobs import chat_prompt
from mimo_gguf.server.requests import DetokenizeBody, TemplateBody, TokenizeBody


def properties(llm: LLM, names: tuple[str, ...]) -> dict[str, Any]:
    """`/props`, with llama-server's names where it has them, and the memory plan of the run."""
    model, session, defaults = llm.model, llm.model.session, SamplingParams()
    plan = None if model.plan is None else plan_json(model.plan) | {"model": names[0]}
    return {
        "default_generation_settings": {
            "n_ctx": session.window,
            "params": {"temperature": defaults.temperature, "top_p": defaults.top_p, "top_k": defaults.top_k},
        },
        "total_slots": session.options.n_parallel,
        "model_alias": names[0],
        "model_names": list(names),
        "n_ctx": session.window,
        "n_draft": session.options.n_draft if model.has_mtp else 0,
        "mtp": model.has_mtp,
        "exact": session.options.exact,
        "chat_template": model.template.source,
        "build_info": f"mimo-gguf {__version__}, llama.cpp {LLAMA_CPP_COMMIT}",
        "modalities": {"vision": False, "audio": False},
        **model.template.special_tokens,
        "plan": plan,
    }


def tokenizer_info(llm: LLM) -> dict[str, Any]:
    """`/tokenizer_info`: what a client needs to make prompts as the model does."""
    model, vocabulary = llm.model, llm.model.vocabulary
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "vocab_size": vocabulary.n_tokens,
        "model_max_length": model.session.window,
        "chat_template": model.template.source,
        "eos_token_ids": sorted(vocabulary.end_tokens),
        "add_bos_token": False,
        **model.template.special_tokens,
    }


def tokenized(body: TokenizeBody, llm: LLM) -> dict[str, Any]:
    """`/tokenize`: the tokens of a text, or of a conversation's prompt.

    Raises:
        UsageError: neither or both are given, or the template refuses the conversation.
    """
    given = [each for each in (body.content, body.prompt, body.messages) if each is not None]
    if len(given) != 1:
        raise UsageError("a text or a conversation is needed", hint='{"content": "..."} or {"messages": [...]}')
    vocabulary = llm.model.vocabulary
    text = body.content if body.content is not None else body.prompt
    if text is None:
        text = chat_prompt(TemplateBody.model_validate({**body.as_template, "messages": body.messages or []}), llm)
    tokens = vocabulary.tokenize(text, parse_special=body.parse_special is not False)
    found: dict[str, Any] = {"tokens": tokens, "count": len(tokens), "max_model_len": llm.model.session.window}
    if body.return_token_strs:
        found["token_strs"] = [_piece(token, llm) for token in tokens]
    if body.with_pieces:
        found["tokens"] = [{"id": token, "piece": _piece(token, llm)} for token in tokens]
    return found


def detokenized(body: DetokenizeBody, llm: LLM) -> dict[str, Any]:
    """`/detokenize`: the text of tokens, control tokens by their names. Raises UsageError for an unknown token."""
    text = llm.get_tokenizer().decode(body.tokens)
    return {"content": text, "prompt": text}


def templated(body: TemplateBody, llm: LLM) -> dict[str, Any]:
    """`/apply-template`: the prompt of a conversation. Raises UsageError as `chat_job`."""
    return {"prompt": chat_prompt(body, llm)}


def _piece(token: int, llm: LLM) -> str | list[int]:
    """The text of a token; its bytes if they are only a part of a character."""
    raw = llm.model.vocabulary.piece(token, special=True)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return list(raw)
