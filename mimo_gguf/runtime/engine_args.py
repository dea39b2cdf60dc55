"""vLLM's engine arguments: those that have an effect here, those that are ignored, and those that are refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.log import LOGGER
from mimo_gguf.core.near_matches import name_hint
from mimo_gguf.core.numbers import is_number, is_whole
from mimo_gguf.engine.session import SessionOptions
from mimo_gguf.hardware.devices import Device, list_devices

# Accepted, ignored and named once in the log: there is nothing here that they could change.
MEANINGLESS: Final = frozenset(
    (
        "allowed_local_media_path", "async_scheduling", "attention_backend", "attention_config", "block_size",
        "code_revision", "compilation_config", "config_format", "cpu_offload_gb", "cuda_graph_sizes",
        "data_parallel_size", "disable_cascade_attn", "disable_custom_all_reduce",
        "disable_hybrid_kv_cache_manager", "disable_log_requests", "disable_mm_preprocessor_cache",
        "distributed_executor_backend", "dtype", "enable_chunked_prefill", "enable_log_requests",
        "enable_prefix_caching", "enforce_eager", "generation_config", "hf_config_path", "ignore_patterns",
        "kv_cache_memory_bytes", "limit_mm_per_prompt", "load_format", "logits_processor_pattern", "logprobs_mode",
        "long_prefill_token_threshold", "max_cpu_loras", "max_logprobs", "max_long_partial_prefills",
        "max_num_partial_prefills", "max_parallel_loading_workers", "max_seq_len_to_capture",
        "mm_processor_cache_gb", "mm_processor_kwargs", "model_impl", "model_loader_extra_config",
        "num_gpu_blocks_override", "num_scheduler_steps", "observability_config", "optimization_level",
        "performance_mode", "preemption_mode", "profiler_config", "ray_workers_use_nsight", "reasoning_parser",
        "runner", "scheduling_policy", "served_model_name", "show_hidden_metrics_for_version",
        "structured_outputs_config", "swap_space", "tokenizer_mode", "tokenizer_revision", "trust_remote_code",
        "use_v2_block_manager", "use_tqdm_on_load", "worker_cls", "worker_extension_cls",
    )
)  # fmt: skip
# Refused unless the value is harmless (None, False, "auto", ...), because ignoring them would change the result.
REFUSED: Final[dict[str, tuple[tuple[Any, ...], str]]] = {
    "convert": (("auto", "none"), "there are no embeddings or scores here"),
    "enable_lora": ((), "merge the adapter into the checkpoint, and convert that"),
    "hf_overrides": (({},), "change config.json in the checkpoint's folder"),
    "hf_token": ((), "set the variable HF_TOKEN, or log in: hf auth login"),
    "lora_modules": ((), "merge the adapter into the checkpoint, and convert that"),
    "override_generation_config": (({},), "give SamplingParams"),
    "pooler_config": ((), "there are no embeddings or scores here"),
    "rope_scaling": (({},), "change config.json in the checkpoint's folder"),
    "rope_theta": ((), "change config.json in the checkpoint's folder"),
    "skip_tokenizer_init": ((), "the tokenizer is in the file"),
    "task": (("auto", "generate"), "there are no embeddings or scores here"),
    "tokenizer": ((), "the tokenizer is in the file, from the checkpoint it was made of"),
}
_KV_TYPES: Final = {
    "auto": None, "float16": "f16", "half": "f16", "bfloat16": "bf16", "float32": "f32",
    "fp8": "q8_0", "fp8_e4m3": "q8_0", "fp8_e5m2": "q8_0", "int8": "q8_0",
}  # fmt: skip
_LOAD: Final = ("kv_type", "mtp", "n_ubatch", "n_gpu_layers", "devices", "exact", "force", "on_plan")  # of `Model.load`


@dataclass(frozen=True, slots=True)
class EngineArgs:
    """The arguments that have an effect, checked. docs/engine.md says what each does."""

    max_model_len: int | None = None
    max_num_seqs: int = 4
    max_num_batched_tokens: int | None = None
    num_speculative_tokens: int | None = None
    speculative_config: Mapping[str, Any] | None = None
    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None
    gpu_memory_utilization: float | None = None
    kv_cache_dtype: str = "auto"
    seed: int | None = None

    def __post_init__(self) -> None:
        """Raises UsageError for a value out of range or of the wrong kind."""
        for name, low, high in (
            ("max_model_len", 1, 1 << 30), ("max_num_seqs", 1, 256), ("max_num_batched_tokens", 1, 1 << 20),
            ("num_speculative_tokens", 0, 8), ("tensor_parallel_size", 1, 256), ("pipeline_parallel_size", 1, 256),
            ("seed", 0, (1 << 63) - 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is None and name != "max_num_seqs":
                continue
            if not is_whole(value) or not low <= value <= high:
                raise UsageError(f"{name} is {value!r}", hint=f"give a whole number from {low} to {high}")
        share = self.gpu_memory_utilization
        if share is not None and (not is_number(share) or not 0 < share <= 1):
            raise UsageError(f"gpu_memory_utilization is {share!r}", hint="give a share of the memory: 0.9")
        self.n_draft  # noqa: B018 - checked before anything is loaded
        self.kv_type  # noqa: B018

    @property
    def n_draft(self) -> int | None:
        """The number of tokens drafted at a time; 0 for none, None if not given."""
        config = self.speculative_config
        if config is None:
            return self.num_speculative_tokens
        if not isinstance(config, Mapping) or self.num_speculative_tokens is not None:
            raise UsageError(f"speculative_config is {config!r:.60}", hint='{"num_speculative_tokens": 1}, alone')
        if config.get("model") is not None or "mtp" not in str(config.get("method") or "mtp"):
            raise UsageError("only the model's own MTP layer drafts", hint='{"method": "mtp"}, without a model')
        number = config.get("num_speculative_tokens", 1)
        if not is_whole(number) or not 0 <= number <= 8:
            raise UsageError(f"num_speculative_tokens is {number!r}", hint="give 1, 2 or 3; 0 drafts nothing")
        return int(number)

    @property
    def kv_type(self) -> str | None:
        """The type of the KV cache, with llama.cpp's name; None leaves it to the plan."""
        if not isinstance(self.kv_cache_dtype, str):
            raise UsageError(f"kv_cache_dtype is {self.kv_cache_dtype!r}", hint='"auto", "fp8", "q8_0", ...')
        name = self.kv_cache_dtype.lower()
        return _KV_TYPES.get(name, name)

    @property
    def n_gpus(self) -> int | None:
        """The number of GPUs to use; None means all."""
        if self.tensor_parallel_size is None and self.pipeline_parallel_size is None:
            return None
        return (self.tensor_parallel_size or 1) * (self.pipeline_parallel_size or 1)

    def session_options(self, options: SessionOptions | None) -> SessionOptions:
        """`options` with the number of conversations and drafts that these arguments set."""
        options = replace(options or SessionOptions(), n_parallel=self.max_num_seqs)
        return replace(options, n_draft=self.n_draft) if self.n_draft else options

    def load_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments for `Model.load`: those `given` with its names, and those that result from vLLM's.

        Raises:
            UsageError: there are fewer GPUs than requested, or both names of one setting are given.
        """
        meant: dict[str, Any] = {
            "n_ctx": None if self.max_model_len is None else self.max_model_len * self.max_num_seqs,
            "n_ubatch": self.max_num_batched_tokens,
            "kv_type": self.kv_type,
            "mtp": False if self.n_draft == 0 else None,
        }
        if self.n_gpus is not None or self.gpu_memory_utilization is not None:
            meant["devices"] = chosen_devices(given.get("devices"), self.n_gpus, self.gpu_memory_utilization)
        meant = {name: value for name, value in meant.items() if value is not None}
        if twice := meant.keys() & {name for name, value in given.items() if value is not None} - {"devices"}:
            raise UsageError(f"{', '.join(sorted(twice))} is given twice, under two names", hint="leave one out")
        return {**given, **meant}


def read_arguments(given: Mapping[str, Any]) -> tuple[EngineArgs, dict[str, Any]]:
    """Sorts arguments into those of the engine and those of `Model.load`. Ignored ones are named in the log.

    Raises:
        UsageError: an argument does not exist, is refused, or is out of range.
    """
    names = {each.name for each in fields(EngineArgs)}
    load = {name: value for name, value in given.items() if name in _LOAD}
    for name, value in given.items():
        if name in REFUSED:
            harmless, hint = REFUSED[name]
            if value not in (None, False, *harmless):
                raise UsageError(f"{name}={value!r:.40} cannot be done here", hint=hint)
        elif name not in names and name not in _LOAD and name not in MEANINGLESS:
            raise UsageError(
                f"LLM has no argument {name}", hint=name_hint(name, [*sorted(names), *_LOAD, *sorted(MEANINGLESS)])
            )
    if ignored := sorted(name for name in given if name in MEANINGLESS):
        LOGGER.info("ignored, because they have no effect with llama.cpp: %s", ", ".join(ignored))
    return EngineArgs(**{name: value for name, value in given.items() if name in names}), load


def chosen_devices(devices: Iterable[Device] | None, n_gpus: int | None, share: float | None) -> tuple[Device, ...]:
    """The first `n_gpus` GPUs and the host.

    Args:
        share: the share of each GPU's memory that may be used, 0 to 1; without GPUs, of the host's.

    Raises:
        UsageError: there are fewer GPUs.
    """
    *gpus, host = list_devices() if devices is None else devices
    if n_gpus is not None:
        if n_gpus > max(len(gpus), 1):
            raise UsageError(f"{n_gpus} GPUs are requested, {len(gpus)} found", hint="leave tensor_parallel_size out")
        gpus = gpus[:n_gpus]
    if share is None:
        return (*gpus, host)
    if not gpus:
        return (_limited(host, share),)
    return (*(_limited(gpu, share) for gpu in gpus), host)


def _limited(device: Device, share: float) -> Device:
    return replace(device, free_bytes=min(device.free_bytes, int(device.total_bytes * share)))


def model_source(model: Any) -> str:
    """The name of a model as text. Raises UsageError if it is neither a text nor a path."""
    if not isinstance(model, str | Path) or not str(model):
        raise UsageError(f"not a model: {model!r:.60}", hint="give a GGUF file, a checkpoint folder or a Hub id")
    return str(model)
