"""What the trained tiny MiMo can do, on held-out dialogues: right answers, and drafts that the trunk would take."""

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
    """Per kind of dialogue: how many, how many greedy answers right; MTP acceptance of one draft token (0 to 1)."""

    asked: dict[str, int]
    right: dict[str, int]
    acceptance: dict[str, float]
    by_input: dict[str, float]


def evaluate(model: Mimo, tokenizer: Tokenizer, dialogues: Sequence[Dialogue]) -> Figures:
    """Greedy answers to `dialogues`, and acceptance along them: by kind, and by what the MTP layer is fed."""
    end = tokenizer.token_to_id("<|im_end|>")
    swapped = with_swapped_halves(model)
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    drafts: Counter[str] = Counter()
    for dialogue in dialogues:
        kind = dialogue.last.kind
        prompt = tokenizer.encode(render_chat(dialogue.messages, answer_next=True)).ids
        tokens = generate_greedy(model, prompt, N_MAX, {end})
        asked[kind] += 1
        right[kind] += tokens[-1] == end and is_right(tokenizer.decode(tokens), dialogue.last)
        pre = draft_hits(model, prompt, tokens)
        counts = {
            kind: pre,
            "state before the final norm": pre,
            "state after the final norm": draft_hits(model, prompt, tokens, hidden_kind="post"),
            "halves of input_proj swapped": draft_hits(swapped, prompt, tokens),
        }
        for name, (n_hits, n_drafts) in counts.items():
            hits[name] += n_hits
            drafts[name] += n_drafts
    rates = {name: hits[name] / drafts[name] for name in sorted(drafts)}
    by_kind = {name: rate for name, rate in rates.items() if name in asked}
    by_input = {name: rates[name] for name in list(counts)[1:]}
    return Figures(dict(asked), dict(right), by_kind, by_input)
