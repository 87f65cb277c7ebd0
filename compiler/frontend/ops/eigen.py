"""Eigenvalues and eigenvectors of symmetric matrices by Jacobi's method, as loops (Golub and Van Loan, Matrix Computations, 8.5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.builder import Builder, Meta, Tensor
from llmos.compiler.frontend.dims import Dim
from llmos.compiler.frontend.ops.loops import Loops, batched
from llmos.compiler.frontend.scalars import Scalar, select

INT = torch.int64
SWEEPS = 12  # the method converges quadratically: 6 to 8 are enough in float64


def symmetric_eigen(b: Builder, x: Tensor, upper: bool = False) -> tuple[Tensor, Tensor]:
    """Return ascending eigenvalues and eigenvectors of symmetric matrices by cyclic Jacobi (8.5.3), in float64. One triangle is read."""
    a = batched(b, x, 2)
    count, n = a.shape[0], a.shape[2]
    state = {"a": (a.shape, torch.float64, 0), "v": (a.shape, torch.float64, 0), "w": ((2,), torch.float64, 0), "at": ((1,), INT, 0)}
    loops = Loops(b, {"x": a}, state)

    def start(batch: Scalar, i: Scalar, j: Scalar) -> None:
        low, high = i.min(j), i.max(j)
        loops.set("a", [batch, i, j], loops.get("x", batch, low, high) if upper else loops.get("x", batch, high, low))
        loops.set("v", [batch, i, j], i.equals(j).to(torch.float64))

    def matrix(batch: Scalar) -> None:
        loops.loop(0, n, lambda i: loops.loop(0, n, lambda j: start(batch, i, j)))
        loops.loop(
            0, SWEEPS, lambda _: loops.loop(0, n, lambda p: loops.loop(p + 1, n, lambda q: _rotate_symmetric(loops, batch, p, q, n)))
        )
        loops.loop(0, n, lambda i: _sort_step(loops, batch, i, n))

    loops.loop(0, count, matrix)
    vectors = b.reshape(loops.result("v"), x.shape)
    values = _diagonal_of(b, loops.result("a"))
    return b.reshape(values, x.shape[:-1]), vectors


def _diagonal_of(b: Builder, a: Tensor) -> Tensor:
    from llmos.compiler.frontend.ops.shapes import computed, element

    return computed(b, Meta(a.shape[:-1], a.dtype), lambda at: element(a, [at[0], at[1], at[1]]))


def _rotation(app: Scalar, aqq: Scalar, apq: Scalar) -> tuple[Scalar, Scalar]:
    """Return the cosine and sine of the rotation that makes element pq zero (8.5.2)."""
    none = apq.equals(0)
    theta = (aqq - app) / (2.0 * select(none, apq.like(1.0), apq))
    t = s.copysign(1.0 / (s.absolute(theta) + s.sqrt(theta * theta + 1.0)), theta)
    t = select(none, t.like(0.0), t)
    cosine = 1.0 / s.sqrt(t * t + 1.0)
    return cosine, t * cosine


def _mix(loops: Loops, name: str, first: Sequence[Scalar], second: Sequence[Scalar], cosine: Scalar, sine: Scalar) -> None:
    v, w = loops.get(name, *first), loops.get(name, *second)
    loops.set(name, first, cosine * v - sine * w)
    loops.set(name, second, sine * v + cosine * w)


def _rotate_symmetric(loops: Loops, batch: Scalar, p: Scalar, q: Scalar, n: Dim) -> None:
    cosine, sine = _rotation(loops.get("a", batch, p, p), loops.get("a", batch, q, q), loops.get("a", batch, p, q))
    loops.loop(0, n, lambda i: _mix(loops, "a", [batch, i, p], [batch, i, q], cosine, sine))
    loops.loop(0, n, lambda i: _mix(loops, "a", [batch, p, i], [batch, q, i], cosine, sine))
    loops.loop(0, n, lambda i: _mix(loops, "v", [batch, i, p], [batch, i, q], cosine, sine))


def _sort_step(loops: Loops, batch: Scalar, i: Scalar, n: Dim) -> None:
    """Move the smallest of the eigenvalues from i on, and its vector, to position i."""
    loops.set("at", [0], i)

    def compare(j: Scalar) -> None:
        best = loops.get("at", 0)
        loops.set("at", [0], select(loops.get("a", batch, j, j) < loops.get("a", batch, best, best), j, best))

    loops.loop(i, n, compare)
    at = loops.get("at", 0)
    first, other = loops.get("a", batch, i, i), loops.get("a", batch, at, at)
    loops.set("a", [batch, i, i], other)
    loops.set("a", [batch, at, at], first)

    def swap(row: Scalar) -> None:
        v, w = loops.get("v", batch, row, i), loops.get("v", batch, row, at)
        loops.set("v", [batch, row, i], w)
        loops.set("v", [batch, row, at], v)

    loops.loop(0, n, swap)


def eigh(b: Builder, result: Sequence[Meta], x: Tensor, uplo: str = "L", compute_v: bool = True) -> list[Tensor]:
    """Lower aten._linalg_eigh: (ascending eigenvalues [..., n], eigenvectors [..., n, n]) in x's dtype; zeros without `compute_v`."""
    values, vectors = symmetric_eigen(b, x, uplo.upper() == "U")
    return [b.cast(values, x.dtype), b.cast(vectors, x.dtype) if compute_v else b.full(result[1].shape, x.dtype, 0)]
