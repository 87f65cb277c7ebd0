"""Functions: views, slices, loops and calls, op by op in program order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import sympy

from llmos.compiler.analysis.generic import Generic, captured
from llmos.compiler.analysis.independence.domain import Batch, Mixed, Rows, State, Uniform, collapse, expand, join, only_axis
from llmos.compiler.analysis.independence.generic import GenericRows
from llmos.compiler.ir.attributes import LABEL
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import callee_of
from llmos.compiler.ir.shapes import DYNAMIC, Shapes, kept_dims, pad_parameters, reassociation
from llmos.compiler.ir.sizes import Expr, Shape
from llmos.runtime.errors import UnsupportedError


@dataclass(frozen=True)
class Function:
    """A function of the module, and the sizes of its values."""

    op: ir.Operation
    shapes: Shapes

    @property
    def block(self) -> ir.Block:
        """Return the body, one block."""
        return self.op.regions[0].blocks[0]

    @property
    def label(self) -> str:
        """Return the description of what it computes that label-dispatches has set, else ""."""
        return str(ir.StringAttr(self.op.attributes[LABEL]).value) if LABEL in self.op.attributes else ""


@dataclass(frozen=True)
class _Slice:
    """is_fixed: free axes are sliced independently of n. is_whole: the other axes are taken whole. scalars: states of dynamic offsets."""

    is_fixed: bool
    is_whole: bool
    scalars: State


@dataclass
class Frame:
    """The analysis of one call of a function."""

    batch: Batch
    function: Function
    functions: Mapping[str, Function]  # by name
    _states: dict[ir.Value, State] = field(default_factory=dict)

    def run(self, arguments: Sequence[State]) -> list[State]:
        """Return the states of the function's results from those of its arguments."""
        self._states.update(zip(self.function.block.arguments, arguments, strict=True))
        return self._run(self.function.block)

    @property
    def shapes(self) -> Shapes:
        """Return the sizes of the function's values."""
        return self.function.shapes

    def state(self, value: ir.Value) -> State:
        """Return the state of a tensor, or of a scalar (Uniform or Mixed)."""
        if self.shapes.has_index(value):
            size = self.shapes.index(value)
            return Uniform() if self.batch.is_free(size) else Mixed(f"uses the size of {self.batch.name}")
        return self._states[value]

    def _run(self, block: ir.Block) -> list[State]:
        """Analyze a block; return the states of its terminator's operands."""
        ops = [op.operation for op in block.operations]
        for op in ops[:-1]:
            for result, state in zip(op.results, self._visit(op), strict=True):
                self._states[result] = self._named(op, state)
        return [self.state(value) for value in ops[-1].operands]

    def _named(self, op: ir.Operation, state: State) -> State:
        """Add the name of the function to a reason when it first arises."""
        known = [self._states.get(value) for value in captured(op) if isinstance(value.type, ir.RankedTensorType)]
        if not isinstance(state, Mixed) or op.name in ("func.call", "scf.for") or state in known:
            return state
        return Mixed(f"{self.function.label or op.name} {state.reason}")

    def _visit(self, op: ir.Operation) -> list[State]:
        rule = _RULES.get(op.name, Frame._other)
        try:
            states = rule(self, op)
            for result in op.results:
                if isinstance(result.type, ir.RankedTensorType):
                    self.shapes.shape(result)
            return states
        except UnsupportedError:
            return [Mixed("has sizes that data decides")] * len(op.results)

    def _other(self, op: ir.Operation) -> list[State]:
        """Analyze an unknown op: uniform if all its operands are and none of its sizes depends on n."""
        read = [self.state(value) for value in captured(op)]
        tensors = [result for result in op.results if isinstance(result.type, ir.RankedTensorType)]
        sizes = [size for result in tensors for size in self.shapes.shape(result)]
        if op.name.startswith(("arith.", "math.")) and tensors:
            return [join(read)] * len(op.results)
        if all(isinstance(state, Uniform) for state in read) and all(self.batch.is_free(size) for size in sizes):
            return [Uniform()] * len(op.results)
        return [next((state for state in read if isinstance(state, Mixed)), Mixed("is not followed"))] * len(op.results)

    def _constant(self, op: ir.Operation) -> list[State]:
        return [Uniform()]

    def _same(self, op: ir.Operation) -> list[State]:
        return [self.state(op.operands[0])]

    def _scalar_fill(self, op: ir.Operation) -> list[State]:
        """Analyze tensor.splat: the operands after the first are sizes."""
        return [self.state(op.operands[0])]

    def _generic(self, op: ir.Operation) -> list[State]:
        return GenericRows(self.batch, Generic(op), self.shapes, self.state).results()

    def _collapse(self, op: ir.Operation) -> list[State]:
        return [collapse(self.batch, self.state(op.operands[0]), self.shapes.shape(op.operands[0]), reassociation(op))]

    def _expand(self, op: ir.Operation) -> list[State]:
        return [expand(self.batch, self.state(op.operands[0]), self.shapes.shape(op.results[0]), reassociation(op))]

    # -- parts of tensors
    def _extract_slice(self, op: ir.Operation) -> list[State]:
        part = self._slice(op, 1, self.shapes.shape(op.operands[0]))
        state = join([self.state(op.operands[0]), part.scalars])
        kept = kept_dims(op)
        if isinstance(state, Mixed) or (isinstance(state, Uniform) and part.is_fixed):
            return [state]
        if isinstance(state, Rows) and part.is_fixed and part.is_whole and state.axis in kept:
            return [replace(state, axis=kept.index(state.axis))]
        return [self._part()]

    def _insert_slice(self, op: ir.Operation) -> list[State]:
        shape = self.shapes.shape(op.operands[1])
        source, part = self.state(op.operands[0]), self._slice(op, 2, shape)
        if isinstance(source, Rows):
            source = replace(source, axis=kept_dims(op, op.operands[0])[source.axis])
        state = join([source, self.state(op.operands[1]), part.scalars])
        if not isinstance(state, Mixed) and not (part.is_fixed and part.is_whole):
            return [self._part()]
        return [only_axis(self.batch, state, shape) if isinstance(state, Rows) else state]

    def _part(self) -> Mixed:
        return Mixed(f"takes or changes a part of {self.batch.name}")

    def _slice(self, op: ir.Operation, first: int, shape: Shape) -> _Slice:
        """Read offsets, sizes and strides of a slice of a tensor of `shape`."""
        scalars = [value for value in list(op.operands)[first:] if not self.shapes.has_index(value)]
        dynamic = iter(list(op.operands)[first:])

        def one(number: int) -> Expr | None:
            value = next(dynamic) if number == DYNAMIC else None
            if value is None:
                return sympy.Integer(number)
            return self.shapes.index(value) if self.shapes.has_index(value) else None

        offsets, sizes, strides = ([one(number) for number in ir.DenseI64ArrayAttr(op.attributes[name])] for name in _PARTS)
        is_fixed = is_whole = True
        for size, *taken in zip(shape, offsets, sizes, strides, strict=True):
            if self.batch.is_free(size):
                is_fixed &= all(each is None or self.batch.is_free(each) for each in taken)
            else:
                is_whole &= taken[0] == 0 and taken[1] is not None and sympy.expand(taken[1] - size) == 0 and taken[2] == 1
        return _Slice(is_fixed, is_whole, join([self.state(value) for value in scalars]))

    def _pad(self, op: ir.Operation) -> list[State]:
        """Analyze a constant pad: its widths must not depend on n, and the row axis must not be padded."""
        region = op.regions[0].blocks[0]
        if any(True for argument in region.arguments for _ in argument.uses):
            return [Mixed("is not followed")]
        for size, *widths in zip(self.shapes.shape(op.operands[0]), *pad_parameters(self.shapes, op), strict=True):
            if not all(self.batch.is_free(width) if self.batch.is_free(size) else width == 0 for width in widths):
                return [Mixed(f"pads {self.batch.name}, or by it")]
        return [join([self.state(op.operands[0]), *self._run(region)])]

    def _concat(self, op: ir.Operation) -> list[State]:
        state = join([self.state(operand) for operand in op.operands])
        return [self._unless_along(state, op, "dim", "concatenates")]

    def _sort(self, op: ir.Operation) -> list[State]:
        state = join([self.state(value) for value in captured(op)])
        return [self._unless_along(state, op, "dimension", "sorts")] * len(op.results)

    def _scan(self, op: ir.Operation) -> list[State]:
        """Analyze a scan: follows the running values; the totals, the second result, lack an axis and become Mixed."""
        source, _, start = op.operands
        state = join([self.state(value) for value in captured(op) if value != start])
        if not isinstance(self.state(start), Uniform):
            state = Mixed("is not followed")
        return [self._unless_along(state, op, "dimension", "scans", [source]), Mixed("is not followed")]

    def _unless_along(self, state: State, op: ir.Operation, attribute: str, verb: str, tensors: Sequence[ir.Value] | None = None) -> State:
        """Return the state of an op that mixes positions along one axis of all operands, or of `tensors`."""
        axis = int(ir.IntegerAttr(op.attributes[attribute]).value)
        along = [self.shapes.shape(each)[axis] for each in (op.operands if tensors is None else tensors)]
        if isinstance(state, Mixed) or all(self.batch.is_free(size) for size in along):
            return state
        return Mixed(f"{verb} along {self.batch.name}")

    # -- calls and loops
    def _call(self, op: ir.Operation) -> list[State]:
        function = self.functions[callee_of(op)]
        return Frame(self.batch, function, self.functions).run([self.state(operand) for operand in op.operands])

    def _for(self, op: ir.Operation) -> list[State]:
        """Analyze the body to a fixed point of the carried states."""
        bounds = join([self.state(value) for value in list(op.operands)[:3]])
        carried = [self.state(value) for value in list(op.operands)[3:]]
        if isinstance(bounds, Mixed):
            return [Mixed(f"a loop runs over {self.batch.name}")] * len(carried)
        block = op.regions[0].blocks[0]
        while True:
            self._states.update(zip(block.arguments, [bounds, *carried], strict=True))
            after = [join([old, new]) for old, new in zip(carried, self._run(block), strict=True)]
            if after == carried:
                return carried
            carried = after


_PARTS = ("static_offsets", "static_sizes", "static_strides")
_Rule: TypeAlias = Callable[[Frame, ir.Operation], list[State]]
_RULES: Mapping[str, _Rule] = {
    "arith.constant": Frame._constant,
    "tensor.empty": Frame._constant,
    "tensor.cast": Frame._same,
    "tensor.splat": Frame._scalar_fill,
    "linalg.generic": Frame._generic,
    "tensor.collapse_shape": Frame._collapse,
    "tensor.expand_shape": Frame._expand,
    "tensor.extract_slice": Frame._extract_slice,
    "tensor.insert_slice": Frame._insert_slice,
    "tensor.pad": Frame._pad,
    "tensor.concat": Frame._concat,
    "tm_tensor.sort": Frame._sort,
    "tm_tensor.scan": Frame._scan,
    "func.call": Frame._call,
    "scf.for": Frame._for,
}
