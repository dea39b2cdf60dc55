"""Scripts for vLLM, the published one for MiMo first: each name of its parameters does what it says."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mimo_gguf.core.errors import UsageError
from mimo_gguf.engine.session import SessionOptions
from mimo_gguf.runtime.llm import LLM
from mimo_gguf.runtime.outputs import CompletionOutput
from mimo_gguf.runtime.params import GuidedDecodingParams, SamplingParams, StructuredOutputsParams
from tests.reference import MIMO_TINY
from tests.runtime.test_model import trained_path

__all__ = ["trained_path"]

ROOT = Path(__file__).parents[2]
SUM = [{"role": "user", "content": "What is 17 + 25?"}]
ONE_THREAD = SessionOptions(n_threads=1, adaptive=False)


@pytest.fixture(scope="module")
def llm(trained_path: Path) -> Iterator[LLM]:
    with LLM(trained_path, max_model_len=256, max_num_seqs=2, options=ONE_THREAD) as llm:
        yield llm


def chat(llm: LLM, **params: Any) -> CompletionOutput:
    params = {"temperature": 0, "max_tokens": 80, **params}
    (output,) = llm.chat(SUM, SamplingParams(**params))
    return output.outputs[0]


def test_the_published_script_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As it is published, but for the import line and, here, the model and the length: from a checkpoint's folder."""
    caplog.set_level(logging.INFO, logger="mimo_gguf")
    monkeypatch.setenv("MIMO_GGUF_MODELS", str(tmp_path / "models"))
    script = (ROOT / "examples" / "from_vllm.py").read_text(encoding="utf-8")
    script = script.replace("XiaomiMiMo/MiMo-7B-RL", str(MIMO_TINY)).replace(
        "temperature=0.6", "temperature=0.6, max_tokens=20"
    )
    names: dict[str, Any] = {}
    exec(script, names)
    names["llm"].close()
    said = capsys.readouterr().out
    assert said.startswith("Prompt: '<|im_start|>system\\n<|im_end|>") and "Generated text: '" in said
    (made,) = (tmp_path / "models").rglob("*.gguf")
    assert made.name == "mimo-tiny-Q8_0.gguf"
    log = caplog.text
    assert f"mimo-tiny:Q8_0: making {made}" in log
    assert "with llama.cpp: trust_remote_code" in log and "Avg generation throughput" in log


def test_ends(llm: LLM) -> None:
    whole = chat(llm)
    assert (whole.finish_reason, whole.stop_reason) == ("stop", None)
    third = whole.token_ids[2]
    stopped = chat(llm, stop_token_ids=[third])
    assert stopped.token_ids == whole.token_ids[:3] and stopped.stop_reason == third
    word = "= 42"  # not in the reasoning
    assert chat(llm, stop=word).stop_reason == word
    assert chat(llm, stop=[word], include_stop_str_in_output=True).text.endswith(word)
    end = whole.token_ids[-1]
    on = chat(llm, ignore_eos=True, max_tokens=len(whole.token_ids) + 5)
    assert on.token_ids[: len(whole.token_ids)] == whole.token_ids and on.finish_reason == "length"
    later = chat(llm, min_tokens=len(whole.token_ids) + 3)
    assert end not in later.token_ids[: len(whole.token_ids) + 3] and len(later.token_ids) > len(whole.token_ids) + 3
    n_until = len(chat(llm, stop=word).token_ids)
    assert chat(llm, stop=word, min_tokens=n_until).text != chat(llm, stop=word).text
    assert chat(llm, stop=word, min_tokens=n_until - 1).text == chat(llm, stop=word).text


def test_what_may_not_come(llm: LLM) -> None:
    whole = chat(llm, max_tokens=8)
    first = whole.token_ids[0]
    assert chat(llm, max_tokens=8, logit_bias={first: -100}).token_ids[0] != first
    assert chat(llm, max_tokens=8, logit_bias={str(first): -100}).token_ids[0] != first
    allowed = [*whole.token_ids[:2], 5]
    assert set(chat(llm, max_tokens=12, allowed_token_ids=allowed).token_ids) <= set(allowed)
    assert set(chat(llm, temperature=2.0, max_tokens=12, allowed_token_ids=allowed).token_ids) <= set(allowed)
    text = llm.generate("one two one two one two", SamplingParams(temperature=0, max_tokens=20))[0].outputs[0].text
    word = re.findall(r"\w+", text)[0]
    without = SamplingParams(temperature=0, max_tokens=20, bad_words=[word])
    assert word not in llm.generate("one two one two one two", without)[0].outputs[0].text


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"choice": ["yes", 'no, "never"']}, r'yes|no, "never"'),
        ({"regex": r"^\d{2,3} [a-c]+x?$"}, r"\d{2,3} [a-c]+x?"),
        ({"grammar": 'root ::= sign "7"\nsign ::= "root"'}, "root7"),
        ({"json_object": True}, r"\{.*\}"),
    ],
)
def test_the_form_binds_the_answer_and_not_the_reasoning(llm: LLM, form: dict[str, Any], pattern: str) -> None:
    free = chat(llm)
    kept = chat(llm, structured_outputs=StructuredOutputsParams(**form), logit_bias={}, max_tokens=120)
    assert kept.reasoning == free.reasoning != ""
    assert kept.finish_reason == "length" or re.fullmatch(pattern, kept.text, re.DOTALL), kept.text
    if "json_object" not in form:
        assert kept.finish_reason == "stop"
    at_once = llm.generate(llm.render(SUM), SamplingParams(temperature=0, max_tokens=120,
                           guided_decoding=GuidedDecodingParams(**form)))[0].outputs[0]  # fmt: skip
    assert at_once.finish_reason == "length" or re.fullmatch(pattern, at_once.text, re.DOTALL)


def test_json_by_schema(llm: LLM) -> None:
    schema = {"type": "object", "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 999}},
              "required": ["sum"], "additionalProperties": False}  # fmt: skip
    for given in (schema, json.dumps(schema)):
        answer = chat(llm, structured_outputs=StructuredOutputsParams(json=given), max_tokens=120)
        assert isinstance(json.loads(answer.text)["sum"], int) and answer.reasoning
    budget = chat(llm, structured_outputs=StructuredOutputsParams(json=schema), thinking_token_budget=5, max_tokens=120)
    assert isinstance(json.loads(budget.text)["sum"], int) and 0 < len(budget.reasoning) < len(chat(llm).reasoning)


def test_text_and_special_tokens(llm: LLM) -> None:
    assert chat(llm, detokenize=False).text == "" and chat(llm, detokenize=False).token_ids == chat(llm).token_ids
    shown = chat(llm, skip_special_tokens=False, include_stop_str_in_output=True).text
    assert shown == chat(llm).text + "<|im_end|>"


def test_seeds(trained_path: Path, llm: LLM) -> None:
    wild = SamplingParams(temperature=30.0, top_p=1, max_tokens=15)
    said = []
    for _ in range(2):
        with LLM(trained_path, max_model_len=256, max_num_seqs=2, options=ONE_THREAD, seed=3) as seeded:
            said.append([seeded.chat(SUM, wild)[0].outputs[0].token_ids for _ in range(2)])
    assert said[0] == said[1] and said[0][0] != said[0][1]
    assert llm.chat(SUM, wild)[0].outputs[0] != llm.chat(SUM, wild)[0].outputs[0]


def test_prompts_of_every_kind(llm: LLM) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=5)
    tokenizer = llm.get_tokenizer()
    ids = tokenizer.encode("Once upon")
    wanted = llm.generate("Once upon", greedy)[0].outputs
    kinds: list[Any] = [
        ids, tuple(ids), {"prompt": "Once upon"}, {"prompt_token_ids": ids}, {"prompt_token_ids": ids, "prompt": "x"},
        [ids], [{"prompt": "Once upon"}], iter(["Once upon"]),
    ]  # fmt: skip
    for kind in kinds:
        (output,) = llm.generate(kind, greedy)
        assert output.outputs == wanted, kind
        assert output.prompt_token_ids == tuple(ids)
    assert llm.generate(ids, greedy)[0].prompt is None
    mixed: list[Any] = [ids, "Once upon", {"prompt": "a"}]
    assert len(llm.generate(mixed, greedy)) == 3
    short = SamplingParams(temperature=0, max_tokens=5, truncate_prompt_tokens=1)
    assert llm.generate("Once upon", short)[0].prompt_token_ids == tuple(ids[-1:])
    assert tokenizer.decode(tokenizer.encode("<|im_start|>é€")) == "<|im_start|>é€"


@pytest.mark.parametrize(
    "wrong",
    [b"abc", 5, None, {"promt": "a"}, {"prompt_token_ids": "12"}, {"prompt": b"a"}, [b"a"], [1, "a"], [[1, 99999]],
     [[-1]], [[1.5]], [[True, 2]], [None], {"prompt": "a", "multi_modal_data": {}}],
)  # fmt: skip
def test_what_is_no_prompt(llm: LLM, wrong: Any) -> None:
    with pytest.raises(UsageError):
        llm.generate(wrong, SamplingParams(max_tokens=1))
    with pytest.raises(ValueError, match=r"prompt|token"):
        llm.generate(wrong, SamplingParams(max_tokens=1))


def test_conversations(llm: LLM) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=6)
    wanted = llm.chat(SUM, greedy)
    assert llm.chat(iter(SUM), greedy) == wanted
    assert llm.chat([SUM, SUM], greedy) == wanted * 2
    parts = [{"role": "user", "content": [{"type": "text", "text": "What is"}, {"type": "text", "text": "17 + 25?"}]}]
    assert "What is\n17 + 25?<|im_end|>" in str(llm.chat(parts, greedy)[0].prompt)
    begun = [*SUM, {"role": "assistant", "content": "17 + 25 ="}]
    (output,) = llm.chat(begun, greedy, add_generation_prompt=False, continue_final_message=True)
    assert str(output.prompt).endswith("assistant\n17 + 25 =")
    assert not str(llm.chat(SUM, greedy, add_generation_prompt=False)[0].prompt).endswith("assistant\n")
    own = "{% for m in messages %}[{{ m.content }}]{% endfor %}{{ word }}{{ tools[0].name if tools }}"
    (output,) = llm.chat(SUM, greedy, chat_template=own, chat_template_kwargs={"word": "!"}, tools=[{"name": "add"}],
                         system=None)  # fmt: skip
    assert output.prompt == "[What is 17 + 25?]!add"
    tokenizer = llm.get_tokenizer()
    assert tokenizer.apply_chat_template(SUM, tokenize=False, add_generation_prompt=True)
    with pytest.raises(UsageError, match="together"):
        llm.chat(begun, greedy, continue_final_message=True)
    for name in ("messages", "system", "template", "tools", "add_generation_prompt"):
        with pytest.raises(UsageError, match=f"chat_template_kwargs has {name}"):
            llm.chat(SUM, greedy, chat_template_kwargs={name: 1})
    for wrong in ("hello", b"x", 5, [5], [["a"]], [[{"role": "user", "content": [{"type": "image_url"}]}]]):
        with pytest.raises(UsageError):
            llm.chat(wrong, greedy)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": "2"}, {"n": 2.5}, {"n": True}, {"n": None}, {"n": -1}, {"top_k": -2}, {"temperature": "hot"},
        {"stop": 5}, {"stop": [5]}, {"stop": b"x"}, {"stop_token_ids": 5}, {"stop_token_ids": ["a"]},
        {"bad_words": "word"}, {"bad_words": [""]}, {"ignore_eos": 1}, {"max_tokens": -1}, {"max_tokens": 1.5},
        {"min_tokens": None}, {"min_tokens": 5, "max_tokens": 4}, {"logprobs": -2}, {"logprobs": "5"},
        {"prompt_logprobs": 1.5}, {"logit_bias": [1]}, {"logit_bias": {"a": 1}}, {"logit_bias": {1: "x"}},
        {"allowed_token_ids": [1.5]}, {"truncate_prompt_tokens": 0}, {"output_kind": 7}, {"seed": 1.5},
        {"detokenize": False, "stop": "x"}, {"thinking_token_budget": -1}, {"best_of": 2}, {"temprature": 0.5},
        {"logits_processors": []}, {"structured_outputs": {"json": {}}},
        {"structured_outputs": StructuredOutputsParams(choice=["a"], regex="a")},
        {"structured_outputs": StructuredOutputsParams(choice=[])},
        {"structured_outputs": StructuredOutputsParams(choice="ab")},
        {"structured_outputs": StructuredOutputsParams(regex="(?<=a)b")},
        {"structured_outputs": StructuredOutputsParams(json="{")},
        {"structured_outputs": StructuredOutputsParams(json={"a": {1, 2}})},
        {"structured_outputs": StructuredOutputsParams(grammar=5)},  # type: ignore[arg-type]
        {"structured_outputs": StructuredOutputsParams(choice=["a"]),
         "guided_decoding": StructuredOutputsParams(choice=["a"])},
    ],
    ids=str,
)  # fmt: skip
def test_parameters_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        SamplingParams(**wrong)


def test_parameters_change_until_they_are_used(llm: LLM) -> None:
    params = llm.get_default_sampling_params()
    params.max_tokens, params.temperature = 3, 0
    assert len(llm.chat(SUM, params)[0].outputs[0].token_ids) == 3
    params.n = "2"  # type: ignore[assignment]
    with pytest.raises(UsageError, match="'2' answers"):
        llm.chat(SUM, params)
    for wrong in ([5], {"temperature": 0}):
        with pytest.raises(UsageError):
            llm.chat(SUM, wrong)  # type: ignore[arg-type]
    for unknown in (99999, -1):
        with pytest.raises(UsageError, match="no token"):
            llm.chat(SUM, SamplingParams(allowed_token_ids=[unknown]))


def test_what_an_output_says(llm: LLM) -> None:
    llm.model.forget()
    first, second = llm.chat([SUM, SUM], SamplingParams(temperature=0, max_tokens=5, n=2))
    assert first.finished and int(second.request_id) == int(first.request_id) + 1
    assert [answer.index for answer in first.outputs] == [0, 1] and first.outputs[0].finished()
    metrics = first.metrics
    assert metrics is not None and metrics.first_token_time is not None and metrics.finished_time is not None
    assert metrics.arrival_time <= metrics.first_token_time <= metrics.finished_time
    assert metrics.time_in_queue is not None and metrics.time_in_queue >= 0
    again = llm.chat(SUM, SamplingParams(temperature=0, max_tokens=5))[0]
    assert again.num_cached_tokens is not None and again.num_cached_tokens >= len(again.prompt_token_ids) - 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal_only(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=3)
    for screen, wanted, is_shown in (
        (Terminal(), True, True),
        (io.StringIO(), True, False),
        (Terminal(), False, False),
    ):
        monkeypatch.setattr(sys, "stderr", screen)
        llm.generate(["a", "b"], greedy, wanted)
        assert ("Processed prompts" in screen.getvalue() and "2/2" in screen.getvalue()) is is_shown
        assert ("toks/s" in screen.getvalue()) is is_shown


def test_from_several_threads(llm: LLM) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=12)
    wanted = [llm.generate(text, greedy)[0].outputs for text in ("a", "b", "c")]
    said: dict[int, Any] = {}

    def ask(number: int) -> None:
        said[number] = [llm.generate(text, greedy)[0].outputs for text in ("a", "b", "c")]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [said[number] for number in range(3)] == [wanted] * 3
