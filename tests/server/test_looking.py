"""What a server tells about its model, and what it counts."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mimo_gguf.runtime.llm import LLM
from tests.server.serving import SUM, Serving, serving

CHAT = "/v1/chat/completions"
TEXT = "What is <|im_end|> äö 17?"


def test_tokens_and_back(server: Serving, llm: LLM) -> None:
    ids = llm.get_tokenizer().encode(TEXT)
    by_llama_server = server.post("/tokenize", {"content": TEXT}).json()
    by_vllm = server.post("/tokenize", {"prompt": TEXT, "model": "mimo-tiny", "return_token_strs": True}).json()
    assert by_llama_server["tokens"] == by_vllm["tokens"] == ids
    assert by_vllm["count"] == len(ids) and by_vllm["max_model_len"] == 1024
    assert by_vllm["token_strs"][0] == "What" and len(by_vllm["token_strs"]) == len(ids)
    pieces = server.post("/tokenize", {"content": TEXT, "with_pieces": True}).json()["tokens"]
    raw = b"".join(p["piece"].encode() if isinstance(p["piece"], str) else bytes(p["piece"]) for p in pieces)
    assert [piece["id"] for piece in pieces] == ids and raw.decode() == TEXT
    plain = server.post("/tokenize", {"content": TEXT, "parse_special": False}).json()["tokens"]
    assert len(plain) > len(ids) and llm.get_tokenizer().decode(plain) == TEXT
    assert server.post("/detokenize", {"tokens": ids}).json() == {"content": TEXT, "prompt": TEXT}


def test_a_prompt_is_what_a_chat_reads(server: Serving) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    for how in ({}, {"tools": [tool]}, {"continue_final_message": True}):
        body: dict[str, Any] = {"messages": SUM, **how}
        prompt = server.post("/apply-template", body).json()["prompt"]
        tokens = server.post("/tokenize", body).json()["tokens"]
        assert tokens == server.post("/tokenize", {"content": prompt}).json()["tokens"]
        assert server.post(CHAT, body | {"max_tokens": 1}).json()["usage"]["prompt_tokens"] == len(tokens)
    assert "<tools>" in server.post("/apply-template", {"messages": SUM, "tools": [tool]}).json()["prompt"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"content": "x", "prompt": "x"}),
        ("/tokenize", {"messages": []}),
        ("/tokenize", {"messages": [{"role": "user", "content": 5}]}),
        ("/tokenize", {"content": 5}),
        ("/detokenize", {"tokens": [99999]}),
        ("/detokenize", {"tokens": "x"}),
        ("/detokenize", {"tokens": [], "x": 1}),
        ("/apply-template", {}),
    ],
)
def test_wrong_bodies(server: Serving, path: str, body: Any) -> None:
    wrong = server.post(path, body)
    assert wrong.status_code == 400 and wrong.json()["error"]["message"]
    assert server.post(path, {**body, "model": "gpt-9"}).status_code in (400, 404)


def test_properties(server: Serving, llm: LLM) -> None:
    props = server.get("/props").json()
    assert (props["total_slots"], props["n_ctx"], props["n_draft"], props["mtp"]) == (4, 1024, 2, True)
    assert props["default_generation_settings"] == {
        "n_ctx": 1024, "params": {"temperature": 0.6, "top_p": 0.95, "top_k": 0},
    }  # fmt: skip
    assert props["plan"]["fits"] and props["plan"]["model"] == "mimo-tiny" and props["plan"]["devices"]
    assert str(llm.model.file.path.parent) not in str(props), "no path of the server's machine is told"
    info = server.get("/tokenizer_info").json()
    assert info["chat_template"] == props["chat_template"] and info["vocab_size"] == 1024
    assert info["eos_token"] == "<|im_end|>" or info["eos_token_ids"]


def test_metrics(llm: LLM) -> None:
    def figures(server: Serving) -> dict[str, float]:
        response = server.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain")
        found = {}
        for family in text_string_to_metric_families(response.text):
            for sample in family.samples:
                labels = sorted(value for name, value in sample.labels.items() if name != "model")
                found[sample.name + "".join(labels)] = sample.value
        return found

    with serving(llm) as server:
        before = figures(server)
        usage = server.post(CHAT, {"messages": SUM, "temperature": 0, "max_tokens": 20}).json()
        server.post(CHAT, {"messages": 5})
        for name in ("a", "b"):
            server.get(f"/{name}")
        after = figures(server)
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    assert grown["mimo_gguf_generated_tokens_total"] == 20 == usage["usage"]["completion_tokens"]
    assert grown["mimo_gguf_prompt_tokens_total"] == usage["timings"]["prompt_n"]
    assert grown["mimo_gguf_cached_tokens_total"] == usage["timings"]["cache_n"]
    for name, there in (("drafted_tokens", "draft_n"), ("accepted_drafts", "draft_n_accepted")):
        of_last_pass = grown[f"mimo_gguf_{name}_total"] - usage["timings"][there]  # counted after the answer's end
        assert usage["timings"][there] > 0 and 0 <= of_last_pass <= 2
    assert grown[f"mimo_gguf_requests_total{CHAT}200"] == grown[f"mimo_gguf_requests_total{CHAT}400"] == 1
    assert grown["mimo_gguf_requests_total404other"] == 2
    assert grown["mimo_gguf_first_token_seconds_count"] == 1
    assert grown[f"mimo_gguf_request_seconds_count{CHAT}"] == 2
    assert (after["mimo_gguf_slots"], after["mimo_gguf_running"], after["mimo_gguf_waiting"]) == (4, 0, 0)
