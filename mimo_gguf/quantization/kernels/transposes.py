"""Turning a tile: from rows as they lie in memory to lanes (see lanes.py), and levels back to rows.

16-bit weights are turned as they are and widened to f32 afterwards, levels are cut to bytes before: the narrower what
is turned, the fewer the instructions. They are turned by interleaving: mix row i with row i + n/2, and after log2(n)
rounds the rows are the columns. That stays within 128 bits, where every mix is one instruction, so a register turns
two squares side by side.
"""

# numba gives its functions no types
# mypy: allow-untyped-decorators, disable-error-code=misc

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from mimo_gguf.quantization.kernels.lanes import (
    F32,
    I8,
    I16,
    I32,
    LANES,
    indices,
    load_vector,
    pointer_to,
    store_vector,
    widened,
)

SQUARE: Final = 16  # rows and columns that `load_square` turns at a time


@intrinsic
def load_square(
    typing_context: Any, src: Any, first: Any, second: Any, stride: Any, dst: Any, dst_at: Any, dst_stride: Any
) -> Any:
    """Writes the 16 x 16 transpose of the weights `src` (float32; uint16 holds bf16, int16 f16) to the float32 `dst`.

    Rows 0-7 of the source start at element `first`, rows 8-15 at `second`, each row `stride` after the one before;
    row i of the result starts at `dst_at + i * dst_stride`.
    """

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        array, *starts, stride, out, out_at, out_stride = args

        def rows(start: ir.Value, element: ir.Type) -> list[ir.Value]:
            at = [builder.add(start, builder.mul(stride, ir.Constant(stride.type, row))) for row in range(8)]
            pointers = [pointer_to(context, builder, src, array, element) for element in at]
            return [load_vector(builder, pointer, element, SQUARE) for pointer in pointers]

        def put(row: int, column: int, vector: ir.Value) -> None:
            at = builder.add(out_at, builder.mul(out_stride, ir.Constant(out_stride.type, row)))
            at = builder.add(at, ir.Constant(at.type, column))
            store_vector(builder, vector, pointer_to(context, builder, dst, out, at))

        if src.dtype is types.float32:
            for row, vector in enumerate(_turned_whole(builder, [r for start in starts for r in rows(start, F32)])):
                put(row, 0, vector)
        else:
            for start, column in zip(starts, (0, 8), strict=True):
                for row, vector in enumerate(_interleaved(builder, rows(start, I16))):
                    for half in (0, 8):
                        words = builder.shuffle_vector(vector, vector, indices(list(range(half, half + 8))))
                        put(row + half, column, widened(builder, words, src.dtype))
        return context.get_dummy_value()

    intp = types.intp
    return types.void(src, intp, intp, intp, dst, intp, intp), codegen


def _store_bytes(n_rows: int) -> Any:
    @intrinsic
    def function(typing_context: Any, src: Any, dst: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            def at(row: int, stride: int) -> ir.Constant:
                return ir.Constant(ir.IntType(64), row * stride)

            rows = []
            for row in range(n_rows):
                numbers = load_vector(builder, pointer_to(context, builder, src, args[0], at(row, LANES)), I32)
                rows.append(builder.trunc(numbers, ir.VectorType(I8, LANES)))
            turned = [_interleaved(builder, rows[first : first + 16]) for first in range(0, n_rows, 16)]
            for lane in range(LANES):
                half = list(range(lane // 16 * 16, lane // 16 * 16 + 16))
                both = [*half, *(LANES + i for i in half)][:n_rows]
                row_of_lane = builder.shuffle_vector(turned[0][lane % 16], turned[-1][lane % 16], indices(both))
                store_vector(builder, row_of_lane, pointer_to(context, builder, dst, args[1], at(lane, n_rows)))
            return context.get_dummy_value()

        return types.void(src, dst), codegen

    return function


# The transpose of 16 or 32 rows of LANES numbers, 0..255, from a flat int32 array to a flat uint8 array.
store_16_rows = _store_bytes(16)
store_32_rows = _store_bytes(32)


def _interleaved(builder: ir.IRBuilder, rows: Sequence[ir.Value]) -> list[ir.Value]:
    """n rows of 2 n elements, seen as two squares side by side: the transposes of both, side by side."""
    n = len(rows)
    low = [square + i // 2 + 2 * n * (i % 2) for square in (0, n) for i in range(n)]
    high = [n // 2 + lane for lane in low]
    turned = list(rows)
    for _ in range(n.bit_length() - 1):
        pairs = zip(turned[: n // 2], turned[n // 2 :], strict=True)
        turned = [builder.shuffle_vector(a, b, indices(lanes)) for a, b in pairs for lanes in (low, high)]
    return turned


def _turned_whole(builder: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """The transpose of one square, by swapping ever smaller off-diagonal squares: 8 x 8, 4 x 4, 2 x 2, 1 x 1."""
    for span in (8, 4, 2, 1):
        low = [lane if not lane & span else SQUARE + lane - span for lane in range(SQUARE)]
        high = [lane + span if not lane & span else SQUARE + lane for lane in range(SQUARE)]
        for row in range(SQUARE):
            if not row & span:
                a, b = rows[row], rows[row + span]
                rows[row] = builder.shuffle_vector(a, b, indices(low))
                rows[row + span] = builder.shuffle_vector(a, b, indices(high))
    return rows
