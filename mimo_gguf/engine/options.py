"""The options of a session, and what they mean for llama.cpp's target context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.kinds import check_kind
from mimo_gguf.core.kv_cache import n_ctx_seq, parse_kv_type
from mimo_gguf.core.numbers import is_number, is_whole
from mimo_gguf.engine.drafting import HiddenState
from mimo_gguf.llama.api import ContextOptions

_MOST_THREADS: Final = 512  # GGML_MAX_N_THREADS
_MOST: Final = (1 << 31) - 1
_LONGEST_PAUSE_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """The options of a session.

    Attributes:
        n_ctx: the total context in tokens, of which each of `n_parallel` conversations has an equal part, its window.
            0 gives each conversation the context that the model was trained with.
        n_parallel: conversations at a time.
        n_batch: tokens of a pass, at most.
        n_threads: threads for computing; 0 means the physical cores.
        kv_type: the type of the KV cache, as ggml names it: "f16", "q8_0", "q4_0", ...
        flash_attn: whether to use flash attention; None leaves it to llama.cpp.
        mtp: draft with the MTP blocks, if the model was loaded with them.
        n_draft: tokens drafted at a time.
        p_min: the probability from which the MTP block proposes a token, 0 to 1.
        hidden: the trunk's state that the MTP block is fed with: before ("pre", MiMo) or after ("post") its final norm.
        adaptive: stop drafting while it is slower than not drafting.
        n_ubatch_mtp: micro-batch of the MTP context, which decides the size of its compute buffer.
        exact: compute every row alone, so that a text is the same to the token in any batch, with and without drafts.
        n_prompt_rows: tokens of prompts that a pass may give logits for, if more than drawing needs. Each costs memory.
        parked_bytes: memory of the host for idle conversations whose slot another needs (`parking`).
        max_pause_s: seconds that a pass may take if it reads a prompt while other conversations draw; 0 sets no limit.
    """

    n_ctx: int = 4096
    n_parallel: int = 1
    n_batch: int = 512
    n_threads: int = 0
    kv_type: str = "f16"
    flash_attn: bool | None = None
    mtp: bool = True
    n_draft: int = 1
    p_min: float = 0.0
    hidden: HiddenState = "pre"
    adaptive: bool = True
    n_ubatch_mtp: int = 64
    exact: bool = False
    n_prompt_rows: int = 0
    max_pause_s: float = 0.5
    parked_bytes: int = 0

    def __post_init__(self) -> None:
        """Raises UsageError for values out of range or of the wrong kind; some of them would crash llama.cpp."""
        for name, low, high, what, hint in (
            ("n_draft", 1, 8, "{} drafts at a time", "choose 1, 2 or 3: --draft 1"),
            ("n_ctx", 0, _MOST, "a context of {} tokens", "give a positive number: --ctx 4096"),
            ("n_batch", 1, _MOST, "a batch of {} tokens", "choose 512"),
            ("n_ubatch_mtp", 1, _MOST, "a micro-batch of {} tokens", "choose 64"),
            ("n_prompt_rows", 0, 1 << 16, "{} rows of a prompt", "choose 64"),
            ("parked_bytes", 0, 1 << 50, "{} bytes for parked conversations", "give a size: --cache-ram 4GB"),
            ("n_parallel", 1, 256, "{} conversations at a time", "choose 1 to 256"),
            ("n_threads", 0, _MOST_THREADS, "{} threads", f"at most {_MOST_THREADS}; leave it out for one per core"),
        ):
            value = getattr(self, name)
            if not is_whole(value) or not low <= value <= high:
                raise UsageError(what.format(value), hint=hint)
        if not is_number(self.p_min) or not 0.0 <= self.p_min <= 1.0:
            raise UsageError(f"a probability of {self.p_min}", hint="choose a draft probability between 0 and 1")
        if not is_number(self.max_pause_s) or not 0.0 <= self.max_pause_s <= _LONGEST_PAUSE_S:
            raise UsageError(f"a pause of {self.max_pause_s} seconds", hint="choose a few tenths; 0 sets no limit")
        check_kind("kv_type", self.kv_type, str, 'kv_type="q8_0"')
        for name in ("mtp", "adaptive", "exact"):
            check_kind(name, getattr(self, name), bool, "True or False")
        check_kind("flash_attn", self.flash_attn, bool, "True, False, or None for llama.cpp's choice", or_none=True)
        if self.hidden not in ("pre", "post"):
            raise UsageError(f"no hidden state {self.hidden!r}", hint="pre or post")

    @property
    def n_rows_drawing(self) -> int:
        """The number of rows that give logits if every conversation draws."""
        return self.n_parallel * (1 + self.n_draft)

    @property
    def n_outputs_max(self) -> int:
        """The number of rows that a pass may give logits for."""
        return max(self.n_rows_drawing, self.n_prompt_rows)

    def for_context(self) -> ContextOptions:
        """The target context's options. As in llama.cpp, each conversation's part of the cells is rounded up.

        The KV cache is one buffer for all sequences. So all that are at work run in one pass, whatever their numbers of
        rows, and a common prefix is kept once. Divided buffers would need a pass for each number of rows.

        With `exact` each row is computed in a graph of its own, and each sequence has cells of its own, in the order of
        its tokens. What is computed for a token then depends only on the tokens before it.
        """
        kv_type = _kv_type_number(self.kv_type)
        n_batch = max(min(self.n_batch, self.n_ctx), self.n_outputs_max + 1)
        return ContextOptions(
            n_ctx=self.n_parallel * n_ctx_seq(self.n_ctx, self.n_parallel),
            n_batch=n_batch,
            n_ubatch=1 if self.exact else n_batch,
            n_seq_max=self.n_parallel,
            kv_unified=not self.exact,
            n_outputs_max=self.n_outputs_max,
            n_threads=self.n_threads,
            type_k=kv_type,
            type_v=kv_type,
            flash_attn=self.flash_attn,
        )


def _kv_type_number(name: str) -> int:
    """ggml's number of a type: `q8_0` -> 8. Raises UsageError if llama.cpp cannot keep a KV cache in that type."""
    return int(parse_kv_type(name))
