"""Thirty-two weights at a time, each in a lane of its own: the vectors our kernels are written in.

The idea. ggml quantises a block of 16 or 32 weights with a search whose sums run over the block in order; rounding
depends on that order, so a block cannot be split over a vector and stay byte-identical. But blocks do not depend on
each other. So each lane of a vector takes one whole block, and thirty-two blocks go through the search side by side,
every lane doing exactly the additions libggml does, in its order.

What that needs, and where it is:
- *The tile is transposed first* (transposes.py): in memory a block's weights are neighbours; here vector i holds
  weight i of all thirty-two blocks.
- *Plain IEEE operations*: no fast-math and no fused multiply-add, in neither libggml-base (x86 builds) nor here.
  A build that contracts (ARM compilers do by default) rounds differently; the registry notices and does without us.
- *Branches become `select`*: a lane keeps its old value where its condition fails. A comparison with NaN is false, as
  in C.
- *Rounding as ggml rounds* (`nearest`): adding 1.5 * 2**23 leaves the integer, rounded half to even, in the low bits
  of the float. ggml masks those bits, so values out of range wrap around; so do ours. In range the machine's own
  rounding to even does the same (`round_to_even`).
- *f16 by integer arithmetic* (`half_bits`, `half_value`): round half to even, overflow to infinity, subnormals.
- *Long loops over a tile go by halves* (`lower_half`, `upper_half`): three sums of thirty-two lanes fill twelve of
  AVX's sixteen registers, and what they push out goes to memory and back at every step.

Explicit vectors rather than scalar loops for LLVM to vectorise: one such loop was silently miscompiled.
A vector of 32 is two AVX-512 registers, four AVX or eight NEON registers; LLVM splits it as the machine needs. More
than one, because a block's additions wait for each other (three cycles each), and another register's fill the gap.

numba's cache does not notice changed globals or callees; jit.py keeps one cache for each version of this folder.
"""

# numba gives its functions no types
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, disable-error-code=misc

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

LANES: Final = 32
HALF: Final = LANES // 2
REGISTER: Final = 8  # f32 lanes of AVX2
_I1, I8, I16, I32, F32 = ir.IntType(1), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()
_MASK_BITS = ir.IntType(LANES)


class Lanes(types.Type):
    """The numba type of a vector; these exist only inside kernels, never as Python values."""

    def __init__(self, name: str, element: ir.Type, count: int = LANES) -> None:
        super().__init__(name=name)
        self.vector = ir.VectorType(element, count)


F32Lanes: Final = Lanes("f32_lanes", F32)
I32Lanes: Final = Lanes("i32_lanes", I32)
ByteLanes: Final = Lanes("byte_lanes", I8)
MaskLanes: Final = Lanes("mask_lanes", _I1)
F32Half: Final = Lanes("f32_half", F32, HALF)
MaskHalf: Final = Lanes("mask_half", _I1, HALF)


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Lanes) -> None:
        super().__init__(manager, fe_type, fe_type.vector)


# --- operators: a + b, a < b on vectors of one type -------------------------------------------------------------

Emit = Callable[[ir.IRBuilder, ir.Value, ir.Value], ir.Value]


def _define(function: Any, operand: Lanes, result: Lanes, emit: Emit) -> None:
    def typer(context: Any) -> Any:
        return lambda a, b: result if a is operand and b is operand else None

    def lower(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return emit(builder, args[0], args[1])

    type_callable(function)(typer)
    lower_builtin(function, operand, operand)(lower)


def _compare(sign: str, *, floats: bool) -> Emit:
    if floats:
        return lambda builder, a, b: builder.fcmp_ordered(sign, a, b)
    return lambda builder, a, b: builder.icmp_signed(sign, a, b)


for _function, _method in {
    operator.add: "fadd",
    operator.sub: "fsub",
    operator.mul: "fmul",
    operator.truediv: "fdiv",
}.items():
    for _lanes in (F32Lanes, F32Half):
        _define(_function, _lanes, _lanes, getattr(ir.IRBuilder, _method))
for _function, _method in {
    operator.add: "add",
    operator.sub: "sub",
    operator.and_: "and_",
    operator.or_: "or_",
    operator.lshift: "shl",
    operator.rshift: "lshr",
}.items():
    for _lanes in (I32Lanes, ByteLanes):
        _define(_function, _lanes, _lanes, getattr(ir.IRBuilder, _method))
_define(operator.and_, MaskLanes, MaskLanes, ir.IRBuilder.and_)
for _function, _sign in {operator.lt: "<", operator.gt: ">", operator.eq: "=="}.items():
    _define(_function, F32Lanes, MaskLanes, _compare(_sign, floats=True))
    _define(_function, F32Half, MaskHalf, _compare(_sign, floats=True))
    _define(_function, I32Lanes, MaskLanes, _compare(_sign, floats=False))
_define(operator.ne, I32Lanes, MaskLanes, _compare("!=", floats=False))


# --- memory ---------------------------------------------------------------------------------------------------------


def pointer_to(context: Any, builder: ir.IRBuilder, array_type: Any, array: ir.Value, at: ir.Value) -> ir.Value:
    """Byte pointer to element `at` of a one-dimensional array."""
    data = context.make_array(array_type)(context, builder, array).data
    base = builder.bitcast(data, ir.PointerType(I8))
    width = ir.Constant(at.type, array_type.dtype.bitwidth // 8)
    return builder.gep(base, [builder.mul(at, width)])


def load_vector(builder: ir.IRBuilder, pointer: ir.Value, element: ir.Type, width: int = LANES) -> ir.Value:
    vector = ir.VectorType(element, width)
    return builder.load(builder.bitcast(pointer, ir.PointerType(vector)), align=1)


def store_vector(builder: ir.IRBuilder, value: ir.Value, pointer: ir.Value) -> None:
    builder.store(value, builder.bitcast(pointer, ir.PointerType(value.type)), align=1)


@intrinsic
def load(typing_context: Any, array: Any, at: Any) -> Any:
    """Neighbours of a float32, int32 or uint8 array, one per lane, from element `at`."""
    lanes = {types.float32: F32Lanes, types.int32: I32Lanes, types.uint8: ByteLanes}
    return _emit_load(array, lanes[array.dtype])


@intrinsic
def load_half(typing_context: Any, array: Any, at: Any) -> Any:
    """The same for half as many neighbours of a float32 array."""
    return _emit_load(array, F32Half)


def _emit_load(array: Any, lanes: Lanes) -> Any:
    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        pointer = pointer_to(context, builder, signature.args[0], args[0], args[1])
        return load_vector(builder, pointer, lanes.vector.element, lanes.vector.count)

    return lanes(array, types.intp), codegen


@intrinsic
def store(typing_context: Any, array: Any, at: Any, value: Any) -> Any:
    """Writes one neighbour per lane; of int32 lanes into a uint8 or uint16 array the low bits of each."""
    narrow = {types.uint8: I8, types.uint16: I16}.get(array.dtype) if value is I32Lanes else None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        pointer = pointer_to(context, builder, signature.args[0], args[0], args[1])
        store_vector(builder, builder.trunc(args[2], ir.VectorType(narrow, LANES)) if narrow else args[2], pointer)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


@intrinsic
def load_weights(typing_context: Any, array: Any, at: Any) -> Any:
    """Neighbouring weights as f32; uint16 arrays hold bf16, int16 arrays f16."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        pointer = pointer_to(context, builder, signature.args[0], args[0], args[1])
        if array.dtype is types.float32:
            return load_vector(builder, pointer, F32)
        return widened(builder, load_vector(builder, pointer, I16), array.dtype)

    return F32Lanes(array, types.intp), codegen


def widened(builder: ir.IRBuilder, words: ir.Value, dtype: Any) -> ir.Value:
    """f32 from the 16 bits of a bf16 (`dtype` uint16) or f16 (int16)."""
    bits = builder.zext(words, ir.VectorType(I32, words.type.count))
    if dtype is types.uint16:
        return builder.bitcast(builder.shl(bits, constant(bits, 16)), ir.VectorType(F32, words.type.count))
    return widened_half(builder, bits)


def indices(lanes: list[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(I32, len(lanes)), lanes)


# --- values ---------------------------------------------------------------------------------------------------------


def constant(like: ir.Value, value: float) -> ir.Constant:
    return ir.Constant(like.type, [value] * like.type.count)


@intrinsic
def splat(typing_context: Any, value: Any) -> Any:
    """The same number in every lane: f32 lanes from a float (rounded to f32), i32 lanes from an integer."""
    if isinstance(value, types.Float):
        return _emit_splat(value, types.float32, F32Lanes)
    return _emit_splat(value, types.int32, I32Lanes)


@intrinsic
def splat_half(typing_context: Any, value: Any) -> Any:
    """The same in half as many f32 lanes."""
    return _emit_splat(value, types.float32, F32Half)


@intrinsic
def splat_byte(typing_context: Any, value: Any) -> Any:
    """The same byte in every lane."""
    return _emit_splat(value, types.uint8, ByteLanes)


def _emit_splat(value: Any, narrow: Any, lanes: Lanes) -> Any:
    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        scalar = context.cast(builder, args[0], signature.args[0], narrow)
        one = builder.insert_element(ir.Constant(lanes.vector, ir.Undefined), scalar, ir.Constant(I32, 0))
        return builder.shuffle_vector(one, one, indices([0] * lanes.vector.count))

    return lanes(value), codegen


@intrinsic
def select(typing_context: Any, mask: Any, yes: Any, no: Any) -> Any:
    """`yes` in the lanes where the mask holds, `no` elsewhere."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.select(*args)

    return yes(mask, yes, no), codegen


def _either(sign: str) -> Any:
    """`a` where it compares so to `b`, else `b`: one instruction, where LLVM sees a register's lanes and no more.

    Of a comparison of 32 lanes with zero it makes two.
    """

    @intrinsic
    def function(typing_context: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            parts = []
            for first in range(0, a.vector.count, REGISTER):
                part = indices(list(range(first, first + REGISTER)))
                x, y = (builder.shuffle_vector(vector, vector, part) for vector in args)
                compare = builder.icmp_signed if a is I32Lanes else builder.fcmp_ordered
                parts.append(builder.select(compare(sign, x, y), x, y))
            while len(parts) > 1:
                joint = indices(list(range(2 * parts[0].type.count)))
                pairs = zip(parts[::2], parts[1::2], strict=True)
                parts = [builder.shuffle_vector(left, right, joint) for left, right in pairs]
            return parts[0]

        return a(a, b), codegen

    return function


larger = _either(">")
smaller = _either("<")


@intrinsic
def any_lane(typing_context: Any, mask: Any) -> Any:
    """Whether the mask holds in any lane."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        bits = builder.bitcast(args[0], _MASK_BITS)
        return builder.icmp_unsigned("!=", bits, ir.Constant(_MASK_BITS, 0))

    return types.boolean(mask), codegen


@intrinsic
def all_lanes(typing_context: Any, mask: Any) -> Any:
    """Whether the mask holds in every lane."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        bits = builder.bitcast(args[0], _MASK_BITS)
        return builder.icmp_unsigned("==", bits, ir.Constant(_MASK_BITS, -1))

    return types.boolean(mask), codegen


@intrinsic
def largest_lane(typing_context: Any, value: Any) -> Any:
    """The largest lane (none of them NaN), as a scalar."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        vector = args[0]
        for span in (16, 8, 4, 2, 1):
            other = _exchanged(builder, vector, span)
            vector = builder.select(builder.fcmp_ordered(">", vector, other), vector, other)
        return builder.extract_element(vector, ir.Constant(I32, 0))

    return types.float32(F32Lanes), codegen


@intrinsic
def largest_of_eight(typing_context: Any, value: Any) -> Any:
    """In every lane the largest of the eight it belongs to (none of them NaN)."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        vector = args[0]
        for span in (4, 2, 1):
            other = _exchanged(builder, vector, span)
            vector = builder.select(builder.fcmp_ordered(">", vector, other), vector, other)
        return vector

    return F32Lanes(F32Lanes), codegen


@intrinsic
def four_further(typing_context: Any, value: Any) -> Any:
    """In the first four of eight lanes what the last four hold, and the reverse."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return _exchanged(builder, args[0], 4)

    return I32Lanes(I32Lanes), codegen


@intrinsic
def four_bytes(typing_context: Any, value: Any) -> Any:
    """In the first of four lanes their low bytes, the first lane's lowest."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        word = builder.and_(args[0], constant(args[0], 0xFF))
        for span in (1, 2):
            other = _exchanged(builder, word, span)
            word = builder.or_(word, builder.shl(other, constant(other, 8 * span)))
        return word

    return I32Lanes(I32Lanes), codegen


def _exchanged(builder: ir.IRBuilder, vector: ir.Value, span: int) -> ir.Value:
    """Every lane's neighbour `span` (a power of two) further on or back."""
    return builder.shuffle_vector(vector, vector, indices([lane ^ span for lane in range(LANES)]))


def _unary(name: str) -> Any:
    @intrinsic
    def function(typing_context: Any, value: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            vector = args[0].type
            declared = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(vector, [vector]), f"llvm.{name}.v{vector.count}f32"
            )
            return builder.call(declared, [args[0]])

        return value(value), codegen

    return function


absolute = _unary("fabs")
square_root = _unary("sqrt")
round_to_even = _unary("nearbyint")


def _part(first: int) -> Any:
    @intrinsic
    def function(typing_context: Any, value: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            return builder.shuffle_vector(args[0], args[0], indices(list(range(first, first + HALF))))

        return F32Half(F32Lanes), codegen

    return function


lower_half = _part(0)
upper_half = _part(HALF)


@intrinsic
def joined(typing_context: Any, lower: Any, upper: Any) -> Any:
    """The lanes of two halves."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.shuffle_vector(args[0], args[1], indices(list(range(LANES))))

    return F32Lanes(F32Half, F32Half), codegen


def _conversion(method: str, source: Lanes, target: Lanes) -> Any:
    emit = getattr(ir.IRBuilder, method)

    @intrinsic
    def function(typing_context: Any, value: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            return emit(builder, args[0], target.vector)

        return target(source), codegen

    return function


to_bits = _conversion("bitcast", F32Lanes, I32Lanes)
from_bits = _conversion("bitcast", I32Lanes, F32Lanes)
to_float = _conversion("sitofp", I32Lanes, F32Lanes)
truncated = _conversion("fptosi", F32Lanes, I32Lanes)  # every lane must fit an int32


def widened_half(builder: ir.IRBuilder, bits: ir.Value) -> ir.Value:
    """f32 from the 16 bits of an f16: shift into place, then multiply by 2**112 to correct the exponent's bias."""
    floats = ir.VectorType(F32, bits.type.count)
    magnitude = builder.shl(builder.and_(bits, constant(bits, 0x7FFF)), constant(bits, 13))
    scale = ir.Constant(floats, [float(2.0**112)] * floats.count)
    scaled = builder.bitcast(builder.fmul(builder.bitcast(magnitude, floats), scale), bits.type)
    special = builder.icmp_signed(">=", magnitude, constant(bits, 0x7C00 << 13))
    infinite = builder.or_(magnitude, constant(bits, 0x7F800000))
    sign = builder.shl(builder.and_(bits, constant(bits, 0x8000)), constant(bits, 16))
    return builder.bitcast(builder.or_(sign, builder.select(special, infinite, scaled)), floats)


@intrinsic
def half_value(typing_context: Any, bits: Any) -> Any:
    """f32 value of an f16 given by its bits."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return widened_half(builder, args[0])

    return F32Lanes(I32Lanes), codegen


@njit
def half_bits(value):
    """Bits of the nearest f16, half to even; NaN becomes 0x7E00 with its sign, as in GGML_FP32_TO_FP16."""
    bits = to_bits(value)
    sign = (bits >> splat(16)) & splat(0x8000)
    magnitude = bits & splat(0x7FFFFFFF)
    odd = (magnitude >> splat(13)) & splat(1)
    normal = ((magnitude - splat(112 << 23)) + (splat(0xFFF) + odd)) >> splat(13)
    # adding 0.5 makes the float unit round at the last bit of a subnormal f16 (2**-24)
    tiny = to_bits(from_bits(magnitude) + splat(0.5)) - splat(0x3F000000)
    finite = select(magnitude < splat(113 << 23), tiny, normal)
    half = select(magnitude > splat(0x477FEFFF), splat(0x7C00), finite)
    half = select(magnitude > splat(0x7F800000), splat(0x7E00), half)
    return sign | half


@njit
def nearest(value, low, high):
    """ggml's nearest_int, clamped to [low, high]: half to even, wrapping where |value| > 4194303."""
    wrapped = (to_bits(value + splat(12582912.0)) & splat(0x7FFFFF)) - splat(0x400000)
    raised = select(wrapped > low, wrapped, low)
    return select(raised < high, raised, high)


@njit
def nearest_from_zero(value, zero, top):
    """The same in f32 for [0, top], `zero` and `top` given as bits, where |value| < 4194303 and nothing wraps.

    Clamped by integer units, which have time when those for floats have none: read as integers the bits of floats
    from 0 up are in the floats' order, and those of negative ones are below 0.
    """
    return from_bits(smaller(larger(to_bits(round_to_even(value)), zero), top))
