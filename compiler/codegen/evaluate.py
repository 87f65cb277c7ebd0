"""Evaluation on demand: the value of any tensor of a dispatch at given coordinates, as scalars or vectors.

An elementwise producer costs nothing until a root asks for it at a point: its body is then emitted there, in registers. So fusion needs no
rewriting of loops; a prologue, an epilogue and a chain are the same mechanism. Along one loop dim (the lanes) coordinates advance by one
per lane; everything that doesn't depend on the lanes stays scalar.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import sympy

from llmos.compiler.analysis.generic import Combiner, Generic, combiner_of, depends_on, fill_value, is_fill
from llmos.compiler.codegen.available import AvailableValues
from llmos.compiler.codegen.builder import Builder, Sizes, Value, element_type, is_float, is_vector
from llmos.compiler.codegen.coordinates import Coord, GatherIndex, IndexEmitter, Lane
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.guards import Guards
from llmos.compiler.codegen.indices import is_in_range
from llmos.compiler.codegen.memory import Buffer, MemoryEmitter
from llmos.compiler.codegen.sums import block_level, loop_over_blocks, summed, with_rests
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.shapes import kept_dims, pad_parameters, slice_parameters
from llmos.compiler.ir.sizes import Expr
from llmos.runtime.errors import UnsupportedError

DIVISIONS = frozenset(f"arith.{name}" for name in ("divsi", "divui", "remsi", "remui", "floordivsi", "ceildivsi", "ceildivui"))


@dataclass(frozen=True)
class ValueEmitter:
    """Emits the values of one dispatch into one kernel. `buffers`: where its arguments lie."""

    dispatch: Dispatch
    buffers: dict[Value, Buffer]
    memory: MemoryEmitter
    guards: Guards
    available: AvailableValues
    bound: dict[Value, Callable[[Sequence[Coord]], Value]] = field(default_factory=dict)

    @classmethod
    def of(cls, dispatch: Dispatch, buffers: dict[Value, Buffer], index: IndexEmitter, error: Value) -> ValueEmitter:
        """Return one whose parts share a mask and the values that are available. `error`: address of the kernel's i32 error code."""
        memory, available = MemoryEmitter(index), AvailableValues()
        return cls(dispatch, buffers, memory, Guards(memory, available, dispatch.table, error), available)

    @property
    def index(self) -> IndexEmitter:
        """Return what computes coordinates."""
        return self.memory.index

    @property
    def b(self) -> Builder:
        """Return the builder of the kernel."""
        return self.index.b

    @property
    def sizes(self) -> Sizes:
        """Return what computes sizes."""
        return self.index.sizes

    def scope(self) -> AbstractContextManager[None]:
        """Open the scope of a loop body or a branch: values emitted inside are not available behind it."""
        return self.available.scope()

    # -- values
    @contextmanager
    def binding(self, tensor: Value, *, as_: Value | Callable[[Sequence[Coord]], Value]) -> Iterator[None]:
        """Inside, an element of `tensor` is `as_`, of its element type: a value for all coordinates, or a function of them."""
        before = self.bound.get(tensor)
        self.bound[tensor] = as_ if callable(as_) else lambda _: as_
        try:
            yield
        finally:
            if before is None:
                del self.bound[tensor]
            else:
                self.bound[tensor] = before

    def value(self, tensor: Value, coords: Sequence[Coord]) -> Value:
        """The element (or one element a lane) of `tensor` at `coords`, of its element type.

        Raises UnsupportedError where no kernel can evaluate an op that it is made by.
        """
        if tensor in self.bound:
            return self.bound[tensor](coords)
        key = (tensor, self.memory.mask, *coords)
        made = self.available.find(key)
        if made is None:
            made = self._produce(tensor, coords)
            self.available.add(key, made)
        return made

    def _produce(self, tensor: Value, coords: Sequence[Coord]) -> Value:
        if tensor in self.buffers:
            return self.memory.load(self.buffers[tensor], coords)
        op = tensor.owner
        if isinstance(op, ir.Block):
            raise UnsupportedError("a dispatch reads a value that has no buffer")
        if op.name in ("tensor.extract_slice",):
            return self._slice(op.operation, coords)
        if op.name == "tensor.cast":
            return self.value(op.operands[0], coords)
        if op.name == "tensor.pad":
            return self._pad(op.operation, coords)
        if op.name == "tensor.concat":
            return self._concat(op.operation, coords)
        if op.name == "tensor.splat":
            return self.scalar(op.operands[0])
        if op.name == "arith.constant":
            return self._constant(op.operation, coords)
        if op.name == "tensor.empty":
            kind = tensor.type.element_type
            return self.b.const(kind, 0)
        if is_fill(op.operation):
            return self.scalar(fill_value(op.operation))
        if op.name != "linalg.generic":
            raise UnsupportedError(f"no kernel evaluates {op.name}")
        generic = Generic(op.operation)
        if generic.is_elementwise:
            return self._elementwise(generic, tensor, coords)
        return self.reduce(generic, coords)[ir.OpResult(tensor).result_number]

    def scalar(self, value: Value | None) -> Value:
        """A scalar defined outside the loops: a constant, or arithmetic on sizes. Raises UnsupportedError for any other."""
        assert value is not None
        if self.dispatch.shapes.has_index(value):
            made = self.sizes(self.dispatch.shapes.index(value))
            return self._to_kind(made, value.type)
        owner = value.owner
        if isinstance(owner, ir.Block):
            raise UnsupportedError("a scalar argument that is not a size")
        if owner.name == "arith.constant":
            attribute = owner.attributes["value"]
            number = ir.FloatAttr(attribute).value if is_float(value.type) else ir.IntegerAttr(attribute).value
            return self.b.const(value.type, number)
        return self._clone(owner.operation, [self.scalar(operand) for operand in owner.operands])

    def _to_kind(self, made: Value, kind: ir.Type) -> Value:
        if isinstance(kind, ir.IndexType) or made.type == kind:
            return made
        return self.b.op("arith.trunci" if ir.IntegerType(kind).width < 64 else "arith.extsi", [made], kind)

    def _constant(self, op: ir.Operation, coords: Sequence[Coord]) -> Value:
        elements = ir.DenseElementsAttr(op.attributes["value"])
        if not elements.is_splat:
            raise UnsupportedError("a dense constant that was not made a weight")
        kind = op.results[0].type.element_type
        attribute = elements.get_splat_value()
        return self.b.const(kind, ir.FloatAttr(attribute).value if is_float(kind) else ir.IntegerAttr(attribute).value)

    # -- coordinates
    def result_coords(self, value: Value, root: Value, root_coords: Sequence[Coord]) -> list[Coord]:
        """Coordinates of an epilogue's output from those of its root. Raises UnsupportedError as `IndexEmitter.invert`."""
        if value == root:
            return list(root_coords)
        generic = Generic(value.owner.operation)
        for operand, affine in zip(generic.inputs, generic.maps, strict=False):
            if isinstance(operand.type, ir.RankedTensorType) and depends_on(operand, root):
                loop = self.index.invert(affine, self.result_coords(operand, root, root_coords))
                return self.index.apply(generic.output_map(value), loop)
        raise AssertionError("an epilogue that doesn't use its root")

    def _slice(self, op: ir.Operation, coords: Sequence[Coord]) -> Value:
        offsets, _, strides = slice_parameters(self.dispatch.shapes, op, 1)
        if offsets is None or strides is None:
            raise UnsupportedError("a slice whose place depends on data")
        kept = kept_dims(op)
        by_dim = dict(zip(kept, coords, strict=True))
        inner = [self.index.shift(by_dim.get(dim, self.b.index(0)), self.sizes(offsets[dim]), strides[dim]) for dim in range(len(offsets))]
        return self.value(op.operands[0], inner)

    def _pad(self, op: ir.Operation, coords: Sequence[Coord]) -> Value:
        """The source where it lies, the padding value around it."""
        shapes = self.dispatch.shapes
        low, _ = pad_parameters(shapes, op)
        source = shapes.shape(op.operands[0])
        outer = shapes.shape(op.results[0])
        inner: list[Coord] = []
        inside: list[Value] = []
        for coord, before, size, whole in zip(coords, low, source, outer, strict=True):
            if size == whole:
                inner.append(coord)
                continue
            at, within = self.guards.within(self.index.add(coord, self.sizes(-before)), size)
            inner.append(at)
            inside.append(within)
        padding = self.scalar(list(op.regions[0].blocks[0].operations)[-1].operands[0])
        guarded = any(self.guards.may_be_empty(size) for size in source)
        read = functools.partial(self.value, op.operands[0], inner)
        return self.guards.choose(inside, read, padding, guarded) if inside else read()

    def _concat(self, op: ir.Operation, coords: Sequence[Coord]) -> Value:
        """Of the pieces along the axis, the one that the coordinate falls into."""
        axis = ir.IntegerAttr(op.attributes["dim"]).value
        chosen: Value | None = None
        offset: Expr = sympy.Integer(0)
        for piece in op.operands:
            size = self.dispatch.shapes.shape(piece)[axis]
            at, within = self.guards.within(self.index.add(coords[axis], self.sizes(sympy.expand(-offset))), size)
            inner = [at if i == axis else coord for i, coord in enumerate(coords)]
            otherwise = chosen if chosen is not None else self.b.const(piece.type.element_type, 0)
            read = functools.partial(self.value, piece, inner)
            chosen = self.guards.choose([within], read, otherwise, self.guards.may_be_empty(size))
            offset = sympy.expand(offset + size)
        assert chosen is not None
        return chosen

    # -- bodies
    def _elementwise(self, generic: Generic, tensor: Value, coords: Sequence[Coord]) -> Value:
        loop = self.index.invert(generic.output_map(tensor), coords)
        arguments = self._arguments(generic, loop, list(range(len(generic.op.operands))))
        return self.run_block(generic.body, arguments, loop)[ir.OpResult(tensor).result_number]

    def _arguments(self, generic: Generic, loop: Sequence[Coord], wanted: Sequence[int]) -> dict[Value, Value]:
        """Block arguments of the body; those that the body doesn't use are not evaluated."""
        arguments: dict[Value, Value] = {}
        for i in wanted:
            argument, operand = generic.body.arguments[i], generic.op.operands[i]
            if not any(True for _ in argument.uses):
                continue
            if isinstance(operand.type, ir.RankedTensorType):
                arguments[argument] = self.value(operand, self.index.apply(generic.maps[i], loop))
            else:
                arguments[argument] = self.scalar(operand)
        return arguments

    def run_block(self, block: ir.Block, arguments: dict[Value, Value], loop: Sequence[Coord] = ()) -> list[Value]:
        """Emit the ops of a region's block; the yielded values. Raises UnsupportedError as `body_op`."""
        values: dict[Value, Coord] = dict(arguments)
        for op in block.operations:
            if op.name in ("linalg.yield", "tm_tensor.yield"):
                return [self.index.lanes_of(self.operand(operand, values)) for operand in op.operands]
            self.body_op(op.operation, values, loop)
        raise AssertionError("a body without a yield")

    def operand(self, operand: Value, values: dict[Value, Coord]) -> Coord:
        """Return what an op in a body reads: a value of the body, or a scalar from outside."""
        if operand not in values:
            values[operand] = self.scalar(operand)
        return values[operand]

    def body_op(self, op: ir.Operation, values: dict[Value, Coord], loop: Sequence[Coord]) -> None:
        """Emit one op of a body; its result joins `values`. Raises UnsupportedError for one with a region."""
        if op.name == "linalg.index":
            values[op.results[0]] = loop[ir.IntegerAttr(op.attributes["dim"]).value]
            return
        operands = [self.operand(operand, values) for operand in op.operands if not isinstance(operand.type, ir.RankedTensorType)]
        if op.name == "cf.assert":
            return
        if op.name == "tensor.extract":
            values[op.results[0]] = self._extract(op, operands)
        elif op.name == "affine.apply":
            values[op.results[0]] = self.index.apply_expr(ir.AffineMapAttr(op.attributes["map"]).value.results[0], operands)
        elif op.name == "arith.constant":
            values[op.results[0]] = self.scalar(op.results[0])
        elif op.name in ("arith.addi", "arith.subi", "arith.muli") and isinstance(op.results[0].type, ir.IndexType):
            values[op.results[0]] = self._index_arithmetic(op.name, operands)
        else:
            values[op.results[0]] = self._clone(op, [self.index.lanes_of(operand) for operand in operands])

    def _index_arithmetic(self, name: str, operands: Sequence[Coord]) -> Coord:
        a, b = operands
        if name == "arith.addi":
            return self.index.add(a, b)
        return self.b.binary(name, self.index.lanes_of(a), self.index.lanes_of(b))

    def _extract(self, op: ir.Operation, coords: Sequence[Coord]) -> Value:
        """An indexed read. An index that isn't known to be in range is checked: outside, the kernel reports an error and reads element 0.

        Where there may be no element 0, nothing is read.
        """
        tensor, table = op.operands[0], self.dispatch.table
        safe: list[Coord] = []
        guards: list[Value] = []
        for index, coord, size in zip(list(op.operands)[1:], coords, self.dispatch.shapes.shape(tensor), strict=True):
            if is_in_range(index, size, table):
                safe.append(coord)
                continue
            at, inside = self.guards.checked(self.index.lanes_of(coord), size)
            safe.append(at)
            guards += [inside] if self.guards.may_be_empty(size) else []
        if not guards:
            return self.value(tensor, safe)
        return self.guards.choose(guards, lambda: self.value(tensor, safe), self.b.const(tensor.type.element_type, 0), True)

    def _clone(self, op: ir.Operation, operands: Sequence[Value]) -> Value:
        """The op on vectors if any operand is one, with index as i64."""
        b = self.b
        if op.regions and len(list(op.regions)):
            raise UnsupportedError(f"{op.name} inside an elementwise body")
        if op.name in ("arith.index_cast", "arith.index_castui"):
            return self._index_cast(op, operands[0])
        if op.name == "arith.select":
            return b.select(*operands)
        if op.name in DIVISIONS:
            return self._divide(op.name, *operands)
        lanes = next((operand.type.shape[0] for operand in operands if is_vector(operand)), None)
        if lanes is not None:
            keep_scalar = op.name == "math.fpowi"
            operands = [operand if keep_scalar and i else b.splat(operand, lanes) for i, operand in enumerate(operands)]
        kind = b.i64 if isinstance(op.results[0].type, ir.IndexType) else op.results[0].type
        result = b.vec(kind, lanes) if lanes is not None else kind
        attributes = {named.name: named.attr for named in (op.attributes[i] for i in range(len(op.attributes)))}
        return ir.Operation.create(op.name, results=[result], operands=list(operands), attributes=attributes).results[0]

    def _divide(self, name: str, a: Value, divisor: Value) -> Value:
        """An integer division that never traps, on lanes that don't exist included.

        By 0 it gives 0, as numpy does; the quotient of the most negative number by -1 wraps.
        """
        b, kind = self.b, element_type(divisor.type)
        owner = divisor.owner
        if (
            not isinstance(owner, ir.Block)
            and owner.name == "arith.constant"
            and ir.IntegerAttr(owner.attributes["value"]).value not in (0, -1)
        ):
            return b.binary(name, a, divisor)
        zero, one = b.const(kind, 0), b.const(kind, 1)
        by_zero = b.compare("eq", divisor, zero)
        if name.endswith("ui"):
            return b.select(by_zero, zero, b.binary(name, a, b.select(by_zero, one, divisor)))
        by_minus_one = b.compare("eq", divisor, b.const(kind, -1))
        quotient = b.binary(name, a, b.select(b.binary("arith.ori", by_zero, by_minus_one), one, divisor))
        opposite = zero if name == "arith.remsi" else b.binary("arith.subi", zero, a)
        return b.select(by_zero, zero, b.select(by_minus_one, opposite, quotient))

    def _index_cast(self, op: ir.Operation, operand: Value) -> Value:
        source, target = op.operands[0].type, op.results[0].type
        from_width = 64 if isinstance(source, ir.IndexType) else ir.IntegerType(source).width
        to_width = 64 if isinstance(target, ir.IndexType) else ir.IntegerType(target).width
        if from_width == to_width:
            return operand
        kind = ir.IntegerType.get_signless(to_width)
        extend = "arith.extui" if op.name == "arith.index_castui" else "arith.extsi"
        return self.b.op(
            "arith.trunci" if to_width < from_width else extend,
            [operand],
            self.b.vec(kind, operand.type.shape[0]) if is_vector(operand) else kind,
        )

    # -- reductions asked for at a point
    def reduce(self, generic: Generic, coords: Sequence[Coord]) -> list[Value]:
        """Emit every output of a reduction at one output coordinate (or one a lane), by loops over its reduction dims in order."""
        out_maps = generic.maps[generic.num_inputs :]
        loop: list[Coord] = self.index.invert(out_maps[0], coords)
        has_lanes = any(isinstance(coord, (Lane, GatherIndex)) or is_vector(coord) for coord in coords)
        inits = [self.value(init, self.index.apply(affine, loop)) for init, affine in zip(generic.inits, out_maps, strict=True)]
        if has_lanes:
            inits = [self.b.splat(init) for init in inits]
        sizes = generic.loop_sizes(self.dispatch.shapes)
        nest = _Nest(generic, sizes, block_level(self.dispatch.table, [sizes[dim] for dim in generic.reduction_dims]))
        start = [self.carried(init) for init in inits]
        ended = self._reduce_loops(nest, loop, 0, with_rests(self.b, start, summed([generic])) if nest.blocks is not None else start)
        return [self.uncarried(value, init.type) for value, init in zip(ended, inits, strict=False)]

    def carried(self, value: Value) -> Value:
        """An accumulator between steps. bfloat16 goes as float32: LLVM would choose between two of them in float32 and round by a call."""
        if not isinstance(element_type(value.type), ir.BF16Type):
            return value
        return self.b.op("arith.extf", [value], self.b.vec(self.b.f32, value.type.shape[0]) if is_vector(value) else self.b.f32)

    def uncarried(self, value: Value, kind: ir.Type) -> Value:
        """Return an accumulator that `carried` gave as a value of type `kind` again."""
        return value if value.type == kind else self.b.op("arith.truncf", [value], kind)

    def _reduce_loops(self, nest: _Nest, loop: list[Coord], depth: int, carried: list[Value]) -> list[Value]:
        dims = nest.generic.reduction_dims
        if depth == len(dims):
            return self.accumulate(nest.generic, loop, carried)

        def run(low: Value, high: Value, values: list[Value]) -> list[Value]:
            with self.b.loop(low, high, self.b.index(1), values) as opened, self.scope():
                inner = list(loop)
                inner[dims[depth]] = opened.iv
                opened.yield_(self._reduce_loops(nest, inner, depth + 1, opened.args))
            return opened.results

        low, high = self.b.index(0), self.sizes(nest.sizes[dims[depth]])
        if nest.blocks is not None and nest.blocks[0] == depth:
            return loop_over_blocks(self.b, low, high, nest.blocks[1], carried, summed([nest.generic]), run)
        return run(low, high, carried)

    def accumulate(self, generic: Generic, loop: Sequence[Coord], carried: Sequence[Value]) -> list[Value]:
        """One step of a reduction: new accumulators from the old at a loop point, both as `carried` gives them."""
        if (product := _added_product(generic)) is not None:
            values: dict[Value, Coord] = dict(self._arguments(generic, loop, range(generic.num_inputs)))
            left, right = (self.index.lanes_of(self._needed(factor, generic, values, loop)) for factor in product.operands)
            if is_vector(carried[0]):
                left, right = (self.b.splat(factor, carried[0].type.shape[0]) for factor in (left, right))
            return [self.b.fma(left, right, carried[0])]
        arguments = self._arguments(generic, loop, range(generic.num_inputs))
        for value, argument in zip(carried, list(generic.body.arguments)[generic.num_inputs :], strict=True):
            kind = self.b.vec(argument.type, value.type.shape[0]) if is_vector(value) else argument.type
            arguments[argument] = self.uncarried(value, kind)
        made = [self.carried(value) for value in self.run_block(generic.body, arguments, loop)]
        return [self.b.splat(new, old.type.shape[0]) if is_vector(old) else new for new, old in zip(made, carried, strict=True)]

    def contribution(self, generic: Generic, combiner: Combiner, loop: Sequence[Coord]) -> Value:
        """Emit f(inputs) of a simple reduction at a loop point."""
        values: dict[Value, Coord] = dict(self._arguments(generic, loop, range(generic.num_inputs)))
        return self.index.lanes_of(self._needed(combiner.value, generic, values, loop))

    def _needed(self, value: Value, generic: Generic, values: dict[Value, Coord], loop: Sequence[Coord]) -> Coord:
        if value in values:
            return values[value]
        owner = value.owner
        if isinstance(owner, ir.Block) or owner.operation.block != generic.body:
            return self.operand(value, values)
        for operand in owner.operands:
            if not isinstance(operand.type, ir.RankedTensorType):
                self._needed(operand, generic, values, loop)
        self.body_op(owner.operation, values, loop)
        return values[value]

    def combine(self, name: str, a: Value, b: Value) -> Value:
        """Emit an op of two values of one type."""
        return self.b.op(name, [a, b], a.type)

    def horizontal(self, name: str, vector: Value) -> Value:
        """Emit all lanes of a vector combined by halves, in an order that depends on nothing. Returns a scalar; `name`: of the op."""
        b, lanes = self.b, vector.type.shape[0]
        while lanes > 1:
            half = lanes // 2
            parts = [
                b.op(
                    "vector.shuffle",
                    [vector, vector],
                    b.vec(element_type(vector.type), half),
                    mask=ir.DenseI64ArrayAttr.get(list(range(start, start + half))),
                )
                for start in (0, half)
            ]
            vector, lanes = self.combine(name, *parts), half
        return b.op("vector.extract", [vector], element_type(vector.type), static_position=ir.DenseI64ArrayAttr.get([0]))


@dataclass(frozen=True)
class _Nest:
    """The loops of a reduction at a point, and which of them ends blocks of its sums."""

    generic: Generic
    sizes: Sequence[Expr]
    blocks: tuple[int, int] | None


def _added_product(generic: Generic) -> ir.Operation | None:
    """The multiplication of a sum of float32 products, which is fused with the addition as in every other contraction."""
    combiner = combiner_of(generic, 0) if len(generic.inits) == 1 else None
    if combiner is None or combiner.name != "arith.addf" or not isinstance(combiner.value.type, ir.F32Type):
        return None
    owner = combiner.value.owner
    return owner.operation if not isinstance(owner, ir.Block) and owner.name == "arith.mulf" else None


def simple_combiners(generic: Generic) -> list[Combiner] | None:
    """Return the combiner of every output, or None if one is not of the simple form."""
    found = [combiner_of(generic, i) for i in range(len(generic.inits))]
    return None if any(c is None for c in found) else [c for c in found if c is not None]
