"""The fast half of finite.py: skips over everything that is surely fine."""

# numba gives its functions no types
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, disable-error-code=misc

from __future__ import annotations

from mimo_gguf.quantization.kernels.jit import kernel
from mimo_gguf.quantization.kernels.lanes import LANES, any_lane, load_weights, select, splat, to_bits


@kernel
def first_suspect_strip(src, limit):
    """Start of the first strip of 512 weights that holds one with f32 magnitude bits of at least `limit`.

    Where no strip does, the end of the last whole strip.
    """
    whole = src.size - src.size % 512
    for start in range(0, whole, 512):
        largest = splat(0)
        for i in range(start, start + 512, LANES):
            magnitude = to_bits(load_weights(src, i)) & splat(0x7FFFFFFF)
            largest = select(magnitude > largest, magnitude, largest)
        if any_lane(largest > splat(limit - 1)):
            return start
    return whole
