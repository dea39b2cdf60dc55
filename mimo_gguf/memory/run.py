"""A run as the memory model sees it: its settings, and the devices it is placed on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from gguf import GGML_QUANT_SIZES

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.ggml_types import FLOAT_TYPES, GgmlType
from mimo_gguf.core.kv_cache import MOST_CONTEXT, MOST_SEQUENCES, check_kv_type, n_ctx_seq
from mimo_gguf.core.model_sizes import ModelSizes
from mimo_gguf.memory.allocator import CPU_TRAITS, DeviceTraits

ALL_LAYERS: Final = -1
MTP_N_UBATCH: Final = 64  # a session's value for the MTP context, unless more conversations draft together


@dataclass(frozen=True, slots=True)
class RunSettings:
    """The settings of a run, in llama.cpp's words; the defaults are those of this package's chat.

    Attributes:
        n_ctx: tokens of context of all `n_seq_max` conversations together.
        kv_unified: whether all conversations share one buffer of cells, as in this package, or have one each.
        n_outputs_max: rows of logits a batch may ask for; 0 means n_batch, llama.cpp's default.
        n_gpu_layers: layers on the devices, the output layer first, then blocks from the last; -1 means all.
        tensor_split: share of each device; empty means by free memory.
        mtp_n_ubatch, mtp_n_outputs_max: the same for the MTP context.
        parked_bytes: memory of the host for idle conversations that have no slot.
    """

    n_ctx: int
    n_batch: int = 512
    n_ubatch: int = 512
    n_seq_max: int = 1
    kv_unified: bool = True
    n_outputs_max: int = 4
    type_k: GgmlType = GgmlType.F16
    type_v: GgmlType = GgmlType.F16
    flash_attn: bool = True
    mtp: bool = True
    mtp_n_ubatch: int = MTP_N_UBATCH
    mtp_n_outputs_max: int = 1
    n_gpu_layers: int = ALL_LAYERS
    tensor_split: tuple[float, ...] = ()
    parked_bytes: int = 0

    @property
    def is_exact(self) -> bool:
        """Whether every row has a graph of its own, and every conversation a buffer of its own."""
        return self.n_ubatch == 1 and not self.kv_unified

    @property
    def n_ctx_seq(self) -> int:
        """The tokens of context of one conversation, as llama.cpp rounds them."""
        return n_ctx_seq(self.n_ctx, self.n_seq_max)

    @property
    def n_cells(self) -> int:
        """The number of cells of the KV cache."""
        return self.n_ctx_seq * self.n_seq_max

    @property
    def n_ctx_asked(self) -> int:
        """The n_ctx that llama.cpp gets: for several conversations, the sum of their rounded shares."""
        return self.n_cells if self.n_seq_max > 1 else self.n_ctx


def session_settings(
    *, n_ctx: int, n_ubatch: int = 512, n_seq_max: int = 1, n_outputs_max: int = 4, exact: bool = False, **others: Any
) -> RunSettings:
    """The settings with which a session of this package makes its contexts (`SessionOptions.for_context`).

    A pass has up to `n_ubatch` tokens, but at least one more than the rows that want logits. A pass of the MTP context
    has as many, up to 64 or the rows that want logits.

    Args:
        exact: whether every row has a graph of its own, and every conversation a buffer of its own.
        others: further fields of RunSettings.
    """
    n_batch = max(n_ubatch, n_outputs_max + 1) if n_ubatch > 0 else n_ubatch  # check_settings refuses 0
    return RunSettings(
        n_ctx=n_ctx,
        n_batch=n_batch,
        n_ubatch=min(n_batch, 1) if exact else n_batch,
        n_seq_max=n_seq_max,
        kv_unified=not exact,
        n_outputs_max=n_outputs_max,
        mtp_n_ubatch=min(max(MTP_N_UBATCH, n_outputs_max), max(min(n_batch, n_ctx), n_outputs_max + 1)),
        **others,
    )


@dataclass(frozen=True, slots=True)
class Placement:
    """A device to plan for: the behaviour of its buffers, and its free memory (which decides the default split)."""

    name: str
    free_bytes: int
    traits: DeviceTraits = CPU_TRAITS


HOST: Final = Placement("host", 0)


def check_settings(model: ModelSizes, settings: RunSettings) -> None:
    """Raises UsageError if llama.cpp would refuse the settings."""
    if settings.n_ctx < 1 or settings.n_ubatch < 1 or settings.n_batch < 1 or settings.n_seq_max < 1:
        raise UsageError("context, batch, ubatch and parallel must be at least 1", hint="for example --ctx 8192")
    if settings.n_seq_max > MOST_SEQUENCES:
        raise UsageError(
            f"{settings.n_seq_max} conversations at a time", hint=f"llama.cpp has {MOST_SEQUENCES} at most"
        )
    if settings.n_ctx > MOST_CONTEXT:
        raise UsageError(
            f"a context of {settings.n_ctx} tokens is beyond any model",
            hint=f"the model was trained for {model.geometry.context_length}",
        )
    if settings.n_ubatch > 1 << 20:
        raise UsageError(f"{settings.n_ubatch} tokens at a time", hint="for example --ubatch 512")
    for name, kind, length in (
        ("K", settings.type_k, model.geometry.key_length),
        ("V", settings.type_v, model.geometry.value_length),
    ):
        check_kv_type(kind)
        if length % GGML_QUANT_SIZES[kind][0]:
            raise UsageError(f"{name} heads of {length} cannot be stored as {kind.name}", hint="use --kv-type f16")
    if settings.type_v not in FLOAT_TYPES and not settings.flash_attn:
        raise UsageError(
            f"a V cache of type {settings.type_v.name} needs flash attention", hint="leave --no-flash-attn out"
        )
