"""Matrix products and einsum."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from llmos.compiler.frontend.onnx.registry import op


@op("MatMul")
def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Lower MatMul, numpy's."""
    return torch.matmul(a, b)


@op("Gemm")
def gemm(
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> torch.Tensor:
    """Lower Gemm: alpha · A' · B' + beta · C; the common form becomes torch's linear."""
    a = a.t() if transA else a
    if transB and alpha == 1.0 and beta == 1.0 and (c is None or c.ndim == 1):
        return F.linear(a, b, c)
    product = torch.matmul(a, b.t() if transB else b)
    product = product if alpha == 1.0 else (product * alpha).to(a.dtype)
    if c is None or beta == 0.0:
        return product
    return product + (c if beta == 1.0 else (c * beta).to(a.dtype))


@op("Einsum", since=12)
def einsum(*items: torch.Tensor, equation: str) -> torch.Tensor:
    """Lower Einsum; the result has the dtype of the first item."""
    return torch.einsum(equation.replace(" ", ""), *items).to(items[0].dtype)  # torch sums small integers to int64


@op("Det")
def det(x: torch.Tensor) -> torch.Tensor:
    """Lower Det of square matrices [..., n, n]."""
    return torch.linalg.det(x)  # type: ignore[no-any-return]
