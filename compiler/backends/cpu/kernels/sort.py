"""The kernel of sorts: one tile a row, stable, in linear time whatever the numbers are.

A row's keys are read once, as unsigned words with the place that each came from. A short row is put in order by counting, for each key, the
keys before it, 16 at a time. A longer one is put in order by the bytes of (key - smallest key), lowest first (a radix sort); bytes that are
the same in all keys take no pass. Where only some places of the order are wanted (the k largest, the median), a histogram of the leading
bits says between which bounds their keys lie, and only those are sorted.

Payloads are read where they lie when the order is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sympy

from llmos.compiler.analysis.sorts import Sort, is_sort
from llmos.compiler.backends.cpu.kernels.sort_records import Records
from llmos.compiler.codegen.builder import Value
from llmos.compiler.codegen.coordinates import Coord, Lane
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.kernel import LANES, Frame, Launch, kernel, product, split_index
from llmos.compiler.codegen.lanes import lane_loop
from llmos.compiler.ir.bindings import ir

SHORT_ROW = 128  # keys that are put in order by counting
DIGIT_BITS = 8  # of a pass of the radix sort
RANGE_BITS = 10  # leading bits of which the histogram tells where a range of places lies
COUNTS_BYTES = 8 << RANGE_BITS
ALL_ONES, SIGN = -1, -(1 << 63)


def emit_sort(module: ir.Module, dispatch: Dispatch) -> Launch:
    """Append the kernel of a `sort` dispatch."""
    sort = sort_in(dispatch)
    wide = ir.IntegerType(sort.keys.type.element_type).width == 64
    plane = sympy.expand((sort.length + LANES) * (16 if wide else 8))
    with kernel(module, dispatch) as frame, frame.tiles() as tile:
        b, size = frame.b, frame.emitter.sizes
        coords: list[Coord] = list(split_index(b, size, tile, sort.lead)) if sort.lead else []
        first = b.address(frame.scratch, b.index(COUNTS_BYTES), b.i8)
        planes = (first, b.address(first, size(plane), b.i8))
        records = Records(b, size(sympy.expand((sort.length + LANES) * 8)), wide)
        _RowSorter(frame, sort, coords, records, planes).emit()
    return Launch(product(sort.lead), sympy.expand(COUNTS_BYTES + 2 * plane))


def sort_in(dispatch: Dispatch) -> Sort:
    """Return the sort of a `sort` dispatch, with the slices of its results that the dispatch holds."""
    op = next(op for op in dispatch.ops if is_sort(op))
    return Sort(
        op, dispatch.shapes, [user for user in dispatch.ops if user.name == "tensor.extract_slice" and user.operands[0].owner == op]
    )


@dataclass
class _Keys:
    """Records in scratch: how many, and what of their keys differs: key - base < 2^bits."""

    count: Value
    base: Value
    bits: Value
    skipped: Value  # places of the order before the first of them


@dataclass
class _RowSorter:
    """Emits one row."""

    frame: Frame
    sort: Sort
    coords: list[Coord]
    records: Records
    planes: tuple[Value, Value]

    def emit(self) -> None:
        b = self.frame.b
        keys = self._read()
        if self.sort.is_partial:
            keys = self._narrowed(keys)
        short = b.compare("sle", keys.count, b.index(SHORT_ROW))
        placed = b.choose(short, b.ptr, lambda: self._ranked(keys), lambda: self._by_digits(keys))
        self._write(placed, keys)

    # -- reading
    def _read(self) -> _Keys:
        """All keys of the row into the first plane."""
        frame, b = self.frame, self.frame.b
        into = self.planes[0]
        limits = [b.splat_constant(b.i64, ALL_ONES), b.splat_constant(b.i64, 0)]

        def step(lane: Coord, carried: Sequence[Value]) -> list[Value]:
            assert isinstance(lane, Lane)
            key = self._unsigned(frame.emitter.value(self.sort.keys, [*self.coords, lane]))
            self.records.store_lanes(into, lane, key, frame.emitter.index.lanes_of(lane))
            mask = frame.emitter.memory.mask
            low, high = (key, key) if mask is None else (b.select(mask, key, b.splat_constant(b.i64, n)) for n in (ALL_ONES, 0))
            return [b.binary("arith.minui", carried[0], low), b.binary("arith.maxui", carried[1], high)]

        length = self.sort.length
        count = frame.emitter.sizes(length)
        static = int(length) if length.is_Integer else None
        low, high = lane_loop(frame, b.index(0), count, step, limits, static)
        low, high = (frame.emitter.horizontal(f"arith.{name}", v) for name, v in (("minui", low), ("maxui", high)))
        return _Keys(count, low, self._bits(b.sub(high, low)), b.index(0))

    def _unsigned(self, key: Value) -> Value:
        """A signed key as an unsigned one of the same order, in 64 bits."""
        b = self.frame.b
        key = b.splat(key)
        width = ir.IntegerType(key.type.element_type).width
        if width < 64:
            key = b.op("arith.extui", [key], b.vec(b.i64))
        return b.binary("arith.xori", key, b.splat_constant(b.i64, SIGN if width == 64 else 1 << (width - 1)))

    def _bits(self, number: Value) -> Value:
        b = self.frame.b
        return b.sub(b.index(64), b.op("math.ctlz", [number], b.i64))

    # -- a range of places
    def _narrowed(self, keys: _Keys) -> _Keys:
        """The keys that may come to the places that are wanted."""
        b = self.frame.b
        all_of_them = [keys.count, keys.base, keys.bits, keys.skipped]
        long = b.compare("sgt", keys.count, b.index(SHORT_ROW))
        made = b.branch(long, [b.i64] * 4, lambda: self._selected(keys), lambda: all_of_them)
        return _Keys(*made)

    def _selected(self, keys: _Keys) -> list[Value]:
        b, plane = self.frame.b, self.planes[0]
        shift = b.binary("arith.maxsi", b.sub(keys.bits, b.index(RANGE_BITS)), b.index(0))
        self._count(plane, keys, shift, 1 << RANGE_BITS)
        first, last, before = self._bounds()
        span = b.sub(last, first)
        with b.loop(b.index(0), keys.count, b.index(1), [b.index(0)]) as loop:
            record = self.records.load(plane, loop.iv)
            self.records.store(plane, loop.args[0], record)
            digit = b.sub(self._leading(record, keys, shift), first)
            kept = b.op("arith.extui", [b.compare("ule", digit, span)], b.i64)
            loop.yield_([b.add(loop.args[0], kept)])
        base = b.add(keys.base, b.binary("arith.shli", first, shift))
        width = b.sub(b.binary("arith.shli", b.add(span, b.index(1)), shift), b.index(1))
        return [loop.results[0], base, self._bits(width), before]

    def _leading(self, record: Sequence[Value], keys: _Keys, shift: Value) -> Value:
        b = self.frame.b
        return b.binary("arith.shrui", b.sub(self.records.key(record), keys.base), shift)

    def _bounds(self) -> tuple[Value, Value, Value]:
        """The digits of the first and the last place that is wanted, and how many keys lie before the first digit."""
        b, size = self.frame.b, self.frame.emitter.sizes
        start, count = self.sort.range
        low, high = size(start), size(sympy.expand(start + count))
        zero = b.index(0)
        with b.loop(zero, b.index(1 << RANGE_BITS), b.index(1), [zero, zero, zero, zero]) as loop:
            before, first, last, skipped = loop.args
            after = b.add(before, b.load(self._counter(loop.iv), b.i64, 8))
            first = b.select(b.compare("sle", before, low), loop.iv, first)
            skipped = b.select(b.compare("sle", before, low), before, skipped)
            last = b.select(b.compare("slt", before, high), loop.iv, last)
            loop.yield_([after, first, last, skipped])
        _, first, last, skipped = loop.results
        return first, last, skipped

    # -- putting in order
    def _ranked(self, keys: _Keys) -> Value:
        """Each record goes to the place whose number is how many come before it."""
        b, (source, target) = self.frame.b, self.planes
        self.records.pad(source, keys.count)
        lanes = b.index(b.lanes)
        with b.loop(b.index(0), keys.count, b.index(1)) as each:
            record = self.records.load(source, each.iv)
            with b.loop(b.index(0), keys.count, lanes, [b.splat_constant(b.i64, 0)]) as loop:
                before = self.records.come_before(source, loop.iv, record, each.iv)
                counted = b.op("arith.extui", [before], b.vec(b.i64))
                loop.yield_([b.binary("arith.addi", loop.args[0], counted)])
            place = b.op("vector.reduction", [loop.results[0]], b.i64, kind=ir.Attribute.parse("#vector.kind<add>"))
            self.records.store(target, place, record)
        return target

    def _by_digits(self, keys: _Keys) -> Value:
        """A radix sort from the lowest digit up; the plane that holds the result."""
        b = self.frame.b
        with b.loop(b.index(0), keys.bits, b.index(DIGIT_BITS), list(self.planes)) as each:
            source, target = each.args
            self._count(source, keys, each.iv, 1 << DIGIT_BITS)
            with b.loop(b.index(0), b.index(1 << DIGIT_BITS), b.index(1), [b.index(0)]) as loop:
                counter = self._counter(loop.iv)
                after = b.add(loop.args[0], b.load(counter, b.i64, 8))
                b.store(loop.args[0], counter, 8)
                loop.yield_([after])
            with b.loop(b.index(0), keys.count, b.index(1)) as loop:
                record = self.records.load(source, loop.iv)
                counter = self._counter(self._digit(record, keys, each.iv, 1 << DIGIT_BITS))
                place = b.load(counter, b.i64, 8)
                b.store(b.add(place, b.index(1)), counter, 8)
                self.records.store(target, place, record)
            each.yield_([target, source])
        return each.results[0]

    def _count(self, source: Value, keys: _Keys, shift: Value, num_digits: int) -> None:
        """The histogram of a digit."""
        b = self.frame.b
        with b.loop(b.index(0), b.index(num_digits), b.index(b.lanes)) as loop:
            b.store(b.splat_constant(b.i64, 0), self._counter(loop.iv), 8)
        with b.loop(b.index(0), keys.count, b.index(1)) as loop:
            counter = self._counter(self._digit(self.records.load(source, loop.iv), keys, shift, num_digits))
            b.store(b.add(b.load(counter, b.i64, 8), b.index(1)), counter, 8)

    def _digit(self, record: Sequence[Value], keys: _Keys, shift: Value, num_digits: int) -> Value:
        return self.frame.b.binary("arith.andi", self._leading(record, keys, shift), self.frame.b.index(num_digits - 1))

    def _counter(self, digit: Value) -> Value:
        return self.frame.b.address(self.frame.scratch, digit, self.frame.b.i64)

    # -- writing
    def _write(self, placed: Value, keys: _Keys) -> None:
        """The wanted places of every result, each payload read at the place that its key came from."""
        frame, b, ev = self.frame, self.frame.b, self.frame.emitter
        start, count = self.sort.range
        ahead = b.sub(ev.sizes(start), keys.skipped)

        def step(lane: Coord, _: Sequence[Value]) -> list[Value]:
            assert isinstance(lane, Lane)
            place = self.records.places(placed, b.add(lane.base, ahead))
            for result, buffer in zip(ev.dispatch.results, frame.outputs, strict=True):
                value = ev.value(self.sort.source_of(result), [*self.coords, place])
                ev.memory.store(value, buffer, [*self.coords, lane])
            return []

        static = int(count) if count.is_Integer else None
        lane_loop(frame, b.index(0), ev.sizes(count), step, [], static)
