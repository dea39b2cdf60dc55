"""The one module that imports llama-cpp-python: its low-level API, and four private symbols of llama.cpp.

`api()` imports llama_cpp on first use, starts the backends once, and sends llama.cpp's log to `LOG` instead of the
screen. Models and contexts each own one native pointer and free it exactly once. llama-cpp-python is pinned to 0.3.36
(llama.cpp 0c1e57098) because of the private symbols:
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/llama-ext.h
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.core.errors import BackendError, UsageError
from mimo_gguf.core.ggml_types import ftype_name
from mimo_gguf.core.paths import command_word
from mimo_gguf.core.version import REINSTALL_LLAMA
from mimo_gguf.llama.amx import leave_out_faulty_amx
from mimo_gguf.llama.best import Best
from mimo_gguf.llama.lifetime import Caught, Exit, Owner, Process, at_work, catching
from mimo_gguf.llama.log import LOG
from mimo_gguf.llama.missing_library import loading_hint
from mimo_gguf.llama.options import ContextOptions as ContextOptions
from mimo_gguf.llama.options import ModelOptions as ModelOptions
from mimo_gguf.llama.private_symbols import PRIVATE
from mimo_gguf.llama.running_pass import RunningPass, TensorAccess
from mimo_gguf.llama.sequence_state import read_state, write_state
from mimo_gguf.llama.symbols import address_of

Floats = NDArray[np.float32]

_starting: Final = threading.RLock()


@cache
def api() -> Any:
    """The low-level module of llama_cpp, with its backends started and its log kept in `LOG`.

    Raises:
        BackendError: llama-cpp-python is missing or cannot be loaded.
    """
    with _starting:  # so that only one thread starts it
        return _started()


def is_loaded() -> bool:
    """Whether `api` has loaded llama.cpp in this process."""
    return bool(_started.cache_info().currsize)


@cache
def _started() -> Any:
    try:
        import llama_cpp.llama_cpp as module
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendError(f"llama-cpp-python cannot be loaded: {error}", hint=loading_hint(str(error))) from None
    callback = module.llama_log_callback(_write_log)
    module.mimo_gguf_log_callback = callback  # so that it lives as long as the library that calls it
    module.llama_log_set(callback, None)
    module.llama_backend_init()
    leave_out_faulty_amx(libraries_of(module))
    return module


def _write_log(level: int, text: bytes, _: Any) -> None:
    LOG.write(level, text.decode("utf-8", "replace"))


@cache
def private(name: str) -> Any:
    """A function of llama-ext.h, by its C name or the name that this platform's compiler gave it.

    Raises:
        BackendError: the installed llama.cpp does not have it.
    """
    itanium, msvc, argtypes, restype = PRIVATE[name]
    address = address_of((name, itanium, msvc), [api()._lib])
    if address is None:
        raise BackendError(f"the installed llama.cpp has no {name}, which MTP needs", hint=REINSTALL_LLAMA)
    return ctypes.CFUNCTYPE(restype, *argtypes)(address)


@cache
def ggml_function(name: str, restype: Any, *argtypes: Any) -> Any:
    """A function of ggml itself (device list, RPC), from the installed library that exports it.

    Raises:
        BackendError: no library exports it.
    """
    address = address_of([name], libraries_of(api()).values())
    if address is None:
        raise BackendError(
            f"the installed ggml has no {name}", hint="this build of llama-cpp-python lacks that backend"
        )
    return ctypes.CFUNCTYPE(restype, *argtypes)(address)


@cache
def libraries_of(module: Any) -> Mapping[str, Any]:
    """The libraries of llama_cpp's low-level `module` by name; a static build has only "llama"."""
    from llama_cpp._ctypes_extensions import load_shared_library

    libraries = {"llama": module._lib}
    for name in ("ggml", "ggml-base", "ggml-cpu", "ggml-rpc"):
        with contextlib.suppress(FileNotFoundError, RuntimeError, OSError):
            libraries[name] = load_shared_library(name, module._base_path)
    return libraries


def default_threads() -> int:
    """The number of threads for generation: the physical cores that this process may use."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))


class LlamaModel(Owner):
    """A loaded model. Closing it closes its contexts first.

    Attributes:
        n_vocab: number of tokens in the vocabulary.
        n_embd: length of a hidden state.
        n_ctx_train: tokens of the context that the model was trained with.
        n_mtp: number of MTP blocks that were loaded.
        size_bytes: size of all tensors.
        file_type: "Q4_K_M", "BF16", ...
    """

    def __init__(self, pointer: int, path: Path, options: ModelOptions) -> None:
        module = api()
        super().__init__(pointer, module.llama_model_free)
        self.contexts: weakref.WeakSet[LlamaContext] = weakref.WeakSet()  # added to under the lock
        self.path = path
        self.options = options
        self._vocab = module.llama_model_get_vocab(pointer)
        self.n_vocab = int(module.llama_vocab_n_tokens(self._vocab))
        self.n_embd = int(module.llama_model_n_embd(pointer))
        self.n_ctx_train = int(module.llama_model_n_ctx_train(pointer))
        self.n_mtp = int(module.llama_model_n_layer_nextn(pointer)) if options.load_mtp else 0
        self.size_bytes = int(module.llama_model_size(pointer))
        self.file_type = ftype_name(int(module.llama_model_ftype(pointer)))

    @property
    def vocab(self) -> Any:
        """llama.cpp's vocabulary, which is freed with the model. Raises UsageError as `pointer`."""
        return self._vocab if self.pointer else None

    def close(self) -> None:
        """Frees the contexts that were made of the model, then the model.

        Raises:
            UsageError: called by a signal handler from within a pass.
        """
        while not self.closed:
            with self._cell.lock:  # no context is made meanwhile
                contexts = [context for context in self.contexts if not context.closed]
                if not contexts:
                    super().close()
            for context in sorted(contexts, key=lambda context: context.other is None):
                context.close()

    def __enter__(self) -> LlamaModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load_model(path: str | Path, options: ModelOptions | None = None) -> LlamaModel:
    """Loads the GGUF at `path`.

    Raises:
        BackendError: llama.cpp refused the file; the message has its reason.
        KeyboardInterrupt: Ctrl-C while it was loading; nothing stays loaded.
        UsageError: this process was forked from one in which llama.cpp was at work.
    """
    Process.check_usable()
    with at_work():
        return _load(path, options or ModelOptions())


def _load(path: str | Path, options: ModelOptions) -> LlamaModel:
    module, since = api(), LOG.mark
    params = module.llama_model_default_params()
    params.n_gpu_layers = options.n_gpu_layers
    devices = (ctypes.c_void_p * (len(options.devices or ()) + 1))(*(options.devices or ()), None)
    if options.devices is not None:
        params.devices = ctypes.cast(devices, ctypes.c_void_p).value
    split = (ctypes.c_float * max(int(module.llama_max_devices()), 1))(*options.tensor_split)
    if options.tensor_split:
        params.tensor_split = ctypes.cast(split, ctypes.POINTER(ctypes.c_float))
    params.load_mode = _load_mode(module, options)
    params.load_mtp = options.load_mtp
    params.use_extra_bufts = options.repack
    params.no_alloc = options.no_alloc
    params.vocab_only = options.vocab_only
    params.check_tensors = options.check_tensors
    loading = _Loading()
    params.progress_callback = callback = module.llama_progress_callback(loading.goes_on)
    with catching(loading, loading.goes_on, _write_log):
        pointer = module.llama_model_load_from_file(os.fsencode(path), params)
    del callback
    if pointer and loading.error is not None:
        module.llama_model_free(pointer)
    loading.check()
    if not pointer:
        hint = f"look at the file: mimo-gguf inspect {command_word(path)}"
        raise BackendError(f"{path}: llama.cpp cannot load it: {LOG.reason(since)}", hint=hint)
    return LlamaModel(pointer, Path(path), options)


class _Loading(Caught):
    """The progress callback of a loading model, which stops the loading if an exception was raised (Ctrl-C)."""

    __slots__ = ("goes_on",)

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = self._goes_on  # one object, because `catching` compares by identity

    def _goes_on(self, _share: float, _data: Any) -> bool:
        return self.error is None and not Exit.stops_here()


def _load_mode(module: Any, options: ModelOptions) -> int:
    if options.no_alloc:
        return int(module.LLAMA_LOAD_MODE_NONE)
    if options.use_mlock:
        return int(module.LLAMA_LOAD_MODE_MMAP_MLOCK if options.use_mmap else module.LLAMA_LOAD_MODE_MLOCK)
    return int(module.LLAMA_LOAD_MODE_MMAP if options.use_mmap else module.LLAMA_LOAD_MODE_NONE)


class LlamaContext(Owner):
    """A context: a KV cache and compute buffers. It is the target, or the context that runs the MTP blocks.

    Functions that are called for every token are bound once, and arrays over llama.cpp's memory are kept by address:
    making them each time would cost more than the calls themselves.

    Attributes:
        other: the target, if this context runs the MTP blocks.
        n_cells: number of cells in the KV cache, for all sequences together.
        n_batch: rows of a pass, at most.
        n_outputs_max: rows of a pass that give logits, at most.
        best: what is known of the largest logits of the last decode (`likeliest`).
    """

    def __init__(
        self,
        pointer: int,
        model: LlamaModel,
        options: ContextOptions,
        other: LlamaContext | None,
        running: RunningPass,
    ) -> None:
        """Owns `pointer`. A context that runs MTP blocks gets its target as `other`, and shares its lock."""
        module = api()
        needed = (model, *([other] if other else []))
        super().__init__(pointer, module.llama_free, *needed, beside=other)
        model.contexts.add(self)
        self.model = model
        self.other = other
        self.options = options
        self._memory = module.llama_get_memory(pointer)
        self.n_cells = int(module.llama_n_ctx(pointer))
        self.n_batch = int(module.llama_n_batch(pointer))
        self.n_outputs_max = max(options.n_outputs_max, options.n_seq_max) if options.n_outputs_max else self.n_batch
        self._pass = running
        self._callback = module.ggml_abort_callback(running.callbacks[0])
        self._no_callback = module.ggml_abort_callback(0)
        self._decode = module.llama_decode
        self._logits_address = ggml_function("llama_get_logits_ith", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)
        self._table_address = ggml_function("llama_get_logits", ctypes.c_void_p, ctypes.c_void_p)
        self._rows: dict[int, Floats] = {}
        self._tables: dict[int, Floats] = {}
        self._states: dict[int, Floats] = {}
        self.best = Best(0)

    def __enter__(self) -> LlamaContext:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def memory(self) -> Any:
        """llama.cpp's KV cache, which is freed with the context. Raises UsageError as `pointer`."""
        return self._memory if self.pointer else None

    def decode(self, native_batch: Any, stop_when: Callable[[], bool] | None = None) -> int:
        """Runs a pass. Returns llama_decode's result: 0 done, 1 no room in the KV cache, 2 stopped, negative an error.

        Args:
            stop_when: called between two graph nodes (CPU backends only); the pass ends when it returns True. Calls
                cost time. Only there, or after the pass, can Python react to Ctrl-C.

        Raises:
            KeyboardInterrupt: Ctrl-C; any other exception of `stop_when` or the observer is raised here, too.
            UsageError: the batch has more rows, or more rows with logits, than the context was made for. With these
                llama.cpp would abort.
        """
        if native_batch.n_tokens > self.n_batch or native_batch.n_outputs > self.n_outputs_max:
            raise UsageError(
                f"the pass has {native_batch.n_tokens} rows, {native_batch.n_outputs} of them with logits: this "
                f"context allows {self.n_batch} and {self.n_outputs_max}",
                hint="make the context with a larger n_batch or n_outputs_max",
            )
        self.best = Best(native_batch.n_tokens if native_batch.n_tokens == native_batch.n_outputs else 0)
        running = self._pass
        if stop_when is None and not running.observes:
            return int(self._decode(self.pointer, native_batch))
        set_callback = api().llama_set_abort_callback
        running.stop_when = stop_when
        set_callback(self.pointer, self._callback, None)
        self._cell.is_in_pass = True
        try:
            with catching(running, *running.callbacks):
                result = int(self._decode(self.pointer, native_batch))
        finally:
            self._cell.is_in_pass = False
            set_callback(self.pointer, self._no_callback, None)
            running.stop_when = None
        running.check()
        return result

    def logits(self, row: int) -> Floats:
        """The logits of batch row `row`, shape (n_vocab,): a view, valid until the next decode."""
        address = self._logits_address(self.pointer, row)
        view = self._rows.get(address)
        return self._view(self._rows, address, (self.model.n_vocab,)) if view is None else view

    def all_logits(self, n_rows: int) -> Floats:
        """The logits of the last decode's `n_rows` rows that have any, shape (n_rows, n_vocab): a view as `logits`."""
        address = self._table_address(self.pointer)
        return self._view(self._tables, address, (self.n_batch, self.model.n_vocab))[:n_rows]

    def hidden(self, n_rows: int) -> Floats:
        """The hidden states of the last decode, before the final norm, shape (n_rows, n_embd): a view as `logits`.

        The target gives one row per token of the batch, the MTP context one per row with logits.
        """
        address = private("llama_get_embeddings_nextn")(self.pointer)
        return self._view(self._states, address, (self.options.n_batch, self.model.n_embd))[:n_rows]

    @staticmethod
    def _view(known: dict[int, Floats], address: int, shape: tuple[int, ...]) -> Floats:
        view = known.get(address)
        if view is None:
            view = known[address] = np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_float)), shape)
        return view

    def give_hidden(self, wanted: bool, *, of_outputs_only: bool) -> None:
        """Switches the copying of hidden states on or off."""
        private("llama_set_embeddings_nextn")(self.pointer, wanted, of_outputs_only)

    def select_mtp_block(self, index: int) -> None:
        """Selects the MTP block that the next decode of an MTP context runs, 0 for the first."""
        private("llama_set_nextn_layer_offset")(self.pointer, index)

    def forget(self, first_position: int, seq_id: int = 0) -> None:
        """Removes a sequence's tokens from `first_position` on from the KV cache."""
        api().llama_memory_seq_rm(self.memory, seq_id, first_position, -1)

    def share(self, source: int, n_tokens: int, seq_id: int) -> None:
        """Gives the empty sequence `seq_id` the first `n_tokens` of the sequence `source`.

        In a unified KV cache both then share the same cells. Of a divided cache they are copied at once: what
        `llama_memory_seq_cp` notes to copy with the next pass would be what the source holds by then.

        Raises:
            BackendError: llama.cpp refuses the copy.
        """
        if self.options.kv_unified or self.options.n_seq_max == 1:
            api().llama_memory_seq_cp(self.memory, source, seq_id, 0, n_tokens)
            return
        if not write_state(api(), self.pointer, seq_id, read_state(api(), self.pointer, source)):
            raise BackendError("llama.cpp refuses to copy the cells of a conversation", hint="see --verbose")
        self.forget(n_tokens, seq_id)

    def last_position(self, seq_id: int = 0) -> int:
        """The position of a sequence's last token in the KV cache; -1 if it has none."""
        return int(api().llama_memory_seq_pos_max(self.memory, seq_id))


def open_context(model: LlamaModel, options: ContextOptions) -> LlamaContext:
    """Makes the target context, which runs the trunk.

    Raises:
        BackendError: llama.cpp could not make it (no memory, an unusable KV type); the message has its reason.
    """
    module = api()
    return _open(model, options, module.LLAMA_CONTEXT_TYPE_DEFAULT, None)


def open_mtp_context(target: LlamaContext, *, n_ubatch: int = 64, n_outputs_max: int = 1) -> LlamaContext:
    """Makes the context that runs the MTP blocks beside `target`: the same cells, threads, KV types and observer.

    Its sequences share one buffer of cells, even if those of `target` do not.

    Raises:
        BackendError: as `open_context`, or the file has no MTP block.
    """
    given = target.options
    options = ContextOptions(
        n_ctx=target.n_cells,
        n_batch=n_ubatch,
        n_ubatch=n_ubatch,
        n_seq_max=given.n_seq_max,
        kv_unified=True,
        n_outputs_max=n_outputs_max,
        n_threads=given.n_threads,
        n_threads_batch=given.n_threads_batch,
        type_k=given.type_k,
        type_v=given.type_v,
        flash_attn=given.flash_attn,
        offload_kqv=given.offload_kqv,
        observer=given.observer,
    )
    context = _open(target.model, options, api().LLAMA_CONTEXT_TYPE_MTP, target)
    target.give_hidden(True, of_outputs_only=False)
    context.give_hidden(True, of_outputs_only=True)
    return context


def _open(model: LlamaModel, options: ContextOptions, ctx_type: int, other: LlamaContext | None) -> LlamaContext:
    with at_work(), model.lock:
        model.check_here()
        Process.has_threads = True
        return _make(model, options, ctx_type, other)


def _make(model: LlamaModel, options: ContextOptions, ctx_type: int, other: LlamaContext | None) -> LlamaContext:
    module, since = api(), LOG.mark
    params = module.llama_context_default_params()
    for name in (
        "n_ctx", "n_batch", "n_ubatch", "n_seq_max", "kv_unified", "n_outputs_max", "type_k", "type_v", "offload_kqv",
    ):  # fmt: skip
        setattr(params, name, getattr(options, name))
    if params.n_outputs_max:
        params.n_outputs_max = max(params.n_outputs_max, options.n_seq_max)  # with fewer, llama.cpp aborts in a pass
    params.n_threads = options.n_threads or default_threads()
    params.n_threads_batch = options.n_threads_batch or options.n_threads or default_threads()
    if options.flash_attn is not None:
        enabled, disabled = module.LLAMA_FLASH_ATTN_TYPE_ENABLED, module.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.flash_attn_type = enabled if options.flash_attn else disabled
    params.ctx_type = ctx_type
    params.ctx_other = other.pointer if other else None
    params.no_perf = True
    running = RunningPass(options.observer, TensorAccess.of(ggml_function) if options.observer else None)
    running.native = module.ggml_backend_sched_eval_callback(running.callbacks[1] if running.observes else 0)
    params.cb_eval = running.native
    making = Caught()
    with catching(making, _write_log):
        pointer = module.llama_init_from_model(model.pointer, params)
    if making.error is not None and pointer:
        module.llama_free(pointer)
    making.check()
    if not pointer:
        raise BackendError(
            f"{model.path}: llama.cpp cannot make a context of {options.n_ctx} tokens: {LOG.reason(since)}",
            hint=f"try a smaller --ctx; what fits: mimo-gguf fit {command_word(model.path)}",
        )
    return LlamaContext(pointer, model, options, other, running)
