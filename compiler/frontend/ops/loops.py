"""Ops expressed as loops over single elements: factorizations, orders, recurrences of data-dependent length.

`Loops` builds nested `scf.for` whose body reads and writes elements of named arrays, which every loop carries, so that a body reads like C.
Such an op runs on one thread in the fallback kernel (docs/codegen.md), which checks no index: the body must bring a data-dependent position
into range.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import sympy
import torch

from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.builder import Builder, Tensor
from llmos.compiler.frontend.dims import Dim, Shape
from llmos.compiler.frontend.scalars import Number, Scalar
from llmos.compiler.ir.bindings import arith, ir, scf, tensor

Index: TypeAlias = "Scalar | int"
Bound: TypeAlias = "Scalar | int | sympy.Expr"


class Loops:
    """Named arrays and loops over them. `inputs` are read-only; `state` is read and written and gives shape, dtype and initial value."""

    def __init__(self, b: Builder, inputs: Mapping[str, Tensor], state: Mapping[str, tuple[Shape, torch.dtype, Number]]) -> None:
        self.b = b
        self._inputs = {name: b.dense(x) for name, x in inputs.items()}
        self._dtypes = {name: dtype for name, (_, dtype, _) in state.items()}
        self._shapes = {name: shape for name, (shape, _, _) in state.items()}
        self._values = {name: b.fill(shape, dtype, start) for name, (shape, dtype, start) in state.items()}
        self._depth = 0

    def result(self, name: str) -> Tensor:
        """Return an array of `state` as it is now, a dense tensor."""
        return self.b.dense_tensor(self._values[name], self._shapes[name], self._dtypes[name])

    def number(self, value: Bound) -> Scalar:
        """Return a number, or a size of the program, as int64."""
        if isinstance(value, Scalar):
            return value
        return s.constant(value, torch.int64) if isinstance(value, int) else s.from_index(self.b.index(value), torch.int64)

    def get(self, name: str, *at: Index) -> Scalar:
        """Read the element of an array at a position, in the array's dtype."""
        place = [self._index(i) for i in at]
        if name in self._inputs:
            x = self._inputs[name]
            return Scalar(tensor.ExtractOp(x.value, place).result, x.dtype)
        return Scalar(tensor.ExtractOp(self._values[name], place).result, self._dtypes[name])

    def set(self, name: str, at: Sequence[Index], value: Scalar | Number) -> None:
        """Write an element of an array of `state`; the value is cast to its dtype."""
        kind = self._dtypes[name]
        scalar = value.to(kind) if isinstance(value, Scalar) else s.constant(value, kind)
        self._values[name] = tensor.InsertOp(scalar.value, self._values[name], [self._index(i) for i in at]).result

    def add(self, name: str, at: Sequence[Index], value: Scalar | Number) -> None:
        """Add a value to an element of an array of `state`."""
        self.set(name, at, self.get(name, *at) + value)

    def loop(self, low: Bound, high: Bound, body: Callable[[Scalar], None]) -> None:
        """Emit `body(i)` for i from low to high - 1."""
        if self._depth == 0 and (low, high) == (0, 1):
            # Upstream folds a loop of trip count 1, which moves its elements to the host function: add an iteration that does nothing.
            self._emit(0, 2, lambda i: self._emit(0, 1 - i, lambda _: body(i)))
        else:
            self._emit(low, high, body)

    def when(self, condition: Scalar, body: Callable[[], None]) -> None:
        """Emit `body()` under a condition, as a loop of trip count 0 or 1."""
        self._emit(0, condition.to(torch.int64), lambda _: body())

    def _emit(self, low: Bound, high: Bound, body: Callable[[Scalar], None]) -> None:
        names = list(self._values)
        self._depth += 1
        loop = scf.ForOp(self._index(low), self._index(high), self.b.index(1), [self._values[name] for name in names])
        with ir.InsertionPoint(loop.body):
            self._values = dict(zip(names, loop.inner_iter_args, strict=True))
            body(s.from_index(loop.induction_variable, torch.int64))
            scf.YieldOp([self._values[name] for name in names])
        self._values = dict(zip(names, loop.results, strict=True))
        self._depth -= 1

    def _index(self, value: Bound) -> ir.Value:
        if isinstance(value, Scalar):
            made = s.to_index(value)
            assert isinstance(made, ir.Value)
            return made
        return arith.ConstantOp(ir.IndexType.get(), value).result if isinstance(value, int) else self.b.index(value)


def each_element(
    b: Builder, shape: Shape, dtype: torch.dtype, operands: Sequence[Tensor], body: Callable[..., None], scratch: int = 4
) -> Tensor:
    """Emit an elementwise op whose body loops: `body(loops, *elements in float64)` leaves its result in element 0 of "w"."""
    count = b.sizes.product(shape)
    flat = {f"x{i}": b.reshape(b.expand(x, shape), (count,)) for i, x in enumerate(operands)}
    loops = Loops(b, flat, {"out": ((count,), dtype, 0), "w": ((scratch,), torch.float64, 0)})

    def element(i: Scalar) -> None:
        body(loops, *[loops.get(name, i).to(torch.float64) for name in flat])
        loops.set("out", [i], loops.get("w", 0))

    loops.loop(0, count, element)
    return b.reshape(loops.result("out"), shape)


def batched(b: Builder, x: Tensor, keep: int) -> Tensor:
    """Collapse all but the last `keep` dimensions of `x` into one."""
    lead = x.shape[: x.rank - keep]
    return b.reshape(x, (b.sizes.product(lead), *x.shape[x.rank - keep :]))


def lead_of(x: Tensor, keep: int) -> tuple[Dim, ...]:
    """Return the sizes of all but the last `keep` dimensions."""
    return x.shape[: x.rank - keep]
