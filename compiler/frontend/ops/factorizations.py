"""Dense linear algebra as loops (Golub and Van Loan, Matrix Computations, by algorithm); pivots and signs as LAPACK chooses them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.builder import Builder, Meta, Tensor
from llmos.compiler.frontend.dims import Dim
from llmos.compiler.frontend.ops.loops import Bound, Loops, batched, lead_of
from llmos.compiler.frontend.scalars import Scalar, select

INT = torch.int64


def _copy(loops: Loops, source: str, into: str, batch: Scalar, rows: Bound, columns: Bound) -> None:
    loops.loop(0, rows, lambda i: loops.loop(0, columns, lambda j: loops.set(into, [batch, i, j], loops.get(source, batch, i, j))))


def _smaller(b: Builder, m: Dim, n: Dim) -> Dim:
    import sympy

    return b.sizes.simplify(sympy.Min(sympy.sympify(m), sympy.sympify(n)))


def cholesky(b: Builder, x: Tensor, upper: bool = False) -> tuple[Tensor, Tensor]:
    """Return the Cholesky factor of x [..., n, n] and LAPACK's info (0, or the 1-based column that is not positive); 4.2.1, in float64."""
    a = batched(b, x, 2)
    count, n = a.shape[0], a.shape[2]
    shape = (count, n, n)
    loops = Loops(b, {"a": a}, {"l": (shape, torch.float64, 0), "info": ((count,), torch.int32, 0), "w": ((1,), torch.float64, 0)})

    def column(batch: Scalar, j: Scalar) -> None:
        def row(i: Scalar) -> None:
            value = loops.get("a", batch, j, i) if upper else loops.get("a", batch, i, j)
            loops.set("w", [0], value)
            loops.loop(0, j, lambda k: loops.add("w", [0], -(loops.get("l", batch, i, k) * loops.get("l", batch, j, k))))
            pivot = select(i.equals(j), loops.get("w", 0), loops.get("l", batch, j, j))
            root = s.sqrt(loops.get("w", 0))
            bad = i.equals(j) & ~(pivot > 0) & loops.get("info", batch).equals(0)
            loops.set("info", [batch], select(bad, (j + 1).to(torch.int32), loops.get("info", batch)))
            loops.set("l", [batch, i, j], select(i.equals(j), root, loops.get("w", 0) / pivot))

        loops.loop(j, n, row)

    loops.loop(0, count, lambda batch: loops.loop(0, n, lambda j: column(batch, j)))
    factor = b.reshape(loops.result("l"), x.shape)
    info = b.reshape(loops.result("info"), lead_of(x, 2))
    return b.cast(b.permute(factor, _swapped(x.rank)) if upper else factor, x.dtype), info


def _swapped(rank: int) -> list[int]:
    return [*range(rank - 2), rank - 1, rank - 2]


def cholesky_default(b: Builder, result: Meta, x: Tensor, upper: bool = False) -> Tensor:
    """Lower aten.linalg_cholesky: the factor alone; info isn't checked."""
    return cholesky(b, x, upper)[0]


def cholesky_ex(b: Builder, result: Sequence[Meta], x: Tensor, *, upper: bool = False, check_errors: bool = False) -> list[Tensor]:
    """Lower aten.linalg_cholesky_ex: (factor, info int32 [...]); `check_errors` is ignored."""
    return list(cholesky(b, x, upper))


def lu(b: Builder, x: Tensor, pivot: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Return (L and U in one matrix, 1-based int32 pivots [..., k], info) with partial pivoting; 3.4.1, in float64."""
    a = batched(b, x, 2)
    count, m, n = a.shape
    k = _smaller(b, m, n)
    state = {
        "lu": (a.shape, torch.float64, 0),
        "pivots": ((count, k), torch.int32, 0),
        "info": ((count,), torch.int32, 0),
        "best": ((1,), INT, 0),
    }
    loops = Loops(b, {"a": a}, state)

    def matrix(batch: Scalar) -> None:
        _copy(loops, "a", "lu", batch, m, n)
        loops.loop(0, k, lambda j: _lu_column(loops, batch, j, m, n, pivot))

    loops.loop(0, count, matrix)
    lead = lead_of(x, 2)
    factors = b.cast(b.reshape(loops.result("lu"), x.shape), x.dtype)
    return factors, b.reshape(loops.result("pivots"), (*lead, k)), b.reshape(loops.result("info"), lead)


def _lu_column(loops: Loops, batch: Scalar, j: Scalar, m: Dim, n: Dim, pivot: bool) -> None:
    loops.set("best", [0], j)

    def compare(i: Scalar) -> None:
        best = loops.get("best", 0)
        larger = s.absolute(loops.get("lu", batch, i, j)) > s.absolute(loops.get("lu", batch, best, j))
        loops.set("best", [0], select(larger, i, best))

    if pivot:
        loops.loop(j, m, compare)
    loops.set("pivots", [batch, j], loops.get("best", 0) + 1)

    def swap(c: Scalar) -> None:
        p = loops.get("best", 0)
        upper, lower = loops.get("lu", batch, j, c), loops.get("lu", batch, p, c)
        loops.set("lu", [batch, j, c], lower)
        loops.set("lu", [batch, p, c], upper)

    loops.loop(0, n, swap)
    singular = loops.get("lu", batch, j, j).equals(0)
    loops.set("info", [batch], select(singular & loops.get("info", batch).equals(0), (j + 1).to(torch.int32), loops.get("info", batch)))

    def eliminate(i: Scalar) -> None:
        top = loops.get("lu", batch, j, j)
        value = loops.get("lu", batch, i, j)
        loops.set("lu", [batch, i, j], select(top.equals(0), value, value / top))

        def update(c: Scalar) -> None:
            product = loops.get("lu", batch, i, j) * loops.get("lu", batch, j, c)
            loops.add("lu", [batch, i, c], -product)

        loops.loop(j + 1, n, update)

    loops.loop(j + 1, m, eliminate)


def lu_factor_ex(b: Builder, result: Sequence[Meta], x: Tensor, *, pivot: bool = True, check_errors: bool = False) -> list[Tensor]:
    """Lower aten.linalg_lu_factor_ex: (LU, pivots, info); `check_errors` is ignored."""
    return list(lu(b, x, pivot))


def lu_factor(b: Builder, result: Sequence[Meta], x: Tensor, *, pivot: bool = True) -> list[Tensor]:
    """Lower aten.linalg_lu_factor: (LU, pivots); info isn't checked."""
    return list(lu(b, x, pivot)[:2])


def permutation(b: Builder, pivots: Tensor, m: Dim, dtype: torch.dtype) -> Tensor:
    """Return P [..., m, m] with P L U = A, from 1-based pivots [..., k]."""
    flat = batched(b, pivots, 1)
    count, k = flat.shape
    loops = Loops(b, {"pivots": flat}, {"rows": ((count, m), INT, 0), "p": ((count, m, m), dtype, 0)})

    def matrix(batch: Scalar) -> None:
        loops.loop(0, m, lambda i: loops.set("rows", [batch, i], i))

        def swap(i: Scalar) -> None:
            at = (loops.get("pivots", batch, i).to(INT) - 1).max(0).min(loops.number(m) - 1)
            upper, lower = loops.get("rows", batch, i), loops.get("rows", batch, at)
            loops.set("rows", [batch, i], lower)
            loops.set("rows", [batch, at], upper)

        loops.loop(0, k, swap)
        loops.loop(0, m, lambda i: loops.set("p", [batch, loops.get("rows", batch, i), i], 1))

    loops.loop(0, count, matrix)
    return b.reshape(loops.result("p"), (*lead_of(pivots, 1), m, m))


def triangular(b: Builder, result: Meta, a: Tensor, rhs: Tensor, upper: bool, left: bool = True, unit: bool = False) -> Tensor:
    """Solve A X = rhs, or X A = rhs if not `left`, for a triangular A; the other triangle isn't read. 3.1.1 and 3.1.2, in float64."""
    if not left:
        transposed = Meta((*result.shape[:-2], result.shape[-1], result.shape[-2]), result.dtype)
        a, rhs = (b.permute(each, _swapped(each.rank)) for each in (a, rhs))
        return b.permute(triangular(b, transposed, a, rhs, not upper, True, unit), _swapped(len(result.shape)))
    lead = result.shape[:-2]
    a = batched(b, b.expand(a, (*lead, *a.shape[-2:])), 2)
    y = batched(b, b.expand(rhs, (*lead, *rhs.shape[-2:])), 2)
    count, n, columns = y.shape
    loops = Loops(b, {"a": a, "y": y}, {"x": (y.shape, torch.float64, 0), "w": ((1,), torch.float64, 0)})

    def row(batch: Scalar, step: Scalar, c: Scalar) -> None:
        i = loops.number(n) - 1 - step if upper else step
        loops.set("w", [0], loops.get("y", batch, i, c))
        low, high = (i + 1, n) if upper else (0, i)
        loops.loop(low, high, lambda k: loops.add("w", [0], -(loops.get("a", batch, i, k).to(torch.float64) * loops.get("x", batch, k, c))))
        value = loops.get("w", 0)
        loops.set("x", [batch, i, c], value if unit else value / loops.get("a", batch, i, i).to(torch.float64))

    loops.loop(0, count, lambda batch: loops.loop(0, n, lambda i: loops.loop(0, columns, lambda c: row(batch, i, c))))
    return b.cast(b.reshape(loops.result("x"), result.shape), result.dtype)


def solve_triangular(
    b: Builder, result: Meta, a: Tensor, rhs: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Tensor:
    """Lower aten.linalg_solve_triangular, as `triangular`."""
    return triangular(b, result, a, rhs, upper, left, unitriangular)


def householder(b: Builder, x: Tensor) -> tuple[Tensor, Tensor]:
    """LAPACK's geqrf: return R above the reflectors [..., m, n], and the factors tau [..., k]; 5.2.1, in float64."""
    a = batched(b, x, 2)
    count, m, n = a.shape
    k = _smaller(b, m, n)
    state = {"qr": (a.shape, torch.float64, 0), "tau": ((count, k), torch.float64, 0), "w": ((1,), torch.float64, 0)}
    loops = Loops(b, {"a": a}, state)

    def reflect(batch: Scalar, j: Scalar) -> None:
        loops.set("w", [0], 0)
        loops.loop(j + 1, m, lambda i: loops.add("w", [0], _squared(loops.get("qr", batch, i, j))))
        below, alpha = loops.get("w", 0), loops.get("qr", batch, j, j)
        beta = -s.copysign(s.sqrt(alpha * alpha + below), alpha)
        still = below.equals(0)
        tau = select(still, alpha.like(0.0), (beta - alpha) / beta)
        scale = select(still, alpha.like(1.0), 1.0 / (alpha - beta))
        loops.set("tau", [batch, j], tau)
        loops.loop(j + 1, m, lambda i: loops.set("qr", [batch, i, j], loops.get("qr", batch, i, j) * scale))
        loops.set("qr", [batch, j, j], select(still, alpha, beta))

        def column(c: Scalar) -> None:
            loops.set("w", [0], loops.get("qr", batch, j, c))
            loops.loop(j + 1, m, lambda i: loops.add("w", [0], loops.get("qr", batch, i, j) * loops.get("qr", batch, i, c)))
            factor = loops.get("w", 0) * tau
            loops.add("qr", [batch, j, c], -factor)
            loops.loop(j + 1, m, lambda i: loops.add("qr", [batch, i, c], -(loops.get("qr", batch, i, j) * factor)))

        loops.loop(j + 1, n, column)

    def matrix(batch: Scalar) -> None:
        _copy(loops, "a", "qr", batch, m, n)
        loops.loop(0, k, lambda j: reflect(batch, j))

    loops.loop(0, count, matrix)
    return b.reshape(loops.result("qr"), x.shape), b.reshape(loops.result("tau"), (*lead_of(x, 2), k))


def _squared(v: Scalar) -> Scalar:
    return v * v


def geqrf(b: Builder, result: Sequence[Meta], x: Tensor) -> list[Tensor]:
    """Lower aten.geqrf: (R above the reflectors [..., m, n], tau [..., k]) in x's dtype."""
    return [b.cast(each, x.dtype) for each in householder(b, x)]


def apply_reflectors(b: Builder, v: Tensor, tau: Tensor, c: Tensor, transpose: bool) -> Tensor:
    """Return Q C, or Qᵀ C, for reflectors v [batch, m, >= k] below the diagonal, tau [batch, k] and C [batch, m, columns]; 5.1.4."""
    count, m, columns = c.shape
    k = tau.shape[1]
    loops = Loops(b, {"v": v, "tau": tau, "c": c}, {"out": (c.shape, torch.float64, 0), "w": ((1,), torch.float64, 0)})

    def reflect(batch: Scalar, step: Scalar) -> None:
        j = step if transpose else loops.number(k) - 1 - step

        def column(at: Scalar) -> None:
            loops.set("w", [0], loops.get("out", batch, j, at))
            loops.loop(
                j + 1, m, lambda i: loops.add("w", [0], loops.get("v", batch, i, j).to(torch.float64) * loops.get("out", batch, i, at))
            )
            factor = loops.get("w", 0) * loops.get("tau", batch, j).to(torch.float64)
            loops.add("out", [batch, j, at], -factor)
            loops.loop(j + 1, m, lambda i: loops.add("out", [batch, i, at], -(loops.get("v", batch, i, j).to(torch.float64) * factor)))

        loops.loop(0, columns, column)

    def matrix(batch: Scalar) -> None:
        _copy(loops, "c", "out", batch, m, columns)
        loops.loop(0, k, lambda step: reflect(batch, step))

    loops.loop(0, count, matrix)
    return loops.result("out")


def identity(b: Builder, count: Dim, rows: Dim, columns: Dim) -> Tensor:
    """Emit `count` matrices with ones on the diagonal, float64 [count, rows, columns]."""
    from llmos.compiler.frontend.ops.shapes import computed

    def body(at: Sequence[Any]) -> Scalar:
        row, column = (s.from_index(v, INT) for v in at[1:])
        return row.equals(column).to(torch.float64)

    return computed(b, Meta((count, rows, columns), torch.float64), body)


def qr(b: Builder, result: Sequence[Meta], x: Tensor, mode: str = "reduced") -> list[Tensor]:
    """Lower aten.linalg_qr: return (Q, R); Q is empty in mode "r"."""
    packed, tau = householder(b, x)
    rows = result[1].shape[-2]
    r = b.cast(_triangle(b, _rows(b, packed, rows), upper=True), x.dtype)
    if mode == "r":
        return [b.full(result[0].shape, x.dtype, 0), r]
    flat, factors = batched(b, packed, 2), batched(b, tau, 1)
    columns = result[0].shape[-1]
    q = apply_reflectors(b, flat, factors, identity(b, flat.shape[0], flat.shape[1], columns), False)
    return [b.cast(b.reshape(q, result[0].shape), x.dtype), r]


def _rows(b: Builder, x: Tensor, rows: Dim) -> Tensor:
    from llmos.compiler.frontend.ops.shapes import extract

    return extract(b, x, x.rank - 2, 0, rows)


def _triangle(b: Builder, x: Tensor, upper: bool) -> Tensor:
    from llmos.compiler.frontend.ops.shapes import triangle

    return triangle(not upper)(b, Meta(x.shape, x.dtype), x)


def householder_product(b: Builder, result: Meta, x: Tensor, tau: Tensor) -> Tensor:
    """Lower aten.linalg_householder_product: Q [..., m, n] of reflectors x [..., m, n] and tau [..., k]."""
    flat = batched(b, x, 2)
    count, m, n = flat.shape
    q = apply_reflectors(b, flat, batched(b, tau, 1), identity(b, count, m, n), False)
    return b.cast(b.reshape(q, result.shape), result.dtype)


def ormqr(b: Builder, result: Meta, x: Tensor, tau: Tensor, other: Tensor, left: bool = True, transpose: bool = False) -> Tensor:
    """Lower aten.ormqr: Q C, or C Q if not `left`, with Q or its transpose, for reflectors x and tau and C `other`."""
    other = other if left else b.permute(other, _swapped(other.rank))
    done = apply_reflectors(b, batched(b, x, 2), batched(b, tau, 1), batched(b, other, 2), transpose if left else not transpose)
    shaped = b.reshape(done, other.shape)
    return b.cast(shaped if left else b.permute(shaped, _swapped(other.rank)), result.dtype)


def pivot_matrix(b: Builder, result: Meta, pivots: Tensor, rows: int) -> Tensor:
    """Lower `llmos::pivot_matrix`, as `permutation`."""
    return permutation(b, pivots, rows, result.dtype)
