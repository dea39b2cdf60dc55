"""Clients that are not installed by default, unchanged: `make test-clients`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pydantic
import pytest

from mimo_gguf.runtime.llm import LLM
from mimo_gguf.runtime.params import SamplingParams
from tests.reference import MIMO_TINY
from tests.server.serving import SUM, Serving

pytestmark = pytest.mark.clients

CHOICES = [
    ("What is 17 + 25?", [" 42", " 7", " a cat"]),
    ("Who are you?", [" nothing", " I am MiMo", " 12"]),
    ("What is 3 * 4?", [" 1", " 12", " 90"]),
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
{more}
"""
MULTIPLE = 'doc_to_choice: "{{choices}}"\ntarget_delimiter: ""\nmetric_list:\n  - metric: acc\n'
UNTIL = 'generation_kwargs:\n  until: ["."]\n  max_gen_toks: 60\nmetric_list:\n  - metric: exact_match\n'


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two tasks of lm-eval and their questions; nothing is downloaded."""
    folder = tmp_path_factory.mktemp("tasks")
    with (folder / "questions.jsonl").open("w") as file:
        for question, choices in CHOICES:
            file.write(json.dumps({"question": question, "choices": choices, "answer": 1}) + "\n")
    for name, kind, more in (("tiny_choice", "multiple_choice", MULTIPLE), ("tiny_answer", "generate_until", UNTIL)):
        text = TASK.format(name=name, kind=kind, data=folder / "questions.jsonl", more=more)
        (folder / f"{name}.yaml").write_text(text)
    return folder


def evaluated(kind: str, url: str, task: str, tasks: Path, monkeypatch: pytest.MonkeyPatch, **how: Any) -> Any:
    """The result of lm-eval's own function, with the samples."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tasks / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    lm_eval, lm_tasks = pytest.importorskip("lm_eval"), pytest.importorskip("lm_eval.tasks")
    manager = lm_tasks.TaskManager(include_path=str(tasks), include_defaults=False)
    arguments = {"model": "mimo-tiny", "base_url": url, "num_concurrent": 3, "tokenizer": str(MIMO_TINY)}
    return lm_eval.simple_evaluate(
        model=kind, model_args=arguments, tasks=[task], task_manager=manager, log_samples=True, bootstrap_iters=0, **how
    )


@pytest.mark.client("lm-eval", "log-likelihoods (`local-completions`)")
def test_log_likelihoods(server: Serving, llm: LLM, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{server.url}/v1/completions"
    found = evaluated("local-completions", url, "tiny_choice", tasks, monkeypatch)
    encode = llm.get_tokenizer().encode
    for sample, (question, choices) in zip(found["samples"]["tiny_choice"], CHOICES, strict=True):
        for choice, (said, _) in zip(choices, sample["filtered_resps"], strict=True):
            ids, n_before = encode(question + choice), len(encode(question))
            params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
            (output,) = llm.generate([ids], params, use_tqdm=False)
            scores: Any = output.prompt_logprobs
            wanted = sum(scores[at][ids[at]].logprob for at in range(n_before, len(ids)))
            assert float(said) == pytest.approx(wanted, abs=0.05)
    assert 0 <= found["results"]["tiny_choice"]["acc,none"] <= 1


@pytest.mark.client("lm-eval", "generation (`local-chat-completions`)")
def test_generation(server: Serving, llm: LLM, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{server.url}/v1/chat/completions"
    found = evaluated("local-chat-completions", url, "tiny_answer", tasks, monkeypatch, apply_chat_template=True)
    params = SamplingParams(temperature=0, max_tokens=60, stop=["."])
    for sample, (question, _) in zip(found["samples"]["tiny_answer"], CHOICES, strict=True):
        (wanted,) = llm.chat([{"role": "user", "content": question}], params, use_tqdm=False)
        assert sample["resps"][0][0] == wanted.outputs[0].text


class Sum(pydantic.BaseModel):
    """A sum of two numbers."""

    a: int
    is_even: bool


def add(a: int) -> int:
    """Add something to a number."""
    return a + 1


@pytest.fixture(scope="module")
def langchain(server: Serving) -> Any:
    module = pytest.importorskip("langchain_openai")
    how = {"base_url": f"{server.url}/v1", "api_key": "none", "max_retries": 0}
    return lambda **more: module.ChatOpenAI(model="mimo-tiny", temperature=0, **how, **more)


@pytest.mark.client("langchain-openai", "chat", "streams", "tools", "structured outputs")
def test_langchain(langchain: Any, llm: LLM) -> None:
    (wanted,) = llm.chat(SUM, SamplingParams(temperature=0), use_tqdm=False)
    chat, question = langchain(), SUM[0]["content"]
    said = chat.invoke(question)
    assert said.content == wanted.outputs[0].text and said.usage_metadata["output_tokens"] > 0
    assert "".join(chunk.content for chunk in chat.stream(question)) == said.content
    quick = langchain(reasoning_effort="none")
    called = quick.bind_tools([add], tool_choice="add").invoke(question)
    (call,) = called.tool_calls
    assert call["name"] == "add" and isinstance(call["args"]["a"], int)
    structured = quick.with_structured_output(Sum, method="json_schema").invoke(question)
    assert isinstance(structured, Sum)


@pytest.mark.client("langchain-openai", "responses with `previous_response_id`")
def test_langchain_responses(langchain: Any) -> None:
    chat = langchain(use_responses_api=True, use_previous_response_id=True, reasoning={"effort": "none"})
    first = chat.invoke(SUM[0]["content"])
    assert first.text and first.response_metadata["id"].startswith("resp_")
    second = chat.invoke([{"role": "user", "content": SUM[0]["content"]}, first, {"role": "user", "content": "Why?"}])
    assert second.usage_metadata["input_tokens"] > first.usage_metadata["input_tokens"]
