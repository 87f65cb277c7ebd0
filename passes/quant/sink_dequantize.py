"""sink-dequantize: what only moves dequantized tensors, or takes the largest of their elements, does so with their 8-bit numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from llmos.compiler.analysis.generic import Generic, combiner_of, compose, dim_positions, is_fill, padding_number
from llmos.compiler.analysis.quantization import quantization_of
from llmos.compiler.ir.bindings import arith, ir
from llmos.compiler.ir.functions import EntryFunc, public_functions
from llmos.passes._context import PassContext
from llmos.passes._contracts import WEIGHTS_BEHIND_INPUTS
from llmos.passes._graph import erase_dead, is_tensor, owner_of
from llmos.passes._pass import Pass
from llmos.passes._property import ONLY_LINALG_GENERICS, Property
from llmos.passes._weight_only import weight_only_values
from llmos.passes.quant._generics import Read, axis_sizes, constant, elementwise, filled, generic
from llmos.passes.quant._integers import Integers, ZeroPoint, dequantized, number_of, parameters_as_numbers
from llmos.passes.quant._moves import moved_like, moved_tensors
from llmos.passes.quant._parameters import Parameter, can_move, moved, varying_axes
from llmos.passes.quant._sides import padded_like


@dataclass(frozen=True)
class SinkDequantize(Pass):
    """Dequantization runs behind slices, reshapes, permutations, concatenations, and the maxima of windows.

    Before:
        %a = linalg.generic {(x - zx) * sx} attrs = {llmos.dequantize = uint8}    // float32
        %b = linalg.generic {(y - zy) * sy} attrs = {llmos.dequantize = uint8}
        %c = tensor.concat dim(1) %a, %b
    After:
        %n = tensor.concat dim(1) %x, %y                                          // 8 bits
        %c = linalg.generic {(n - z[j]) * s[j]} attrs = {llmos.dequantize = uint8}

    Parameters that vary along an axis that is moved are moved alike, to be computed at compile time. Several tensors are concatenated
    where their numbers have one sign and their parameters are known at compile time, and maxima are taken where the scale is one known
    number above 0. Padding with zeros stays: fuse-dequantize moves what a convolution reads. Each element is computed of the same numbers
    as before, so results keep their bits.
    """

    requires: ClassVar[frozenset[Property]] = frozenset({ONLY_LINALG_GENERICS, WEIGHTS_BEHIND_INPUTS})
    ensures: ClassVar[frozenset[Property]] = frozenset({ONLY_LINALG_GENERICS, WEIGHTS_BEHIND_INPUTS})

    def run(self, module: ir.Module, context: PassContext) -> None:
        """Sink every dequantization of activations as far as it goes, in every public function."""
        for func in public_functions(module):
            block, weights = func.regions[0].blocks[0], {each.value for each in EntryFunc(func).arguments.weights}
            known = weight_only_values(block, weights)
            for op in list(block.operations):
                if len(op.operation.results) == 1 and op.operation.results[0] not in known:
                    _sink(op.operation, known)
            erase_dead(func)


def _sink(op: ir.Operation, known: set[ir.Value]) -> None:
    """Replace a move of dequantized tensors by the dequantization of a move."""
    if not is_tensor(op.results[0]) or not isinstance(op.results[0].type.element_type, ir.F32Type):
        return
    with ir.InsertionPoint(op), op.location:
        found = _moved(op, known) if moved_tensors(op) else _largest(op)
        if found is None:
            return
        made = dequantized(found, ir.F32Type.get())
    op.results[0].replace_all_uses_with(made)
    op.erase()


def _moved(op: ir.Operation, known: set[ir.Value]) -> Integers | None:
    """The numbers that a move makes of those of its tensors."""
    tensors = moved_tensors(op)
    found = [each for value in tensors if _is_dequantized(value) and (each := parameters_as_numbers(value)) is not None]
    if len(found) < len(tensors) or len({each.is_unsigned for each in found}) > 1:
        return None
    if any(value not in known for each in found if len(found) > 1 or _varies(each) for value in _parameter_tensors(each)):
        return None
    scales: list[Parameter] = [1.0 if each.scale is None else each.scale for each in found]
    shapes = [_zero_shape(each.zero_point) for each in found]
    if not can_move(op, scales, tensors) or not can_move(op, shapes, tensors):
        return None
    f32, i32 = ir.F32Type.get(), ir.IntegerType.get_signless(32)
    numbers = moved_like(op, [each.numbers for each in found])
    scale = None if all(each.scale is None for each in found) else moved(op, scales, tensors, f32)
    zero = moved(op, [_zero(each.zero_point) for each in found], tensors, i32)
    point = ZeroPoint(0, zero) if isinstance(zero, Read) else ZeroPoint(int(zero))
    known |= {each.value for each in (zero, scale) if isinstance(each, Read) and varying_axes(each)}
    bounds = min(each.range[0] for each in found), max(each.range[1] for each in found)
    return Integers(numbers, found[0].is_unsigned, point, scale, bounds)


def _varies(integers: Integers) -> bool:
    return integers.parameters_vary_along(range(integers.numbers.type.rank))


def _parameter_tensors(integers: Integers) -> list[ir.Value]:
    reads = [*integers.zero_point.reads, *([integers.scale] if isinstance(integers.scale, Read) else [])]
    return [each.value for each in reads]


def _zero_shape(zero: ZeroPoint) -> Parameter:
    """Where a zero point varies: a stand-in for `_zero`, for which nothing is built."""
    return zero.offset if zero.read is None else zero.read


def _zero(zero: ZeroPoint) -> Parameter:
    """A zero point as one number, or a tensor of i32 that is read."""
    if zero.read is None:
        return zero.offset
    value = zero.read.value
    if not is_tensor(value):
        return Read(filled(zero.number([value]), []), ())
    if value.type.element_type == ir.IntegerType.get_signless(32) and not zero.offset:
        return zero.read
    numbers = elementwise([Read.whole(value)], axis_sizes(value), ir.IntegerType.get_signless(32), lambda each: zero.number([each]))
    return Read(numbers, zero.read.exprs)


# -- maxima
def _largest(op: ir.Operation) -> Integers | None:
    """The maxima of windows over the numbers, where those of the tensor start below all of them."""
    place = _place_of_image(op)
    if place is None:
        return None
    pool = Generic(op)
    image = pool.inputs[place]
    pad = owner_of(image)
    if pad is not None and pad.name == "tensor.pad":
        number = padding_number(pad)
        if number is None or number > LOWEST or not _covers_pixels(pool, place, pad):
            return None
        image = pad.operands[0]
    else:
        pad = None
    found = parameters_as_numbers(image) if _is_dequantized(image) or _becomes_integers(op) else None
    if found is None or found.zero_point.read is not None or not _is_positive(found.scale):
        return None
    least = found.range[0]
    numbers = found.numbers if pad is None else padded_like(pad, found.numbers, least)
    return replace(found, numbers=_maxima(pool, place, numbers, least, found.is_unsigned))


def _is_dequantized(value: ir.Value) -> bool:
    """Whether a tensor is marked as dequantized: a conversion to floats alone is a model's own arithmetic."""
    owner = owner_of(value)
    return owner is not None and quantization_of(owner) is not None


def _becomes_integers(op: ir.Operation) -> bool:
    """Whether the maxima are converted to integers again, as those of a pool of bytes are."""
    users = [use.owner.operation for use in op.results[0].uses]
    return all(
        user.name == "linalg.generic" and any(each.name == "arith.fptosi" for each in Generic(user).body.operations) for user in users
    )


def _place_of_image(op: ir.Operation) -> int | None:
    """The number of the input whose largest elements an op finds, from what is below all numbers; None for another op."""
    if op.name != "linalg.generic" or is_fill(op):
        return None
    pool = Generic(op)
    combiner = combiner_of(pool, 0)
    if combiner is None or combiner.name not in ("arith.maximumf", "arith.maxnumf") or len(list(pool.body.operations)) != 2:
        return None
    start = number_of(pool.inits[0])
    found = [place for place, argument in enumerate(pool.body.arguments) if argument == combiner.value]
    return found[0] if start is not None and start <= LOWEST and found and found[0] < pool.num_inputs else None


def _maxima(pool: Generic, place: int, numbers: ir.Value, least: int, is_unsigned: bool) -> ir.Value:
    """The same maxima of bytes."""
    init = filled(constant((least + 128) % 256 - 128, ir.IntegerType.get_signless(8)), axis_sizes(pool.inits[0]))
    reads = [Read(value, tuple(affine.results)) for value, affine in zip(pool.inputs, pool.maps, strict=False)]
    reads[place] = replace(reads[place], value=numbers)
    larger = arith.maxui if is_unsigned else arith.maxsi
    out = Read(init, tuple(pool.maps[pool.num_inputs].results))
    return generic(reads, out, pool.reduction_dims, pool.rank, lambda *elements: larger(elements[-1], elements[place]))


LOWEST = -3.4e38  # what maxima of float32 start from: -inf, or the lowest finite number


def _is_positive(scale: Read | float | None) -> bool:
    return scale is None or (not isinstance(scale, Read) and 0 < scale < float("inf"))


def _covers_pixels(pool: Generic, place: int, pad: ir.Operation) -> bool:
    """Whether every window has an element that isn't padding: along each axis more neighboring taps than padding on either side."""
    low, high = (list(ir.DenseI64ArrayAttr(pad.attributes[name])) for name in ("static_low", "static_high"))
    sizes = _static_sizes(pool)
    for axis, expr in enumerate(pool.maps[place].results):
        if not low[axis] and not high[axis]:
            continue
        form = compose(expr, [{dim: 1} for dim in range(pool.rank)])
        taps = [dim for dim in form or {} if dim in pool.reduction_dims]
        if form is None or len(taps) != 1 or form[taps[0]] != 1 or min(low[axis], high[axis]) < 0:
            return False
        if sizes.get(taps[0], 0) <= max(low[axis], high[axis]):
            return False
    return True


def _static_sizes(pool: Generic) -> dict[int, int]:
    """The sizes of loop dims that some operand has as a static axis."""
    tensors = [(value.type.shape, affine) for value, affine in zip(pool.op.operands, pool.maps, strict=True) if is_tensor(value)]
    axes = [each for shape, affine in tensors for each in zip(dim_positions(affine), shape, strict=True)]
    return {position: size for position, size in axes if position is not None and size >= 0}
