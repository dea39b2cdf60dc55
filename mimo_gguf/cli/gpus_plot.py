"""Draws the picture of `mimo-gguf gpus --plot`: memory against context, a line per file type and per card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mimo_gguf.cli.picture import check_picture, new_figure, save_picture
from mimo_gguf.core.units import GIB

if TYPE_CHECKING:
    from mimo_gguf.core.model_sizes import ModelSizes
    from mimo_gguf.hardware.cards import Card

_N_POINTS: Final = 9


@dataclass(frozen=True, slots=True)
class Curve:
    """The memory that one file type needs with all layers on the card: (context in tokens, bytes) pairs."""

    label: str
    points: tuple[tuple[int, int], ...]


def need_curves(models: Sequence[tuple[str, ModelSizes]]) -> list[Curve]:
    """Computes a curve per (file type, sizes): all layers on a CUDA card, f16 cache, MTP, up to the trained context."""
    from mimo_gguf.fit.weigh import plan_model
    from mimo_gguf.hardware.devices import host_device, imagined_gpu
    from mimo_gguf.memory.run import RunSettings

    devices = (imagined_gpu(64 * GIB), host_device())
    driver = devices[0].total_bytes - devices[0].free_bytes
    curves = []
    for label, model in models:
        step = max(model.geometry.context_length // (_N_POINTS - 1), 256)
        contexts = [max(step * i, 256) for i in range(_N_POINTS)]
        needs = [
            plan_model(model, RunSettings(n_ctx=n), devices, -1).devices[0].needed_bytes + driver for n in contexts
        ]
        curves.append(Curve(label, tuple(zip(contexts, needs, strict=True))))
    return curves


def draw(curves: Sequence[Curve], cards: Sequence[Card], path: Path) -> None:
    """Writes the picture as PNG or SVG, by the name's ending.

    Raises:
        UsageError: another ending, or no such folder.
        MimoGgufError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    check_picture(path, example="--plot memory.png")
    widest = max(curve.points[-1][0] for curve in curves) / 1024
    figure = new_figure()
    axes = figure.add_subplot()
    for curve in curves:
        contexts, needs = zip(*curve.points, strict=True)
        (line,) = axes.plot([n / 1024 for n in contexts], [n / GIB for n in needs], label=curve.label)
        axes.annotate(
            curve.label, (contexts[-1] / 1024, needs[-1] / GIB), (5, 0), textcoords="offset points",
            va="center", color=line.get_color(),
        )  # fmt: skip
    for card in cards:
        height = card.memory_bytes / GIB
        axes.axhline(height, color="0.4", linestyle="--", linewidth=1)
        axes.annotate(
            f"{card.name}\n{height:g} GiB", (1, height), (5, 0), xycoords=("axes fraction", "data"),
            textcoords="offset points", va="center", color="0.3", fontsize=9, annotation_clip=False,
        )  # fmt: skip
    axes.set(xlabel="context in tokens", ylabel="memory on the card in GiB", xlim=(0, 1.12 * widest), ylim=(0, None))
    ticks = range(0, int(widest) + 1, max(int(widest) // 8, 1))
    axes.set_xticks(list(ticks), [f"{tick}k" if tick else "0" for tick in ticks])
    axes.set_title("Memory of a chat with all layers on the card, f16 cache, MTP")
    axes.grid(alpha=0.3)
    save_picture(figure, path)
