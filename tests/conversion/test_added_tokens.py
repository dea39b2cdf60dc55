"""Added tokens and settings that change ids: the same ids as AutoTokenizer of transformers, or a refusal with why."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mimo_gguf.conversion.checkpoint import read_checkpoint
from mimo_gguf.conversion.checkpoint_source import ConversionPlan, plan_conversion
from mimo_gguf.core.errors import CheckpointError
from mimo_gguf.llama.api import load_model
from mimo_gguf.llama.vocabulary import Vocabulary
from tests.checkpoints import ADDED, write_checkpoint
from tests.conversion.converted import convert

Table = dict[str, Any]
Change = Callable[[Path], None]


def edit(name: str, change: Callable[[Table], object]) -> Change:
    def apply(folder: Path) -> None:
        table = json.loads((folder / name).read_text())
        change(table)
        (folder / name).write_text(json.dumps(table))

    return apply


def token(content: str, **flags: Any) -> Table:
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": False}
    return {"content": content, **plain, **flags}


def in_json(number: int, content: str, **flags: Any) -> Change:
    return edit("tokenizer.json", lambda t: t["added_tokens"].append({"id": number, **token(content, **flags)}))


def in_config(number: int, content: str, **flags: Any) -> Change:
    def add(table: Table) -> None:
        table["added_tokens_decoder"][str(number)] = token(content, **flags)

    return edit("tokenizer_config.json", add)


def set_config(**values: Any) -> Change:
    return edit("tokenizer_config.json", lambda t: t.update(values))


def without_decoder(folder: Path) -> None:
    edit("tokenizer_config.json", lambda t: t.pop("added_tokens_decoder"))(folder)


def as_old_files(further: dict[str, int]) -> Change:
    """vocab.json, merges.txt and added_tokens.json, as transformers wrote them before tokenizer.json."""

    def apply(folder: Path) -> None:
        table = json.loads((folder / "tokenizer.json").read_text())
        (folder / "tokenizer.json").unlink()
        (folder / "vocab.json").write_text(json.dumps(table["model"]["vocab"]))
        (folder / "merges.txt").write_text("#version: 0.2\nh e\n")
        numbers = {added["content"]: added["id"] for added in table["added_tokens"]} | further
        (folder / "added_tokens.json").write_text(json.dumps(numbers))
        without_decoder(folder)

    return apply


def together(*changes: Change) -> Change:
    def apply(folder: Path) -> None:
        for change in changes:
            change(folder)

    return apply


def with_an_end_of_another_family(folder: Path) -> None:
    """`</s>` lies in Qwen2's vocabulary, but its way of splitting never makes it. llama.cpp takes it for an end."""

    def add(table: Table) -> None:
        vocab = table["model"]["vocab"]
        for never, made in (("À", "</"), ("Á", "</s"), ("õ", "</s>")):
            vocab[made] = vocab.pop(never)  # bytes that are in no UTF-8 text
        table["model"]["merges"] += [["<", "/"], ["</", "s"], ["</s", ">"]]

    edit("tokenizer.json", add)(folder)


def with_vocabulary_token(folder: Path) -> None:
    """`he` has a role, and lies in the vocabulary instead of among the added tokens."""
    set_config(eos_token="he")(folder)


GENERIC = set_config(tokenizer_class="PreTrainedTokenizerFast")
SAME_IDS: dict[str, Change] = {
    "as published": lambda folder: None,
    "in both files": together(in_json(262, "<tool>"), in_config(262, "<tool>")),
    "in tokenizer_config.json alone": in_config(262, "<tool>", special=True),
    "in tokenizer.json, without a decoder": together(in_json(262, "<tool>"), without_decoder),
    "in tokenizer.json, class that takes it as it is": together(in_json(262, "<tool>"), GENERIC),
    "in added_tokens.json": as_old_files({"<tool>": 262, "<other tool>": 263}),
    "a role and no id": set_config(pad_token="<pad>", mask_token="<mask>"),
    "a further special token without an id": set_config(additional_special_tokens=["<|im_start|>", "<tool>"]),
    "special tokens in a table": set_config(extra_special_tokens={"image_token": "<image>"}),
    "a role in the vocabulary": with_vocabulary_token,
    "an end of another family": with_an_end_of_another_family,
    "normalized": in_config(262, "<tool>", normalized=True),
    "normalized, composed": in_config(262, "café", normalized=True),
    "one within another": together(in_config(262, "<to"), in_config(263, "<tool>"), in_config(264, "ol> b")),
    "normalized beside others": together(in_config(262, "tool", normalized=True), in_config(263, "ol>")),
    "no tokenizer_config.json": together(
        edit("config.json", lambda t: t.update(tokenizer_class="Qwen2Tokenizer")),  # AutoTokenizer stumbles over a list
        lambda folder: (folder / "tokenizer_config.json").unlink(),
    ),
    "no normalizer, which its class adds": edit("tokenizer.json", lambda t: t.update(normalizer=None)),
    "normalizer in a sequence": edit(
        "tokenizer.json", lambda t: t.update(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}]})
    ),
    "saved by transformers 5": edit(
        "tokenizer.json",
        lambda t: t.update(
            post_processor={
                "type": "TemplateProcessing",
                "single": [{"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {},
            }
        ),
    ),
}
PIECES = (
    *ADDED, "</s>",
    "<tool>", "<to", "tool", "ol> b", "<other tool>", "<pad>", "<mask>", "<image>", "he", "café", "cafe\u0301",
    " ", "  ", "\n", "a", "B", "9", "<", ">", "'s", "\u0301", "\u0338", "\u0323", "\u0307", "e\u0301",
    "\u1100\u1161\u11a8",
    "\u1161", "\uac00", "\u11a8", "\u212b", "\u2126", "\u0344", "\u0958", "\ufb1d", "\u0f43", "\U0001d15e",
    "\U0001f600",
    "\u200d", "\u037e", "\u1fef", "\u2000", "q\u0323\u0307", "q\u0307\u0323", "\u0b47\u0b56", "\u3099", "か\u3099",
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join)


@pytest.mark.parametrize("case", SAME_IDS)
def test_ids_are_those_of_transformers(tmp_path: Path, case: str) -> None:
    from transformers import AutoTokenizer

    write_checkpoint(tmp_path / "m")
    SAME_IDS[case](tmp_path / "m")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "m")
    # By its look <|im_start|> is a control token in a GGUF, even if no file calls it special.
    ways = (False,) if case == "in added_tokens.json" else (False, True)
    with load_model(convert(tmp_path / "m", tmp_path / "out.gguf")) as model:
        vocabulary = Vocabulary(model)

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(TEXTS)
        def same(text: str) -> None:
            for split in ways:
                expected = theirs.encode(text, add_special_tokens=False, split_special_tokens=split)
                assert vocabulary.tokenize(text, parse_special=not split) == expected, (text, split)

        same()
        for piece in PIECES:
            for text in (f"a{piece}b", f"a {piece}\u0338 b", f"{piece}{piece}"):
                assert vocabulary.tokenize(text) == theirs.encode(text, add_special_tokens=False), text


def stage(place: int, **values: Any) -> Change:
    return edit("tokenizer.json", lambda t: t["pre_tokenizer"]["pretokenizers"][place].update(values))


def further_stage(kind: Table) -> Change:
    return edit("tokenizer.json", lambda t: t["pre_tokenizer"]["pretokenizers"].append(kind))


def model(**values: Any) -> Change:
    return edit("tokenizer.json", lambda t: t["model"].update(values))


BOS = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
REFUSED: dict[str, tuple[Change, str]] = {
    "lstrip": (in_json(262, "<tool>", lstrip=True), "'<tool>' has lstrip set"),
    "rstrip": (in_json(262, "<tool>", rstrip=True), "'<tool>' has rstrip set"),
    "single_word": (in_json(262, "tool", single_word=True), "'tool' has single_word set"),
    "lstrip in the config": (in_config(262, "<tool>", lstrip=True), r"tokenizer_config\.json: .*lstrip set"),
    "add_prefix_space": (stage(1, add_prefix_space=True), "add_prefix_space is True"),
    "add_prefix_space in the config": (set_config(add_prefix_space=True), "add_prefix_space is True"),
    "use_regex": (stage(1, use_regex=True), "use_regex is True"),
    "behavior": (stage(0, behavior="Removed"), "behavior is 'Removed'"),
    "invert": (stage(0, invert=True), "invert is True"),
    "further stage": (further_stage({"type": "Digits", "individual_digits": True}), "pre_tokenizer Digits"),
    "no byte level": (edit("tokenizer.json", lambda t: t["pre_tokenizer"]["pretokenizers"].pop()), "ByteLevel"),
    "ignore_merges": (model(ignore_merges=True), r"model\.ignore_merges is True"),
    "dropout": (model(dropout=0.1), r"model\.dropout is 0\.1"),
    "byte_fallback": (model(byte_fallback=True), r"model\.byte_fallback is True"),
    "prefix of subwords": (model(continuing_subword_prefix="##"), r"model\.continuing_subword_prefix is '##'"),
    "end of words": (model(end_of_word_suffix="</w>"), r"model\.end_of_word_suffix"),
    "bytes without a token": (
        edit("tokenizer.json", lambda t: t["model"]["vocab"].pop("!")),
        "no token for the byte 21",
    ),
    "another normalizer": (
        edit("tokenizer.json", lambda t: t.update(normalizer={"type": "NFKC"})),
        "after the normalizer NFKC",
    ),
    "a further normalizer": (
        edit(
            "tokenizer.json",
            lambda t: t.update(
                normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}
            ),
        ),
        "after the normalizer NFC, Lowercase",
    ),
    "no normalizer, and a class that adds none": (
        together(edit("tokenizer.json", lambda t: t.update(normalizer=None)), GENERIC),
        "after the normalizer null",
    ),
    "a token before the text": (
        edit("tokenizer.json", lambda t: t.update(post_processor={"type": "TemplateProcessing", "single": [BOS]})),
        "post_processor is 'TemplateProcessing'",
    ),
    "split_special_tokens": (set_config(split_special_tokens=True), "split_special_tokens is True"),
    "code of its own": (set_config(auto_map={"AutoTokenizer": ["a.B", None]}), "code of its own"),
    "another class": (set_config(tokenizer_class="GPT2Tokenizer"), "tokenizer_class is 'GPT2Tokenizer'"),
    "an id that transformers would not give": (in_config(266, "<tool>"), "transformers gives it 262"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_change_ids_are_refused(tmp_path: Path, case: str) -> None:
    write_checkpoint(tmp_path)
    change, message = REFUSED[case]
    change(tmp_path)
    with pytest.raises(CheckpointError, match=message) as caught:
        plan_conversion(read_checkpoint(tmp_path))
    assert caught.value.hint


def planned(folder: Path) -> ConversionPlan:
    return plan_conversion(read_checkpoint(folder))


def test_a_token_that_only_tokenizer_json_has_is_told(tmp_path: Path) -> None:
    """transformers 4 reads it as a token, 5 as text."""
    write_checkpoint(tmp_path)
    in_json(262, "<tool>")(tmp_path)
    plan = planned(tmp_path)
    assert plan.metadata["tokenizer.ggml.tokens"].value[262] == "<tool>"
    assert any("'<tool>' as text" in note for note in plan.notes)


def test_a_control_character_without_a_token_is_told(tmp_path: Path) -> None:
    """SmolLM2's vocabulary has none for six of them; in a GPT-2 vocabulary, the letter of byte 04 is `Ą`."""
    write_checkpoint(tmp_path)
    edit("tokenizer.json", lambda table: table["model"]["vocab"].update({"<never>": table["model"]["vocab"].pop("Ą")}))(
        tmp_path
    )
    assert any("no token for the bytes 04: left out" in note for note in planned(tmp_path).notes)


@pytest.mark.parametrize(
    ("stated", "eot", "eom", "kept"),
    [
        (258, None, None, None),
        ([258], None, None, None),
        ([258, 256], 256, None, "256"),
        ([262, 258, 263, 260], 262, 263, "262 263 260"),
        ([258, "x", -1, 10**9, True, 261], 261, None, "261"),
    ],
)
def test_every_end_of_an_answer(
    tmp_path: Path, stated: Any, eot: int | None, eom: int | None, kept: str | None
) -> None:
    """generation_config.json may list several; llama.cpp has keys for three, ours keeps the rest."""
    write_checkpoint(tmp_path / "m")
    together(in_config(262, "<end>"), in_config(263, "<stop>"))(tmp_path / "m")
    edit("generation_config.json", lambda t: t.update(eos_token_id=stated))(tmp_path / "m")
    out = convert(tmp_path / "m", tmp_path / "out.gguf")
    found = {key: field.contents() for key, field in GGUFReader(out).fields.items() if "token" in key}
    assert found["tokenizer.ggml.eos_token_id"] == 258
    assert found.get("tokenizer.ggml.eot_token_id") == eot
    assert found.get("tokenizer.ggml.eom_token_id") == eom
    assert found.get("mimo_gguf.tokenizer.end_ids") == kept
    with load_model(out) as model:
        ends = Vocabulary(model).end_tokens
    assert ends >= {258, *map(int, (kept or "").split())}
    assert 257 not in ends


def test_an_end_of_another_family_ends_nothing(tmp_path: Path) -> None:
    """Also in a file that another program made, which does not name its added tokens."""
    from mimo_gguf.conversion.checkpoint_source import open_checkpoint
    from tests.tiny_models import write_gguf

    write_checkpoint(tmp_path / "m")
    with_an_end_of_another_family(tmp_path / "m")
    with open_checkpoint(tmp_path / "m") as source:
        write_gguf(source, tmp_path / "ours.gguf")
        plain = {key: value for key, value in source.metadata.items() if not key.startswith("mimo_gguf.")}
        write_gguf(replace(source, metadata=plain), tmp_path / "theirs.gguf")
    found = []
    for name in ("ours.gguf", "theirs.gguf"):
        with load_model(tmp_path / name) as model:
            vocabulary = Vocabulary(model)
            found.append((vocabulary.end_tokens, vocabulary.tokenize("a</s>b<|im_end|>")))
    ends, ids = found[0]
    assert found[1] == found[0]
    assert ends == {256, 258, 261}
    assert len(ids) == 6 and ids[-1] == 258


def test_ends_in_config_json(tmp_path: Path) -> None:
    from tests.checkpoints import CONFIG

    write_checkpoint(tmp_path, config=CONFIG | {"eos_token_id": [258, 261]})
    (tmp_path / "generation_config.json").unlink()
    assert planned(tmp_path).metadata["tokenizer.ggml.eot_token_id"].value == 261


def write_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("F")


TEMPLATES: dict[str, tuple[Change, dict[str, str], str]] = {
    "one": (set_config(chat_template="A"), {"": "A"}, ""),
    "default and others": (
        set_config(chat_template=[{"name": "default", "template": "A"}, {"name": "Tool Use", "template": "B"}]),
        {"": "A", ".tool_use": "B"},
        "",
    ),
    "a table": (set_config(chat_template={"default": "A", "rag": "B"}), {"": "A", ".rag": "B"}, ""),
    "one with a name": (set_config(chat_template=[{"name": "chatml", "template": "X"}]), {"": "X"}, "'chatml'"),
    "names without a default": (
        set_config(chat_template=[{"name": "a", "template": "X"}, {"name": "b", "template": "Y"}]),
        {".a": "X", ".b": "Y"},
        "no chat template is the default",
    ),
    "a file": (write_template, {"": "F"}, ""),
    "malformed": (set_config(chat_template=[5, {"name": "default"}]), {}, ""),
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_chat_templates(tmp_path: Path, case: str) -> None:
    write_checkpoint(tmp_path)
    change, expected, note = TEMPLATES[case]
    change(tmp_path)
    plan = planned(tmp_path)
    key = "tokenizer.chat_template"
    found = {name.removeprefix(key): entry.value for name, entry in plan.metadata.items() if name.startswith(key)}
    found.pop("s", None)
    assert found == expected
    assert note in " ".join(plan.notes)
    assert bool(note) == bool(plan.notes)


def test_further_template_files(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("R")
    (tmp_path / "chat_template.jinja").write_text("F")
    metadata = planned(tmp_path).metadata
    assert metadata["tokenizer.chat_template"].value == "F"
    assert metadata["tokenizer.chat_template.rag"].value == "R"
    assert metadata["tokenizer.chat_templates"].value == ["rag"]
