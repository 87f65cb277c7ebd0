"""Ops that let a factor of each channel through: f(t * x) = t * f(x) for t > 0, once what is added or compared is multiplied, too."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmos.compiler.analysis.generic import Generic, is_fill, padding_number
from llmos.compiler.ir.bindings import ir
from llmos.passes.quant._integers import number_of
from llmos.passes.quant._parameters import COLLAPSE, EXPAND

LINEAR = ("arith.addf", "arith.subf")
BOUNDS = ("arith.maximumf", "arith.minimumf", "arith.maxnumf", "arith.minnumf")
GAINS = ("arith.mulf", "arith.divf")


@dataclass
class Channels:
    """What an op makes of a tensor whose factors vary along one axis.

    axis: of the result. shifts: numbers of inputs that are added or are bounds, and so must be multiplied by the factors. constants: of
    such scalars, the op in the body and the number of its operand. gains: numbers of inputs that multiply (True) or divide (False).
    """

    axis: int
    shifts: set[int] = field(default_factory=set)
    constants: list[tuple[ir.Operation, int]] = field(default_factory=list)
    gains: dict[int, bool] = field(default_factory=dict)


def channels_through(op: ir.Operation, value: ir.Value, axis: int, known: set[ir.Value]) -> Channels | None:
    """Return what `op` makes of `value`, whose factors vary along `axis`; None where it doesn't let them through.

    known: what follows from weights and constants.
    """
    if len(op.results) != 1:
        return None
    if op.name == "tensor.pad":
        low, high = (list(ir.DenseI64ArrayAttr(op.attributes[name])) for name in ("static_low", "static_high"))
        is_plain = padding_number(op) in (0, float("-inf")) and not low[axis] and not high[axis]
        return Channels(axis) if is_plain else None
    if op.name in (EXPAND, COLLAPSE):
        return _reshaped(op, axis)
    if op.name != "linalg.generic" or is_fill(op):
        return None
    return _computed(Generic(op), value, axis, known)


def _reshaped(op: ir.Operation, axis: int) -> Channels | None:
    """Of a reshape that joins or splits off axes of size 1."""
    groups = [list(map(int, group)) for group in ir.ArrayAttr(op.attributes["reassociation"])]
    long = (op.results[0] if op.name == EXPAND else op.operands[0]).type.shape
    if op.name == COLLAPSE:
        number = next(number for number, group in enumerate(groups) if axis in group)
        return Channels(number) if all(long[each] == 1 for each in groups[number] if each != axis) else None
    wide = [each for each in groups[axis] if long[each] != 1]
    return Channels(wide[0]) if len(wide) == 1 else None


def _computed(generic: Generic, value: ir.Value, axis: int, known: set[ir.Value]) -> Channels | None:
    places = [place for place, each in enumerate(generic.inputs) if each == value]
    if len(places) != 1 or any(each not in known for each in generic.inputs if each != value):
        return None
    dim = generic.maps[places[0]].results[axis]
    out = list(generic.maps[generic.num_inputs].results)
    if not isinstance(dim, ir.AffineDimExpr) or dim not in out or dim.position in generic.reduction_dims:
        return None
    if generic.reduction_dims and not _starts_from_nothing(generic):
        return None
    walk = _Walk(generic, Channels(out.index(dim)), {generic.body.arguments[places[0]]})
    return walk.found if walk.accepts() and _reads_channels(generic, walk.found, dim) else None


def _starts_from_nothing(generic: Generic) -> bool:
    """Whether a reduction starts from 0 or below all numbers."""
    start = number_of(generic.inits[0])
    return start is not None and (start == 0 or start < -3.4e38)


def _reads_channels(generic: Generic, found: Channels, dim: ir.AffineExpr) -> bool:
    """Whether what is multiplied varies along the channels alone, or gains along nothing else."""
    shifts = all(_varies_along(generic, each, dim) for each in found.shifts)
    return shifts and all(not _dims(generic, each) or _varies_along(generic, each, dim) for each in found.gains)


def _dims(generic: Generic, place: int) -> list[ir.AffineExpr]:
    return [each for each in generic.maps[place].results if not isinstance(each, ir.AffineConstantExpr)]


def _varies_along(generic: Generic, place: int, dim: ir.AffineExpr) -> bool:
    return [str(each) for each in _dims(generic, place)] == [str(dim)]


@dataclass
class _Walk:
    """The body of an op, op by op. scaled: the values that the factors multiply; signs: comparisons of such with 0."""

    generic: Generic
    found: Channels
    scaled: set[ir.Value]
    signs: set[ir.Value] = field(default_factory=set)

    def accepts(self) -> bool:
        """Whether what is yielded is multiplied by the factors."""
        if self.generic.reduction_dims:
            self.scaled.add(self.generic.body.arguments[self.generic.num_inputs])
        ops = [op.operation for op in self.generic.body.operations]
        return all(map(self._accepts_op, ops[:-1])) and ops[-1].operands[0] in self.scaled and not self.found.shifts & set(self.found.gains)

    def _accepts_op(self, op: ir.Operation) -> bool:
        operands = list(op.operands)
        scaled = [each in self.scaled for each in operands]
        if op.name == "arith.select" and operands[0] in self.signs:
            return all(scaled[1:]) and self._is_scaled(op)
        if not any(scaled) or len(op.results) != 1:
            return False
        if op.name == "arith.cmpf":
            self.signs.add(op.results[0])
            return any(number_of(each) == 0 for each in operands)
        if op.name in (*LINEAR, *BOUNDS):
            return all(self._takes_factor(op, place) for place, each in enumerate(scaled) if not each) and self._is_scaled(op)
        if op.name in GAINS:
            return sum(scaled) == 1 and self._is_gain(op, scaled.index(False)) and self._is_scaled(op)
        return op.name == "arith.negf" and self._is_scaled(op)

    def _is_scaled(self, op: ir.Operation) -> bool:
        self.scaled.add(op.results[0])
        return True

    def _takes_factor(self, op: ir.Operation, place: int) -> bool:
        """Note what is added or a bound: an input, or a constant that isn't 0."""
        value = op.operands[place]
        number = number_of(value)
        if number is not None:
            if abs(number) > 0:
                self.found.constants.append((op, place))
            return abs(number) < float("inf")
        inputs = list(self.generic.body.arguments)[: self.generic.num_inputs]
        if value not in inputs:
            return False
        self.found.shifts.add(inputs.index(value))
        return True

    def _is_gain(self, op: ir.Operation, place: int) -> bool:
        value = op.operands[place]
        if op.name == "arith.divf" and place == 0:
            return False
        if number_of(value) is not None:
            return True
        inputs = list(self.generic.body.arguments)[: self.generic.num_inputs]
        if value not in inputs:
            return False
        self.found.gains[inputs.index(value)] = op.name == "arith.mulf"
        return True
