"""Streamed checkpoints in tests: a tiny one behind the fake hub, opened as the verbs open it, with tiny blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from mimo_gguf.conversion.checkpoint import read_checkpoint
from mimo_gguf.conversion.checkpoint_source import ConversionOptions, as_model_source, plan_conversion
from mimo_gguf.conversion.remote.hollow import write_hollow
from mimo_gguf.conversion.remote.ranges import Patience, RangeReader
from mimo_gguf.conversion.remote.repository import RemoteFile, Repository
from mimo_gguf.conversion.remote.stream import Fetching
from mimo_gguf.core.model_source import ModelSource
from mimo_gguf.core.progress import Progress
from mimo_gguf.quantization.plan import OutputRequest, QuantizeOptions, plan_quantization
from mimo_gguf.quantization.profiles import load_profile
from mimo_gguf.quantization.report import QuantizeReport
from mimo_gguf.quantization.run import run_quantization
from tests.conversion.fake_hub import COMMIT, TOKEN
from tests.conversion.rude_hub import RudeHub

MODEL = "XiaomiMiMo/MiMo-7B-RL"
PAGE = f"https://modelscope.cn/models/{MODEL}"  # of ModelScope
IMPATIENT = Patience(tries=40, first_s=0.0, longest_s=0.0)
TINY = Fetching(window_bytes=5 * 8192, block_bytes=8192, connections=3, patience=IMPATIENT)
OPTIONS = QuantizeOptions(n_threads=1, chunk_weights=1 << 11)
NAMES = ("Q4_0", "BF16")


def repository(hub: RudeHub) -> Repository:
    """The model on the hub, described without huggingface_hub, which reads its endpoint only once."""
    folder = hub.repositories[MODEL]
    files = {path.name: _describe(path, hub) for path in folder.glob("*.safetensors")}
    small = [path for path in folder.iterdir() if path.suffix != ".safetensors"]
    contents = {path.name: path.read_bytes for path in small}
    return Repository(MODEL, MODEL, COMMIT, None, contents, lambda names: [files[name] for name in names])


def _describe(path: Path, hub: RudeHub) -> RemoteFile:
    data, url = path.read_bytes(), f"{hub.endpoint}/{MODEL}/resolve/{COMMIT}/{path.name}"
    return RemoteFile(path.name, url, len(data), hashlib.sha256(data).digest(), {"Authorization": f"Bearer {TOKEN}"})


@contextmanager
def open_stream(
    hub: RudeHub, fetching: Fetching = TINY, layout: str | None = None, described: Repository | None = None
) -> Iterator[ModelSource]:
    """The model on the hub as a source that is fetched while it is read."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        shards = write_hollow(described or repository(hub), folder, RangeReader(fetching.patience))
        plan = plan_conversion(read_checkpoint(folder, model_id=MODEL, revision=COMMIT), ConversionOptions(layout))
        with as_model_source(plan, MODEL, shards, fetching) as source:
            yield source


@contextmanager
def open_folder(folder: Path, page: str | None = None, layout: str | None = None) -> Iterator[ModelSource]:
    """The same model from its folder."""
    checkpoint = read_checkpoint(folder, model_id=MODEL, revision=COMMIT, page=page)
    with as_model_source(plan_conversion(checkpoint, ConversionOptions(layout)), MODEL) as source:
        yield source


def quantize(source: ModelSource, folder: Path, progress: Progress | None = None) -> QuantizeReport:
    """One run over a source, with an output for each of `NAMES`."""
    folder.mkdir(exist_ok=True, parents=True)
    requests = [OutputRequest(load_profile(name), folder / f"{name}.gguf") for name in NAMES]
    return run_quantization(plan_quantization(source, requests, OPTIONS), progress)


def files_of(folder: Path) -> dict[str, bytes]:
    """The GGUF files in a folder; what lies beside them may not be there."""
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.gguf"))}
