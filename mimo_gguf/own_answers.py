"""Lets a model answer the shipped prompts, as a text to judge by.

This module stands above quality and runtime, because it joins the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mimo_gguf.core.output_file import check_output
from mimo_gguf.engine.session import SessionOptions
from mimo_gguf.quality import answers
from mimo_gguf.runtime.params import SamplingParams


def ask_model(
    model: str,
    out: Path,
    *,
    n_prompts: int,
    temperature: float = 0.0,
    threads: int | None = None,
    force: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> answers.Answers:
    """Loads a model, asks it the shipped prompts through its own chat template, and writes the conversations.

    Args:
        model: a GGUF file, a checkpoint folder or a Hub id; the latter two are converted, once.
        temperature: 0 takes the likeliest token each time; above, answers are drawn with a fixed seed.
        n_prompts, out, force, on_progress: as `write_answers`.

    Raises:
        OutputError: as `write_answers`.
        UsageError, GgufError, CheckpointError, HubError, DoesNotFit, BackendError: as `LLM`.
    """
    from mimo_gguf.runtime.llm import LLM

    check_output(out, force=force)  # before the model is loaded
    options = SessionOptions(n_threads=threads or 0)
    with LLM(model, max_model_len=2 * answers.LONGEST, max_num_seqs=answers.AT_ONCE // 2, options=options) as llm:

        def answer(prompts: Sequence[str], longest: int) -> tuple[list[str], int]:
            params = SamplingParams(temperature=temperature, seed=0, max_tokens=longest)
            given = [output.outputs[0] for output in llm.generate(list(prompts), params, use_tqdm=False)]
            return [each.text for each in given], sum(len(each.token_ids) for each in given)

        return answers.write_answers(
            out, lambda messages: llm.render(messages, system=None), answer, n_prompts=n_prompts, force=force,
            on_progress=on_progress,
        )  # fmt: skip
