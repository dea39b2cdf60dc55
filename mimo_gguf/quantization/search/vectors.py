"""Sixteen rows at a time, each in a lane of its own: what the search needs besides `kernels/lanes.py`.

Rows do not depend on each other, so all lanes take the same steps with the same column, and what belongs to the
column (its importance, a row of the factor) is one number for all of them. Sixteen lanes are two registers of AVX2.

Unlike the kernels that repeat libggml's bytes, these use fused multiply-add, always and explicitly (`fused`), so that
every processor rounds alike.
"""

# numba gives its functions no types
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, disable-error-code=misc

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from mimo_gguf.quantization.kernels.lanes import (
    F32,
    HALF,
    I32,
    REGISTER,
    F32Half,
    MaskHalf,
    absolute,
    indices,
    larger,
    pointer_to,
    round_to_even,
    select,
    smaller,
    splat_half,
)

# Decorator for the parts of a kernel. They allocate nothing, and numba need not count who holds an array: those counts
# are atomic, and took half of the descent's time.
step_of = njit(error_model="numpy", _nrt=False, forceinline=True)
ROWS: Final = HALF
LARGEST_HALF: Final = 65504.0
_BITS, _I64 = ir.IntType(ROWS), ir.IntType(64)


@intrinsic
def fused(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        vector = args[0].type
        declared = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{vector.count}f32"
        )
        return builder.call(declared, args)

    return a(a, b, c), codegen


@intrinsic
def everywhere(typing_context: Any, array: Any, at: Any) -> Any:
    """One element of a float32 array in every lane. The index is not negative: nothing is checked."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        pointer = pointer_to(context, builder, signature.args[0], args[0], args[1])
        scalar = builder.load(builder.bitcast(pointer, ir.PointerType(F32)))
        one = builder.insert_element(ir.Constant(F32Half.vector, ir.Undefined), scalar, ir.Constant(I32, 0))
        return builder.shuffle_vector(one, one, indices([0] * ROWS))

    return F32Half(array, types.intp), codegen


@intrinsic
def prefetch(typing_context: Any, array: Any, at: Any) -> Any:
    """Asks for the cache line of an element that will be read soon. It may lie beyond the array."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        pointer = pointer_to(context, builder, signature.args[0], args[0], args[1])
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, I32, I32, I32])
        declared = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(declared, [pointer, *(ir.Constant(I32, number) for number in (0, 2, 1))])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic
def both(typing_context: Any, a: Any, b: Any) -> Any:
    """The lanes where both masks hold."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.and_(*args)

    return MaskHalf(MaskHalf, MaskHalf), codegen


@intrinsic
def lanes_that_hold(typing_context: Any, mask: Any) -> Any:
    """The mask as an integer: bit i is lane i."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.zext(builder.bitcast(args[0], _BITS), _I64)

    return types.int64(MaskHalf), codegen


@intrinsic
def lowest_bit(typing_context: Any, bits: Any) -> Any:
    """The number of the lowest bit of an integer that is not 0."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), codegen


@intrinsic
def sum_of_lanes(typing_context: Any, value: Any) -> Any:
    """The sum of all lanes, always added in the same order: halves, quarters, and so on."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        vector, span = args[0], ROWS // 2
        while span:
            lanes = indices([lane ^ span for lane in range(ROWS)])
            vector = builder.fadd(vector, builder.shuffle_vector(vector, vector, lanes))
            span //= 2
        return builder.extract_element(vector, ir.Constant(I32, 0))

    return types.float32(F32Half), codegen


@intrinsic
def floor(typing_context: Any, value: Any) -> Any:
    """The largest integer that is not larger, as a float."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        vector = args[0].type
        declared = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector]), f"llvm.floor.v{vector.count}f32"
        )
        return builder.call(declared, args)

    return F32Half(F32Half), codegen


def one_of_four(*numbers: float) -> Any:
    """A function that gives one of four numbers: the first mask chooses the second half of them, the next the second.

    With AVX2 it is a permutation, elsewhere `select`; so are those of `one_of_eight`, where selects are seven.
    """

    @intrinsic
    def function(typing_context: Any, first: Any, second: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            return _one_of(context, builder, 2 * numbers, args)

        return F32Half(MaskHalf, MaskHalf), codegen

    return function


def one_of_eight(*numbers: float) -> Any:
    """The same for three masks and eight numbers."""

    @intrinsic
    def function(typing_context: Any, first: Any, second: Any, third: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            return _one_of(context, builder, numbers, args)

        return F32Half(MaskHalf, MaskHalf, MaskHalf), codegen

    return function


def _one_of(context: Any, builder: ir.IRBuilder, numbers: tuple[float, ...], masks: Any) -> ir.Value:
    if "+avx2," not in context.codegen().magic_tuple()[-1]:
        return _selected(builder, numbers[: 1 << len(masks)], masks)
    place = ir.Constant(ir.VectorType(I32, ROWS), [0] * ROWS)
    for mask in masks:
        place = builder.sub(builder.add(place, place), builder.sext(mask, place.type))
    table = ir.Constant(ir.VectorType(F32, REGISTER), list(numbers))
    permute = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(table.type, [table.type, ir.VectorType(I32, REGISTER)]),
        "llvm.x86.avx2.permps",
    )
    halves = []
    for first in range(0, ROWS, REGISTER):
        part = indices(list(range(first, first + REGISTER)))
        halves.append(builder.call(permute, [table, builder.shuffle_vector(place, place, part)]))
    return builder.shuffle_vector(*halves, indices(list(range(ROWS))))


def _selected(builder: ir.IRBuilder, numbers: tuple[float, ...], masks: Any) -> ir.Value:
    parts = [ir.Constant(F32Half.vector, [number] * ROWS) for number in numbers]
    for mask in reversed(masks):
        parts = [builder.select(mask, high, low) for low, high in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


@step_of
def as_half(value):
    """The nearest finite f16, as a float32; what is beyond its range becomes the largest.

    Veltkamp's splitting leaves the eleven bits of a normal f16; a subnormal one is a multiple of 2**-24.
    """
    limit = splat_half(LARGEST_HALF)
    bounded = smaller(larger(value, splat_half(-LARGEST_HALF)), limit)
    product = bounded * splat_half(8193.0)
    normal = product - (product - bounded)
    subnormal = round_to_even(bounded * splat_half(2.0**24)) * splat_half(2.0**-24)
    return select(absolute(bounded) < splat_half(2.0**-14), subnormal, normal)


@step_of
def quotient(a, b):
    """a / b, and 0 where b is 0 or the quotient is not a finite number."""
    ratio = a / b
    return select(ratio * splat_half(0.0) == splat_half(0.0), ratio, splat_half(0.0))
