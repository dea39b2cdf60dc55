"""Prompts for chats, and answers to them by the model itself.

Training prompts are 14 forms x 40 subjects; none of the held-out prompts has one of these subjects.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

FORMS = (
    "What is {}?",
    "Explain {} to a ten-year-old.",
    "Write a short story about {}.",
    "Give me five facts about {}.",
    "Write a Python function that has to do with {}.",
    "Why is {} important?",
    "Write a short poem about {}.",
    "How does {} work?",
    "Write an email to a friend about {}.",
    "Compare {} with something similar.",
    "What are the pros and cons of {}?",
    "Summarize the history of {} in three sentences.",
    "List the steps to get started with {}.",
    "Translate the idea of {} into plain words.",
)
SUBJECTS = (
    "photosynthesis", "the moon", "sorting a list", "coffee", "the French Revolution", "prime numbers",
    "a lonely robot", "gravity", "bread baking", "the internet", "chess", "volcanoes", "a healthy diet",
    "electric cars", "binary search", "the human heart", "Shakespeare", "rain", "budgeting", "bees", "recycling",
    "the Roman Empire", "fractions", "a lost dog", "machine learning", "yoga", "the stock market", "dinosaurs",
    "SQL databases", "jazz", "vaccines", "black holes", "gardening", "world peace", "reading files",
    "climate change", "a birthday party", "public transport", "the Pythagorean theorem", "sleep",
)  # fmt: skip
HELD = (
    "What is the capital of France?",
    "What is the weather like on Mars?",
    "Write a Python function that reverses a string.",
    "Who was Isaac Newton?",
    "Explain how rainbows form.",
    "Write a short story about a cat who learns to swim.",
    "What is 17 + 25?",
    "Give me three tips for a job interview.",
    "How do airplanes fly?",
    "Write a haiku about winter.",
    "What is the difference between a list and a tuple in Python?",
    "Explain inflation in simple words.",
    "List five uses of olive oil.",
    "Write an email asking my boss for a day off.",
    "What causes earthquakes?",
    "Describe the water cycle.",
    "How can I learn to play the guitar?",
    "What is a neural network?",
    "Write a JavaScript loop that prints the numbers from 1 to 10.",
    "Summarize the story of Romeo and Juliet.",
    "Why do leaves change colour in autumn?",
    "Give me a recipe for pancakes.",
    "What is the speed of light?",
    "Explain what an operating system does.",
)


@dataclass(frozen=True, slots=True)
class Chat:
    """A prompt and its answer.

    Attributes:
        part: "held" or "train".
        prompt: the user's words.
        ids: tokens of the rendered prompt and of the answer, its end token included.
        n_prompt: how many of them are the prompt's.
        ended: whether the answer ended by itself.
    """

    part: str
    prompt: str
    ids: Sequence[int]
    n_prompt: int
    ended: bool


def training_prompts() -> list[str]:
    """All training prompts, in an order that mixes forms and subjects and is always the same."""
    prompts = [form.format(subject) for form in FORMS for subject in SUBJECTS]
    return sorted(prompts, key=lambda prompt: hashlib.sha256(prompt.encode()).digest())


def answer(model: str, prompts: Sequence[str], part: str, most: int, *, greedy: bool = False) -> list[Chat]:
    """Answers prompts with a GGUF; in training every other answer is drawn at a temperature of 0.7.

    Args:
        model: path of the GGUF.
        prompts: the user's words, each a chat of its own.
        part: "held" or "train".
        most: tokens of an answer, at most.
        greedy: whether every answer is greedy.
    """
    from mimo_gguf import LLM, SamplingParams
    from mimo_gguf.engine.session import SessionOptions

    params = [
        SamplingParams(temperature=0.0 if greedy or number % 2 else 0.7, top_p=0.95, seed=number, max_tokens=most)
        for number in range(len(prompts))
    ]
    conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
    with LLM(model, max_model_len=most + 128, max_num_seqs=24, options=SessionOptions(n_threads=1), mtp=False) as llm:
        outputs = llm.chat(conversations, params)
    chats = []
    for prompt, output in zip(prompts, outputs, strict=True):
        first, ids = output.outputs[0], list(output.prompt_token_ids or [])
        chats.append(Chat(part, prompt, [*ids, *first.token_ids], len(ids), first.finish_reason == "stop"))
    return chats


def write_chats(path: Path, chats: Sequence[Chat]) -> None:
    """Writes chats as JSON, one a line."""
    path.write_text("".join(f"{json.dumps(asdict(chat))}\n" for chat in chats), encoding="utf-8")


def read_chats(path: Path) -> list[Chat]:
    """Reads what `write_chats` wrote."""
    return [Chat(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
