"""How models are loaded and contexts made, in llama.cpp's words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How a model is loaded, in llama.cpp's words.

    Attributes:
        n_gpu_layers: blocks on the devices; -1 all of them, 0 none.
        devices: ggml_backend_dev_t pointers of the GPUs to use, in order; None means every one llama.cpp sees.
        tensor_split: share of each device; empty means by free memory.
        load_mtp: load the MTP blocks' own tensors and allow an MTP context.
        repack: let CPU backends lay weights out anew for their faster kernels.
        no_alloc: read metadata and plan buffers only; no weight is read.
    """

    n_gpu_layers: int = -1
    devices: tuple[int, ...] | None = None
    tensor_split: tuple[float, ...] = ()
    use_mmap: bool = True
    use_mlock: bool = False
    load_mtp: bool = True
    repack: bool = True
    no_alloc: bool = False
    vocab_only: bool = False
    check_tensors: bool = False


@dataclass(frozen=True, slots=True)
class ContextOptions:
    """How a context is made, in llama.cpp's words.

    `n_ctx` counts the cells of the KV cache, for all sequences together; `kv_unified` says that they share one buffer,
    in which any mix of sequences is one pass.

    `n_outputs_max` bounds the rows of logits one batch may ask for. It decides the compute buffer: at the default of
    llama.cpp (n_batch) a vocabulary of 151680 costs 297 MiB at n_ubatch 512, at 4 rows almost nothing. It is at least
    `n_seq_max`; 0 is `n_batch`.
    """

    n_ctx: int
    n_batch: int = 512
    n_ubatch: int = 512
    n_seq_max: int = 1
    kv_unified: bool = False
    n_outputs_max: int = 4
    n_threads: int = 0
    n_threads_batch: int = 0
    type_k: int = 1  # GGML_TYPE_F16
    type_v: int = 1
    flash_attn: bool | None = None  # None: llama.cpp decides
    offload_kqv: bool = True
