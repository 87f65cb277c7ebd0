"""Linear algebra on top of the factorizations that ops/factorizations.py lowers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from llmos.runtime.errors import UnsupportedError

aten = torch.ops.aten


def _permutation(pivots: Tensor, rows: int) -> Tensor:
    made: Tensor = torch.ops.llmos.pivot_matrix(pivots, rows)
    return made


def _lu_unpack(lu: Tensor, pivots: Tensor, unpack_data: bool = True, unpack_pivots: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = lu.shape[-2:]
    k = min(rows, columns)
    eye = torch.eye(rows, k, dtype=lu.dtype)
    p = _permutation(pivots, rows).to(lu.dtype) if unpack_pivots else lu.new_zeros([0])
    if not unpack_data:
        return p, lu.new_zeros([0]), lu.new_zeros([0])
    return p, lu[..., :, :k].tril(-1) + eye, lu[..., :k, :].triu()


def _linalg_lu(x: Tensor, *, pivot: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    factors, pivots, _ = torch.linalg.lu_factor_ex(x, pivot=pivot)
    p, lower, upper = _lu_unpack(factors, pivots, True, True)
    return (p if pivot else x.new_zeros([0])), lower, upper


def _lu_solve(lu: Tensor, pivots: Tensor, rhs: Tensor, *, left: bool = True, adjoint: bool = False) -> Tensor:
    if not left:
        return _lu_solve(lu, pivots, rhs.mT, adjoint=not adjoint).mT
    p = _permutation(pivots, lu.shape[-1]).to(lu.dtype)
    if adjoint:
        return p @ _triangular(lu.mT, _triangular(lu.mT, rhs, False), True, unit=True)
    return _triangular(lu, _triangular(lu, p.mT @ rhs, False, unit=True), True)


def _triangular(a: Tensor, rhs: Tensor, upper: bool, unit: bool = False) -> Tensor:
    found: Tensor = torch.linalg.solve_triangular(a, rhs, upper=upper, unitriangular=unit)
    return found


def _solve(a: Tensor, rhs: Tensor, left: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (solution, LU, pivots, info)."""
    vector = rhs.dim() == 1 or (rhs.dim() == a.dim() - 1 and rhs.shape == a.shape[:-1])
    columns = rhs.unsqueeze(-1) if vector else rhs
    factors, pivots, info = torch.linalg.lu_factor_ex(a)
    found = _lu_solve(factors, pivots, columns, left=left)
    return (found.squeeze(-1) if vector else found), factors, pivots, info


def _linalg_solve(a: Tensor, rhs: Tensor, *, left: bool = True) -> Tensor:
    return _solve(a, rhs, left)[0]


def _solve_ex(a: Tensor, rhs: Tensor, *, left: bool = True, check_errors: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _solve(a, rhs, left)


def _inverse(a: Tensor) -> Tensor:
    return _solve(a, torch.eye(a.shape[-1], dtype=a.dtype).expand(a.shape))[0]


def _inverse_ex(a: Tensor, *, check_errors: bool = False) -> tuple[Tensor, Tensor]:
    found, _, _, info = _solve(a, torch.eye(a.shape[-1], dtype=a.dtype).expand(a.shape))
    return found, info


def _sign_of(pivots: Tensor) -> Tensor:
    """Return the sign of the permutation: -1 to the number of row exchanges."""
    moved = pivots != torch.arange(1, pivots.shape[-1] + 1, dtype=pivots.dtype)
    return 1 - 2 * (moved.sum(-1) % 2)


def _det(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    factors, pivots, _ = torch.linalg.lu_factor_ex(a)
    return factors.diagonal(0, -2, -1).prod(-1) * _sign_of(pivots), factors, pivots


def _slogdet(a: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    factors, pivots, _ = torch.linalg.lu_factor_ex(a)
    diagonal = factors.diagonal(0, -2, -1)
    return diagonal.sign().prod(-1) * _sign_of(pivots), diagonal.abs().log().sum(-1), factors, pivots


def _cholesky_solve(rhs: Tensor, factor: Tensor, upper: bool = False) -> Tensor:
    lower = factor.mT if upper else factor
    return _triangular(lower.mT, _triangular(lower, rhs, False), True)


def _cholesky_inverse(factor: Tensor, upper: bool = False) -> Tensor:
    return _cholesky_solve(torch.eye(factor.shape[-1], dtype=factor.dtype).expand(factor.shape), factor, upper)


def _triangular_solve(
    rhs: Tensor, a: Tensor, upper: bool = True, transpose: bool = False, unitriangular: bool = False
) -> tuple[Tensor, Tensor]:
    found = torch.linalg.solve_triangular(a.mT if transpose else a, rhs, upper=upper != transpose, unitriangular=unitriangular)
    return found, a.expand(*found.shape[:-2], *a.shape[-2:]).clone()


def _svd_parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, S and V of the reduced decomposition, from the eigenvectors of the smaller of xᵀx and xxᵀ, in float64."""
    if x.shape[-2] < x.shape[-1]:
        v, values, u = _svd_parts(x.mT)
        return u, values, v
    wide = x.double()
    squares, vectors = torch.linalg.eigh(wide.mT @ wide)
    values, v = squares.clamp(min=0).sqrt().flip(-1), vectors.flip(-1)
    scale = torch.where(values > 0, values, 1.0)
    u = (wide @ v) / scale.unsqueeze(-2)
    return u, values, v


def _linalg_svd(
    x: Tensor, full_matrices: bool = False, compute_uv: bool = True, *, driver: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    if compute_uv and full_matrices and x.shape[-2] != x.shape[-1]:
        raise UnsupportedError("linalg.svd of a matrix that isn't square takes full_matrices=False only")
    u, values, v = _svd_parts(x)
    return u.to(x.dtype), values.to(x.dtype), v.mT.to(x.dtype)


def _svdvals(x: Tensor, *, driver: str | None = None) -> Tensor:
    return _svd_parts(x)[1].to(x.dtype)


def _hermitian_parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `_svd_parts`, for a symmetric matrix; reads the lower triangle."""
    values, vectors = torch.linalg.eigh(x.double())
    return vectors * values.sign().unsqueeze(-2), values.abs(), vectors


def _tolerance(values: Tensor, x: Tensor, atol: Any, rtol: Any) -> Tensor:
    """Return the threshold below which singular values count as zero, as in linalg.pinv and linalg.matrix_rank."""
    default = max(x.shape[-2:]) * torch.finfo(x.dtype).eps
    absolute = 0.0 if atol is None else atol.double() if isinstance(atol, Tensor) else atol
    if rtol is None:
        relative = torch.where(absolute > 0, 0.0, default) if isinstance(absolute, Tensor) else (default if absolute == 0 else 0.0)
    else:
        relative = rtol.double() if isinstance(rtol, Tensor) else rtol
    largest = values.amax(-1)
    scaled = relative * largest
    return torch.maximum(scaled, torch.zeros_like(largest) + absolute).unsqueeze(-1)


def _pinv(x: Tensor, *, atol: Any = None, rtol: Any = None, hermitian: bool = False) -> Tensor:
    if x.numel() == 0:
        return x.new_zeros([*x.shape[:-2], x.shape[-1], x.shape[-2]])
    u, values, v = _hermitian_parts(x) if hermitian else _svd_parts(x)
    kept = values > _tolerance(values, x, atol, rtol)
    inverse = torch.where(kept, 1.0 / torch.where(kept, values, 1.0), 0.0)
    return ((v * inverse.unsqueeze(-2)) @ u.mT).to(x.dtype)


def _matrix_rank(x: Tensor, *, atol: Any = None, rtol: Any = None, hermitian: bool = False) -> Tensor:
    if 0 in x.shape[-2:]:
        return torch.zeros(x.shape[:-2], dtype=torch.int64)
    values = (_hermitian_parts(x) if hermitian else _svd_parts(x))[1]
    return (values > _tolerance(values, x, atol, rtol)).sum(-1)


def _matrix_exp(x: Tensor) -> Tensor:
    """Compute exp(x) by scaling and squaring with 12 terms of the Taylor series (Higham 2005), in float64."""
    if x.numel() == 0:
        return x.clone()
    wide = x.double()
    norm = wide.abs().sum(-2).amax(-1)
    squarings = norm.clamp(min=1e-300).log2().ceil().clamp(min=0) + 1
    scaled = wide / torch.exp2(squarings)[..., None, None]
    eye = torch.eye(x.shape[-1], dtype=torch.float64)
    answer = eye + scaled / 12
    for k in range(11, 0, -1):
        answer = eye + scaled @ answer / k
    for k in range(_MAX_SQUARINGS):
        answer = torch.where((squarings > k)[..., None, None], answer @ answer, answer)
    return answer.to(x.dtype)


_MAX_SQUARINGS = 12  # beyond this, exp overflows float32 or loses all digits


def _tensorinv(x: Tensor, ind: int = 2) -> Tensor:
    lead, tail = x.shape[:ind], x.shape[ind:]
    return _inverse(x.reshape(math.prod(lead), math.prod(tail))).reshape(*tail, *lead)


def _tensorsolve(a: Tensor, rhs: Tensor, dims: Sequence[int] | None = None) -> Tensor:
    if dims:
        a = a.movedim(list(dims), list(range(-len(dims), 0)))
    tail = a.shape[rhs.dim() :]
    return _linalg_solve(a.reshape(rhs.numel(), math.prod(tail)), rhs.reshape(-1)).reshape(tail)


TABLE: dict[Any, Callable[..., Any]] = {
    aten.lu_unpack.default: _lu_unpack,
    aten.linalg_lu.default: _linalg_lu,
    aten.linalg_lu_solve.default: _lu_solve,
    aten.lu_solve.default: lambda rhs, lu, pivots: _lu_solve(lu, pivots, rhs),
    aten.linalg_solve.default: _linalg_solve,
    aten.linalg_solve_ex.default: lambda a, rhs, **options: _solve(a, rhs, options.get("left", True))[0::3],
    aten._linalg_solve_ex.default: _solve_ex,
    aten.linalg_inv.default: _inverse,
    aten.inverse.default: _inverse,
    aten.linalg_inv_ex.default: _inverse_ex,
    aten._linalg_det.default: _det,
    aten.linalg_det.default: lambda a: _det(a)[0],
    aten.det.default: lambda a: _det(a)[0],
    aten._linalg_slogdet.default: _slogdet,
    aten.linalg_slogdet.default: lambda a: _slogdet(a)[:2],
    aten.cholesky_solve.default: _cholesky_solve,
    aten.cholesky_inverse.default: _cholesky_inverse,
    aten.triangular_solve.default: _triangular_solve,
    aten._linalg_svd.default: _linalg_svd,
    aten.linalg_svd.default: lambda x, full_matrices=True, **_: _linalg_svd(x, full_matrices),
    aten.linalg_svdvals.default: _svdvals,
    aten.linalg_pinv.atol_rtol_tensor: _pinv,
    aten.linalg_pinv.atol_rtol_float: _pinv,
    aten.linalg_matrix_rank.atol_rtol_tensor: _matrix_rank,
    aten.linalg_matrix_rank.atol_rtol_float: _matrix_rank,
    aten.linalg_matrix_exp.default: _matrix_exp,
    aten.linalg_tensorinv.default: _tensorinv,
    aten.linalg_tensorsolve.default: _tensorsolve,
}


@torch.library.custom_op("llmos::pivot_matrix", mutates_args=())
def pivot_matrix(pivots: Tensor, rows: int) -> Tensor:
    """Return P, float32 [..., rows, rows], with P L U = A, from LAPACK's 1-based pivots [..., k]."""
    flat = pivots.reshape(-1, pivots.shape[-1])
    made = torch.zeros(flat.shape[0], rows, rows)
    for batch, swaps in enumerate(flat.tolist()):
        order = list(range(rows))
        for i, other in enumerate(swaps):
            order[i], order[other - 1] = order[other - 1], order[i]
        for i, row in enumerate(order):
            made[batch, row, i] = 1
    return made.reshape(*pivots.shape[:-1], rows, rows)


@pivot_matrix.register_fake
def _(pivots: Tensor, rows: int) -> Tensor:
    return torch.empty(*pivots.shape[:-1], rows, rows)
