"""MiMo-7B from Hugging Face safetensors to GGUF (MTP layer kept), quantized, and run with MTP drafting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mimo_gguf.runtime.model import Answer, AnswerStream, Model

__version__ = "0.1.0"
__all__ = ["Answer", "AnswerStream", "Model", "__version__"]


def __getattr__(name: str) -> Any:
    """The runtime's classes, imported when first asked for: they bring llama.cpp with them, which the rest does not."""
    if name in ("Answer", "AnswerStream", "Model"):
        from mimo_gguf.runtime import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
