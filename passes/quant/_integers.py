"""One side of a contraction as 8-bit integers: numbers, zero point and scale, from the op that dequantizes or extends them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmos.compiler.analysis.contraction import EXTENSIONS
from llmos.compiler.analysis.generic import Generic, fill_value, is_fill, is_identity
from llmos.compiler.analysis.quantization import Numbers, Quantization, Role, mark, quantization_of
from llmos.compiler.ir.bindings import arith, ir
from llmos.passes._graph import owner_of
from llmos.passes.quant._generics import Read, axis_sizes, constant, elementwise

FLOAT_CONVERSIONS = ("arith.sitofp", "arith.uitofp")


@dataclass(frozen=True)
class ZeroPoint:
    """A number that is subtracted from stored ones: `offset`, and what is read over the axes of the tensor, if anything."""

    offset: int = 0
    read: Read | None = None
    is_unsigned: bool = False  # how an 8-bit read is extended

    @property
    def is_zero(self) -> bool:
        """Return whether it is the constant 0."""
        return self.read is None and self.offset == 0

    def plus(self, offset: int) -> ZeroPoint:
        """Return it with an integer added."""
        return replace(self, offset=self.offset + offset)

    @property
    def reads(self) -> list[Read]:
        """Return what an op reads to have it: nothing for a number."""
        return [] if self.read is None else [self.read]

    def number(self, elements: Sequence[ir.Value]) -> ir.Value:
        """Build the zero point in i32. elements: of `reads`."""
        i32 = ir.IntegerType.get_signless(32)
        offset = constant(self.offset, i32)
        if not elements:
            return offset
        wide = as_i32(elements[0], self.is_unsigned)
        return arith.addi(wide, offset) if self.offset else wide


@dataclass(frozen=True)
class Integers:
    """A tensor (numbers - zero_point) * scale. numbers: i8; scale: read over its axes, or a number, or None for 1."""

    numbers: ir.Value
    is_unsigned: bool
    zero_point: ZeroPoint = ZeroPoint()
    scale: Read | float | None = None
    range: tuple[int, int] = (-128, 127)

    def parameters_vary_along(self, axes: Sequence[int]) -> bool:
        """Whether the zero point or the scale differs along some axes, or isn't read at plain axes."""
        reads = [*self.zero_point.reads, *([self.scale] if isinstance(self.scale, Read) else [])]
        return any(not _is_plain(expr) or _is_among(expr, axes) for read in reads for expr in read.exprs)


def _is_plain(expr: ir.AffineExpr) -> bool:
    return isinstance(expr, (ir.AffineDimExpr, ir.AffineConstantExpr))


def _is_among(expr: ir.AffineExpr, axes: Sequence[int]) -> bool:
    return isinstance(expr, ir.AffineDimExpr) and expr.position in axes


def as_i32(value: ir.Value, is_unsigned: bool) -> ir.Value:
    """Extend or truncate an integer to i32."""
    i32 = ir.IntegerType.get_signless(32)
    width = value.type.width
    if width == 32:
        return value
    if width > 32:
        return arith.trunci(i32, value)
    return arith.extui(i32, value) if is_unsigned else arith.extsi(i32, value)


def integers_of(value: ir.Value) -> Integers | None:
    """Match a tensor that an op makes of 8-bit integers in its order of axes: i32, f32 or f64, dequantized or only extended."""
    owner = owner_of(value)
    if owner is None or owner.name != "linalg.generic" or is_fill(owner):
        return None
    wide = (ir.F32Type.get(), ir.F64Type.get(), ir.IntegerType.get_signless(32))
    if value.type.element_type not in wide or not all(map(is_identity, _moves(Generic(owner)))):
        return None
    marked = quantization_of(owner)
    if marked is not None:
        return _dequantized(marked) if marked.kind == "dequantize" and is_i8(marked.input) else None
    ops = list(Generic(owner).body.operations)
    if len(ops) == 2 and ops[0].name in (*EXTENSIONS, *FLOAT_CONVERSIONS) and is_i8(owner.operands[0]) and Generic(owner).num_inputs == 1:
        is_unsigned = ops[0].name in ("arith.extui", "arith.uitofp")
        return Integers(owner.operands[0], is_unsigned, range=(0, 255) if is_unsigned else (-128, 127))
    return None


def dequantized(integers: Integers, element: ir.Type) -> ir.Value:
    """Build (numbers - zero point) * scale, at the insertion point. element: f32, or i32 where the scale is 1."""
    zero, scale = integers.zero_point, integers.scale
    is_float = isinstance(element, ir.F32Type)
    assert is_float or scale is None

    def body(number: ir.Value, *parameters: ir.Value) -> ir.Value:
        wide = as_i32(number, integers.is_unsigned)
        if not zero.is_zero:
            wide = arith.subi(wide, zero.number(parameters[: len(zero.reads)]))
        value = arith.sitofp(element, wide) if is_float else wide
        if scale is None:
            return value
        return arith.mulf(value, parameters[-1] if isinstance(scale, Read) else constant(scale, element))

    reads, roles = [Read.whole(integers.numbers), *zero.reads], ["input", *["zero_point" for _ in zero.reads]]
    if isinstance(scale, Read):
        reads.append(scale)
        roles.append("scale")
    made = elementwise(reads, axis_sizes(integers.numbers), element, body)
    number = zero.offset if not zero.reads and zero.offset else None
    factor = None if isinstance(scale, Read) else scale
    names: tuple[Role, ...] = tuple(roles)  # type: ignore[arg-type]
    mark(made.owner.operation, "dequantize", Numbers("uint8" if integers.is_unsigned else "int8", integers.range, names, factor, number))
    return made


def parameters_as_numbers(value: ir.Value) -> Integers | None:
    """Match as `integers_of` does, with a scale that is a constant as a number; None where parameters aren't read at plain axes."""
    found = integers_of(value)
    if found is None or found.parameters_vary_along(()):
        return None
    scale = number_of(found.scale.value) if isinstance(found.scale, Read) else None
    return found if scale is None else replace(found, scale=scale)


def number_of(value: ir.Value) -> float | None:
    """Return the number that a scalar, or all of a tensor, is, if it is a constant float."""
    attribute = _constant_attribute(value)
    return float(ir.FloatAttr(attribute).value) if isinstance(attribute, ir.FloatAttr) else None


def _moves(generic: Generic) -> list[ir.AffineMap]:
    """The maps of the tensor that is dequantized, and of the result."""
    marked = quantization_of(generic.op)
    number = marked.numbers.operands.index("input") if marked is not None else 0
    return [generic.maps[number], generic.maps[generic.num_inputs]]


def _dequantized(marked: Quantization) -> Integers | None:
    zero_point = _zero_point(marked)
    if zero_point is None or marked.multiplier is not None:
        return None
    scale = marked.scale
    if isinstance(scale, ir.Value):
        if not isinstance(scale.type.element_type, ir.F32Type):
            return None
        scale = _read(marked, "scale")
    if not isinstance(marked.result.type.element_type, ir.F32Type) and scale is not None:
        return None
    return Integers(marked.input, marked.dtype.startswith("u"), zero_point, scale, marked.range)


def _zero_point(marked: Quantization) -> ZeroPoint | None:
    """The zero point, as a number where it is a constant; None where its type isn't known."""
    zero = marked.zero_point
    if zero is None or isinstance(zero, int):
        return ZeroPoint(zero or 0)
    kind = getattr(zero.type, "element_type", zero.type)
    if not isinstance(kind, ir.IntegerType):
        return None
    read = _read(marked, "zero_point")
    argument = marked.generic.body.arguments[marked.numbers.operands.index("zero_point")]
    conversions = {use.owner.operation.name for use in argument.uses}
    if kind.width < 32 and len(conversions & {*EXTENSIONS, *FLOAT_CONVERSIONS}) != 1:
        return None
    is_unsigned = kind.width < 32 and bool(conversions & {"arith.extui", "arith.uitofp"})
    known = integer_of(zero)
    if known is not None:
        return ZeroPoint(known % (1 << kind.width) if is_unsigned else known)
    return ZeroPoint(0, read, is_unsigned)


def scalar_zero_point(zero: ir.Value | None) -> ZeroPoint | None:
    """Return the zero point of a factor: none, or a scalar i32, as linalg.quantized_matmul has it; None for another."""
    if zero is None:
        return ZeroPoint()
    if zero.type != ir.IntegerType.get_signless(32):
        return None
    known = integer_of(zero)
    return ZeroPoint(0, Read(zero, ())) if known is None else ZeroPoint(known)


def _read(marked: Quantization, role: str) -> Read:
    number = list(marked.numbers.operands).index(role)  # type: ignore[arg-type]
    return Read(marked.generic.inputs[number], tuple(marked.generic.maps[number].results))


def integer_of(value: ir.Value) -> int | None:
    """Return the number, with a sign, that a scalar, or all of a tensor, is, if it is a constant integer."""
    attribute = _constant_attribute(value)
    return int(ir.IntegerAttr(attribute).value) if isinstance(attribute, ir.IntegerAttr) else None


def _constant_attribute(value: ir.Value) -> ir.Attribute | None:
    owner = owner_of(value)
    if owner is not None and is_fill(owner):
        number = fill_value(owner)
        return _constant_attribute(number) if number is not None else None
    return owner.attributes["value"] if owner is not None and owner.name == "arith.constant" else None


def is_i8(value: ir.Value) -> bool:
    """Return whether a value is a tensor of bytes."""
    return isinstance(value.type, ir.RankedTensorType) and value.type.element_type == ir.IntegerType.get_signless(8)
