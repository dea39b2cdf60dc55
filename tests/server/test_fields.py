"""Every field that the official clients can send is taken, or refused with a reason; none is unknown."""

from __future__ import annotations

import typing
from typing import Any

import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params
from pydantic import BaseModel

from mimo_gguf.server.anthropic_requests import CountBody, MessagesBody
from mimo_gguf.server.requests import REFUSED, ChatBody, CompletionBody
from mimo_gguf.server.responses_requests import ResponsesBody
from tests.server.serving import SUM, Serving

BODIES: list[tuple[str, type[BaseModel], Any, dict[str, Any]]] = [
    ("/v1/chat/completions", ChatBody, chat_params.CompletionCreateParamsBase, {"messages": SUM}),
    ("/v1/completions", CompletionBody, completion_create_params.CompletionCreateParamsBase, {"prompt": "x"}),
    ("/v1/responses", ResponsesBody, response_create_params.ResponseCreateParamsBase, {"input": "x"}),
    ("/v1/messages", MessagesBody, message_create_params.MessageCreateParamsBase, {"messages": SUM, "max_tokens": 1}),
    (
        "/v1/messages/count_tokens", CountBody, message_count_tokens_params.MessageCountTokensParams,
        {"messages": SUM},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("path", "kind", "theirs", "body"), BODIES, ids=[each[0] for each in BODIES])
def test_fields_of_the_clients(server: Serving, path: str, kind: type[BaseModel], theirs: Any, body: Any) -> None:
    fields = set(typing.get_type_hints(theirs))
    assert len(fields) > 8, "the clients' types are where they were"
    names = {field.alias or name for name, field in kind.model_fields.items()}
    missing = fields - names
    assert missing <= set(REFUSED), f"{path}: neither taken nor refused with a reason: {sorted(missing - set(REFUSED))}"
    for field in missing:
        refused = server.post(path, {**body, field: "x"})
        message = refused.json()["error"]["message"]
        assert refused.status_code == 400 and message == f"{field} is not taken here: {REFUSED[field]}"


def test_what_is_refused_is_a_field_of_theirs() -> None:
    assert set(REFUSED) <= {field for _, _, theirs, _ in BODIES for field in typing.get_type_hints(theirs)}
