"""Every way a checkpoint can be wrong is one clear error that names what and where, and says what to do."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mimo_gguf.conversion.checkpoint_source import ConversionOptions
from mimo_gguf.conversion.open_model import open_model
from mimo_gguf.core.errors import CheckpointError, MimoGgufError, UsageError
from tests.checkpoints import CONFIG, tensor_shapes, write_checkpoint

SHARD_1, SHARD_2 = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def edit_config(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | changes
        config = {key: value for key, value in config.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def edit_index(change: Callable[[dict[str, str]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        change(index["weight_map"])
        path.write_text(json.dumps(index))

    return edit


def edit_header(change: Callable[[dict[str, dict[str, object]]], object]) -> Callable[[Path], None]:
    """Rewrites the JSON header of the first shard, data untouched."""

    def edit(folder: Path) -> None:
        path = folder / SHARD_1
        raw = path.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])

    return edit


def edit_json(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        table = json.loads((folder / name).read_text())
        change(table)
        (folder / name).write_text(json.dumps(table))

    return edit


def edit_tokenizer(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return edit_json("tokenizer.json", change)


def added(table: dict[str, Any]) -> Any:
    """The first added token."""
    return table["added_tokens"][0]


def cut(name: str, n_bytes: int) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(raw[:-n_bytes] if n_bytes > 0 else raw + b"\0" * -n_bytes)

    return edit


def write(name: str, content: bytes) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return edit


def replace_text(name: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).write_text((folder / name).read_text().replace(old, new, 1))

    return edit


def remove(*names: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return edit


def replace_by_folder(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return edit


def rename_tensor(old: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        for path in folder.glob("*.safetensors"):
            raw = path.read_bytes()
            (length,) = struct.unpack("<Q", raw[:8])
            text = raw[8 : 8 + length].replace(f'"{old}"'.encode(), f'"{new}"'.encode())
            path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
        edit_index(lambda weight_map: weight_map.update({new: weight_map.pop(old)}))(folder)

    return edit


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (remove("config.json"), "no config.json"),
    "config is no JSON": (write("config.json", b"{"), "config.json: not valid JSON"),
    "config is a list": (write("config.json", b"[]"), "a JSON list, not an object"),
    "config is binary": (write("config.json", b"\xff\xfe\x00"), "config.json: not UTF-8 text"),
    "another architecture": (edit_config(architectures=["LlamaForCausalLM"]), "'LlamaForCausalLM'"),
    "no architecture": (edit_config(architectures=None), "names no architecture"),
    "gelu": (edit_config(hidden_act="gelu"), 'hidden_act = "gelu"'),
    "sliding window": (edit_config(use_sliding_window=True), "use_sliding_window = true"),
    "rope scaling": (edit_config(rope_scaling={"type": "yarn", "factor": 4.0}), "rope_scaling"),
    "words for booleans": (edit_config(tie_word_embeddings="false"), 'tie_word_embeddings = "false"'),
    "words for numbers": (edit_config(rope_theta="640000"), "rope_theta is '640000', not a sensible number"),
    "boolean for a number": (edit_config(vocab_size=True), "vocab_size is True, not a sensible number"),
    "list for a number": (edit_config(hidden_size=[64]), "hidden_size is [64]"),
    "NaN for a number": (edit_config(rms_norm_eps=float("nan")), "rms_norm_eps is nan"),
    "nothing for a number": (edit_config(rms_norm_eps=0), "rms_norm_eps is 0, not a sensible number"),
    "NaN for a count": (edit_config(num_hidden_layers=float("nan")), "num_hidden_layers is nan"),
    "half a number": (edit_config(max_position_embeddings=128.5), "max_position_embeddings is 128.5, not a whole"),
    "no whole head": (
        edit_config(num_attention_heads=3, head_dim=None),
        "hidden_size / num_attention_heads is not whole",
    ),
    "context beyond 32 bits": (edit_config(max_position_embeddings=1 << 33), "max_position_embeddings is 8589934592"),
    "a billion layers": (edit_config(num_hidden_layers=10**9), "num_hidden_layers is 1000000000, with only 43 tensors"),
    "a billion MTP layers": (edit_config(num_nextn_predict_layers=10**9), "mtp_layers is 1000000000, with only 43"),
    "MTP count in words": (edit_config(num_nextn_predict_layers="1"), "num_nextn_predict_layers is '1', not a count"),
    "MTP count negative": (edit_config(num_nextn_predict_layers=-1), "num_nextn_predict_layers is -1, not a count"),
    "MTP count in a list": (edit_config(num_nextn_predict_layers=[1]), "num_nextn_predict_layers is [1], not a count"),
    "config nested without end": (write("config.json", b'{"a":' * 100_000), "nested too deeply"),
    "config is a folder": (replace_by_folder("config.json"), "config.json: not a file"),
    "generation config is no JSON": (write("generation_config.json", b"\xff\xfe"), "generation_config.json: not UTF-8"),
    "no hidden_size": (edit_config(hidden_size=None), "hidden_size is missing"),
    "negative heads": (edit_config(num_attention_heads=-4), "num_attention_heads is -4, not a sensible number"),
    "absurd vocabulary": (edit_config(vocab_size=10**15), "vocab_size is 1000000000000000"),
    "width of another model": (edit_config(intermediate_size=128), "has shape [96, 64], config.json says [128, 64]"),
    "more layers than there are": (edit_config(num_hidden_layers=3), "12 tensors missing: model.layers.2."),
    "fewer layers than there are": (edit_config(num_hidden_layers=1), "the recipe has no place for 12 tensors"),
    "MTP declared, in part there": (edit_config(num_nextn_predict_layers=2), "16 tensors missing: model.mtp_layers.1."),
    "shard is a folder": (replace_by_folder(SHARD_2), f"{SHARD_2} missing"),
    "shard missing": (remove(SHARD_2), f"{SHARD_2} missing"),
    "shard truncated": (cut(SHARD_2, 10), f"{SHARD_2}: not a complete safetensors file"),
    "shard truncated in its header": (
        write(SHARD_2, b"\x00\x10\x00\x00\x00\x00\x00\x00{"),
        "not a complete safetensors",
    ),
    "shard empty": (write(SHARD_2, b""), "not a complete safetensors file"),
    "shard with bytes appended": (cut(SHARD_2, -10), "not a complete safetensors file"),
    "header is no JSON": (
        write(SHARD_1, struct.pack("<Q", 4) + b"{{{{" + bytes(64)),
        "not a complete safetensors file",
    ),
    "header of absurd size": (write(SHARD_1, struct.pack("<Q", 1 << 60) + b"{}"), "not a complete safetensors file"),
    "header with absurd offsets": (
        edit_header(lambda header: header["lm_head.weight"].update(data_offsets=[0, 1 << 50])),
        "not a complete safetensors file",
    ),
    "header with an absurd shape": (
        edit_header(lambda header: header["lm_head.weight"].update(shape=[1 << 40, 1 << 40])),
        "not a complete safetensors file",
    ),
    "unknown dtype": (
        edit_header(lambda header: header["lm_head.weight"].update(dtype="F7")),
        "not a complete safetensors file",
    ),
    "shard the index does not name": (
        write("model-00003-of-00003.safetensors", b"x"),
        "not in model.safetensors.index",
    ),
    "index is no JSON": (write("model.safetensors.index.json", b"nope"), "not valid JSON"),
    "index without a map": (write("model.safetensors.index.json", b"{}"), "no weight_map"),
    "index leads out of the folder": (
        edit_index(lambda weight_map: weight_map.update({"lm_head.weight": "../../etc/x.safetensors"})),
        "not a file name",
    ),
    "index names a tensor the shard lacks": (
        edit_index(lambda weight_map: weight_map.update({"model.extra": SHARD_1})),
        "lacks model.extra",
    ),
    "shard holds what the index does not name": (
        edit_index(lambda weight_map: weight_map.pop("model.norm.weight")),
        "holds, against the index, model.norm.weight",
    ),
    "several shards, no index": (remove("model.safetensors.index.json"), "2 .safetensors files but no"),
    "no weights at all": (remove("model.safetensors.index.json", SHARD_1, SHARD_2), "no .safetensors files"),
    "unknown tensor": (
        rename_tensor("model.norm.weight", "model.strange"),
        "1 tensor missing: model.norm.weight; the recipe has no place for 1 tensor: model.strange",
    ),
    "no tokenizer": (remove("tokenizer.json"), "no tokenizer"),
    "tokenizer is no BPE": (write("tokenizer.json", b'{"model": {"type": "Unigram", "vocab": []}}'), "not a BPE"),
    "tokenizer splits another way": (
        replace_text("tokenizer.json", "p{N}|", "p{N}{1,3}|"),
        "splits text by",
    ),
    "normalizer llama.cpp has not": (
        edit_tokenizer(lambda table: table.update(normalizer={"type": "Lowercase"})),
        "after the normalizer Lowercase",
    ),
    "pre-tokenizer is text": (edit_tokenizer(lambda table: table.update(pre_tokenizer="x")), "malformed"),
    "no merges": (edit_tokenizer(lambda table: table["model"].update(merges=None)), "malformed"),
    "merges of numbers": (edit_tokenizer(lambda table: table["model"].update(merges=[1, 2])), "malformed"),
    "merge of three": (edit_tokenizer(lambda table: table["model"].update(merges=[["h", "e", "l"]])), "merge 'h e l'"),
    "merge of unknown tokens": (edit_tokenizer(lambda table: table["model"].update(merges=["zz q"])), "merge 'zz q'"),
    "merge to an unknown token": (edit_tokenizer(lambda table: table["model"].update(merges=["a b"])), "merge 'a b'"),
    "no vocabulary": (edit_tokenizer(lambda table: table["model"].update(vocab={})), "no vocabulary in it"),
    "token id outside the embedding": (
        edit_tokenizer(lambda table: table["model"]["vocab"].update(he=99999)),
        "has id 99999, outside the 272 rows",
    ),
    "token id in words": (edit_tokenizer(lambda table: table["model"]["vocab"].update(he="262")), "has id '262'"),
    "token id true": (edit_tokenizer(lambda table: table["model"]["vocab"].update(he=True)), "has id True"),
    "added token without id": (edit_tokenizer(lambda table: added(table).pop("id")), "malformed: no 'id'"),
    "added token is text": (edit_tokenizer(lambda table: table.update(added_tokens=["x"])), "malformed"),
    "added token of half a character": (
        edit_tokenizer(lambda table: added(table).update(content="\ud800")),
        "tokenizer.json: not valid JSON: 'utf-8' codec",
    ),
    "two tokens with one id": (
        edit_tokenizer(lambda table: added(table).update(id=257)),
        "token '<|endoftext|>' has two ids, 256 and 257",
    ),
    "one token with two ids": (
        edit_tokenizer(lambda table: table["added_tokens"].append({"id": 265, "content": "<|im_end|>"})),
        "token '<|im_end|>' has two ids, 258 and 265",
    ),
    "tokenizer nested without end": (write("tokenizer.json", b'{"model":' * 100_000), "nested too deeply"),
    "chat template is no text": (write("chat_template.jinja", b"\xff\xfe"), "chat_template.jinja: not UTF-8 text"),
    "an added token that skips rows": (
        edit_tokenizer(lambda table: table["added_tokens"].append({"id": 265, "content": "<gap>"})),
        "token '<gap>' has id 265 in a file, and transformers gives it 262",
    ),
    "an added token with another id in another file": (
        replace_text("tokenizer.json", '"id": 261', '"id": 99999'),
        "token '<|fim_pad|>' has two ids, 261 and 99999",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_checkpoint(tmp_path: Path, case: str) -> None:
    folder = tmp_path / "model"
    write_checkpoint(folder)
    open_model(str(folder)).close()  # it was good before
    spoil, expected = BAD[case]
    spoil(folder)
    with pytest.raises(MimoGgufError) as caught:
        open_model(str(folder))
    assert expected in caught.value.message
    assert caught.value.hint
    assert "\n" not in caught.value.message
    assert str(tmp_path) in caught.value.message or "config.json" in caught.value.message


@pytest.mark.parametrize("name", ["nothing", "x" * 5000, "a\0b", "x/" * 3000])
def test_not_a_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        open_model(f"{tmp_path}/{name}")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("name", [SHARD_1, "config.json", "tokenizer.json", "."])
def test_what_may_not_be_read(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path / "model")
    (tmp_path / "model" / name).chmod(0)
    try:
        with pytest.raises(CheckpointError, match="Permission denied"):
            open_model(str(tmp_path / "model"))
    finally:
        (tmp_path / "model" / name).chmod(0o755)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "config.json").unlink()
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"config\.json: not a file"):
        open_model(str(tmp_path))


def test_wrong_dtype_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, dtypes={"model.layers.1.mlp.up_proj.weight": "I8"})
    with pytest.raises(CheckpointError, match=r"tensor model\.layers\.1\.mlp\.up_proj\.weight is I8"):
        open_model(str(tmp_path))


def test_all_unknown_tensors_are_listed(tmp_path: Path) -> None:
    shapes = tensor_shapes(CONFIG) | {"model.odd.a": (4,), "visual.b": (2, 2)}
    write_checkpoint(tmp_path, shapes=shapes)
    with pytest.raises(CheckpointError, match=r"no place for 2 tensors: model\.odd\.a, visual\.b"):
        open_model(str(tmp_path))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (ConversionOptions(layout="llama"), "no layout 'llama'"),
        (ConversionOptions(layout="step35", mtp=False), "--no-mtp leaves none"),
        (ConversionOptions(mtp=False, mtp_layers=Path("x")), "--mtp-layers adds MTP layers"),
        (ConversionOptions(layout="qwen2", mtp_layers=Path("x")), "--mtp-layers adds MTP layers"),
    ],
)
def test_contradicting_options(tmp_path: Path, options: ConversionOptions, expected: str) -> None:
    write_checkpoint(tmp_path)
    write_checkpoint(tmp_path / "x", shapes={"model.mtp_layers.1.input_proj.weight": (64, 128)}, n_shards=1)
    if options.mtp_layers is not None:
        options = ConversionOptions(options.layout, options.mtp, tmp_path / "x")
    with pytest.raises(UsageError, match=expected):
        open_model(str(tmp_path), options)
