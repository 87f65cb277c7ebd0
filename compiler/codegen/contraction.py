"""Contractions: sum over k of a*b with a fused prologue on either side and a fused epilogue.

The grid is batch x row chunks x column panels, panels fastest, so that consecutive tiles share their rows. A constant right side is packed at compile
time into panels [n/48][k][48], one layout for every instruction set; another right side is packed by the tile into scratch. Rows are read in place where
they lie densely along k, otherwise (a transposition, a prologue) they are evaluated into scratch first.
"""

from __future__ import annotations

from collections.abc import Sequence

import sympy

from llmos.compiler.codegen.access import Accesses, group_dims
from llmos.compiler.codegen.builder import Value
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.evaluate import Buffer, Coord, Lane
from llmos.compiler.codegen.kernel import Launch, ceil_div, kernel, product, split_index
from llmos.compiler.codegen.packing import PANEL
from llmos.compiler.codegen.tile import Panel, Strided, TileShape, accumulate, for_row_blocks, store_tile, zeros
from llmos.compiler.ir import ir
from llmos.compiler.linalg import Contraction, Generic, contraction_of, fill_value, is_fill, reaches
from llmos.compiler.symbolic import Expr


ROW_CHUNK_BYTES = 1 << 20  # rows of one tile stay in half of a level-2 cache
MAX_ROWS = 256
ALIGN = 64
PREFETCH = 16  # rows of a packed panel between a read and the request for it: measured best of 0, 16, 32 and 64 with weights cold and warm


def contraction_in(dispatch: Dispatch) -> Contraction:
    """The root of a contraction dispatch."""
    found = [contraction_of(op.operation) for op in dispatch.block.operations]
    return next(c for c in found if c is not None)


def row_chunk(k: Expr) -> int:
    """Rows of one tile: a multiple of 8 that keeps rows x k within the cache budget."""
    if not k.is_Integer:
        return 64
    return max(16, min(MAX_ROWS, ROW_CHUNK_BYTES // (4 * max(1, int(k))) // 8 * 8))


class ContractionEmitter:
    """Emits one contraction dispatch."""

    def __init__(self, dispatch: Dispatch, shape: TileShape) -> None:
        self.dispatch, self.shape = dispatch, shape
        self.root = contraction_in(dispatch)
        self.generic = self.root.generic
        self.root_value = self.generic.op.results[0]
        self.sizes = self.generic.loop_sizes(dispatch.shapes)
        self.packed = self.is_packed(self.root.rhs)
        self.accesses = self._trace()
        self.m_groups = group_dims(self.accesses, self.sizes, self.root.m)
        self.m, self.n, self.k = (product([self.sizes[d] for d in dims]) for dims in (self.root.m, self.root.n, self.root.k))
        self.chunk = row_chunk(self.k)
        self.in_place = self._lhs_in_place()

    def is_packed(self, value: Value) -> bool:
        """Whether the right side is a weight that the compiler packed into panels."""
        if not isinstance(value.owner, ir.Block):
            return False
        position = list(self.dispatch.block.arguments).index(value)
        attributes = ir.ArrayAttr(self.dispatch.func.attributes["arg_attrs"])[position]
        return "llmos.packed" in ir.DictAttr(attributes)

    def _trace(self) -> Accesses:
        """Memory accesses by loop dims of the root."""
        accesses = Accesses(self.dispatch)
        for operand, affine in zip(self.generic.inputs, self.generic.maps, strict=False):
            if operand == self.root.rhs and self.packed:
                continue
            accesses.trace(operand, [{e.position: 1} if isinstance(e, ir.AffineDimExpr) else {} for e in affine.results])
        root_forms = [{e.position: 1} if isinstance(e, ir.AffineDimExpr) else {} for e in self.generic.maps[2].results]
        for value in self.dispatch.results:
            forms = self._forms_of(value, root_forms)
            accesses.leaves.append((self.dispatch.shapes.shape(value), list(forms)))
            if value != self.root_value:
                accesses._seen.add((self.root_value, tuple(tuple(sorted(f.items())) for f in root_forms)))
                accesses.trace(value, forms)
        return accesses

    def _forms_of(self, value: Value, root_forms: list[dict[int, int]]) -> list[dict[int, int]]:
        """Index forms of an epilogue's output in terms of the root's dims, following the maps between."""
        if value == self.root_value:
            return root_forms
        generic = Generic(value.owner.operation)
        for operand, affine in zip(generic.inputs, generic.maps, strict=False):
            if not reaches(operand, self.root_value):
                continue
            inner = self._forms_of(operand, root_forms)
            loop: list[dict[int, int]] = [{} for _ in range(generic.rank)]
            for expr, form in zip(affine.results, inner, strict=True):
                if isinstance(expr, ir.AffineDimExpr):
                    loop[expr.position] = form
            return [loop[e.position] if isinstance(e, ir.AffineDimExpr) else {} for e in generic.output_map(value).results]
        raise AssertionError("an epilogue that doesn't use the contraction")

    def _lhs_in_place(self) -> bool:
        """Rows are read where they are when the left side is a buffer, dense along one k, its m dims one index."""
        operand = self.root.lhs
        if not isinstance(operand.owner, ir.Block) or str(operand.type.element_type) != "f32":
            return False
        positions = [e.position if isinstance(e, ir.AffineDimExpr) else None for e in self.generic.maps[0].results]
        k_real = [d for d in self.root.k if self.sizes[d] != 1]
        return len(k_real) <= 1 and positions[-1] in self.root.k and len(self.m_groups) <= 1 and (not k_real or positions[-1] == k_real[0])

    # -- emission
    def emit(self, module: ir.Module) -> Launch:
        panels, chunks = ceil_div(self.n, PANEL), ceil_div(self.m, self.chunk)
        batch = [self.sizes[d] for d in self.root.batch]
        with kernel(module, self.dispatch) as frame, frame.tiles() as tile:
            self.frame, b, sizes = frame, frame.b, frame.evaluator.sizes
            *rest, panel = split_index(b, sizes, tile, [product(batch), chunks, panels])
            self.batch = split_index(b, sizes, rest[0], batch)
            low = b.mul(rest[1], b.index(self.chunk))
            high = b.minimum(b.add(low, b.index(self.chunk)), sizes(self.m))
            first = b.mul(panel, b.index(PANEL))
            self._tile(low, high, first, panel)
        return Launch(sympy.expand(product(batch) * chunks * panels), self._scratch_bytes())

    @property
    def _rows_offset(self) -> Expr:
        """Scratch holds the accumulator tile, then the evaluated rows, then the packed panel."""
        return sympy.Integer(self.shape.rows * PANEL * 4)

    @property
    def _panel_offset(self) -> Expr:
        rows = sympy.Integer(0) if self.in_place else 4 * self.chunk * (self.k + 16)
        return ceil_div(sympy.expand(self._rows_offset + rows), ALIGN) * ALIGN

    def _scratch_bytes(self) -> Expr:
        return sympy.expand(self._panel_offset + (0 if self.packed else 4 * PANEL * self.k))

    def _tile(self, low: Value, high: Value, first: Value, panel: Value) -> None:
        b, frame, sizes = self.frame.b, self.frame, self.frame.evaluator.sizes
        if self.packed:
            weight = frame.evaluator.buffers[self.root.rhs].pointer
            panel_base = b.address(weight, b.mul(panel, b.mul(sizes(self.k), b.index(PANEL))), b.f32)
        else:
            panel_base = b.address(frame.scratch, sizes(self._panel_offset), b.i8)
            self._pack_panel(panel_base, first)
        rows = self._rows(low, high)
        for_row_blocks(b, low, high, self.shape.rows, lambda row, count: self._block(rows, panel_base, row, low, first, count))

    def _rows(self, low: Value, high: Value) -> tuple[Value, Value, bool]:
        """(address of row 0 of the tile or of the tensor, row stride, whether rows count from `low`)."""
        b, ev = self.frame.b, self.frame.evaluator
        if self.in_place:
            buffer = ev.buffers[self.root.lhs]
            coords = ev.apply(self.generic.maps[0], self._loop_point(m=b.index(0)))
            base = ev.locate(buffer, coords)
            stride = self._row_stride(buffer)
            return b.address(buffer.pointer, base, b.f32), ev.sizes(stride), False  # type: ignore[arg-type]
        base_pointer = b.address(self.frame.scratch, ev.sizes(self._rows_offset), b.i8)
        stride_value = ev.sizes(sympy.expand(self.k + 16))
        with b.loop(low, high, b.index(1)) as loop, ev.scope():
            start = b.mul(b.sub(loop.iv, low), stride_value)
            target = Buffer(base_pointer, b.f32, (self.k,), (sympy.Integer(1),))
            self._evaluate_row(loop.iv, start, target)
        return base_pointer, stride_value, True

    def _row_stride(self, buffer: Buffer) -> Expr:
        if not self.m_groups:
            return sympy.Integer(0)
        last = self.m_groups[-1][-1]
        axis = [e.position if isinstance(e, ir.AffineDimExpr) else None for e in self.generic.maps[0].results].index(last)
        return buffer.strides[axis]

    def _evaluate_row(self, row: Value, start: Value, target: Buffer) -> None:
        """One row of the left side into scratch, its prologue applied."""
        b, ev = self.frame.b, self.frame.evaluator

        def point(k: Coord) -> None:
            loop = self._loop_point(m=row, k=k)
            value = ev.value(self.root.lhs, ev.apply(self.generic.maps[0], loop))
            where = Lane(b.add(start, k.base)) if isinstance(k, Lane) else b.add(start, k)
            ev.store(value, target, [where])

        self._over_lanes(self.root.k, self.k, point)

    def _over_lanes(self, dims: Sequence[int], extent: Expr, point: object) -> None:
        """Call `point` over a flat extent: by vectors if one loop dim spans it, else by scalars."""
        b, ev = self.frame.b, self.frame.evaluator
        real = [d for d in dims if self.sizes[d] != 1]
        high = ev.sizes(extent)
        if len(real) > 1:
            with b.loop(b.index(0), high, b.index(1)) as loop, ev.scope():
                point(loop.iv)  # type: ignore[operator]
            return
        width = b.index(b.lanes)
        whole = b.mul(b.div(high, width), width)
        with b.loop(b.index(0), whole, width) as loop, ev.scope():
            point(Lane(loop.iv))  # type: ignore[operator]
        if extent.is_Integer and int(extent) % b.lanes == 0:
            return
        with b.loop(whole, high, width) as loop, ev.scope(), ev.masked(b.tail_mask(b.sub(high, loop.iv))):
            point(Lane(loop.iv))  # type: ignore[operator]

    def _pack_panel(self, base: Value, first: Value) -> None:
        """48 columns of the right side into scratch as [k][48]; columns past the end are 0."""
        b, ev = self.frame.b, self.frame.evaluator
        target = Buffer(base, b.f32, (), (sympy.Integer(1),))
        flat_n = len([d for d in self.root.n if self.sizes[d] != 1]) <= 1
        with b.loop(b.index(0), ev.sizes(self.k), b.index(1)) as loop, ev.scope():
            row = b.mul(loop.iv, b.index(PANEL))
            for v in range(PANEL // b.lanes):
                column = b.add(first, b.index(v * b.lanes))
                mask = b.tail_mask(b.sub(ev.sizes(self.n), column))
                lane: Coord = Lane(column) if flat_n else ev.lanes_of(Lane(column))
                with ev.masked(mask):
                    point = self._loop_point(n=lane, k=loop.iv)
                    value = b.splat(ev.value(self.root.rhs, ev.apply(self.generic.maps[1], point)))
                    value = b.select(mask, value, b.neutral(b.f32, 0.0))
                ev.store(value, target, [Lane(b.add(row, b.index(v * b.lanes)))])

    def _loop_point(self, m: Coord | None = None, n: Coord | None = None, k: Coord | None = None) -> list[Coord]:
        """Coordinates of the root's loop dims from flat m, n, k."""
        b = self.frame.b
        point: list[Coord] = [b.index(0)] * self.generic.rank
        for dim, coord in zip(self.root.batch, self.batch, strict=True):
            point[dim] = coord
        if m is not None:
            self._spread_groups(point, self.m_groups, m)
        for dims, coord in ((self.root.n, n), (self.root.k, k)):
            if coord is not None:
                self._spread(point, dims, coord)
        return point

    def _spread_groups(self, point: list[Coord], groups: list[list[int]], flat: Coord) -> None:
        extents = [product([self.sizes[d] for d in group]) for group in groups]
        if len(groups) == 1:
            point[groups[0][-1]] = flat
        elif groups:
            for group, coord in zip(groups, split_index(self.frame.b, self.frame.evaluator.sizes, flat, extents), strict=True):  # type: ignore[arg-type]
                point[group[-1]] = coord

    def _spread(self, point: list[Coord], dims: Sequence[int], flat: Coord) -> None:
        real = [d for d in dims if self.sizes[d] != 1]
        if len(real) == 1:
            point[real[0]] = flat
        elif real:
            value = self.frame.evaluator.lanes_of(flat)
            for dim, coord in zip(real, self._split_lanes(value, [self.sizes[d] for d in real]), strict=True):
                point[dim] = coord

    def _split_lanes(self, flat: Value, extents: Sequence[Expr]) -> list[Value]:
        b, coords = self.frame.b, []
        for extent in reversed(extents[1:]):
            size = self.frame.evaluator.sizes(extent)
            coords.insert(0, b.binary("arith.remsi", flat, size))
            flat = b.binary("arith.divsi", flat, size)
        return [flat, *coords]

    def _block(self, rows: tuple[Value, Value, bool], panel: Value, row: Value, low: Value, first: Value, count: int) -> None:
        """`count` rows by one panel: accumulate in registers, then the epilogue from an L1 tile."""
        b, shape = self.frame.b, self.shape
        base, stride, relative = rows
        start = b.sub(row, low) if relative else row
        lhs = Strided(b.address(base, b.mul(start, stride), b.f32), stride, b.index(1))
        part = TileShape(min(count, shape.rows), shape.vectors, shape.lanes)
        depth = self.frame.evaluator.sizes(self.k)
        for column in range(0, PANEL, shape.columns):
            right = Panel(
                b.address(panel, b.index(column), b.f32), b.index(PANEL), min(ALIGN, shape.lanes * 4), PREFETCH if self.packed else 0
            )
            made = accumulate(b, part, lhs, right, depth, zeros(b, part))
            store_tile(b, part, made, b.address(self.frame.scratch, b.index(column), b.f32), PANEL)
        self._epilogue(row, first, count)

    def _epilogue(self, row: Value, first: Value, count: int) -> None:
        b, ev = self.frame.b, self.frame.evaluator
        with b.loop(b.index(0), b.index(count), b.index(1)) as loop, ev.scope():
            m = b.add(row, loop.iv)
            at = b.mul(loop.iv, b.index(PANEL))
            if self.n.is_Integer and int(self.n) % PANEL == 0:
                self._columns(m, at, first, masked=False)
                return
            whole = b.compare("sle", b.add(first, b.index(PANEL)), ev.sizes(self.n))
            with b.when(whole), ev.scope():
                self._columns(m, at, first, masked=False)
            partial = b.compare("sgt", b.add(first, b.index(PANEL)), ev.sizes(self.n))
            with b.when(partial), ev.scope():
                self._columns(m, at, first, masked=True)

    def _columns(self, m: Value, at: Value, first: Value, masked: bool) -> None:
        """One row of the tile through the epilogue to memory."""
        b, ev = self.frame.b, self.frame.evaluator
        with b.loop(b.index(0), b.index(PANEL), b.index(b.lanes)) as loop, ev.scope():
            n = b.add(first, loop.iv)
            mask = b.tail_mask(b.sub(ev.sizes(self.n), n)) if masked else None
            with ev.masked(mask):
                total = b.load(b.address(self.frame.scratch, b.add(at, loop.iv), b.f32), b.vec(b.f32), 64)
                point = self._loop_point(m=m, n=Lane(n))
                self._finish(total, point)

    def _finish(self, total: Value, point: list[Coord]) -> None:
        ev = self.frame.evaluator
        root_coords = ev.apply(self.generic.maps[2], point)
        init = ev.value(self.generic.inits[0], root_coords)
        if not self._is_zero(self.generic.inits[0]):
            total = self.frame.b.binary("arith.addf", self.frame.b.splat(init), total)
        ev.bound[self.root_value] = lambda _, total=total: total
        for value, buffer in zip(self.dispatch.results, self.frame.outputs, strict=True):
            coords = ev.result_coords(value, self.root_value, root_coords)
            ev.store(ev.value(value, coords), buffer, coords)
        del ev.bound[self.root_value]

    def _is_zero(self, init: Value) -> bool:
        owner = init.owner
        if isinstance(owner, ir.Block) or not is_fill(owner.operation):
            return False
        scalar = fill_value(owner.operation)
        source = scalar.owner if scalar is not None else None
        return (
            source is not None
            and not isinstance(source, ir.Block)
            and source.name == "arith.constant"
            and ir.FloatAttr(source.attributes["value"]).value == 0.0
        )


def emit_contraction(module: ir.Module, dispatch: Dispatch, shape: TileShape) -> Launch:
    """Append the kernel of a `contraction` dispatch."""
    return ContractionEmitter(dispatch, shape).emit(module)
