"""Quantization in the IR: linalg.generic ops that carry `llmos.quantize` or `llmos.dequantize`, and views of them.

    %q = linalg.generic {indexing_maps = [(d0, d1) -> (d0, d1), (d0, d1) -> (d0, d1 floordiv 32), (d0, d1) -> (d0, d1)]}
         ins(%x, %scale : tensor<?x64xf32>, tensor<?x2xf32>) outs(%init : tensor<?x64xi8>)
         attrs = {llmos.quantize = {dtype = "int8", operands = ["input", "scale"], range = array<i64: -128, 127>, zero_point = 3 : i64}}

The region holds the whole arithmetic, so passes that ignore the attribute compute the same bits. Axis and group size follow from the
indexing maps of the parameters, so a pass that interchanges dimensions keeps them correct. A parameter that is one constant is an entry of
the attribute (`scale = 5.0e-2 : f64`, `zero_point = 3 : i64`), not an operand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from llmos.compiler.analysis.generic import Generic, dims_of
from llmos.compiler.ir.attributes import DEQUANTIZE, QUANTIZE
from llmos.compiler.ir.bindings import ir

Kind = Literal["quantize", "dequantize"]
Role = Literal["input", "scale", "multiplier", "zero_point"]

_KINDS: Mapping[str, Kind] = MappingProxyType({QUANTIZE: "quantize", DEQUANTIZE: "dequantize"})

# Smallest and largest number of a quantized type; types below 8 bits take one byte an element.
RANGES: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        f"{sign}int{bits}": (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if not sign else (0, (1 << bits) - 1)
        for bits in (2, 4, 8, 16, 32)
        for sign in ("", "u")
    }
)

FLOAT8 = "float8_e4m3fn"  # codes of one byte, read as uint8: OCP 8-bit floating point, E4M3; no infinity, 0x7F and 0xFF are NaN


def range_of(dtype: str) -> tuple[int, int]:
    """Return the smallest and the largest number of a quantized type."""
    return (-448, 448) if dtype == FLOAT8 else RANGES[dtype]


@dataclass(frozen=True)
class Numbers:
    """The attribute's content: quantized type, its range, roles of the op's inputs in order, and constant parameters."""

    dtype: str
    range: tuple[int, int]
    operands: tuple[Role, ...] = ("input",)
    scale: float | None = None
    zero_point: int | None = None

    def attribute(self) -> ir.DictAttr:
        """Return the dictionary of `llmos.quantize` or `llmos.dequantize`: dtype, range, operands, and the constants that there are."""
        f64, i64 = ir.F64Type.get(), ir.IntegerType.get_signless(64)
        known: dict[str, ir.Attribute] = {
            "dtype": ir.StringAttr.get(self.dtype),
            "range": ir.DenseI64ArrayAttr.get(list(self.range)),
            "operands": ir.ArrayAttr.get([ir.StringAttr.get(role) for role in self.operands]),
        }
        if self.scale is not None:
            known["scale"] = ir.FloatAttr.get(f64, self.scale)
        if self.zero_point is not None:
            known["zero_point"] = ir.IntegerAttr.get(i64, self.zero_point)
        return ir.DictAttr.get(known)

    @staticmethod
    def of(attribute: ir.Attribute) -> Numbers:
        """Read the dictionary that `attribute` wrote."""
        named = ir.DictAttr(attribute)
        low, high = list(ir.DenseI64ArrayAttr(named["range"]))
        return Numbers(
            ir.StringAttr(named["dtype"]).value,
            (low, high),
            tuple(ir.StringAttr(role).value for role in ir.ArrayAttr(named["operands"])),
            ir.FloatAttr(named["scale"]).value if "scale" in named else None,
            ir.IntegerAttr(named["zero_point"]).value if "zero_point" in named else None,
        )


@dataclass(frozen=True)
class Quantization:
    """One op that quantizes or dequantizes.

    quantize:   clamp(round(input / scale) + zero_point, *range), or `input * multiplier` if the op has a multiplier
    dequantize: (input - zero_point) * scale, with scale 1 if there is none

    The region gives the order of sum and rounding, and the types of both.
    """

    generic: Generic
    kind: Kind
    numbers: Numbers

    @property
    def dtype(self) -> str:
        """Return the quantized type, such as "int8" or "uint4"."""
        return self.numbers.dtype

    @property
    def range(self) -> tuple[int, int]:
        """Return the smallest and the largest quantized number."""
        return self.numbers.range

    @property
    def input(self) -> ir.Value:
        """Return the tensor that is quantized or dequantized."""
        return self.generic.inputs[self.numbers.operands.index("input")]

    @property
    def result(self) -> ir.Value:
        """Return the quantized or dequantized tensor."""
        return self.generic.op.results[0]

    @property
    def scale(self) -> ir.Value | float | None:
        """Return the scale as an operand or a number; None if a multiplier replaces it, or for a dequantization by 1."""
        return self.numbers.scale if self.numbers.scale is not None else self._operand("scale")

    @property
    def multiplier(self) -> ir.Value | None:
        """Return the requantization multiplier of an integer accumulator: the product of its factors' scales over the result's scale."""
        return self._operand("multiplier")

    @property
    def zero_point(self) -> ir.Value | int | None:
        """Return the zero point as an operand or a number; None if it is 0."""
        return self.numbers.zero_point if self.numbers.zero_point is not None else self._operand("zero_point")

    @property
    def axes(self) -> tuple[int, ...]:
        """Return the result's axes along which the scale (or multiplier) varies; without one, the zero point."""
        affine = self._parameter_map()
        moved = dims_of(affine) if affine is not None else set()
        return tuple(axis for axis, dim in enumerate(self._result_dims()) if dim in moved)

    @property
    def group(self) -> tuple[int, int] | None:
        """Return (axis, group size) of the axis whose elements share scales in groups; None without groups."""
        affine = self._parameter_map()
        for expr in affine.results if affine is not None else ():
            if isinstance(expr, ir.AffineFloorDivExpr):
                return self._result_dims().index(ir.AffineDimExpr(expr.lhs).position), int(ir.AffineConstantExpr(expr.rhs).value)
        return None

    @property
    def granularity(self) -> str:
        """Return "per-tensor", "per-channel" (one axis), "per-token" (all axes but the last) or "per-group"."""
        if self.group is not None:
            return "per-group"
        rank = len(self._result_dims())
        if rank > 2 and self.axes == tuple(range(rank - 1)):
            return "per-token"
        return "per-channel" if self.axes else "per-tensor"

    def _operand(self, role: Role) -> ir.Value | None:
        return self.generic.inputs[self.numbers.operands.index(role)] if role in self.numbers.operands else None

    def _parameter_map(self) -> ir.AffineMap | None:
        for role in ("scale", "multiplier", "zero_point"):
            if role in self.numbers.operands:
                return self.generic.maps[self.numbers.operands.index(role)]
        return None

    def _result_dims(self) -> list[int]:
        """Return the loop dim of each axis of the result."""
        return [ir.AffineDimExpr(expr).position for expr in self.generic.output_map(self.result).results]


def mark(op: ir.Operation, kind: Kind, numbers: Numbers) -> None:
    """Mark a linalg.generic whose region quantizes or dequantizes."""
    name = QUANTIZE if kind == "quantize" else DEQUANTIZE
    op.attributes[name] = numbers.attribute()


def quantization_of(op: ir.Operation) -> Quantization | None:
    """Return the quantization or dequantization that an op is marked as, or None."""
    if op.name != "linalg.generic":
        return None
    for name, kind in _KINDS.items():
        if name in op.attributes:
            return Quantization(Generic(op), kind, Numbers.of(op.attributes[name]))
    return None


def quantizations(module: ir.Module) -> Iterator[Quantization]:
    """Yield every marked op of a module's functions, also inside loops."""
    for op in module.body.operations:
        yield from _inside(op.operation)


def _inside(op: ir.Operation) -> Iterator[Quantization]:
    found = quantization_of(op)
    if found is not None:
        yield found
        return
    for block in (block for region in op.regions for block in region.blocks):
        for inner in block.operations:
            yield from _inside(inner.operation)


def summary(module: ir.Module) -> str:
    """A module's quantizations in a line: "2 quantize uint8 per-tensor, 1 dequantize int8 per-channel"; "" where there are none."""
    counts: dict[str, int] = {}
    for each in quantizations(module):
        text = f"{each.kind} {each.dtype} {each.granularity}"
        counts[text] = counts.get(text, 0) + 1
    return ", ".join(f"{count} {text}" for text, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])))
