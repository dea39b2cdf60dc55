"""Writes a full-size MiMo checkpoint of random bf16 weights (7.83 B parameters, 15.7 GB) in some minutes.

    python -m benchmarks.random_checkpoint CONFIG_FOLDER OUT_FOLDER [--hollow] [--blocks N]

CONFIG_FOLDER holds a published model's config.json, model.safetensors.index.json and tokenizer files. With --hollow the
shards have their true headers and sizes and no data (sparse files): enough for dry runs and memory plans. With --blocks
only so many blocks of the trunk are made, beside embedding, head and MTP layer.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.checkpoints import tensor_shapes, write_hollow

SMALL_FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
CHUNK = 1 << 22  # weights generated at a time


def random_bf16(n: int, rng: np.random.Generator, scale: float, mean: float) -> NDArray[np.uint16]:
    values = rng.standard_normal(n, dtype=np.float32)
    values *= np.float32(scale)
    values += np.float32(mean)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def fill_shard(path: Path, seed: int) -> None:
    """Fills a hollow shard with random weights: matrices N(0, 0.02), vectors N(1, 0.1)."""
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            rng = np.random.Generator(np.random.SFC64([seed, entry["data_offsets"][0]]))
            is_vector = len(entry["shape"]) == 1
            file.seek(8 + length + entry["data_offsets"][0])
            left = (entry["data_offsets"][1] - entry["data_offsets"][0]) // 2
            while left:
                n = min(left, CHUNK)
                file.write(random_bf16(n, rng, 0.1 if is_vector else 0.02, 1.0 if is_vector else 0.0).data)
                left -= n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config_folder", type=Path)
    parser.add_argument("out_folder", type=Path)
    parser.add_argument("--hollow", action="store_true")
    parser.add_argument("--blocks", type=int)
    arguments = parser.parse_args()
    started = time.perf_counter()
    config = json.loads((arguments.config_folder / "config.json").read_text())
    config["num_hidden_layers"] = arguments.blocks or config["num_hidden_layers"]
    shapes = tensor_shapes(config)
    weight_map = json.loads((arguments.config_folder / "model.safetensors.index.json").read_text())["weight_map"]
    weight_map = {name: shard for name, shard in weight_map.items() if name in shapes}
    write_hollow(arguments.out_folder, config, weight_map, shapes)
    for name in SMALL_FILES:
        if (arguments.config_folder / name).is_file():
            shutil.copy(arguments.config_folder / name, arguments.out_folder)
    if not arguments.hollow:
        with ThreadPoolExecutor(2) as pool:
            shards = sorted(arguments.out_folder.glob("*.safetensors"))
            list(pool.map(fill_shard, shards, range(len(shards))))
    size = sum(path.stat().st_size for path in arguments.out_folder.glob("*.safetensors"))
    print(f"{arguments.out_folder}: {size / 1e9:.2f} GB in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
