"""Measures the trained tiny MiMo on held-out dialogues: right answers, and drafts that the trunk accepts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from examples.tiny_dialogues import Dialogue, is_right
from examples.tiny_tokenizer import render_chat
from tests.reference.drafting import draft_hits, generate_greedy, with_swapped_halves
from tests.reference.mimo import Mimo

N_MAX = 200


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures on held-out dialogues.

    Attributes:
        asked, right: kind -> number of dialogues, and of right greedy answers.
        by_kind: kind -> MTP acceptance of one draft token, 0 to 1.
        by_input: input of the MTP layer -> acceptance; the trunk's state before the final norm comes first.
    """

    asked: dict[str, int]
    right: dict[str, int]
    by_kind: dict[str, float]
    by_input: dict[str, float]


def evaluate(model: Mimo, tokenizer: Tokenizer, dialogues: Sequence[Dialogue]) -> Figures:
    """Measures greedy answers to `dialogues`, and the acceptance of drafts in them."""
    end = tokenizer.token_to_id("<|im_end|>")
    swapped = with_swapped_halves(model)
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    by_kind, by_input = Tally(), Tally()
    for dialogue in dialogues:
        kind = dialogue.last.kind
        prompt = tokenizer.encode(render_chat(dialogue.messages, answer_next=True)).ids
        tokens = generate_greedy(model, prompt, N_MAX, {end})
        asked[kind] += 1
        right[kind] += tokens[-1] == end and is_right(tokenizer.decode(tokens), dialogue.last)
        normal = draft_hits(model, prompt, tokens)
        by_kind.add(kind, normal)
        by_input.add("state before the final norm", normal)
        by_input.add("state after the final norm", draft_hits(model, prompt, tokens, hidden_kind="post"))
        by_input.add("halves of input_proj swapped", draft_hits(swapped, prompt, tokens))
    return Figures(dict(asked), dict(right), by_kind.rates(), by_input.rates())


class Tally:
    """Counts hits and drafts by name."""

    def __init__(self) -> None:
        self.counts: dict[str, tuple[int, int]] = {}

    def add(self, name: str, counted: tuple[int, int]) -> None:
        hits, drafts = self.counts.get(name, (0, 0))
        self.counts[name] = (hits + counted[0], drafts + counted[1])

    def rates(self) -> dict[str, float]:
        return {name: hits / drafts for name, (hits, drafts) in self.counts.items()}
