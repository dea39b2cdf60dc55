"""`AsyncLLM`: tasks are batched, what they cancel ends, and no thread stays."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from mimo_gguf.core.errors import UsageError
from mimo_gguf.engine.session import SessionOptions
from mimo_gguf.runtime.async_llm import AsyncLLM
from mimo_gguf.runtime.outputs import RequestOutput
from mimo_gguf.runtime.params import RequestOutputKind, SamplingParams
from tests.runtime.test_model import trained_path

__all__ = ["trained_path"]

GREEDY = SamplingParams(temperature=0, max_tokens=40)
ENDLESS = SamplingParams(temperature=0, ignore_eos=True)
SUM = [{"role": "user", "content": "What is 17 + 25?"}]


@pytest.fixture(scope="module")
def llm(trained_path: Path) -> Iterator[AsyncLLM]:
    options = SessionOptions(n_threads=1, adaptive=False)
    llm = AsyncLLM(trained_path, max_model_len=512, max_num_seqs=3, options=options)
    yield llm
    llm.shutdown()


async def read(outputs: AsyncIterator[RequestOutput]) -> list[RequestOutput]:
    return [output async for output in outputs]


def no_thread_stays() -> bool:
    for thread in threading.enumerate():
        if thread.name == "mimo-gguf-async":
            thread.join(timeout=10)
            return not thread.is_alive()
    return True


def test_outputs_grow(llm: AsyncLLM) -> None:
    outputs = asyncio.run(read(llm.generate("Once upon", GREEDY, "a")))
    assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
    assert len(outputs) > 5 and {output.request_id for output in outputs} == {"a"}
    for earlier, later in itertools.pairwise(outputs):
        assert later.outputs[0].text.startswith(earlier.outputs[0].text)
        assert later.outputs[0].token_ids[: len(earlier.outputs[0].token_ids)] == earlier.outputs[0].token_ids
        assert earlier.outputs[0].finish_reason is None
    assert outputs[-1].outputs == llm.llm.generate("Once upon", GREEDY)[0].outputs
    assert no_thread_stays()


def test_new_text_or_the_end_alone(llm: AsyncLLM) -> None:
    (whole,) = llm.llm.generate("Once upon", GREEDY)
    how: dict[str, Any] = {"temperature": 0, "max_tokens": 40, "n": 2, "logprobs": 1}
    deltas = asyncio.run(
        read(llm.generate("Once upon", SamplingParams(**how, output_kind=RequestOutputKind.DELTA), "a"))
    )
    for index in (0, 1):
        parts = [output.outputs[index] for output in deltas]
        assert "".join(part.text for part in parts) == whole.outputs[0].text
        assert sum((part.token_ids for part in parts), ()) == whole.outputs[0].token_ids
        assert sum(len(part.logprobs or ()) for part in parts) == len(whole.outputs[0].token_ids)
    (last,) = asyncio.run(
        read(llm.generate("Once upon", SamplingParams(**how, output_kind=RequestOutputKind.FINAL_ONLY), "a"))
    )
    assert last.finished and [answer.text for answer in last.outputs] == [whole.outputs[0].text] * 2


def test_tasks_are_batched(llm: AsyncLLM) -> None:
    prompts = ["Once upon", "1 2 3", "Who"]
    wanted = [llm.llm.generate(prompt, GREEDY)[0].outputs for prompt in prompts]
    before = llm.llm.model.session.stats.n_passes

    async def ask_all() -> list[list[RequestOutput]]:
        return await asyncio.gather(*(read(llm.generate(prompt, GREEDY, str(i))) for i, prompt in enumerate(prompts)))

    said = asyncio.run(ask_all())
    assert [outputs[-1].outputs for outputs in said] == wanted
    assert llm.llm.model.session.stats.n_passes > before
    (chatted,) = asyncio.run(
        read(llm.chat(SUM, SamplingParams(temperature=0, output_kind=RequestOutputKind.FINAL_ONLY), "c"))
    )
    assert chatted.outputs[0].reasoning and "42" in chatted.outputs[0].text


def test_abort_and_cancel(llm: AsyncLLM) -> None:
    async def abort() -> RequestOutput:
        async for output in llm.generate("Once upon", ENDLESS, "a"):
            if len(output.outputs[0].token_ids) > 5:
                await llm.abort("a")
                await llm.abort("nobody")
        return output

    async def cancel() -> None:
        task = asyncio.create_task(read(llm.generate("Once upon", ENDLESS, "b")))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def leave() -> None:
        async for _ in llm.generate("Once upon", ENDLESS, "c"):
            break

    output = asyncio.run(abort())
    assert output.finished and output.outputs[0].finish_reason == "abort"
    asyncio.run(cancel())
    asyncio.run(leave())
    assert no_thread_stays() and llm.llm.model.driver.scheduler.idle


def test_what_goes_wrong_is_raised_in_its_task(llm: AsyncLLM) -> None:
    async def twice() -> None:
        async for _ in llm.generate("a", ENDLESS, "a"):
            await read(llm.generate("a", GREEDY, "a"))

    with pytest.raises(UsageError, match="'a' is being answered"):
        asyncio.run(twice())
    for prompt, params in ((b"a", GREEDY), ("word " * 600, GREEDY), ("a", SamplingParams(allowed_token_ids=[99999]))):
        with pytest.raises(UsageError):
            asyncio.run(read(llm.generate(prompt, params, "b")))
    assert asyncio.run(read(llm.generate("a", SamplingParams(n=0), "b")))[-1].outputs == ()
    assert asyncio.run(read(llm.generate("a", None, "b")))[-1].finished


PROGRAM = """
import asyncio, sys
from mimo_gguf import AsyncLLM, SamplingParams

async def main(llm):
    outputs = [llm.generate("Once", SamplingParams(ignore_eos=True), str(i)) for i in range(2)]
    for each in outputs:
        await anext(each)
    HOW

llm = AsyncLLM(sys.argv[1], max_model_len=20000, max_num_seqs=2)
try:
    asyncio.run(main(llm))
except ZeroDivisionError:
    pass
"""


@pytest.mark.parametrize("how", ["pass", "sys.exit(0)", "1 / 0"])
def test_the_program_ends(trained_path: Path, how: str) -> None:
    """Whatever is under way when the loop is left: no thread holds the process, and none crashes it."""
    program = PROGRAM.replace("HOW", how)
    command = [sys.executable, "-c", program, str(trained_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


def test_closed_under_way(trained_path: Path) -> None:
    async def close() -> RequestOutput:
        async with AsyncLLM(trained_path, max_model_len=512, options=SessionOptions(n_threads=1)) as llm:
            task = asyncio.create_task(read(llm.generate("Once upon", ENDLESS, "a")))
            await asyncio.sleep(0.2)
        return (await task)[-1]

    assert asyncio.run(close()).outputs[0].finish_reason == "abort"
    assert no_thread_stays()
