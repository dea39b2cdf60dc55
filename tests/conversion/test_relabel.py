"""The layout of an existing file is changed: the tensors are the same, and llama.cpp says the same without drafts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType

import mimo_gguf
from mimo_gguf.core.errors import GgufError, OutputError, UsageError
from mimo_gguf.core.gguf_file import open_gguf, read_gguf
from mimo_gguf.core.model_source import MetaValue, array, float32, string, uint32
from mimo_gguf.core.stored_certificate import certificate_path, read_certificate
from mimo_gguf.quantization.certificates import store_certificate
from mimo_gguf.quantization.checksums import checksum_path
from mimo_gguf.quantization.verification import identify_tensors, verify_gguf
from tests.checkpoints import CONFIG, tensor_shapes, write_checkpoint
from tests.cli.command_line import assert_clear_error, run_here
from tests.quantization.runs import read_tensors
from tests.tiny_models import write_gguf

TINY = Path(__file__).resolve().parents[2] / "examples" / "mimo-tiny"
# What a file says about its own making, apart from the model in it.
OF_THE_MAKING = {"mimo_gguf.source.digest", "mimo_gguf.source.name"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random checkpoint in both layouts, in F16, and of the step35 file."""
    folder = tmp_path_factory.mktemp("made")
    write_checkpoint(folder / "My-MiMo")
    mimo_gguf.convert(folder / "My-MiMo", out=folder / "My-MiMo-F16.gguf", types="F16")
    mimo_gguf.convert(folder / "My-MiMo", out=folder / "trunk-F16.gguf", types="F16", layout="qwen2")
    return folder


def metadata_of(path: Path) -> dict[str, Any]:
    return {key: entry for key, entry in read_gguf(path).metadata.items() if key not in OF_THE_MAKING}


def test_it_is_the_file_that_convert_makes(made: Path, tmp_path: Path) -> None:
    """The oracle: the same checkpoint converted to the other layout, metadata and tensors, in their order."""
    report = mimo_gguf.relabel(made / "My-MiMo-F16.gguf", out=tmp_path)
    (path,) = report.written.outputs[0].paths
    assert path == tmp_path / "My-MiMo-qwen2-F16.gguf"
    assert list(metadata_of(path).items()) == list(metadata_of(made / "trunk-F16.gguf").items())
    mine, theirs = read_tensors(path), read_tensors(made / "trunk-F16.gguf")
    assert list(mine) == list(theirs)
    assert all(np.array_equal(mine[name][1], theirs[name][1]) for name in mine)
    assert report.written.exactness.startswith(f"{len(mine)} of {len(mine)} tensors bit for bit")
    assert verify_gguf(path).intact and checksum_path(path).is_file()


@pytest.mark.parametrize("kind", ["Q4_K_M", "wide", "imatrix"])
def test_every_tensor_keeps_its_bytes_whatever_its_type(tmp_path: Path, kind: str) -> None:
    """Types of the source's own mix, found by another search, or such as need an importance matrix."""
    if kind == "imatrix":
        source = with_types_that_need_importance(tmp_path)
    else:
        source = tmp_path / f"tiny-{kind}.gguf"
        mimo_gguf.quantize(
            TINY, out=source, types="Q4_K_M", mtp_type="Q8_0", search="wide" if kind == "wide" else "llama.cpp"
        )
    done = run_here(tmp_path, "relabel", source.name, "-o", "out.gguf")
    assert done.returncode == 0, done.stderr
    before, after = read_tensors(source), read_tensors(tmp_path / "out.gguf")
    kept = [name for name in before if not name.startswith("blk.3.")]
    assert len(before) - len(kept) > 0 and list(after) == kept
    assert all(before[name][0] == after[name][0] and np.array_equal(before[name][1], after[name][1]) for name in kept)
    for key in ("general.file_type", "mimo_gguf.profile", "mimo_gguf.search", "tokenizer.chat_template"):
        assert read_gguf(source).value(key) == read_gguf(tmp_path / "out.gguf").value(key), key


def with_types_that_need_importance(folder: Path) -> Path:
    """A file whose matrices are in IQ2_XS, as with an importance matrix; only their bytes count here."""
    mimo_gguf.quantize(TINY, out=folder / "tiny-Q8_0.gguf", types="Q8_0")
    from mimo_gguf.core.ggml_types import GgmlType

    with open_gguf(folder / "tiny-Q8_0.gguf") as source:
        zeros = tuple(
            replace(t, info=replace(t.info, ggml_type=GgmlType.IQ2_XS), read_rows=_zeros)
            if t.info.ggml_type is GgmlType.Q8_0
            else t
            for t in source.tensors
        )
        metadata = {**source.metadata, "general.file_type": uint32(20)}
        return write_gguf(replace(source, tensors=zeros, metadata=metadata), folder / "tiny-IQ2_XS.gguf")


def _zeros(first: int, last: int, out: Any) -> None:
    out[...] = 0


def test_llama_cpp_says_the_same_as_without_drafts(tmp_path: Path) -> None:
    mimo_gguf.quantize(TINY, out=tmp_path / "tiny-Q8_0.gguf", types="Q8_0")
    mimo_gguf.relabel(tmp_path / "tiny-Q8_0.gguf", out=tmp_path / "tiny-qwen2.gguf")
    texts = []
    for name, mtp in (("tiny-Q8_0.gguf", False), ("tiny-qwen2.gguf", None)):
        with mimo_gguf.Model.load(tmp_path / name, n_ctx=256, mtp=mtp) as model:
            asked = [[{"role": "user", "content": question}] for question in ("What is 2 + 3?", "Hi")]
            texts.append([model.chat(messages, temperature=0.0, max_tokens=40).text for messages in asked])
    assert texts[0] == texts[1] and all(texts[0])


def test_a_split_file_and_a_split_output(made: Path, tmp_path: Path) -> None:
    report = mimo_gguf.relabel(made / "My-MiMo-F16.gguf", out=tmp_path / "one.gguf", split_max_size="1MB")
    assert len(report.written.outputs[0].paths) == 1  # 260 KB
    mimo_gguf.quantize(TINY, out=tmp_path / "tiny-F16.gguf", types="F16", split_max_size="3MB")
    first = next(tmp_path.glob("tiny-F16-00001-of-*.gguf"))
    parts = mimo_gguf.relabel(first, out=tmp_path / "out/", split_max_size="3MB").written.outputs[0].paths
    assert len(parts) > 1 and parts[0].name.startswith("tiny-qwen2-F16-00001-of-")
    assert verify_gguf(parts[0]).intact


def test_a_certificate_is_left_behind(made: Path, tmp_path: Path) -> None:
    """It is about tensors that the new file has not: neither in it nor beside it, and the old one stays."""
    source = tmp_path / "certified-F16.gguf"
    for path in (made / "My-MiMo-F16.gguf", checksum_path(made / "My-MiMo-F16.gguf")):
        (tmp_path / path.name.replace("My-MiMo", "certified")).write_bytes(path.read_bytes())
    model = read_gguf(source)
    store_certificate(model, identify_tensors(model, verify_gguf(source)), {"figures": {}})
    stored = source.read_bytes()
    mimo_gguf.relabel(source)
    path = tmp_path / "certified-qwen2-F16.gguf"
    assert read_certificate(read_gguf(path)).document is None
    assert read_gguf(path).parts[0].room is not None
    assert not certificate_path(path).exists()
    assert (verify_gguf(path).intact, verify_gguf(path).certificate) == (True, None)
    assert source.read_bytes() == stored and read_certificate(read_gguf(source)).document is not None


def test_a_certificate_beside_a_replaced_file_does_not_count(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    mimo_gguf.relabel(made / "My-MiMo-F16.gguf", out=path)
    other = tmp_path / "other"
    write_checkpoint(other, seed=5)
    mimo_gguf.convert(other, out=tmp_path / "other-F16.gguf", types="F16")
    model = read_gguf(path)
    store_certificate(model, identify_tensors(model, verify_gguf(path)), {"figures": {}})
    mimo_gguf.relabel(tmp_path / "other-F16.gguf", out=path, force=True)
    found = verify_gguf(path)
    assert (found.problems, found.certificate) == ((), None)
    assert any("about other tensors" in problem for problem in found.certificate_problems)


def test_nothing_is_overwritten_and_a_second_run_has_nothing_to_do(made: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.gguf").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        mimo_gguf.relabel(made / "My-MiMo-F16.gguf", out=tmp_path / "mine.gguf")
    assert (tmp_path / "mine.gguf").read_text() == "mine"
    mimo_gguf.relabel(made / "My-MiMo-F16.gguf", out=tmp_path / "new.gguf")
    assert mimo_gguf.relabel(made / "My-MiMo-F16.gguf", out=tmp_path / "new.gguf").written.outputs[0].was_complete
    with pytest.raises(UsageError, match="is the source itself"):
        mimo_gguf.relabel(made / "My-MiMo-F16.gguf", out=made / "My-MiMo-F16.gguf", force=True)


def test_a_dry_run_writes_nothing(made: Path, tmp_path: Path) -> None:
    done = run_here(tmp_path, "relabel", made / "My-MiMo-F16.gguf", "-o", "new/", "--dry-run", "--json")
    plan = json.loads(done.stdout)
    assert (plan["from_layout"], plan["layout"], len(plan["dropped"])) == ("step35", "qwen2", 16)
    assert all(name.startswith("blk.2.") for name in plan["dropped"])
    assert not list(tmp_path.iterdir())
    assert "left out" in run_here(tmp_path, "relabel", made / "My-MiMo-F16.gguf", "-o", "new/", "--dry-run").stdout


# ---- what is refused


def test_ways_that_lead_nowhere(made: Path, tmp_path: Path) -> None:
    for words, what in (
        ((made / "trunk-F16.gguf", "--layout", "step35"), "has no MTP layer"),
        ((made / "trunk-F16.gguf",), "its layout is qwen2 already"),
        ((made / "My-MiMo-F16.gguf", "--layout", "step35"), "its layout is step35 already"),
        ((made / "My-MiMo-F16.gguf", "--layout", "llama"), "no layout 'llama'"),
    ):
        assert_clear_error(run_here(tmp_path, "relabel", *words), what, code=2)
    assert_clear_error(run_here(tmp_path, "relabel", made / "My-MiMo"), "is a folder, not a GGUF file")
    assert not list(tmp_path.iterdir())


def changed(made: Path, folder: Path, **changes: MetaValue | None) -> Path:
    with open_gguf(made / "My-MiMo-F16.gguf") as source:
        further = {key.replace("__", "."): value for key, value in changes.items() if value}
        metadata = {**source.metadata, **further}
        kept = {key: entry for key, entry in metadata.items() if changes.get(key.replace(".", "__"), entry) is not None}
        return write_gguf(replace(source, metadata=kept), folder / "changed.gguf")


CHANGES: dict[str, tuple[dict[str, MetaValue | None], str]] = {
    "a trunk with windows": (
        {"step35__attention__sliding_window_pattern": array(GGUFValueType.BOOL, [True, False, True])},
        "sliding_window_pattern",
    ),
    "a short window": ({"step35__attention__sliding_window": uint32(512)}, "sliding_window is 512"),
    "stretched positions": ({"step35__rope__scaling__factor": float32(4.0)}, r"rope\.scaling\.factor is 4\.0.*missing"),
    "another base for windows": ({"step35__rope__freq_base_swa": float32(1e4)}, "freq_base_swa"),
    "half a rotation": ({"step35__rope__dimension_count": uint32(16)}, "dimension_count is 16"),
    "another model": ({"general__architecture": string("llama")}, "architecture 'llama'"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_file_that_is_not_mimos_is_refused(made: Path, tmp_path: Path, case: str) -> None:
    changes, message = CHANGES[case]
    with pytest.raises(GgufError, match=message):
        mimo_gguf.relabel(changed(made, tmp_path, **changes), out=tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_a_tensor_that_the_trunk_of_mimo_has_not(made: Path, tmp_path: Path) -> None:
    """Step-3.5 itself has gates on its heads; in the qwen2 layout they would be missing from the arithmetic."""
    with open_gguf(made / "My-MiMo-F16.gguf") as source:
        bias = next(tensor for tensor in source.tensors if tensor.info.name == "blk.0.attn_q.bias")
        gate = replace(bias, info=replace(bias.info, name="blk.0.attn_gate.bias"))
        path = write_gguf(replace(source, tensors=(*source.tensors, gate)), tmp_path / "gated.gguf")
    with pytest.raises(GgufError, match=r"could not run it as qwen2: tensor 'blk\.0\.attn_gate\.bias' has no place"):
        mimo_gguf.relabel(path)
    assert [path.name for path in tmp_path.iterdir()] == ["gated.gguf"]


def test_what_other_programs_add_is_no_hindrance(made: Path, tmp_path: Path) -> None:
    further = {"step35__vocab_size": uint32(CONFIG["vocab_size"]), "general__quantized_by": string("somebody")}
    path = changed(made, tmp_path, **further, mimo_gguf__profile=string("../../elsewhere"))
    report = mimo_gguf.relabel(path, out=tmp_path / "out/")
    (written,) = report.written.outputs[0].paths
    assert written == tmp_path / "out" / "changed-qwen2-F16.gguf"
    assert read_gguf(written).value("general.quantized_by") == "somebody"
    assert not any(key.startswith("step35.") for key in read_gguf(written).metadata)


def test_tied_embeddings(tmp_path: Path) -> None:
    """step35 has the output matrix written out; qwen2 may keep it, and both are the embedding."""
    config = CONFIG | {"tie_word_embeddings": True}
    write_checkpoint(tmp_path / "tied", config=config, shapes=tensor_shapes(config, lm_head=False))
    mimo_gguf.convert(tmp_path / "tied", out=tmp_path / "tied-F16.gguf", types="F16")
    mimo_gguf.relabel(tmp_path / "tied-F16.gguf")
    tensors = read_tensors(tmp_path / "tied-qwen2-F16.gguf")
    assert np.array_equal(tensors["output.weight"][1], tensors["token_embd.weight"][1])
