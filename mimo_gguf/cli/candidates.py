"""Finds what is planned for: the file types of a source, and the devices of this or an imagined machine."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from mimo_gguf.cli import ui
from mimo_gguf.cli.workers import use_workers
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mimo_gguf.core.model_source import Metadata
    from mimo_gguf.fit.solver import Candidate
    from mimo_gguf.hardware.cards import Card
    from mimo_gguf.hardware.devices import Device

# From the smallest: what a checkpoint is usually made into.
USUAL_TYPES: Final = ("Q4_K_M", "Q6_K", "Q8_0", "F16")


def choose_devices(
    vram: Sequence[str],
    gpu: Sequence[str],
    rpc: Sequence[str],
    *,
    asked: bool = False,
    instead: str = "give its memory: --vram 8GiB",
) -> tuple[Device, ...]:
    """This machine's devices, or imagined cards with this machine's RAM beside them.

    Args:
        instead: what the hint offers to those whose card is not in the catalogue.

    Raises:
        UsageError: options that contradict each other, an unknown card, an absurd size.
        BackendError: a worker that does not answer.
    """
    from mimo_gguf.hardware.devices import host_device, imagined_gpu, list_devices

    named = [name for name in gpu if name.lower() != "auto"]
    if len(named) < len(gpu) and (named or vram):
        raise UsageError("--gpu auto is this machine, the other cards are not in it", hint="leave --gpu auto out")
    if len([given for given in (vram, named, rpc) if given]) > 1:
        raise UsageError(
            "--vram and --gpu imagine a machine, --rpc names a real one", hint="give only one kind of the three"
        )
    if (vram or named) and asked:
        raise UsageError("llama.cpp cannot be asked about a card that is not here", hint="leave --asked out")
    sizes = [(_card_bytes(size), "") for size in vram]
    sizes += [(card.memory_bytes, card.name) for card in (_find_card(name, instead) for name in named)]
    if sizes:
        names = ["GPU"] if len(sizes) == 1 else [f"GPU{i}" for i in range(len(sizes))]
        cards = (imagined_gpu(size, name, text) for (size, text), name in zip(sizes, names, strict=True))
        return (*cards, host_device())
    use_workers(rpc)
    return list_devices()


def _card_bytes(text: str) -> int:
    """A card's memory. A small number without a unit is GiB: no card has 12 bytes."""
    bare = re.fullmatch(r"\s*\d{1,4}(\.\d+)?\s*", text)
    return parse_size(f"{text}GiB" if bare else text)


def _find_card(name: str, instead: str) -> Card:
    """The catalogue's card; says so if the name leaves open which, or if nothing runs on it."""
    from mimo_gguf.hardware.cards import find_card, other_sizes

    try:
        card = find_card(name)
    except UsageError as error:
        raise UsageError(error.message, hint=f"{error.hint}; or {instead}") from None
    others = [other.name for other in other_sizes(card)]
    if others and not re.search(rf"\b{card.memory_gb:g} ?(gb)?$", name.lower()):
        ui.print_note(f"taking the {card.name}; there is also the {', the '.join(others)}")
    if not card.is_supported:
        ui.print_warning(f"llama.cpp does not run on the {card.name}: {card.backend.removeprefix('none: ')}")
    return card


def find_candidates(src: str | None, types: Sequence[str], *, auto: bool) -> tuple[list[Candidate], Metadata]:
    """The files `src` is or could be made into, smallest first, and the metadata they share.

    Args:
        src: a GGUF, a checkpoint or a Hub id; None is MiMo-7B as published, which has no metadata.

    Raises:
        GgufError, CheckpointError, HubError, UsageError: as the source and the types demand.
    """
    from mimo_gguf.store.choosing import TYPES, candidates_of

    return candidates_of(src, types, TYPES if auto else USUAL_TYPES)
