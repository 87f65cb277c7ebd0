"""A small SSA builder for kernels: scalars and 1-D vectors, i64 index arithmetic, raw pointers.

Kernels use no memrefs: a buffer is a pointer, an address is linear arithmetic that the emitter knows. Constants live in the entry
block, so that loops stay clean and each exists once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import sympy

from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.rounded_sizes import FloorMul, FloorMulF32

Value: TypeAlias = ir.Value
_OGT = 2  # as arith.cmpf numbers it
LOOP_DYNAMIC = -(2**31)  # "take this index from the operands" in llvm.getelementptr


def is_vector(value: Value) -> bool:
    """Return whether a value is a vector (of one dim), not a scalar."""
    return isinstance(value.type, ir.VectorType)


def element_type(kind: ir.Type) -> ir.Type:
    """Return a vector type's element type, or a scalar type as it is."""
    return ir.VectorType(kind).element_type if isinstance(kind, ir.VectorType) else kind


def byte_width(kind: ir.Type) -> int:
    """Return the bytes of one element in memory; bool is one byte."""
    if isinstance(kind, ir.IntegerType):
        return max(1, int(kind.width) // 8)
    widths = {ir.F64Type: 8, ir.F32Type: 4, ir.F16Type: 2, ir.BF16Type: 2, ir.IndexType: 8}
    return widths[type(kind)]


def is_float(kind: ir.Type) -> bool:
    """Return whether a scalar type is f16, bf16, f32 or f64."""
    return isinstance(kind, (ir.F16Type, ir.BF16Type, ir.F32Type, ir.F64Type))


@dataclass
class Loop:
    """An open `scf.for`: its induction variable, the carried values, and what `yield_` gave."""

    iv: Value
    args: list[Value]
    op: ir.Operation
    yielded: bool = False

    @property
    def results(self) -> list[Value]:
        """Return the carried values after the last iteration."""
        return list(self.op.results)

    def yield_(self, values: Sequence[Value] = ()) -> None:
        """End the body; `values` are carried to the next iteration, in the order of `args`."""
        ir.Operation.create("scf.yield", operands=list(values))
        self.yielded = True


@dataclass
class Builder:
    """Builds ops at the current insertion point of the enclosing `with ir.InsertionPoint`."""

    entry: ir.Block
    lanes: int
    _constants: dict[tuple[object, ...], Value] = field(default_factory=dict)  # by type and number, a splat also by its lanes
    never_negative: Value | None = None  # an i64 of which LLVM doesn't know it
    _anchor: ir.Operation | None = None

    # -- types
    @property
    def i64(self) -> ir.Type:
        """Return the type of sizes, indices and offsets."""
        return ir.IntegerType.get_signless(64)

    @property
    def i1(self) -> ir.Type:
        """Return the type of conditions."""
        return ir.IntegerType.get_signless(1)

    @property
    def i8(self) -> ir.Type:
        """Return the type of a byte: a bool in memory."""
        return ir.IntegerType.get_signless(8)

    @property
    def i32(self) -> ir.Type:
        """Return the type of error codes."""
        return ir.IntegerType.get_signless(32)

    @property
    def f32(self) -> ir.Type:
        """Return the type of single-precision floats."""
        return ir.F32Type.get()

    @property
    def ptr(self) -> ir.Type:
        """Return the type of addresses."""
        return ir.Type.parse("!llvm.ptr")

    def vec(self, kind: ir.Type, lanes: int | None = None) -> ir.Type:
        """Return a vector type; `lanes` None: of the kernel."""
        return ir.VectorType.get([lanes or self.lanes], kind)

    # -- ops
    def op(self, name: str, operands: Sequence[Value], result: ir.Type | None = None, **attributes: ir.Attribute) -> Value:
        """Emit one op. Returns its result, or nothing that may be used when it has none."""
        made = ir.Operation.create(name, results=[] if result is None else [result], operands=list(operands), attributes=attributes)
        return made.results[0] if result is not None else made

    def intrinsic(self, name: str, operands: Sequence[Value], result: ir.Type | None = None) -> Value:
        """A call of an LLVM intrinsic by its whole name; its result, or nothing that may be used when it has none."""
        return self.op(
            "llvm.call_intrinsic",
            operands,
            result,
            intrin=ir.StringAttr.get(name),
            op_bundle_sizes=ir.DenseI32ArrayAttr.get([]),
            operandSegmentSizes=ir.DenseI32ArrayAttr.get([len(operands), 0]),
        )

    @contextmanager
    def of_lanes(self, lanes: int) -> Iterator[None]:
        """Inside, a vector of the kernel has so many lanes."""
        before, self.lanes = self.lanes, lanes
        try:
            yield
        finally:
            self.lanes = before

    @contextmanager
    def at_entry(self) -> Iterator[None]:
        """Inside, insert before the first op that is not a constant or an argument load: such values dominate every use."""
        point = ir.InsertionPoint(self._anchor) if self._anchor is not None else ir.InsertionPoint.at_block_begin(self.entry)
        with point:
            yield

    def set_anchor(self, op: ir.Operation) -> None:
        """Set the op that entry values go in front of."""
        self._anchor = op

    def const(self, kind: ir.Type, number: float | int) -> Value:
        """Return a scalar constant of an integer or float type, which the entry block holds once."""
        key = (kind, number if number != 0 else str(number))  # 0.0 and -0.0 compare equal
        if key not in self._constants:
            with self.at_entry():
                attribute = ir.FloatAttr.get(kind, float(number)) if is_float(kind) else ir.IntegerAttr.get(kind, int(number))
                self._constants[key] = self.op("arith.constant", [], kind, value=attribute)
        return self._constants[key]

    def index(self, number: int) -> Value:
        """Return a constant of type i64."""
        return self.const(self.i64, number)

    def splat(self, value: Value, lanes: int | None = None) -> Value:
        """Broadcast a scalar to all lanes (None: of the kernel); a vector is returned as it is."""
        return value if is_vector(value) else self.op("vector.broadcast", [value], self.vec(value.type, lanes))

    def dense(self, kind: ir.Type, numbers: Sequence[int]) -> Value:
        """Return a constant vector of the integer type `kind`, a lane a number."""
        key = (kind, tuple(numbers))
        if key not in self._constants:
            with self.at_entry():
                attribute = ir.DenseElementsAttr.get([ir.IntegerAttr.get(kind, n) for n in numbers], self.vec(kind, len(numbers)))
                self._constants[key] = self.op("arith.constant", [], self.vec(kind, len(numbers)), value=attribute)
        return self._constants[key]

    def splat_constant(self, kind: ir.Type, number: float | int, lanes: int | None = None) -> Value:
        """Return a constant vector of one number; `lanes` None: of the kernel."""
        key = (kind, number if number != 0 else str(number), lanes or self.lanes)
        if key not in self._constants:
            scalar = self.const(kind, number)
            with self.at_entry():
                self._constants[key] = self.splat(scalar, lanes)
        return self._constants[key]

    def binary(self, name: str, a: Value, b: Value) -> Value:
        """Emit an op on two values of one type, a scalar broadcast where the other is a vector."""
        if is_vector(a) != is_vector(b):
            lanes = (a if is_vector(a) else b).type.shape[0]
            a, b = self.splat(a, lanes), self.splat(b, lanes)
        return self.op(name, [a, b], a.type)

    def add(self, a: Value, b: Value) -> Value:
        """Emit a + b of integers; constants are folded."""
        if (known := self.known(a)) == 0:
            return b
        if (other := self.known(b)) == 0:
            return a
        if known is not None and other is not None:
            return self.index(known + other)
        return self.binary("arith.addi", a, b)

    def sub(self, a: Value, b: Value) -> Value:
        """Emit a - b of integers; constants are folded."""
        known, other = self.known(a), self.known(b)
        if known is not None and other is not None:
            return self.index(known - other)
        return a if other == 0 else self.binary("arith.subi", a, b)

    def mul(self, a: Value, b: Value) -> Value:
        """Emit a * b of integers; constants are folded."""
        known, other = self.known(a), self.known(b)
        if known in (0, 1):
            return b if known else a
        if other in (0, 1):
            return a if other else b
        if known is not None and other is not None:
            return self.index(known * other)
        return self.binary("arith.muli", a, b)

    def div(self, a: Value, b: Value) -> Value:
        """Emit a / b of signed integers, toward zero. It traps where b is 0."""
        return a if self.known(b) == 1 else self.binary("arith.divsi", a, b)

    def rem(self, a: Value, b: Value) -> Value:
        """Emit the remainder of `div`, with the sign of a."""
        return self.index(0) if self.known(b) == 1 else self.binary("arith.remsi", a, b)

    def minimum(self, a: Value, b: Value) -> Value:
        """Emit the smaller of two signed integers."""
        return self.binary("arith.minsi", a, b)

    def known(self, value: Value) -> int | None:
        """Return the number of an i64 constant; None for any other value."""
        owner = value.owner
        if isinstance(owner, ir.Block) or owner.name != "arith.constant" or value.type != self.i64:
            return None
        return int(ir.IntegerAttr(owner.attributes["value"]).value)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """Emit a * b + c of floats, rounded once."""
        return self.op("math.fma", [a, b, c], c.type)

    def compare(self, predicate: str, a: Value, b: Value) -> Value:
        """Emit a comparison of integers: eq ne slt sle sgt sge ult ule ugt uge. Returns an i1, or a vector of them."""
        order = ("eq", "ne", "slt", "sle", "sgt", "sge", "ult", "ule", "ugt", "uge")
        if is_vector(a) != is_vector(b):
            lanes = (a if is_vector(a) else b).type.shape[0]
            a, b = self.splat(a, lanes), self.splat(b, lanes)
        kind = self.vec(self.i1, a.type.shape[0]) if is_vector(a) else self.i1
        return self.op("arith.cmpi", [a, b], kind, predicate=ir.IntegerAttr.get(self.i64, order.index(predicate)))

    def select(self, condition: Value, yes: Value, no: Value) -> Value:
        """Emit condition ? yes : no, lane by lane where one of the three is a vector."""
        if is_vector(condition) or is_vector(yes) or is_vector(no):
            lanes = next(v.type.shape[0] for v in (condition, yes, no) if is_vector(v))
            yes, no = self.splat(yes, lanes), self.splat(no, lanes)
        if isinstance(element_type(yes.type), ir.BF16Type):  # LLVM would choose in float32 and round by a call
            kind, i16 = yes.type, ir.IntegerType.get_signless(16)
            bits = self.vec(i16, kind.shape[0]) if is_vector(yes) else i16
            return self.op("arith.bitcast", [self.select(condition, *[self.op("arith.bitcast", [v], bits) for v in (yes, no)])], kind)
        return self.op("arith.select", [condition, yes, no], yes.type)

    # -- memory
    def stack(self, count: int) -> Value:
        """Emit room for `count` words of 64 bits in the function's frame; at the entry only. Returns its address."""
        return self.op(
            "llvm.alloca", [self.index(count)], self.ptr, elem_type=ir.TypeAttr.get(self.i64), alignment=ir.IntegerAttr.get(self.i64, 8)
        )

    def address(self, base: Value, offset: Value, kind: ir.Type) -> Value:
        """Emit the address base + offset; `offset`: i64, in elements of `kind`."""
        return self.op(
            "llvm.getelementptr",
            [base, offset],
            self.ptr,
            elem_type=ir.TypeAttr.get(kind),
            rawConstantIndices=ir.DenseI32ArrayAttr.get([LOOP_DYNAMIC]),
        )

    def load(self, address: Value, kind: ir.Type, align: int) -> Value:
        """Emit a load of one value, of a scalar or vector type. `align`: in bytes."""
        return self.op("llvm.load", [address], kind, alignment=ir.IntegerAttr.get(self.i64, align))

    def store(self, value: Value, address: Value, align: int) -> None:
        """Emit a store of a scalar or a vector. `align`: in bytes."""
        self.op("llvm.store", [value, address], None, alignment=ir.IntegerAttr.get(self.i64, align))

    def prefetch(self, address: Value, level: int = 1) -> None:
        """Emit the prefetch of a cache line into level 1 to 3; never faults."""
        i32 = self.i32
        self.op(
            "llvm.intr.prefetch",
            [address],
            None,
            rw=ir.IntegerAttr.get(i32, 0),
            hint=ir.IntegerAttr.get(i32, 4 - level),
            cache=ir.IntegerAttr.get(i32, 1),
        )

    def masked_load(self, address: Value, mask: Value, kind: ir.Type, align: int) -> Value:
        """Emit a load of a vector of `kind`; lanes outside of the mask are 0 and not read. `align`: in bytes."""
        lanes = mask.type.shape[0]
        passthru = self.splat_constant(kind, 0, lanes)
        return self.op(
            "llvm.intr.masked.load", [address, mask, passthru], self.vec(kind, lanes), alignment=ir.IntegerAttr.get(self.i32, align)
        )

    def masked_store(self, value: Value, address: Value, mask: Value, align: int) -> None:
        """Emit a store of the lanes of the mask. `align`: in bytes.

        LLVM 22 writes whole words where integers are narrowed to be stored and it knows that the mask has one lane: the bytes behind the
        element too. So the mask of integers depends on a condition that it can't know to hold.
        """
        element = value.type.element_type
        if isinstance(element, ir.IntegerType) and element.width < 64 and self.never_negative is not None:
            with self.at_entry():
                holds = self.compare("sge", self.never_negative, self.index(0))
            mask = self.binary("arith.andi", mask, self.splat(holds, mask.type.shape[0]))
        self.op("llvm.intr.masked.store", [value, address, mask], None, alignment=ir.IntegerAttr.get(self.i32, align))

    def gather(self, base: Value, offsets: Value, mask: Value | None, kind: ir.Type) -> Value:
        """Emit loads of base[offsets]; lanes outside of the mask are 0 and not read. `offsets`: i64, in elements of `kind`."""
        lanes = offsets.type.shape[0]
        addresses = self.op(
            "llvm.getelementptr",
            [base, offsets],
            ir.Type.parse(f"vector<{lanes}x!llvm.ptr>"),
            elem_type=ir.TypeAttr.get(kind),
            rawConstantIndices=ir.DenseI32ArrayAttr.get([LOOP_DYNAMIC]),
        )
        mask = mask if mask is not None else self.splat_constant(self.i1, 1, lanes)
        passthru = self.splat_constant(kind, 0, lanes)
        return self.op(
            "llvm.intr.masked.gather",
            [addresses, mask, passthru],
            self.vec(kind, lanes),
            alignment=ir.IntegerAttr.get(self.i32, byte_width(kind)),
        )

    def scatter(self, value: Value, base: Value, offsets: Value, mask: Value | None, kind: ir.Type) -> None:
        """Emit stores to base[offsets] of the lanes of the mask, in their order; None for all. `offsets`: i64, in elements of `kind`."""
        lanes = offsets.type.shape[0]
        addresses = self.op(
            "llvm.getelementptr",
            [base, offsets],
            ir.Type.parse(f"vector<{lanes}x!llvm.ptr>"),
            elem_type=ir.TypeAttr.get(kind),
            rawConstantIndices=ir.DenseI32ArrayAttr.get([LOOP_DYNAMIC]),
        )
        mask = mask if mask is not None else self.splat_constant(self.i1, 1, lanes)
        self.op("llvm.intr.masked.scatter", [value, addresses, mask], None, alignment=ir.IntegerAttr.get(self.i32, byte_width(kind)))

    def iota(self, lanes: int | None = None) -> Value:
        """Return the vector of i64 0, 1, 2, ..."""
        return self.dense(self.i64, range(lanes or self.lanes))

    def tail_mask(self, remaining: Value, lanes: int | None = None) -> Value:
        """Emit the mask of the lanes below `remaining`, an i64; `lanes` None: of the kernel."""
        return self.compare("slt", self.iota(lanes), self.splat(remaining, lanes))

    # -- control
    @contextmanager
    def loop(self, low: Value, high: Value, step: Value, init: Sequence[Value] = ()) -> Iterator[Loop]:
        """Open an `scf.for` over [low, high), i64, and emit into its body. `init`: what the first iteration is handed."""
        op = ir.Operation.create("scf.for", results=[v.type for v in init], operands=[low, high, step, *init], regions=1)
        block = op.regions[0].blocks.append(low.type, *[v.type for v in init])
        loop = Loop(block.arguments[0], list(block.arguments)[1:], op)
        with ir.InsertionPoint(block):
            yield loop
            if not loop.yielded:
                loop.yield_()

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """Open an `scf.if` without results; what is emitted inside runs where the condition, an i1, holds."""
        op = ir.Operation.create("scf.if", results=[], operands=[condition], regions=2)
        block = op.regions[0].blocks.append()
        with ir.InsertionPoint(block):
            yield
            ir.Operation.create("scf.yield")

    def choose(self, condition: Value, kind: ir.Type, yes: Callable[[], Value], no: Callable[[], Value]) -> Value:
        """Emit an `scf.if` with one result of type `kind`, which `yes` and `no` emit."""
        return self.branch(condition, [kind], lambda: [yes()], lambda: [no()])[0]

    def branch(
        self, condition: Value, kinds: Sequence[ir.Type], yes: Callable[[], Sequence[Value]], no: Callable[[], Sequence[Value]]
    ) -> list[Value]:
        """Emit an `scf.if` with results of some types, which `yes` and `no` emit in that order."""
        op = ir.Operation.create("scf.if", results=list(kinds), operands=[condition], regions=2)
        for region, emit in zip(op.regions, (yes, no), strict=True):
            with ir.InsertionPoint(region.blocks.append()):
                ir.Operation.create("scf.yield", operands=list(emit()))
        return list(op.results)


class Sizes:
    """Symbolic expressions as i64 values, each computed once: in the entry block or, with a symbol that was defined later, where it is
    first used."""

    def __init__(self, builder: Builder, symbols: dict[sympy.Expr, Value]) -> None:
        self._builder = builder
        self._values: dict[sympy.Expr, Value] = dict(symbols)
        self._later: set[sympy.Expr] = set()

    def define(self, symbol: sympy.Expr, value: Value) -> None:
        """Define a symbol whose value, an i64, is known from here on. All uses follow in blocks that this place dominates."""
        self._values[symbol] = value
        self._later.add(symbol)

    def __call__(self, expr: sympy.Expr) -> Value:
        """Return the i64 value of an expression over the symbols."""
        if expr.is_Integer:
            return self._builder.index(int(expr))
        if expr in self._values:
            return self._values[expr]
        if self._later and self._later & expr.free_symbols:
            self._values[expr] = self._emit(expr)
        else:
            with self._builder.at_entry():
                self._values[expr] = self._emit(expr)
        return self._values[expr]

    def _emit(self, expr: sympy.Expr) -> Value:
        b = self._builder
        if isinstance(expr, sympy.floor):
            return self._quotient(expr.args[0])
        if isinstance(expr, FloorMul):
            return self._rounded_product(expr)
        if _has_divisor(expr):
            return self._quotient(expr)  # it divides without a rest
        if isinstance(expr, sympy.Pow):
            return self._power(expr)
        names = {sympy.Add: "arith.addi", sympy.Mul: "arith.muli", sympy.Min: "arith.minsi", sympy.Max: "arith.maxsi"}
        value = self(expr.args[0])
        for arg in expr.args[1:]:
            value = b.binary(names[type(expr)], value, self(arg))
        return value

    def _quotient(self, expr: sympy.Expr) -> Value:
        """Rounded down. A divisor that is 0, as sizes may be, gives a number that nobody reads, not a trap."""
        numerator, denominator = sympy.fraction(sympy.together(expr))
        divisor = self(denominator)
        if not denominator.is_nonzero:
            is_zero = self._builder.compare("eq", divisor, self._builder.index(0))
            divisor = self._builder.select(is_zero, self._builder.index(1), divisor)
        return self._builder.binary("arith.floordivsi", self(sympy.expand(numerator)), divisor)

    def _rounded_product(self, expr: FloorMul) -> Value:
        """math.floor would be a call of libm on a machine without an instruction for it."""
        b, kind = self._builder, ir.F32Type.get() if isinstance(expr, FloorMulF32) else ir.F64Type.get()
        product = b.binary("arith.mulf", b.op("arith.sitofp", [self(expr.args[0])], kind), b.const(kind, expr.scale))
        towards_zero = b.op("arith.fptosi", [product], b.i64)
        greater = ir.IntegerAttr.get(b.i64, _OGT)
        is_above = b.op("arith.cmpf", [b.op("arith.sitofp", [towards_zero], kind), product], b.i1, predicate=greater)
        return b.sub(towards_zero, b.op("arith.extui", [is_above], b.i64))

    def _power(self, expr: sympy.Expr) -> Value:
        value = base = self(expr.base)
        for _ in range(int(expr.exp) - 1):
            value = self._builder.binary("arith.muli", value, base)
        return value


def _has_divisor(expr: sympy.Expr) -> bool:
    """Whether a sum or product is a fraction: a number that isn't whole or a negative power is among its factors."""
    if isinstance(expr, (sympy.Add, sympy.Mul)):
        return any(_has_divisor(arg) for arg in expr.args)
    return (expr.is_Rational and not expr.is_Integer) or (isinstance(expr, sympy.Pow) and bool(expr.exp.is_negative))
