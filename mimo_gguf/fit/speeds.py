"""The expected speed of a plan: as it was measured on this machine, or from the bandwidth of the devices.

Decoding a token reads every weight once, device after device, and the cache of the conversation. A pass for several
conversations reads the weights once for all of them, and each one's cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.model_sizes import ModelSizes
from mimo_gguf.fit.plan import FitPlan
from mimo_gguf.hardware.cards import Card, find_card
from mimo_gguf.hardware.devices import Device, list_devices
from mimo_gguf.hardware.kept_speeds import ALL_LAYERS, KeptSpeed, KeptSpeeds, Place, place_of, read_speeds, shapes_of
from mimo_gguf.memory.predict import predict_memory
from mimo_gguf.memory.run import RunSettings

# Share of MTP drafts that the model accepts: between the 0.5-0.7 measured on prose and 0.88 on code (exllamav3 #238).
MTP_ACCEPTANCE: Final = 0.7
READ_AT: Final = 2048  # tokens in the KV cache for which a speed is given
# Conversations from which a pass takes longer than for one: beyond them nothing more is promised for all together.
MOST_TOGETHER: Final = 8
# A file is estimated from one of at most so many times its size, or its part: a small one is held up by other things.
ALIKE: Final = 4

Mark = Literal["measured", "published", "estimated"]


@dataclass(frozen=True, slots=True)
class Speeds:
    """Tokens per second of one conversation.

    Attributes:
        tps: without drafts.
        tps_mtp: with MTP drafting; 0 if it is not known, or the file has no MTP layer.
        source: where they are from, for people: "measured here on 2026-11-28 with FILE".
    """

    tps: float
    tps_mtp: float
    mark: Mark
    source: str


def card_speeds(model: ModelSizes, card: Card) -> tuple[float, float]:
    """The tokens per second of decoding on a card, (plain, with MTP), from the bytes read per token.

    The second is 0 if the file has no MTP layer. Formula: bandwidth * efficiency / bytes read, times the tokens per
    pass, which are 1 + MTP_ACCEPTANCE with drafting.
    """
    (memory,) = predict_memory(model, RunSettings(n_ctx=READ_AT))
    weights, kv_cache = memory.weights, memory.kv_cache
    output = weights.output or weights.input_embedding
    plain = weights.blocks + output + kv_cache.target
    rate = card_rate(card)
    if not model.has_mtp:
        return rate / plain, 0.0
    drafting = plain + weights.mtp + output + kv_cache.mtp
    return rate / plain, rate * (1 + MTP_ACCEPTANCE) / drafting


def card_rate(card: Card) -> float:
    """The bytes per second that decoding is expected to read on a card."""
    return card.bandwidth_gbs * 1e9 * card.efficiency


def pass_seconds(plan: FitPlan, rates: Sequence[float], *, users: int = 1, drafting: bool = False) -> float | None:
    """The seconds of a pass that gives each of `users` conversations a token; None if a rate that counts is unknown.

    Args:
        rates: for each device of the plan, the bytes per second that decoding reads there; 0 if unknown.
        drafting: whether the MTP layer drafts one token more for the pass.
    """
    seconds = 0.0
    read_at = min(READ_AT, plan.settings.n_ctx_seq)
    has_output = any(fit.memory.weights.output for fit in plan.devices)
    for fit, rate in zip(plan.devices, rates, strict=True):
        weights, cache = fit.memory.weights, fit.memory.kv_cache
        share = users * read_at / plan.settings.n_cells
        output = weights.output if has_output else weights.input_embedding
        n_bytes = weights.blocks + output + cache.target * share
        if drafting:
            n_bytes += weights.mtp + output + cache.mtp * share
        if n_bytes and not rate:
            return None
        seconds += n_bytes / rate if rate else 0.0
    return seconds


def weight_devices(plan: FitPlan) -> list[Device]:
    """The devices of a plan that hold layers."""
    on_gpus = plan.settings.n_gpu_layers
    if len(plan.devices) == 1 or not on_gpus:
        return [plan.devices[-1].device]
    gpus = [fit.device for fit in plan.devices[:-1]]
    return gpus if on_gpus == plan.n_layers else [*gpus, plan.devices[-1].device]


def plan_place(plan: FitPlan) -> Place:
    """The place of a plan's run, by which its speed is kept."""
    on_gpus = plan.settings.n_gpu_layers if len(plan.devices) > 1 else 0
    return place_of(weight_devices(plan), ALL_LAYERS if on_gpus == plan.n_layers else on_gpus)


def is_here(plan: FitPlan) -> bool:
    """Whether the devices with layers are this machine's, not imagined ones."""
    return all(device.pointer or not device.is_gpu for device in weight_devices(plan))


def speeds_here(plan: FitPlan, kept: KeptSpeeds | None = None) -> Speeds | None:
    """The speeds of a plan of this machine by what `bench --save` measured; None if nothing of it counts for this run.

    A speed of another file of like size, with all layers on the same devices, gives an estimate: it reads as many bytes
    per second.
    """
    kept = read_speeds() if kept is None else kept
    if not kept.speeds or not is_here(plan) or plan.settings.is_exact:
        return None
    return kept_speeds_at(plan.model, plan_place(plan), kept)


def kept_speeds_at(model: ModelSizes, place: Place, kept: KeptSpeeds) -> Speeds | None:
    """The speeds of `model` at a place, of what is kept; as `speeds_here`."""
    there = [speed for speed in reversed(kept.speeds) if speed.place == place]
    shapes = shapes_of(model) if there else ""
    for speed in there:
        if speed.shapes == shapes:
            return Speeds(speed.tps, speed.tps_mtp, "measured", f"measured here on {speed.date} with {speed.model}")
    if not there or place.n_gpu_layers not in (0, ALL_LAYERS):
        return None
    (memory,) = predict_memory(model, RunSettings(n_ctx=256))
    read_bytes = memory.weights.blocks + (memory.weights.output or memory.weights.input_embedding)
    alike = (speed for speed in there if 1 / ALIKE <= speed.read_bytes / read_bytes <= ALIKE)
    return next((_scaled(speed, model, read_bytes) for speed in alike), None)


def _scaled(speed: KeptSpeed, model: ModelSizes, read_bytes: int) -> Speeds:
    """The speeds of another file at the place of a kept one, which reads as many bytes per second."""
    tps = speed.tps * speed.read_bytes / read_bytes
    tps_mtp = tps * speed.tps_mtp / speed.tps if model.has_mtp else 0.0
    return Speeds(tps, tps_mtp, "estimated", f"estimated from {speed.model}, measured here on {speed.date}")


def cards_here(model: ModelSizes) -> dict[str, Speeds]:
    """The kept speeds of `model` on this machine's cards, by the name that the catalogue has for the card.

    llama.cpp is asked for the cards only if a speed of one is kept.
    """
    kept = read_speeds()
    if not any(speed.place.n_gpu_layers for speed in kept.speeds):
        return {}
    found = {}
    for device in list_devices()[:-1]:
        speeds = kept_speeds_at(model, place_of([device], ALL_LAYERS), kept)
        card = card_of(device)
        if speeds is not None and card is not None:
            found[card.name] = speeds
    return found


def card_of(device: Device) -> Card | None:
    """The catalogue's card that a device is; None if it is none of them, or no backend drives it."""
    try:
        card = find_card(device.description, device.total_bytes)
    except UsageError:
        return None
    return card if card.is_supported else None
