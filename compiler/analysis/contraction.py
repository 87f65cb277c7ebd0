"""Contractions: sums of products of two tensors, in floats or integers, and the role of each loop dim. Nothing here changes IR."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmos.compiler.analysis.generic import Generic, combiner_of, dim_positions, dims_of, dims_of_expr, has_windows
from llmos.compiler.ir.bindings import ir

FEW_COLUMNS, FEW_CHANNELS = 8, 4  # of a convolution that is no better as a contraction than window by window
LARGE = 1 << 20
EXTENSIONS = ("arith.extsi", "arith.extui")


@dataclass(frozen=True)
class Factor:
    """One factor of the products: an element of an input, extended to the accumulator's type, less a zero point.

    `is_unsigned`: how an integer is extended; None where it has the accumulator's width, and for floats. `zero_point`: an input of the
    generic, or a scalar from outside of it.
    """

    input: int
    is_unsigned: bool | None = None
    zero_point: ir.Value | None = None


@dataclass(frozen=True)
class Contraction:
    """A generic that is sum over k of a*b: the role of each loop dim, and how the two factors are made of elements.

    `left` is the operand that holds m; the other, right one holds n, among it the output's last dim, along which a kernel has its lanes.
    The windows of a convolution are sums of dims in one operand's map.
    """

    generic: Generic
    left: int
    batch: tuple[int, ...]
    m: tuple[int, ...]
    n: tuple[int, ...]
    k: tuple[int, ...]
    factors: tuple[Factor, Factor]  # of the first and the second input

    @property
    def types(self) -> tuple[ir.Type, ir.Type, ir.Type]:
        """Element types of the left and the right operand and of the accumulator."""
        lhs, rhs, result = (ir.RankedTensorType(v.type).element_type for v in (self.lhs, self.rhs, self.generic.op.results[0]))
        return lhs, rhs, result

    @property
    def is_float(self) -> bool:
        return isinstance(self.types[2], ir.FloatType)

    @property
    def lhs_factor(self) -> Factor:
        return self.factors[self.left]

    @property
    def rhs_factor(self) -> Factor:
        return self.factors[self.right]

    @property
    def right(self) -> int:
        return 1 - self.left

    @property
    def lhs(self) -> ir.Value:
        return self.generic.inputs[self.left]

    @property
    def rhs(self) -> ir.Value:
        return self.generic.inputs[self.right]

    @property
    def lhs_map(self) -> ir.AffineMap:
        return self.generic.maps[self.left]

    @property
    def rhs_map(self) -> ir.AffineMap:
        return self.generic.maps[self.right]

    @property
    def out_map(self) -> ir.AffineMap:
        return self.generic.maps[self.generic.num_inputs]


def float_contraction_of(op: ir.Operation) -> Contraction | None:
    """The contraction of floats that an op is, of factors as they lie: what has kernels."""
    found = contraction_of(op)
    return found if found is not None and found.is_float else None


def contraction_of(op: ir.Operation) -> Contraction | None:
    """The contraction that an op is, or None. Operands may be transposed, broadcast along any dim, or read through windows.

    Integers may be extended to the accumulator's type and have zero points taken off in the op's body; floats are multiplied as they lie.
    """
    if op.name != "linalg.generic":
        return None
    generic = Generic(op)
    if generic.num_inputs < 2 or len(op.results) != 1 or not generic.reduction_dims or (factors := _factors(generic)) is None:
        return None
    unit = unit_dims(generic)
    out = [p for p in dim_positions(generic.maps[generic.num_inputs]) if p is not None and p not in unit]
    operands = [dims_of(affine) - unit for affine in generic.maps[:2]]
    if not out or any(d not in operands[0] or d not in operands[1] for d in generic.reduction_dims if d not in unit):
        return None
    left = next((i for i in (0, 1) if out[-1] not in operands[i]), None)
    if left is None:
        return None
    lhs, rhs = operands[left], operands[1 - left]
    m = tuple(d for d in out if d in lhs and d not in rhs)
    # what stands before an m dim in the output is walked outside of it
    inner = max((out.index(d) for d in m), default=-1)
    n = tuple(d for d in out[inner + 1 :] if d not in lhs)
    batch = tuple(d for d in generic.parallel_dims if d not in m and d not in n)
    found = Contraction(generic, left, batch, m, n, _in_order_of(generic.maps[left], generic.reduction_dims), factors)
    if any(d not in lhs | rhs for d in out) or not n or not _is_worth(found):
        return None
    return found


def root_contraction(ops: Iterable[ir.Operation]) -> Contraction:
    """The contraction among the ops of a dispatch of one."""
    return next(c for c in map(float_contraction_of, ops) if c is not None)


def _in_order_of(affine: ir.AffineMap, dims: Sequence[int]) -> tuple[int, ...]:
    """Dims in the order of the first axis that each moves: rows that are dense along k are then walked as they lie."""
    axis = {d: i for i, expr in reversed(list(enumerate(affine.results))) for d in dims_of_expr(expr)}
    return tuple(sorted(dims, key=lambda d: axis.get(d, -1)))


def unit_dims(generic: Generic) -> set[int]:
    """Loop dims of static size 1: they move nothing, and operands often leave them out."""
    found: set[int] = set()
    for operand, affine in zip(generic.op.operands, generic.maps, strict=True):
        if isinstance(operand.type, ir.RankedTensorType):
            shape = operand.type.shape
            found |= {p for p, size in zip(dim_positions(affine), shape, strict=True) if p is not None and size == 1}
    return found


def _is_worth(found: Contraction) -> bool:
    """Whether windows are read often enough to gain from a panel: a depthwise convolution reads each once."""
    windowed = [side for side, affine in enumerate(found.generic.maps[:2]) if has_windows(affine)]
    if not windowed:
        return True
    if windowed == [found.left]:
        return _static_size(found, found.right, found.n) >= FEW_COLUMNS or _static_size(found, found.left, found.k) >= FEW_CHANNELS
    return _static_size(found, found.left, found.m) > 1


def _static_size(found: Contraction, side: int, dims: Sequence[int]) -> int:
    """The product of the sizes of the dims that an operand's axes are; a size that isn't known counts as large."""
    shape = ir.RankedTensorType(found.generic.inputs[side].type).shape
    positions = dim_positions(found.generic.maps[side])
    return math.prod(size if size >= 0 else LARGE for p, size in zip(positions, shape, strict=True) if p in dims)


def _factors(generic: Generic) -> tuple[Factor, Factor] | None:
    """The factors of the first two inputs, if the body adds their product to the accumulator and does nothing else."""
    combiner = combiner_of(generic, 0)
    if combiner is None or combiner.name not in ("arith.addf", "arith.addi"):
        return None
    product = combiner.value.owner
    is_float = combiner.name == "arith.addf"
    if isinstance(product, ir.Block) or product.name != ("arith.mulf" if is_float else "arith.muli"):
        return None
    used = [product.operation]
    found = [_factor(generic, operand, used, is_float) for operand in product.operands]
    ordered = sorted((each for each in found if each is not None), key=lambda each: each.input)
    # inputs after the first two are zero points, or only give a loop dim its size
    if [each.input for each in ordered] != [0, 1] or len(list(generic.body.operations)) != len(used) + 2:
        return None
    return ordered[0], ordered[1]


def _factor(generic: Generic, value: ir.Value, used: list[ir.Operation], is_float: bool) -> Factor | None:
    """One operand of the product; `used` gets the ops of the body that make it."""
    zero_point: ir.Value | None = None
    owner = value.owner
    if not is_float and not isinstance(owner, ir.Block) and owner.name == "arith.subi":
        used.append(owner.operation)
        value, zero = owner.operands
        zero, _ = _unextended(zero, used)
        number = _argument(generic, zero)
        if number is not None and not 2 <= number < generic.num_inputs:
            return None
        zero_point = zero if number is None else generic.inputs[number]
    value, is_unsigned = (value, None) if is_float else _unextended(value, used)
    number = _argument(generic, value)
    return Factor(number, is_unsigned, zero_point) if number is not None and number < 2 else None


def _unextended(value: ir.Value, used: list[ir.Operation]) -> tuple[ir.Value, bool | None]:
    """The integer inside of an extension, and whether that is one of unsigned numbers; None where there is none."""
    owner = value.owner
    if isinstance(owner, ir.Block) or owner.name not in EXTENSIONS:
        return value, None
    used.append(owner.operation)
    return owner.operands[0], owner.name == "arith.extui"


def _argument(generic: Generic, value: ir.Value) -> int | None:
    """The number of the body's argument that a value is; None for a value from outside."""
    return next((number for number, argument in enumerate(generic.body.arguments) if argument == value), None)
