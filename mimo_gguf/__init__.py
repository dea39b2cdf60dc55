"""MiMo-7B from Hugging Face safetensors to GGUF (MTP layer kept), quantized, and run with MTP drafting."""

__version__ = "0.1.0"
