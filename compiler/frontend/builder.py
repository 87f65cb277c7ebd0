"""Builder of the linalg stage: tensors with symbolic sizes, and the few structured ops that lowerings use.

Transposes, broadcasts, squeezes and unsqueezes are views: they change how a `Tensor` reads its value and emit nothing. The next op reads
through its indexing map. So a linear layer on [batch, tokens, K] is one contraction over (batch, tokens, n, k) with no reshape around it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import sympy
import torch

from llmos.compiler.frontend.dims import Dim, IndexValues, Shape, Sizes
from llmos.compiler.frontend.scalars import Number, Scalar, compute_dtype, constant, element_type
from llmos.compiler.frontend.symbolic_scalars import SymbolicScalar
from llmos.compiler.ir.attributes import COMPUTES
from llmos.compiler.ir.bindings import arith, ir, linalg, tensor

DYNAMIC = ir.ShapedType.get_dynamic_size()


@dataclass(frozen=True)
class Splat:
    """Every element equals `value`."""

    value: Number


@dataclass(frozen=True)
class Iota:
    """Element i along `axis` is `start + i * step`, independent of the other coordinates."""

    axis: int
    start: int
    step: int


@dataclass(frozen=True)
class Tensor:
    """A tensor of the program: an SSA value read through a view.

    `axes[j]` is the dimension of `shape` that dimension j of the value maps to; None for a dimension of size 1 that `shape` lacks.
    A dimension of `shape` that is in no axis is a broadcast one (or of size 1). `fact` is what is known of the elements at compile time.
    """

    value: ir.Value
    shape: Shape
    dtype: torch.dtype
    axes: tuple[int | None, ...]
    fact: Splat | Iota | None = None

    @property
    def rank(self) -> int:
        """Return the number of dimensions."""
        return len(self.shape)

    @property
    def is_dense(self) -> bool:
        """Whether the value is read as it lies, without a transpose, a broadcast or a dropped dimension."""
        return self.axes == tuple(range(self.rank))


@dataclass(frozen=True)
class Meta:
    """Shape and dtype of a result, from torch's metadata."""

    shape: Shape
    dtype: torch.dtype


Body = Callable[..., Scalar]


def affine_dim(position: int) -> ir.AffineExpr:
    """Return loop dim `position` as an index expression."""
    return ir.AffineExpr.get_dim(position)


class Builder:
    """Emits ops at the current insertion point of one function."""

    def __init__(self, sizes: Sizes, indices: IndexValues) -> None:
        self.sizes = sizes
        self._indices = indices

    # Types and sizes

    def type(self, shape: Shape, dtype: torch.dtype) -> ir.RankedTensorType:
        """Return the tensor type of a shape, with dynamic dims for symbolic sizes. Raises UnsupportedError for an unsupported dtype."""
        return ir.RankedTensorType.get([dim if isinstance(dim, int) else DYNAMIC for dim in shape], element_type(dtype))

    def index(self, dim: Dim) -> ir.Value:
        """Return a size as an index value. Raises UnsupportedError for one that depends on data not yet read."""
        return self._indices.value(dim)

    def number(self, dim: Dim) -> int | SymbolicScalar:
        """Return a size as a numeric operand of an op: an int, or an int64 SymbolicScalar."""
        return dim if isinstance(dim, int) else SymbolicScalar(dim, torch.int64, self.index)

    def computed_size(self, dim: Dim | None, count: Tensor, bound: Dim, is_exact: bool = False) -> sympy.Symbol:
        """Define the number in `count` (int64, rank 0) as a size of the program, at most `bound`. `dim` is torch's name for it, if any.

        The program checks the number where it reads it, so later sizes may rely on it. A negative number is never a size, so an op may
        return one for invalid data. `is_exact`: as in `Sizes.define`.
        """
        symbol = self.sizes.define(dim, bound, is_exact)
        read = tensor.ExtractOp(self.dense(count).value, [])
        read.operation.attributes[COMPUTES] = ir.StringAttr.get(symbol.name)
        value = arith.index_cast(ir.IndexType.get(), read.result)
        self._indices.define(symbol, value, arith.ConstantOp(ir.IndexType.get(), 0).operation)
        return symbol

    def renamed(self, x: Tensor, shape: Shape) -> Tensor:
        """Return `x` with the sizes of `shape`, which a check of the program has made equal to its own."""
        dense, kind = self.dense(x), self.type(shape, x.dtype)
        value = dense.value if dense.value.type == kind else tensor.CastOp(kind, dense.value).result
        return self.dense_tensor(value, shape, x.dtype)

    def dynamic(self, shape: Shape) -> list[ir.Value]:
        """Return the index values of the dynamic sizes of a shape."""
        return [self.index(dim) for dim in shape if not isinstance(dim, int)]

    def same(self, a: Shape, b: Shape) -> bool:
        """Whether two shapes are equal for every value of the symbols."""
        return len(a) == len(b) and all(self.sizes.equal(x, y) for x, y in zip(a, b, strict=True))

    def dense_tensor(self, value: ir.Value, shape: Shape, dtype: torch.dtype) -> Tensor:
        """Return a value as a tensor without a view."""
        return Tensor(value, shape, dtype, tuple(range(len(shape))))

    # Structured ops

    def empty(self, shape: Shape, dtype: torch.dtype) -> ir.Value:
        """Emit a tensor.empty, a destination whose elements are undefined."""
        return tensor.EmptyOp([dim if isinstance(dim, int) else self.index(dim) for dim in shape], element_type(dtype)).result

    def fill(self, shape: Shape, dtype: torch.dtype, value: Number) -> ir.Value:
        """Emit a tensor of one number in every element."""
        return self._fill(constant(value, dtype), self.empty(shape, dtype))

    def _fill(self, scalar: Scalar, into: ir.Value) -> ir.Value:
        op = linalg.FillOp([into.type], [scalar.value], [into])
        block = op.regions[0].blocks.append(scalar.value.type, scalar.value.type)
        with ir.InsertionPoint(block):
            linalg.YieldOp([block.arguments[0]])
        return op.results[0]

    def generic(
        self,
        inputs: Sequence[tuple[Tensor, Sequence[ir.AffineExpr]]],
        outputs: Sequence[tuple[ir.Value, torch.dtype, Sequence[ir.AffineExpr]]],
        iterators: Sequence[str],
        body: Callable[..., Sequence[Scalar]],
    ) -> list[ir.Value]:
        """Emit a linalg.generic. Each operand comes with its index expressions over the loops; `body` gets a Scalar per operand.

        `iterators` holds "parallel" or "reduction" for each loop. Return one value for each output.
        """
        loops = len(iterators)
        maps = [ir.AffineMap.get(loops, 0, list(exprs)) for _, exprs in inputs]
        maps += [ir.AffineMap.get(loops, 0, list(exprs)) for _, _, exprs in outputs]
        op = linalg.GenericOp(
            [value.type for value, _, _ in outputs],
            [source.value for source, _ in inputs],
            [value for value, _, _ in outputs],
            ir.ArrayAttr.get([ir.AffineMapAttr.get(each) for each in maps]),
            ir.ArrayAttr.get([ir.Attribute.parse(f"#linalg.iterator_type<{kind}>") for kind in iterators]),
        )
        dtypes = [source.dtype for source, _ in inputs] + [dtype for _, dtype, _ in outputs]
        block = op.regions[0].blocks.append(*[element_type(dtype) for dtype in dtypes])
        with ir.InsertionPoint(block):
            results = body(*[Scalar(value, dtype) for value, dtype in zip(block.arguments, dtypes, strict=True)])
            linalg.YieldOp([result.value for result in results])
        return list(op.results)

    def reads(self, x: Tensor, shape: Shape, loops: Sequence[ir.AffineExpr] | None = None) -> list[ir.AffineExpr]:
        """Return index expressions that read `x`, broadcast to `shape`, at the expressions `loops` (one for each dimension of `shape`)."""
        loops = loops if loops is not None else [affine_dim(i) for i in range(len(shape))]
        offset = len(shape) - x.rank
        exprs = []
        for axis in x.axes:
            if axis is None or (x.shape[axis] == 1 and shape[axis + offset] != 1):
                exprs.append(ir.AffineExpr.get_constant(0))
            else:
                exprs.append(loops[axis + offset])
        return exprs

    def elementwise(self, body: Body, inputs: Sequence[Tensor], dtype: torch.dtype, shape: Shape | None = None) -> Tensor:
        """Emit one parallel op over the broadcast shape of its inputs. `body` computes in their dtypes; its result is cast to `dtype`."""
        shape = shape if shape is not None else self.broadcast_shape([x.shape for x in inputs])
        identity = [affine_dim(i) for i in range(len(shape))]
        (value,) = self.generic(
            [(x, self.reads(x, shape)) for x in inputs],
            [(self.empty(shape, dtype), dtype, identity)],
            ["parallel"] * len(shape),
            lambda *scalars: [body(*scalars[:-1]).to(dtype)],
        )
        return self.dense_tensor(value, shape, dtype)

    def broadcast_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Return the shape to which all shapes broadcast, aligned at the last dimension."""
        rank = max((len(shape) for shape in shapes), default=0)
        padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
        return tuple(self._broadcast_dim([shape[i] for shape in padded]) for i in range(rank))

    @staticmethod
    def _broadcast_dim(dims: Sequence[Dim]) -> Dim:
        wide = [dim for dim in dims if dim != 1]
        static = [dim for dim in wide if isinstance(dim, int)]
        return static[0] if static else wide[0] if wide else 1

    def _reduce_units(
        self, x: Tensor, dims: Sequence[int], init: Number | None, combine: Body, dtype: torch.dtype, keepdim: bool
    ) -> Tensor:
        """Reduce over dimensions of size 1: combine each element with `init` and drop the dimensions."""
        if init is not None:
            x = self.elementwise(lambda s: combine(s.to(dtype), constant(init, dtype)), [x], dtype)
        if not keepdim:
            for position in sorted(dims, reverse=True):
                x = self.squeeze(x, position)
        return x

    def reduce(self, x: Tensor, dims: Sequence[int], init: Number, combine: Body, dtype: torch.dtype, keepdim: bool) -> Tensor:
        """Reduce over `dims` by `combine(element, accumulator)`, elements cast to `dtype`, from `init`.

        A kept dimension has size 1 and is a view, not stored.
        """
        wide = [i for i in dims if x.shape[i] != 1]
        if not wide:
            return self._reduce_units(x, dims, init, combine, dtype, keepdim)
        if len(wide) < len(dims):
            return self._reduce_units(self.reduce(x, wide, init, combine, dtype, True), dims, None, combine, dtype, keepdim)
        kept = [i for i in range(x.rank) if i not in dims]
        shape = tuple(x.shape[i] for i in kept)
        (value,) = self.generic(
            [(x, self.reads(x, x.shape))] + self._loop_bounds(x, dims),
            [(self.fill(shape, dtype, init), dtype, [affine_dim(i) for i in kept])],
            ["reduction" if i in dims else "parallel" for i in range(x.rank)],
            lambda *scalars: [combine(scalars[0].to(dtype), scalars[-1])],
        )
        if not keepdim:
            return self.dense_tensor(value, shape, dtype)
        return Tensor(value, tuple(1 if i in dims else x.shape[i] for i in range(x.rank)), dtype, tuple(kept))

    def _loop_bounds(self, x: Tensor, dims: Sequence[int]) -> list[tuple[Tensor, list[ir.AffineExpr]]]:
        """Return a shape-only operand for reduced dimensions that `x` doesn't store (broadcast ones), so that every loop has a bound."""
        hidden = [i for i in dims if i not in x.axes or self._stored_as_one(x, i)]
        if not hidden:
            return []
        shape = tuple(x.shape[i] for i in hidden)
        return [(self.dense_tensor(self.empty(shape, x.dtype), shape, x.dtype), [affine_dim(i) for i in hidden])]

    @staticmethod
    def _stored_as_one(x: Tensor, dim: int) -> bool:
        return x.shape[dim] != 1 and x.value.type.shape[x.axes.index(dim)] == 1

    # Values

    def full(self, shape: Shape, dtype: torch.dtype, value: Number) -> Tensor:
        """Make a splat constant: one stored element, broadcast."""
        held = bool(value) if dtype == torch.bool else float(value) if dtype.is_floating_point else int(value)
        return Tensor(self.fill((), dtype, held), shape, dtype, (), Splat(held))

    def dense(self, x: Tensor) -> Tensor:
        """Materialize a tensor row-major, without a view; one without a view is returned as it is."""
        if x.is_dense:
            return x
        if isinstance(x.fact, Splat):
            return replace(self.dense_tensor(self.fill(x.shape, x.dtype, x.fact.value), x.shape, x.dtype), fact=x.fact)
        stored_in_order = [axis for axis in x.axes if axis is not None]
        missing_are_one = all(x.shape[i] == 1 for i in range(x.rank) if i not in stored_in_order)
        if missing_are_one and stored_in_order == sorted(stored_in_order):
            return replace(self.reshape_value(x.value, self._stored_shape(x), x.shape, x.dtype), fact=x.fact)
        return replace(self.copy(x), fact=x.fact)

    def copy(self, x: Tensor) -> Tensor:
        """Emit a copy of the elements, row-major with memory of its own."""
        return self.elementwise(lambda s: s, [x], x.dtype, x.shape)

    def _stored_shape(self, x: Tensor) -> Shape:
        return tuple(1 if axis is None else x.shape[axis] for axis in x.axes)

    def cast(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Convert `x` to another dtype and keep the view."""
        if x.dtype == dtype:
            return x
        stored = self.dense_tensor(x.value, self._stored_shape(x), x.dtype)
        value = self.elementwise(lambda s: s.to(dtype), [stored], dtype, stored.shape).value
        return Tensor(value, x.shape, dtype, x.axes, _cast_fact(x.fact, dtype))

    # Views

    def permute(self, x: Tensor, order: Sequence[int]) -> Tensor:
        """Transpose as a view: dimension i of the result is dimension order[i] of `x`."""
        new = {old: position for position, old in enumerate(order)}
        axes = tuple(None if axis is None else new[axis] for axis in x.axes)
        fact = replace(x.fact, axis=new[x.fact.axis]) if isinstance(x.fact, Iota) else x.fact
        return Tensor(x.value, tuple(x.shape[i] for i in order), x.dtype, axes, fact)

    def unsqueeze(self, x: Tensor, position: int) -> Tensor:
        """Insert a dimension of size 1 at `position`, as a view."""
        moved = [axis if axis is None or axis < position else axis + 1 for axis in x.axes]
        fact = x.fact
        if isinstance(fact, Iota) and fact.axis >= position:
            fact = replace(fact, axis=fact.axis + 1)
        return Tensor(x.value, x.shape[:position] + (1,) + x.shape[position:], x.dtype, tuple(moved), fact)

    def squeeze(self, x: Tensor, position: int) -> Tensor:
        """Drop dimension `position`, which has size 1, as a view."""
        axes = tuple(None if a is None or a == position else a - (a > position) for a in x.axes)
        fact = x.fact
        if isinstance(fact, Iota):
            fact = Splat(fact.start) if fact.axis == position else replace(fact, axis=fact.axis - (fact.axis > position))
        return Tensor(x.value, x.shape[:position] + x.shape[position + 1 :], x.dtype, axes, fact)

    def expand(self, x: Tensor, shape: Shape) -> Tensor:
        """Broadcast `x` to `shape`, aligned at the last dimension, as a view."""
        offset = len(shape) - x.rank
        axes: list[int | None] = []
        for axis in x.axes:
            extended = axis is None or (x.shape[axis] == 1 and shape[axis + offset] != 1)
            axes.append(None if extended else axis + offset)  # type: ignore[operator]
        fact = replace(x.fact, axis=x.fact.axis + offset) if isinstance(x.fact, Iota) else x.fact
        return Tensor(x.value, shape, x.dtype, tuple(axes), fact)

    # Reshapes

    def reshape(self, x: Tensor, shape: Shape) -> Tensor:
        """Reshape `x` to another shape with as many elements, in row-major order."""
        if self.same(x.shape, shape):
            return replace(x, shape=shape)
        if isinstance(x.fact, Splat):
            return replace(self.full(shape, x.dtype, x.fact.value), value=self._splat_value(x))
        if (view := self._as_unit_dims(x, shape)) is not None:
            return view
        dense = self.dense(x)
        return self.reshape_value(dense.value, x.shape, shape, x.dtype)

    def _splat_value(self, x: Tensor) -> ir.Value:
        assert isinstance(x.fact, Splat)
        return x.value if not x.axes else self.fill((), x.dtype, x.fact.value)

    def _as_unit_dims(self, x: Tensor, shape: Shape) -> Tensor | None:
        """Return a view if the reshape only adds and drops dimensions of size 1, else None."""
        if not self.same(tuple(d for d in x.shape if d != 1), tuple(d for d in shape if d != 1)):
            return None
        for position in reversed(range(x.rank)):
            if x.shape[position] == 1:
                x = self.squeeze(x, position)
        for position, dim in enumerate(shape):
            if dim == 1:
                x = self.unsqueeze(x, position)
        return replace(x, shape=shape)

    def reshape_value(self, value: ir.Value, old: Shape, new: Shape, dtype: torch.dtype) -> Tensor:
        """Reshape a dense value: collapse to the finest shape that both `old` and `new` collapse to, then expand."""
        if self.sizes.product(new) == 0:
            return self.dense_tensor(self.empty(new, dtype), new, dtype)
        groups = self._common_groups(old, new)
        middle = tuple(self.sizes.product([old[i] for i in source]) for source, _ in groups)
        collapsed = self._collapse(value, old, [source for source, _ in groups], middle, dtype)
        return self.dense_tensor(self._expand_groups(collapsed, [target for _, target in groups], middle, new, dtype), new, dtype)

    def _collapse(self, value: ir.Value, old: Shape, groups: list[list[int]], middle: Shape, dtype: torch.dtype) -> ir.Value:
        if len(old) == len(middle):
            return value
        return tensor.CollapseShapeOp(self.type(middle, dtype), value, _reassociation(groups)).result

    def _expand_groups(self, value: ir.Value, groups: list[list[int]], middle: Shape, new: Shape, dtype: torch.dtype) -> ir.Value:
        if len(new) == len(middle):
            return value
        static = [dim if isinstance(dim, int) else DYNAMIC for dim in new]
        return tensor.ExpandShapeOp(self.type(new, dtype), value, _reassociation(groups), self.dynamic(new), static).result

    def _common_groups(self, old: Shape, new: Shape) -> list[tuple[list[int], list[int]]]:
        """Group the dimensions of both shapes into the finest runs with equal products; no groups if one shape has rank 0."""
        if not old or not new:
            return []
        cuts = self._cuts(old, new)
        pairs = zip([(0, 0), *cuts[:-1]], cuts, strict=True)
        return [(list(range(i0, i1)), list(range(j0, j1))) for (i0, j0), (i1, j1) in pairs]

    def _cuts(self, old: Shape, new: Shape) -> list[tuple[int, int]]:
        products = [self.sizes.product(new[:j]) for j in range(len(new) + 1)]
        cuts: list[tuple[int, int]] = []
        j = 1
        for i in range(1, len(old)):
            reached = self.sizes.product(old[:i])
            found = next((k for k in range(j, len(new)) if self.sizes.equal(products[k], reached)), None)
            if found is not None:
                cuts.append((i, found))
                j = found + 1
        return [*cuts, (len(old), len(new))]


def _reassociation(groups: Sequence[Sequence[int]]) -> ir.ArrayAttr:
    i64 = ir.IntegerType.get_signless(64)
    return ir.ArrayAttr.get([ir.ArrayAttr.get([ir.IntegerAttr.get(i64, i) for i in group]) for group in groups])


def _cast_fact(fact: Splat | Iota | None, dtype: torch.dtype) -> Splat | Iota | None:
    if isinstance(fact, Splat):
        return Splat(bool(fact.value) if dtype == torch.bool else float(fact.value) if dtype.is_floating_point else int(fact.value))
    return fact if dtype in (torch.int64, torch.int32) else None


__all__ = ["Builder", "Iota", "Meta", "Splat", "Tensor", "affine_dim", "compute_dtype"]
