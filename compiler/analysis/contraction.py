"""Analysis of contractions: sums of products of two tensors, float or integer, and the role of each loop dim. Doesn't change IR."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmos.compiler.analysis.generic import Generic, combiner_of, dim_positions, dims_of, dims_of_expr
from llmos.compiler.ir.bindings import ir

LARGE = 1 << 20  # stands for a size that isn't known
EXTENSIONS = ("arith.extsi", "arith.extui")
CONVERSIONS = ("arith.sitofp", "arith.uitofp")


@dataclass(frozen=True)
class Factor:
    """One factor of the products: an element of an input, extended to the accumulator's type, minus a zero point.

    `is_unsigned`: how an integer is extended, or converted to the float that the accumulator is; None for one of the accumulator's type.
    `zero_point`: an input of the generic, or a scalar defined outside.
    """

    input: int
    is_unsigned: bool | None = None
    zero_point: ir.Value | None = None


@dataclass(frozen=True)
class Contraction:
    """A generic that computes sum over k of a*b: the role of each loop dim, and the two factors.

    `left` is the operand indexed by m. The right operand is indexed by n, which includes the output's last dim, the vectorized one. A
    convolution's windows are sums of dims in one operand's map.
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
        """Return the element types of the left operand, the right operand and the accumulator."""
        lhs, rhs, result = (ir.RankedTensorType(v.type).element_type for v in (self.lhs, self.rhs, self.generic.op.results[0]))
        return lhs, rhs, result

    @property
    def is_float(self) -> bool:
        """Whether the accumulator is a float."""
        return isinstance(self.types[2], ir.FloatType)

    @property
    def has_byte_rows(self) -> bool:
        """Whether the products are of signed bytes on the left, converted to float32, by float32 on the right."""
        f32 = ir.F32Type.get()
        return (
            self.types == (ir.IntegerType.get_signless(8), f32, f32)
            and (self.lhs_factor.is_unsigned, self.rhs_factor.is_unsigned) == (False, None)
            and self.lhs_factor.zero_point is None
        )

    @property
    def is_bytes(self) -> bool:
        """Whether the products are of unsigned bytes on the left by signed bytes on the right, summed in 32 bits."""
        return (
            [each.width if isinstance(each, ir.IntegerType) else None for each in self.types] == [8, 8, 32]
            and (self.lhs_factor.is_unsigned, self.rhs_factor.is_unsigned) == (True, False)
            and self.lhs_factor.zero_point is None
            and self.rhs_factor.zero_point is None
        )

    @property
    def lhs_factor(self) -> Factor:
        """Return the factor that the left operand gives."""
        return self.factors[self.left]

    @property
    def rhs_factor(self) -> Factor:
        """Return the factor that the right operand gives."""
        return self.factors[self.right]

    @property
    def right(self) -> int:
        """Return the operand number of the right side; `left` is that of the left."""
        return 1 - self.left

    @property
    def lhs(self) -> ir.Value:
        """Return the left operand, indexed by m and k."""
        return self.generic.inputs[self.left]

    @property
    def rhs(self) -> ir.Value:
        """Return the right operand, indexed by n and k."""
        return self.generic.inputs[self.right]

    @property
    def lhs_map(self) -> ir.AffineMap:
        """Return the indexing map of the left operand."""
        return self.generic.maps[self.left]

    @property
    def rhs_map(self) -> ir.AffineMap:
        """Return the indexing map of the right operand."""
        return self.generic.maps[self.right]

    def static_size(self, side: int, dims: Sequence[int]) -> int:
        """Return the product of the sizes of the dims `dims` that index operand `side`; a dynamic size counts as LARGE."""
        shape = ir.RankedTensorType(self.generic.inputs[side].type).shape
        positions = dim_positions(self.generic.maps[side])
        return math.prod(size if size >= 0 else LARGE for p, size in zip(positions, shape, strict=True) if p in dims)

    @property
    def out_map(self) -> ir.AffineMap:
        """Return the indexing map of the result."""
        return self.generic.maps[self.generic.num_inputs]


def float_contraction_of(op: ir.Operation) -> Contraction | None:
    """Match a float contraction of plain factors, the form that kernels support; else None."""
    found = contraction_of(op)
    return found if found is not None and found.is_float and not _is_converted(found) else None


def kernel_contraction_of(op: ir.Operation) -> Contraction | None:
    """Match a contraction that kernels multiply, of floats, of bytes (`Contraction.is_bytes`) or of both (`has_byte_rows`); else None."""
    found = contraction_of(op)
    if found is None or (found.is_float and _is_converted(found) and not found.has_byte_rows):
        return None
    return found if found.is_float or found.is_bytes else None


def _is_converted(contraction: Contraction) -> bool:
    """Whether a factor is an integer that is converted to the accumulator's float."""
    return any(factor.is_unsigned is not None for factor in contraction.factors)


def contraction_of(op: ir.Operation) -> Contraction | None:
    """Match a contraction, or None. Operands may be transposed, broadcast along any dim, or read through windows.

    The body may extend integers to the accumulator's type and subtract zero points, or convert them to a float; floats are multiplied
    unchanged.
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
    # dims before an m dim in the output are outer loops of it
    inner = max((out.index(d) for d in m), default=-1)
    n = tuple(d for d in out[inner + 1 :] if d not in lhs)
    batch = tuple(d for d in generic.parallel_dims if d not in m and d not in n)
    found = Contraction(generic, left, batch, m, n, _in_order_of(generic.maps[left], generic.reduction_dims), factors)
    if any(d not in lhs | rhs for d in out) or not n:
        return None
    return found


def is_sum_of_products(op: ir.Operation) -> bool:
    """Whether an op only sums products of its first two inputs, of floats: a contraction, or one along channels (depthwise)."""
    if op.name != "linalg.generic" or len(op.results) != 1 or not isinstance(op.results[0].type.element_type, ir.FloatType):
        return False
    generic = Generic(op)
    return generic.num_inputs >= 2 and bool(generic.reduction_dims) and _factors(generic) is not None


def root_contraction(ops: Iterable[ir.Operation]) -> Contraction:
    """Return the contraction among the ops of a dispatch, which has one."""
    return next(c for c in map(kernel_contraction_of, ops) if c is not None)


def _in_order_of(affine: ir.AffineMap, dims: Sequence[int]) -> tuple[int, ...]:
    """Order dims by the first axis that each indexes, so that rows dense along k are read in memory order."""
    axis = {d: i for i, expr in reversed(list(enumerate(affine.results))) for d in dims_of_expr(expr)}
    return tuple(sorted(dims, key=lambda d: axis.get(d, -1)))


def unit_dims(generic: Generic) -> set[int]:
    """Return the loop dims of static size 1, which operands often omit."""
    found: set[int] = set()
    for operand, affine in zip(generic.op.operands, generic.maps, strict=True):
        if isinstance(operand.type, ir.RankedTensorType):
            shape = operand.type.shape
            found |= {p for p, size in zip(dim_positions(affine), shape, strict=True) if p is not None and size == 1}
    return found


def _factors(generic: Generic) -> tuple[Factor, Factor] | None:
    """Return the factors of the first two inputs, if the body only adds their product to the accumulator."""
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
    # further inputs are zero points, or only bound a loop dim
    if [each.input for each in ordered] != [0, 1] or len(list(generic.body.operations)) != len(used) + 2:
        return None
    return ordered[0], ordered[1]


def _factor(generic: Generic, value: ir.Value, used: list[ir.Operation], is_float: bool) -> Factor | None:
    """Match one factor of the product; add the ops of the body that compute it to `used`."""
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
    value, is_unsigned = _unextended(value, used, CONVERSIONS if is_float else EXTENSIONS)
    number = _argument(generic, value)
    return Factor(number, is_unsigned, zero_point) if number is not None and number < 2 else None


def _unextended(value: ir.Value, used: list[ir.Operation], names: Sequence[str] = EXTENSIONS) -> tuple[ir.Value, bool | None]:
    """Return the operand of an integer extension, and whether it is unsigned (None if there is no extension).

    names: of extensions, the signed one first.
    """
    owner = value.owner
    if isinstance(owner, ir.Block) or owner.name not in names:
        return value, None
    used.append(owner.operation)
    return owner.operands[0], owner.name == names[1]


def _argument(generic: Generic, value: ir.Value) -> int | None:
    """Return the number of the block argument that a value is; None for a value defined outside."""
    return next((number for number, argument in enumerate(generic.body.arguments) if argument == value), None)
