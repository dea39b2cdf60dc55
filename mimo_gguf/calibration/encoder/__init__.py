"""The encoder: a matrix and the Gram matrix of its inputs to bytes of an unchanged ggml type."""

from mimo_gguf.calibration.encoder.encode import encode_matrix
from mimo_gguf.calibration.encoder.factors import Factors, factors

__all__ = ["Factors", "encode_matrix", "factors"]
