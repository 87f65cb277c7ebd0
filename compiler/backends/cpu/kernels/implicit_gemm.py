"""Rows of a contraction read where they lie, though they are not evenly spaced: the windows of a convolution, channels last.

A row of a convolution's left side is a window of pixels. Nothing gathers it: for each place of the kernel (a tap) every row of a block
has a pointer to the pixel's channels, and the inner loop runs over these with the accumulators in registers (Dukhan, "The Indirect
Convolution Algorithm", 2019; here the pointers are computed, not read from a table). A tap that falls on the zeros around the image
points to a row of zeros (of zero points, where elements are bytes). Strides, dilation, groups and any number of spatial dims are
coefficients of linear forms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import sympy

from llmos.compiler.analysis.contraction import Contraction
from llmos.compiler.analysis.generic import compose, padded_source, padding_number
from llmos.compiler.backends.cpu.arithmetic.base import Arithmetic
from llmos.compiler.backends.cpu.arithmetic.register_tile import Run
from llmos.compiler.codegen.builder import Builder, Value, byte_width, is_vector
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.evaluate import ValueEmitter
from llmos.compiler.codegen.kernel import product, split_index
from llmos.compiler.codegen.memory import Buffer
from llmos.compiler.codegen.sums import BLOCK, block_level, loop_over_blocks, with_rests
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.shapes import pad_parameters
from llmos.compiler.ir.sizes import Expr

Coefficients = dict[int, int]  # coefficient of each loop dim


@dataclass(frozen=True)
class PaddedAxis:
    """An axis with zeros around it: coordinate form - low is inside where it is in [0, size)."""

    form: Coefficients
    low: Expr
    size: Expr


@dataclass(frozen=True)
class Windows:
    """How rows lie in the buffer `source`, in loop dims of the contraction. Offsets in elements."""

    source: Value
    strides: dict[int, Expr]  # offset that a step of each loop dim makes
    origin: Expr  # offset of the point where all dims are 0; negative where zeros lie before it
    padded: tuple[PaddedAxis, ...]
    taps: tuple[int, ...]  # k dims walked outside of a run, outermost first
    run: Expr  # neighboring elements of one run
    padding: float | int  # around the image

    @property
    def kind(self) -> ir.Type:
        """Return the type of an element."""
        return self.source.type.element_type

    @property
    def is_exact(self) -> bool:
        """Whether sums are of integers, which need no blocks."""
        return isinstance(self.kind, ir.IntegerType)


def windows_of(dispatch: Dispatch, root: Contraction, left: Value, sizes: Sequence[Expr], arithmetic: Arithmetic) -> Windows | None:
    """How to read the left side in place, or None where a prologue, a padding other than of a number or a transposition forbids it.

    Runs are of whole words of the arithmetic's panels.
    """
    source, pad = padded_source(left)
    if not isinstance(source.owner, ir.Block) or source.type.element_type != arithmetic.left_type:
        return None
    identity = [{dim: 1} for dim in range(root.generic.rank)]
    forms = [compose(expr, identity) for expr in root.lhs_map.results]
    if any(form is None for form in forms):
        return None
    linear = [{dim: by for dim, by in (form or {}).items() if by and sizes[dim] != 1} for form in forms]
    shape = dispatch.shapes.shape(source)
    low, high = pad_parameters(dispatch.shapes, pad) if pad is not None else ([sympy.S.Zero] * len(shape),) * 2
    buffer = Buffer.dense(source, source.type.element_type, shape)
    padded = tuple(
        PaddedAxis(form, before, size)
        for form, before, after, size in zip(linear, low, high, shape, strict=True)
        if (before, after) != (0, 0)
    )
    strides: dict[int, Expr] = {}
    for form, stride in zip(linear, buffer.strides, strict=True):
        for dim, by in form.items():
            strides[dim] = sympy.expand(strides.get(dim, sympy.S.Zero) + by * stride)
    origin = sympy.expand(-sum((a * b for a, b in zip(low, buffer.strides, strict=True)), sympy.S.Zero))
    dims = [dim for dim in root.k if sizes[dim] != 1]
    run = _run(dims, strides, sizes, {dim for axis in padded for dim in axis.form})
    if run is None:
        return None
    taps, length = tuple(dims[: len(dims) - run]), product([sizes[dim] for dim in dims[len(dims) - run :]])
    if arithmetic.k_per_word > 1 and not (length.is_Integer and int(length) % arithmetic.k_per_word == 0):
        return None
    number = padding_number(pad) if pad is not None else None
    return Windows(source, strides, origin, padded, taps, length, number or 0)


def _run(dims: Sequence[int], strides: dict[int, Expr], sizes: Sequence[Expr], bounded: set[int]) -> int | None:
    """How many of the innermost k dims lie one after the other; None where not even the last one does."""
    count, step = 0, sympy.S.One
    for dim in reversed(dims):
        if dim in bounded or strides.get(dim) != step:
            break
        count, step = count + 1, sympy.expand(step * sizes[dim])
    return count or None


@dataclass(frozen=True)
class WindowReader:
    """The rows of one tile, emitted into one kernel. `rows`: the real m dims, outermost first; `point`: coordinates of the batch dims."""

    ev: ValueEmitter
    windows: Windows
    sizes: Sequence[Expr]
    rows: tuple[int, ...]
    point: dict[int, Value]
    zeros: Value  # pointer to a run of zeros, or of what else is around the image

    def block(self, row: Value, num_rows: int) -> WindowBlock:
        """Emit the rows from `row` on, as an operand of the register tile."""
        b, size = self.ev.b, self.ev.sizes
        extents = [size(self.sizes[dim]) for dim in self.rows]
        coords = split_index(b, size, row, [self.sizes[dim] for dim in self.rows])
        offsets: list[Value] = []
        places: list[list[Value]] = []
        for r in range(num_rows):
            if r:
                coords = _next(b, coords, extents)
            at = {**self.point, **dict(zip(self.rows, coords, strict=True))}
            offsets.append(self._sum(at, self.windows.strides, self.windows.origin))
            places.append([self._sum(at, axis.form, -axis.low) for axis in self.windows.padded])
        base = self.ev.buffers[self.windows.source].pointer
        if not self.windows.padded:
            return WindowBlock(self, [b.address(base, offset, self.windows.kind) for offset in offsets], None, [])
        by_axis = [_pack(b, [place[i] for place in places]) for i in range(len(self.windows.padded))]
        return WindowBlock(self, [base], _pack(b, offsets), by_axis)

    def _sum(self, at: dict[int, Value], by: dict[int, Expr] | Coefficients, start: Expr) -> Value:
        b, size = self.ev.b, self.ev.sizes
        total = size(sympy.sympify(start))
        for dim, step in by.items():
            if dim in at:
                total = b.add(total, b.mul(at[dim], size(sympy.sympify(step))))
        return total

    def tap(self, at: dict[int, Value]) -> tuple[Value, list[Value]]:
        """Emit what a tap adds to the offset of a row, in elements, and to its place on each padded axis."""
        offset = self._sum(at, self.windows.strides, sympy.S.Zero)
        return offset, [self._sum(at, axis.form, sympy.S.Zero) for axis in self.windows.padded]


@dataclass(frozen=True)
class _Sweep:
    """What is done in each run, and the loop over taps (the last: over a run) whose iterations end blocks of the sums, so many in each."""

    run: Run
    level: int | None
    block: int


@dataclass(frozen=True)
class WindowBlock:
    """Some rows of a tile as an operand of the register tile. Without padding: a pointer a row. With: offsets and places as vectors."""

    reader: WindowReader
    pointers: list[Value]
    offsets: Value | None
    places: list[Value] = field(default_factory=list)

    @property
    def k_stride(self) -> Value:
        """Return the elements between neighboring k of a run: 1."""
        return self.reader.ev.b.index(1)

    def sweep(self, b: Builder, num_rows: int, depth: Value, start: Sequence[Value], run: Run) -> list[Value]:
        """Emit one run a tap, in the order of k, or one for each block of a long run."""
        reader, windows = self.reader, self.reader.windows
        extents = [*(reader.sizes[dim] for dim in windows.taps), windows.run]
        blocks = None if windows.is_exact else block_level(reader.ev.dispatch.table, extents, BLOCK)
        if blocks is None:
            return self._taps(0, {}, b.index(0), start, _Sweep(run, None, 0))
        return self._taps(0, {}, b.index(0), with_rests(b, start, [True] * len(start)), _Sweep(run, *blocks))[: len(start)]

    def _taps(self, depth: int, at: dict[int, Value], flat: Value, sums: Sequence[Value], sweep: _Sweep) -> list[Value]:
        """The loops over taps from number `depth` on; `flat`: the number of the tap so far."""
        b, size, windows = self.reader.ev.b, self.reader.ev.sizes, self.reader.windows

        def walk(low: Value, high: Value, sums: Sequence[Value]) -> list[Value]:
            if depth == len(windows.taps):
                rows = self._pointers(at)
                length = b.sub(high, low)
                rows = rows if b.known(low) == 0 else [b.address(row, low, windows.kind) for row in rows]
                return sweep.run(rows, b.add(b.mul(flat, size(windows.run)), low), length, sums)
            with b.loop(low, high, b.index(1), list(sums)) as loop:
                tap = b.add(b.mul(flat, extent), loop.iv)
                loop.yield_(self._taps(depth + 1, {**at, windows.taps[depth]: loop.iv}, tap, loop.args, sweep))
            return loop.results

        extent = size(windows.run if depth == len(windows.taps) else self.reader.sizes[windows.taps[depth]])
        if depth == sweep.level:
            return loop_over_blocks(b, b.index(0), extent, sweep.block, sums, [True] * (len(sums) // 2), walk)
        return walk(b.index(0), extent, sums)

    def _pointers(self, at: dict[int, Value]) -> list[Value]:
        """Where each row's run of a tap starts; the row of zeros for one that lies outside."""
        b, windows = self.reader.ev.b, self.reader.windows
        offset, shifts = self.reader.tap(at)
        if self.offsets is None:
            return [b.address(pointer, offset, windows.kind) for pointer in self.pointers]
        base = self.pointers[0]
        inside: Value | None = None
        for place, shift, axis in zip(self.places, shifts, windows.padded, strict=True):
            within = b.compare("ult", b.binary("arith.addi", place, shift), self.reader.ev.sizes(axis.size))
            inside = within if inside is None else b.binary("arith.andi", inside, within)
        assert inside is not None
        addresses = [b.op("llvm.ptrtoint", [pointer], b.i64) for pointer in (self.reader.zeros, base)]
        chosen = b.select(inside, b.binary("arith.addi", self.offsets, offset), b.div(b.sub(*addresses), b.index(byte_width(windows.kind))))
        return [b.address(base, each, windows.kind) for each in _unpack(b, chosen)]


def _next(b: Builder, coords: Sequence[Value], extents: Sequence[Value]) -> list[Value]:
    """Row-major coordinates of the row after this one: a division less."""
    made = [b.add(coords[-1], b.index(1))] if coords else []
    for coord, extent in zip(reversed(coords[:-1]), reversed(extents[1:]), strict=True):
        wraps = b.compare("eq", made[0], extent)
        made[0] = b.select(wraps, b.index(0), made[0])
        made.insert(0, b.add(coord, b.op("arith.extui", [wraps], b.i64)))
    return made


def _pack(b: Builder, scalars: Sequence[Value]) -> Value:
    """One vector of a scalar a row."""
    if len(scalars) == 1:
        return scalars[0]
    return b.op("vector.from_elements", list(scalars), b.vec(b.i64, len(scalars)))


def _unpack(b: Builder, vector: Value) -> list[Value]:
    if not is_vector(vector):
        return [vector]
    lanes = range(vector.type.shape[0])
    return [b.op("vector.extract", [vector], b.i64, static_position=ir.DenseI64ArrayAttr.get([lane])) for lane in lanes]
