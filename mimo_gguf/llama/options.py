"""The options with which models are loaded and contexts are made, with llama.cpp's names."""

from __future__ import annotations

from dataclasses import dataclass

from mimo_gguf.llama.running_pass import Observer


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """The options with which a model is loaded.

    Attributes:
        n_gpu_layers: number of blocks on the GPUs; -1 for all, 0 for none.
        devices: ggml_backend_dev_t pointers of the GPUs to use, in order; None means all that llama.cpp sees.
        tensor_split: share of each device; empty means by free memory.
        load_mtp: load the MTP blocks' own tensors and allow an MTP context.
        repack: let CPU backends rearrange weights for faster kernels.
        no_alloc: read metadata and plan buffers only, without reading weights.
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
    """The options with which a context is made.

    Attributes:
        n_ctx: cells of the KV cache, for all sequences together.
        n_batch: rows of a pass, at most.
        n_ubatch: micro-batch: rows computed at once, at most.
        n_seq_max: number of sequences, at most.
        kv_unified: sequences share one buffer of cells, so that one pass can have any mix of them.
        n_outputs_max: rows of a pass that give logits, at most; 0 means `n_batch`, and it is at least `n_seq_max`. It
            decides the size of the compute buffer: with a vocabulary of 151680, 512 rows cost 297 MiB, 4 hardly any.
        n_threads, n_threads_batch: threads for one row and for several; 0 means the physical cores.
        type_k, type_v: ggml's numbers of the types of the KV cache.
        flash_attn: None leaves it to llama.cpp.
        offload_kqv: keep the KV cache of layers on a GPU there, too.
        observer: looks at what matrices read in every pass; passes are slower for it.
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
    flash_attn: bool | None = None
    offload_kqv: bool = True
    observer: Observer | None = None
