"""Runs llama.cpp's convert_hf_to_gguf.py on a MiMo checkpoint as if it were Qwen2, without its MTP layers.

    python -m benchmarks.peer_convert LLAMA_CPP_SOURCE CHECKPOINT OUT.gguf [--outtype bf16]

The script does not know MiMo. The checkpoint is not changed: a folder of links with another config.json is converted.
"""

from __future__ import annotations

import json
import runpy
import sys
import tempfile
from pathlib import Path


def main() -> None:
    source, checkpoint, out, *options = sys.argv[1:]
    sys.path.insert(0, source)
    sys.path.insert(0, str(Path(source) / "gguf-py"))
    from conversion.qwen import Qwen2Model  # type: ignore[import-not-found]

    keep = Qwen2Model.filter_tensors.__func__
    Qwen2Model.filter_tensors = classmethod(lambda cls, item: None if "mtp_layers" in item[0] else keep(cls, item))
    Qwen2Model.set_vocab = Qwen2Model._set_vocab_gpt2  # its own set_vocab imports sentencepiece, and then fails
    with tempfile.TemporaryDirectory() as folder:
        for path in Path(checkpoint).resolve().iterdir():
            if path.name != "config.json":
                (Path(folder) / path.name).symlink_to(path)
        config = json.loads((Path(checkpoint) / "config.json").read_text())
        config |= {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tokenizer_class": "Qwen2Tokenizer"}
        config.pop("auto_map", None)
        (Path(folder) / "config.json").write_text(json.dumps(config))
        script = str(Path(source) / "convert_hf_to_gguf.py")
        sys.argv = [script, folder, "--outfile", out, *(options or ["--outtype", "bf16"])]
        runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
