"""Reading and writing tensors in memory at coordinates, as scalars or vectors, under the mask of the lanes that exist."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import sympy

from llmos.compiler.codegen.builder import Builder, Value, byte_width, element_type, is_float, is_vector
from llmos.compiler.codegen.coordinates import Coord, GatherIndex, IndexEmitter, Lane
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.sizes import Expr


@dataclass(frozen=True)
class Buffer:
    """Where a tensor lies in memory: dense, row-major."""

    pointer: Value
    kind: ir.Type  # element type in memory: i1 is held as i8
    shape: tuple[Expr, ...]
    strides: tuple[Expr, ...]

    @classmethod
    def dense(cls, pointer: Value, kind: ir.Type, shape: Sequence[Expr]) -> Buffer:
        """Return a dense row-major tensor at a pointer; `kind`: the element type of the tensor."""
        strides: list[Expr] = []
        step: Expr = sympy.Integer(1)
        for size in reversed(shape):
            strides.insert(0, step)
            step = sympy.expand(step * size)
        return cls(pointer, kind, tuple(shape), tuple(strides))


@dataclass
class MemoryEmitter:
    """Loads and stores, emitted into one kernel. The mask of the lanes is here and nowhere else."""

    index: IndexEmitter
    mask: Value | None = None  # lanes that exist, in a tail

    @property
    def b(self) -> Builder:
        """Return the builder of the kernel."""
        return self.index.b

    @contextmanager
    def masked(self, mask: Value | None) -> Iterator[None]:
        """Inside, only lanes of `mask`, a vector of i1, are read and written; None for all."""
        before, self.mask = self.mask, mask
        try:
            yield
        finally:
            self.mask = before

    def locate(self, buffer: Buffer, coords: Sequence[Coord]) -> Coord:
        """Emit the offset of a coordinate, in elements."""
        total: Coord = self.b.index(0)
        for coord, stride in zip(coords, buffer.strides, strict=True):
            total = self.index.add(total, self.index.scale(coord, stride))
        return total

    def load(self, buffer: Buffer, coords: Sequence[Coord]) -> Value:
        """Emit the read of one element, or of one a lane; lanes outside of the mask are 0. bool is i1."""
        loaded = self._load_raw(buffer, self.locate(buffer, coords))
        return self._narrow(loaded, buffer)

    def _narrow(self, loaded: Value, buffer: Buffer) -> Value:
        if isinstance(buffer.kind, (ir.F16Type, ir.BF16Type)):
            return self._same_bits(loaded, buffer.kind)
        if not isinstance(buffer.kind, ir.IntegerType) or buffer.kind.width != 1:
            return loaded
        zero = self.b.splat(self.b.const(self.b.i8, 0), loaded.type.shape[0]) if is_vector(loaded) else self.b.const(self.b.i8, 0)
        return self.b.compare("ne", loaded, zero)

    def _memory_kind(self, kind: ir.Type) -> ir.Type:
        """bool is a byte; 16-bit floats go as integers, since LLVM rounds a masked store of them by a call."""
        if isinstance(kind, (ir.F16Type, ir.BF16Type)):
            return ir.IntegerType.get_signless(16)
        return self.b.i8 if isinstance(kind, ir.IntegerType) and kind.width == 1 else kind

    def _same_bits(self, value: Value, kind: ir.Type) -> Value:
        return self.b.op("arith.bitcast", [value], self.b.vec(kind, value.type.shape[0]) if is_vector(value) else kind)

    def _load_raw(self, buffer: Buffer, offset: Coord) -> Value:
        b, kind = self.b, self._memory_kind(buffer.kind)
        if isinstance(offset, GatherIndex):
            return self._load_gather(buffer, offset)
        if not isinstance(offset, Lane):
            if is_vector(offset):
                return b.gather(buffer.pointer, offset, self.mask, kind)
            return b.load(b.address(buffer.pointer, offset, kind), kind, byte_width(kind))
        if offset.stride != 1:
            return b.gather(buffer.pointer, self.index.lanes_of(offset), self.mask, kind)
        address = b.address(buffer.pointer, offset.base, kind)
        if self.mask is not None:
            return b.masked_load(address, self.mask, kind, byte_width(kind))
        return b.load(address, b.vec(kind), byte_width(kind))

    def _load_gather(self, buffer: Buffer, offset: GatherIndex) -> Value:
        """Lanes that turn out to be neighbors are loaded as a vector, others gathered."""
        b, kind = self.b, self._memory_kind(buffer.kind)
        lanes = offset.offsets.type.shape[0]
        first, last = (
            b.op("vector.extract", [offset.offsets], b.i64, static_position=ir.DenseI64ArrayAttr.get([i])) for i in (0, lanes - 1)
        )
        neighbours = b.compare("eq", b.sub(last, first), b.index(lanes - 1))
        base = b.address(buffer.pointer, offset.base, kind)

        def together() -> Value:
            address = b.address(base, first, kind)
            if self.mask is not None:
                return b.masked_load(address, self.mask, kind, byte_width(kind))
            return b.load(address, b.vec(kind, lanes), byte_width(kind))

        return b.choose(neighbours, b.vec(kind, lanes), together, lambda: b.gather(base, offset.offsets, self.mask, kind))

    def store(self, value: Value, buffer: Buffer, coords: Sequence[Coord]) -> None:
        """Emit the write of one element, or of one a lane, under the mask. `value`: of the tensor's element type; bool is i1."""
        b, kind, offset = self.b, self._memory_kind(buffer.kind), self.locate(buffer, coords)
        if isinstance(offset, GatherIndex):
            offset = self.index.lanes_of(offset)
        if is_float(element_type(value.type)) and kind != element_type(value.type):
            value = self._same_bits(value, kind)
        elif kind != element_type(value.type):
            value = b.op("arith.extui", [value], b.vec(kind, value.type.shape[0]) if is_vector(value) else kind)
        if is_vector(value) and not isinstance(offset, Lane) and not is_vector(offset):  # lanes along a dim of size 1
            one = b.tail_mask(b.index(1), value.type.shape[0])
            with self.masked(one if self.mask is None else b.binary("arith.andi", self.mask, one)):
                self.store(value, replace(buffer, strides=(sympy.S.One,)), [Lane(offset)])
            return
        if not isinstance(offset, Lane):
            if is_vector(offset):
                b.scatter(b.splat(value), buffer.pointer, offset, self.mask, kind)
            else:
                b.store(value, b.address(buffer.pointer, offset, kind), byte_width(kind))
            return
        value = b.splat(value)
        if offset.stride != 1:
            b.scatter(value, buffer.pointer, self.index.lanes_of(offset), self.mask, kind)
        elif self.mask is not None:
            b.masked_store(value, b.address(buffer.pointer, offset.base, kind), self.mask, byte_width(kind))
        else:
            b.store(value, b.address(buffer.pointer, offset.base, kind), byte_width(kind))
