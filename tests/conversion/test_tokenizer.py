"""Token ids through llama.cpp from our metadata equal Hugging Face's from the checkpoint's own files."""

from __future__ import annotations

import json
import random
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from gguf import TokenType

from mimo_gguf.conversion.checkpoint import read_checkpoint
from mimo_gguf.conversion.checkpoint_source import plan_conversion
from mimo_gguf.conversion.recipe import load_recipe
from mimo_gguf.conversion.tokenizer import read_tokenizer
from mimo_gguf.core.gguf_header import lay_out
from mimo_gguf.core.model_source import Metadata, string, uint32
from tests.checkpoints import ADDED, CONFIG, write_checkpoint
from tests.published import published_folder, qwen2_vocabulary

TINY = Path(__file__).resolve().parents[2] / "examples" / "mimo-tiny"
PRE_TOKENIZERS = load_recipe("MiMoForCausalLM").pre_tokenizers


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published_folder(tmp_path_factory.mktemp("published"))


def tokenizer_metadata(folder: Path) -> Metadata:
    config = json.loads((folder / "config.json").read_text())
    return read_tokenizer(folder, config, config["vocab_size"], PRE_TOKENIZERS).keys


@contextmanager
def llama_tokenizer(folder: Path, scratch: Path) -> Iterator[Callable[[str], list[int]]]:
    """llama.cpp's tokenizer over a GGUF that holds only the vocabulary."""
    from mimo_gguf.llama.api import api

    llama_cpp = api()
    metadata = {"general.architecture": string("qwen2"), "qwen2.context_length": uint32(8)}
    for key in ("embedding_length", "block_count", "feed_forward_length", "attention.head_count"):
        metadata[f"qwen2.{key}"] = uint32(8)
    path = scratch / "vocabulary.gguf"
    path.write_bytes(lay_out(metadata | dict(tokenizer_metadata(folder)), ()).header)
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    assert model
    vocab = llama_cpp.llama_model_get_vocab(model)

    def tokenize(text: str) -> list[int]:
        raw = text.encode()
        out = (llama_cpp.llama_token * (len(raw) + 16))()
        n = llama_cpp.llama_tokenize(vocab, raw, len(raw), out, len(out), False, True)
        assert n >= 0
        return list(out[:n])

    try:
        yield tokenize
    finally:
        llama_cpp.llama_model_free(model)


def hf_tokenizer(folder: Path) -> Callable[[str], list[int]]:
    from transformers import Qwen2TokenizerFast

    tokenizer = Qwen2TokenizerFast.from_pretrained(str(folder))
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


def generated_texts(seed: int, count: int) -> list[str]:
    """Unicode of every kind, in NFC: Hugging Face normalises before it splits, llama.cpp takes text as it is."""
    rng = random.Random(seed)
    ranges = [
        (0x20, 0x7E), (0xA1, 0x24F), (0x370, 0x5FF), (0x600, 0x6FF), (0x900, 0xD7F), (0xE00, 0xEFF), (0x1780, 0x17FF),
        (0x1E00, 0x20CF), (0x2190, 0x2BFF), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xFF00, 0xFFEF),
        (0x10000, 0x100FF), (0x1D400, 0x1D7FF), (0x1F300, 0x1FAFF), (0x20000, 0x2A6DF),
    ]  # fmt: skip
    pieces = [
        " ", "  ", "\n", "\n\n", "\r\n", "\t", "'s", "'LL", "don't", "123", "4567", "...", "<|im_start|>", "<think>",
        "</think>", "<tool_call>", "user", " assistant", "_x", "#!", "\u200d", "\ufe0f", "\u00a0", "\u3000",
    ]  # fmt: skip
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 30)):
            if rng.random() < 0.4:
                parts.append(rng.choice(pieces))
            else:
                low, high = rng.choice(ranges)
                parts.append("".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 6))))
        texts.append(unicodedata.normalize("NFC", "".join(parts)))
    return texts


@pytest.mark.parametrize("name", ["tiny", "published"])
def test_generated_text(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = TINY if name == "tiny" else request.getfixturevalue("published")
    expected = hf_tokenizer(folder)
    with llama_tokenizer(folder, tmp_path) as tokenize:
        for text in generated_texts(seed=7, count=1500):
            assert tokenize(text) == expected(text), repr(text)


def test_published_vectors(published: Path, tmp_path: Path) -> None:
    """llama.cpp's own vectors for the Qwen2 vocabulary, which MiMo shares."""
    vectors_folder = qwen2_vocabulary()
    texts = (vectors_folder / "ggml-vocab-qwen2.gguf.inp").read_text().split("\n__ggml_vocab_test__\n")
    lines = (vectors_folder / "ggml-vocab-qwen2.gguf.out").read_text().splitlines()
    vectors = [(text, [int(number) for number in line.split()]) for text, line in zip(texts, lines, strict=False)]
    assert len(vectors) > 40
    hf = hf_tokenizer(published)
    with llama_tokenizer(published, tmp_path) as tokenize:
        for text, ids in vectors:
            assert tokenize(text) == ids, repr(text)
            if unicodedata.is_normalized("NFC", text):
                assert hf(text) == ids, repr(text)


def test_published_rows(published: Path) -> None:
    metadata = tokenizer_metadata(published)
    tokens = metadata["tokenizer.ggml.tokens"].value
    types = metadata["tokenizer.ggml.token_type"].value
    assert len(tokens) == len(types) == 151680
    assert tokens[151643:151646] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert types[151643:151646] == [TokenType.CONTROL] * 3
    assert types[tokens.index("<tool_call>")] == TokenType.USER_DEFINED
    assert types[tokens.index("<|fim_prefix|>")] == TokenType.CONTROL
    assert tokens[151665:] == [f"[PAD{row}]" for row in range(151665, 151680)]
    assert set(types[151665:]) == {TokenType.UNUSED}
    assert types.count(TokenType.NORMAL) == 151643
    assert len(metadata["tokenizer.ggml.merges"].value) == 151387
    assert metadata["tokenizer.ggml.pre"].value == "qwen2"
    assert metadata["tokenizer.ggml.bos_token_id"].value == 151643
    assert metadata["tokenizer.ggml.eos_token_id"].value == 151645
    assert metadata["tokenizer.ggml.padding_token_id"].value == 151643
    template = json.loads((published / "tokenizer_config.json").read_text())["chat_template"]
    assert metadata["tokenizer.chat_template"].value == template


def test_tokenizer_json_and_vocab_json_agree(published: Path, tmp_path: Path) -> None:
    """A checkpoint with tokenizer.json gives the same metadata as one with vocab.json and merges.txt."""
    from transformers import Qwen2TokenizerFast

    Qwen2TokenizerFast.from_pretrained(str(published)).save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        shutil.copy(published / name, tmp_path)
    ours, theirs = tokenizer_metadata(published), tokenizer_metadata(tmp_path)
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert ours[key] == theirs[key], key


def test_rows_of_a_small_vocabulary(tmp_path: Path) -> None:
    """As above, wherever the tests run: padding, and the type of each kind of added token."""
    write_checkpoint(tmp_path)
    table = json.loads((tmp_path / "tokenizer.json").read_text())
    table["added_tokens"][2]["special"] = False  # <|im_end|>: looks like a control token, so it is one to llama.cpp
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    metadata = tokenizer_metadata(tmp_path)
    tokens, types = (metadata[f"tokenizer.ggml.{key}"].value for key in ("tokens", "token_type"))
    assert "he" in tokens[:256]
    assert tokens[256:262] == list(ADDED)
    assert tokens[262:] == [f"[PAD{row}]" for row in range(262, 272)]
    control, user, normal, unused = TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.NORMAL, TokenType.UNUSED
    assert types == [normal] * 256 + [control] * 3 + [user] * 2 + [control] + [unused] * 10
    assert metadata["tokenizer.ggml.merges"].value == ["h e"]


def test_ids_by_what_states_them_first(tmp_path: Path) -> None:
    """The tokenizer's own word, then config.json, then generation_config.json; lists by their first item."""
    write_checkpoint(tmp_path, config=CONFIG | {"bos_token_id": [257, 256], "eos_token_id": 256, "pad_token_id": "258"})
    (tmp_path / "generation_config.json").write_text(json.dumps({"bos_token_id": 256, "pad_token_id": 258}))
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"pad_token": "<none such>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    metadata = tokenizer_metadata(tmp_path)
    ids = {kind: metadata[f"tokenizer.ggml.{kind}_token_id"].value for kind in ("bos", "eos", "padding")}
    assert ids == {"bos": 257, "eos": 258, "padding": 262}  # a token with a role and no id is added by transformers


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_vocab_json_and_merges_txt(tmp_path: Path, newline: str) -> None:
    """Without tokenizer.json; a merge may begin with `#`, only the first line may be the version."""
    write_checkpoint(tmp_path)
    vocab = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    vocab["##"] = vocab.pop("Á")  # byte C1, which is in no UTF-8 text
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_bytes("#version: 0.2\nh e\n# #\n\n".replace("\n", newline).encode())
    metadata = tokenizer_metadata(tmp_path)
    assert metadata["tokenizer.ggml.merges"].value == ["h e", "# #"]
    assert metadata["tokenizer.ggml.tokens"].value[vocab["##"]] == "##"
    assert metadata["tokenizer.ggml.tokens"].value[256:262] == list(ADDED)


def test_base_has_no_ids_in_its_config(tmp_path: Path) -> None:
    """MiMo-7B-Base names bos and eos nowhere in config.json; its tokenizer says <|endoftext|>."""
    config = {key: value for key, value in CONFIG.items() if key not in ("bos_token_id", "eos_token_id")}
    write_checkpoint(tmp_path, config=config)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"eos_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "generation_config.json").unlink()
    metadata = plan_conversion(read_checkpoint(tmp_path)).metadata
    assert metadata["tokenizer.ggml.eos_token_id"].value == 256
    assert "tokenizer.ggml.bos_token_id" not in metadata


def test_chat_template_file_wins(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ 'from the file' }}")
    metadata = plan_conversion(read_checkpoint(tmp_path)).metadata
    assert metadata["tokenizer.chat_template"].value == "{{ 'from the file' }}"


def test_text_that_is_not_normalized(tmp_path: Path) -> None:
    """Our own reading of text, with the trained tiny model: as Hugging Face's for text in any normal form."""
    from mimo_gguf.llama.api import load_model
    from mimo_gguf.llama.vocabulary import Vocabulary
    from tests.conversion.converted import convert

    expected = hf_tokenizer(TINY)
    rng = random.Random(3)
    marks = ["\u0301", "\u0308", "\u0323", "\u0338", "\u3099", "\u0345", "\u1161", "\u11a8", "\u094d", "\u05bc"]
    with load_model(convert(TINY, tmp_path / "tiny.gguf")) as model:
        vocabulary = Vocabulary(model)
        changed = 0
        for text in generated_texts(seed=11, count=400):
            for form in ("NFC", "NFD", "NFKD"):
                given = unicodedata.normalize(form, text)
                at = rng.randrange(len(given) + 1)
                given = given[:at] + rng.choice(marks) + given[at:]
                changed += not unicodedata.is_normalized("NFC", given)
                assert vocabulary.tokenize(given) == expected(given), ascii(given)
        assert changed > 300
