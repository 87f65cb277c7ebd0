"""truncate-activations: keep what is multiplied in bfloat16, in memory; sums and all other arithmetic stay in float32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

from llmos.compiler.analysis.attention import parts_of
from llmos.compiler.analysis.casts import EXTEND, TRUNCATE, convert, extended, with_element
from llmos.compiler.analysis.contraction import Contraction, root_contraction
from llmos.compiler.analysis.generic import dim_positions, trace_to_buffer
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import DispatchFunc, EntryFunc, callee_of, functions_of, public_functions
from llmos.compiler.ir.ops import VIEWS
from llmos.passes._context import PassContext
from llmos.passes._contracts import DISPATCHED, UNPACKED
from llmos.passes._graph import captured, owner_of
from llmos.passes._pass import Pass
from llmos.passes._property import Property

LOOPS = ("scatter", "fallback")  # kinds whose ops keep their types


@dataclass(frozen=True)
class TruncateActivations(Pass):
    """What one dispatch makes and another multiplies (by a contraction or in attention) is rounded to bfloat16 by its producer and
    extended by its consumers; so is every matrix that a contraction has on its right, and every table that is gathered from. Inputs and
    outputs of the program keep their types.

    Before:
        %1 = call @d0_contraction(%x, %w)
        %2 = call @d1_contraction(%1, %v)
    After:
        %1 = call @d0_contraction(%x, %w) : (tensor<?x64xf32>, tensor<256x64xbf16>) -> tensor<?x256xbf16>
        %2 = call @d1_contraction(%1, %v) : (tensor<?x256xbf16>, tensor<64x256xbf16>) -> tensor<?x64xf32>
        func.func private @d0_contraction(%x, %w) {
          {extf} ins(%w); {truncf} and {extf} ins(%x); the contraction in float32; {truncf}; return }

    Stay in float32: vectors (biases, scales), what is only added or normalized (sums of residuals: rounding them would cost most of the
    accuracy and save little traffic), what attention adds to its scores (a mask's lowest float32 would become an infinity), and what is
    computed from integers alone (positions, masks, rotary angles).
    """

    requires: ClassVar[frozenset[Property]] = frozenset({DISPATCHED, UNPACKED})
    ensures: ClassVar[frozenset[Property]] = frozenset({DISPATCHED})

    def run(self, module: ir.Module, context: PassContext) -> None:
        """Round what contractions and attention multiply to bfloat16, in every public function and its dispatches."""
        functions = functions_of(module)
        for func in public_functions(module):
            _Program(func, functions).narrow()


@dataclass(frozen=True)
class _Call:
    """A call, and its dispatch."""

    op: ir.Operation
    func: ir.Operation

    @property
    def kind(self) -> str:
        return DispatchFunc(self.func).kind

    @property
    def block(self) -> ir.Block:
        return self.func.regions[0].blocks[0]

    @cached_property
    def factors(self) -> set[ir.Value]:
        """The arguments that the left and right sides of products are made of."""
        if self.kind == "attention":
            parts = parts_of([op.operation for op in self.block.operations])
            return _arguments_of([*parts.scores.generic.inputs, parts.values.generic.inputs[1 - parts.weights]])
        root = self.contraction
        return _arguments_of([root.lhs, root.rhs]) if root is not None else set()

    @property
    def contraction(self) -> Contraction | None:
        if self.kind not in ("contraction", "contraction_window", "grouped_contraction"):
            return None
        return root_contraction(DispatchFunc(self.func).ops)


@dataclass
class _Program:
    """A public function and its dispatches, each called once."""

    main: ir.Operation
    functions: dict[str, ir.Operation]
    calls: list[_Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        for op in self.main.regions[0].blocks[0].operations:
            if op.operation.name == "func.call":
                callee = callee_of(op.operation)
                self.calls.append(_Call(op.operation, self.functions[callee]))
        self.by_op = {call.op: call for call in self.calls}

    def narrow(self) -> None:
        weights = [w for w in self._weights() if self._is_matrix(w)]
        chosen = {*weights, *self._activations(set(weights))}
        for value in chosen:
            _truncated_type(value)
        for call in self.calls:
            _rewrite(call, chosen)
        self._sign(weights)

    def _sign(self, weights: list[ir.Value]) -> None:
        """The public function's type and the weights' dtype."""
        entry = EntryFunc(self.main)
        for weight in weights:
            entry.mark_argument(ir.BlockArgument(weight).arg_number, dtype=ir.StringAttr.get("bfloat16"))
        entry.update_type()

    # -- what is read where
    def _readers(self, value: ir.Value) -> Iterator[tuple[_Call | None, int]]:
        """(dispatch, argument number) of each use, through views; (None, 0) for a use that is no dispatch's."""
        for use in value.uses:
            owner = use.owner.operation
            if owner.name in VIEWS:
                yield from self._readers(owner.results[0])
            else:
                yield (self.by_op[owner], use.operand_number) if owner in self.by_op else (None, 0)

    def _may_truncate(self, value: ir.Value) -> bool:
        return all(call is not None and _takes_truncated(call, number) for call, number in self._readers(value))

    def _is_multiplied(self, value: ir.Value) -> bool:
        """Whether a contraction or attention has a value as one of its factors."""
        return any(call is not None and call.block.arguments[number] in call.factors for call, number in self._readers(value))

    def _weights(self) -> list[ir.Value]:
        weights = [each.value for each in EntryFunc(self.main).arguments.weights]
        return [weight for weight in weights if _is_f32(weight) and self._may_truncate(weight)]

    def _is_matrix(self, weight: ir.Value) -> bool:
        """Whether a contraction has a weight on its right, or something gathers from it."""
        readers = [(call, number) for call, number in self._readers(weight) if call is not None]
        return any(_is_right_side(call, number) or _is_gathered(call, number) for call, number in readers)

    def _activations(self, weights: set[ir.Value]) -> list[ir.Value]:
        """Results that become narrow, in program order."""
        real = weights | {a.value for a in EntryFunc(self.main).arguments if _is_f32(a.value) and not a.is_weight}
        found: list[ir.Value] = []
        for call in self.calls:
            if not any(_origin(operand) in real for operand in call.op.operands):
                continue
            for result in call.op.results:
                real.add(result)
                if _is_f32(result) and call.kind not in LOOPS and self._is_multiplied(result) and self._may_truncate(result):
                    found.append(result)
        return found


def _is_f32(value: ir.Value) -> bool:
    return isinstance(value.type, ir.RankedTensorType) and isinstance(value.type.element_type, ir.F32Type)


def _origin(value: ir.Value) -> ir.Value:
    """The argument or result behind views."""
    owner = owner_of(value)
    return _origin(owner.operands[0]) if owner is not None and owner.name in VIEWS else value


def _takes_truncated(call: _Call, number: int) -> bool:
    """Whether a dispatch may read that argument in bfloat16."""
    if call.kind == "attention":
        return call.block.arguments[number] in call.factors
    return call.kind not in LOOPS


def _arguments_of(values: list[ir.Value]) -> set[ir.Value]:
    """The arguments of a dispatch that some of its values are made of."""
    found: set[ir.Value] = set()
    pending = list(values)
    while pending:
        value = pending.pop()
        owner = owner_of(value)
        if owner is None:
            found.add(value)
        else:
            pending += list(captured(owner))
    return found


def _is_right_side(call: _Call, number: int) -> bool:
    root = call.contraction
    if root is None:
        return False
    source = trace_to_buffer(root.rhs, [{p: 1} if p is not None else {} for p in dim_positions(root.rhs_map)])
    return source is not None and source[0] == call.block.arguments[number]


def _is_gathered(call: _Call, number: int) -> bool:
    table = call.block.arguments[number]
    return any(use.owner.operation.name == "tensor.extract" for use in table.uses)


# -- rewriting
def _truncated_type(value: ir.Value) -> None:
    """Make a value of the public function, and the views of it, bfloat16."""
    value.set_type(with_element(value.type, ir.BF16Type.get()))
    for use in value.uses:
        if use.owner.operation.name in VIEWS:
            _truncated_type(use.owner.operation.results[0])


def _rewrite(call: _Call, chosen: set[ir.Value]) -> None:
    """Conversions at the edges of one dispatch."""
    block = call.block
    terminator = list(block.operations)[-1].operation
    truncate_right = any(_origin(v) in chosen and _is_right_side(call, i) for i, v in enumerate(call.op.operands))
    for argument, operand in zip(list(block.arguments), call.op.operands, strict=True):
        if _origin(operand) in chosen:
            _extend_argument(block, argument)
    if truncate_right:
        _truncate_left(call)
    with ir.InsertionPoint(terminator):
        for i, result in enumerate(call.op.results):
            if result in chosen:
                terminator.operands[i] = convert(terminator.operands[i], TRUNCATE, ir.BF16Type.get())
    kind = ir.FunctionType.get([a.type for a in block.arguments], [v.type for v in terminator.operands])
    call.func.attributes["function_type"] = ir.TypeAttr.get(kind)


def _extend_argument(block: ir.Block, argument: ir.Value) -> None:
    """The argument in bfloat16; what read it reads it extended."""
    uses = [(use.owner.operation, use.operand_number) for use in argument.uses]
    argument.set_type(with_element(argument.type, ir.BF16Type.get()))
    with ir.InsertionPoint.at_block_begin(block):
        wide = convert(argument, EXTEND, ir.F32Type.get())
    for owner, number in uses:
        owner.operands[number] = wide


def _truncate_left(call: _Call) -> None:
    """A contraction with a narrow matrix reads rows that are rounded to bfloat16, on every target."""
    root = call.contraction
    assert root is not None
    if extended(root.lhs) is not None:
        return
    with ir.InsertionPoint(root.generic.op):
        rounded = convert(convert(root.lhs, TRUNCATE, ir.BF16Type.get()), EXTEND, ir.F32Type.get())
    root.generic.op.operands[root.left] = rounded
