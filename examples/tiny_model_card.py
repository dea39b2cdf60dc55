"""The model card of the tiny MiMo, with its measured figures."""

from __future__ import annotations

from tokenizers import Tokenizer

from examples.tiny_evaluation import Figures
from tests.reference.mimo import Mimo

CARD = """\
---
license: mit
language: en
pipeline_tag: text-generation
tags: [mimo, mtp, test-model]
---

# MiMo tiny

This is a MiMo of {parameters:,} parameters with one trained MTP layer, in the file layout of the published MiMo-7B.
It has the same tensor names, the same config.json keys, a tokenizer of the same form, and two bf16 shards. It was
trained from scratch on generated dialogues (no base model, no downloaded data). It is good for testing software, and
for nothing else.

It has {layers} blocks, hidden {hidden}, FFN {inner}, {heads} heads / {kv_heads} KV heads of {head_dim}, {rows}
vocabulary rows ({padding} of them padding), an untied lm_head and rope theta {theta}. It was trained on texts of up
to about 300 tokens.

It adds numbers below 100, compares, counts, reverses lists, spells, and knows some capitals, opposites, colours and
sounds. It writes two-line Python and tells stories about animals. Give it an empty system message or the default one.
It often compares wrongly, and counts past the end if it has not seen the pair of numbers.

It is made by `python -m examples.train_mimo_tiny` ({steps} steps, seed {seed}, {minutes:.0f} minutes of CPU time).
The same seed gives the same bytes on one machine with one torch release, but not across machines.

## Figures

The figures are of {asked} held-out dialogues, greedy, with bf16 weights computed in float32. They are held out by
content: these sums, lists and wordings were never trained on. *Acceptance* is how often the MTP layer, given the
token just written, drafts the token that the trunk writes next.

| kind | right answers | MTP acceptance |
|---|---|---|
{kinds}
| **all** | **{right} of {asked}** | **{acceptance:.1%}** |

| the MTP layer is fed | acceptance |
|---|---|
{inputs}
"""


def model_card(
    model: Mimo, tokenizer: Tokenizer, figures: Figures, *, steps: int, seed: int, train_cpu_s: float
) -> str:
    """Writes the card in Markdown, with its YAML front matter."""
    config = model.config
    kinds = [
        f"| {kind} | {figures.right[kind]} of {figures.asked[kind]} | {figures.by_kind[kind]:.1%} |"
        for kind in sorted(figures.asked)
    ]
    inputs = [f"| {name} | {rate:.1%} |" for name, rate in figures.by_input.items()]
    return CARD.format(
        layers=config["num_hidden_layers"],
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        hidden=config["hidden_size"],
        inner=config["intermediate_size"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        rows=config["vocab_size"],
        padding=config["vocab_size"] - tokenizer.get_vocab_size(),
        theta=config["rope_theta"],
        steps=steps,
        seed=seed,
        minutes=train_cpu_s / 60,
        asked=sum(figures.asked.values()),
        right=sum(figures.right.values()),
        acceptance=next(iter(figures.by_input.values())),
        kinds="\n".join(kinds),
        inputs="\n".join(inputs),
    )
