"""The model's own answers to prompts that ship with this program: text of the kind that the model is used for.

Each answer is one line of a JSONL file, a conversation that `-f` reads. An interrupted run goes on: the lines that are
there already are kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mimo_gguf.core.digests import TEXT
from mimo_gguf.core.errors import OutputError
from mimo_gguf.core.output_file import check_output
from mimo_gguf.core.shelves import read_toml

_PROMPTS: Final = Path(__file__).with_name("prompts.toml")
AT_ONCE: Final = 8  # prompts that are answered in one call
LONGEST: Final = 512  # tokens of an answer

# Gives the texts that continue rendered prompts, each of at most so many tokens, and the number of tokens of all.
Continue = Callable[[Sequence[str], int], tuple[list[str], int]]


@dataclass(frozen=True, slots=True)
class Answers:
    """What was written: conversations, and tokens of their answers that this run drew."""

    path: Path
    n_conversations: int
    n_tokens: int


def shipped_prompts() -> list[str]:
    """All prompts that ship with this program, in an order that mixes them."""
    table = read_toml(_PROMPTS)
    prompts = [form.format(subject) for form in table["forms"] for subject in table["subjects"]]
    return sorted([*prompts, *table["questions"]], key=lambda prompt: TEXT.hex(prompt.encode()))


def write_answers(
    out: Path,
    render: Callable[[Sequence[dict[str, str]]], str],
    answer: Continue,
    *,
    n_prompts: int,
    force: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Answers:
    """Asks the shipped prompts and writes the conversations.

    Args:
        out: the JSONL file.
        render: the model's chat template.
        answer: the model.
        n_prompts: number of prompts to ask; at most all there are.
        force: whether an existing file is replaced.
        on_progress: called with the number of conversations that are there, and the number wanted.

    Raises:
        OutputError: the file exists, or cannot be written.
    """
    check_output(out, force=force)
    prompts = shipped_prompts()[:n_prompts]
    partial = out.with_name(f".{out.name}.partial")
    done, n_tokens = _lines_of(partial, prompts), 0
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(done)
            while len(done) < len(prompts):
                if on_progress is not None:
                    on_progress(len(done), len(prompts))
                asked = [_asked(prompt) for prompt in prompts[len(done) : len(done) + AT_ONCE]]
                texts, n_drawn = answer([render(messages) for messages in asked], LONGEST)
                lines = [_line([*messages, _said(text)]) for messages, text in zip(asked, texts, strict=True)]
                file.writelines(lines)
                file.flush()
                done += lines
                n_tokens += n_drawn
        partial.replace(out)
    except OSError as error:
        raise OutputError(f"{out}: {error.strerror or error}", hint="choose another place") from None
    return Answers(out, len(done), n_tokens)


def _asked(prompt: str) -> list[dict[str, str]]:
    # An empty system message, as Xiaomi recommends and as chat sends it.
    return [{"role": "system", "content": ""}, {"role": "user", "content": prompt}]


def _said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _line(messages: Sequence[dict[str, str]]) -> str:
    return json.dumps({"messages": messages}, ensure_ascii=False) + "\n"


def _lines_of(path: Path, prompts: Sequence[str]) -> list[str]:
    """The whole lines that an interrupted run has left, as far as they answer these prompts in this order."""
    try:
        found = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, ValueError):
        return []
    lines = []
    for line, prompt in zip(found, prompts, strict=False):
        if not line.endswith("\n") or _question(line) != prompt:
            break
        lines.append(line)
    return lines


def _question(line: str) -> Any:
    try:
        return json.loads(line)["messages"][1]["content"]
    except (ValueError, LookupError, TypeError):
        return None
