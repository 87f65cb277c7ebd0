"""Rewrites of torch's primitive ops (`prims.*`, which its reference definitions use) to aten ops.

torch can't functionalize a program with those that are views, and torch-mlir lowers few.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from llmos.compiler.frontend.splicing import copied, rename_outputs, splice, updated

aten, prims = torch.ops.aten, torch.ops.prims

# Same arguments and results as the aten op of the same name.
_SAME = """
    abs acos acosh add amax amin asin asinh atan atan2 atanh bitwise_and bitwise_not bitwise_or bitwise_xor cat ceil clone conj_physical
    cos cosh digamma eq erf erfc exp exp2 expm1 floor fmax fmin fmod frexp full full_like gcd ge gt hypot igamma igammac isfinite le
    lgamma log log10 log1p log2 lt maximum minimum mul ne neg nextafter pow reciprocal remainder reshape round rsqrt sign signbit sin
    sinh sqrt sub tan tanh trunc where real imag as_strided as_strided_scatter scalar_tensor
"""
_RENAMED = {
    "bessel_i0": "i0", "bessel_i0e": "special_i0e", "bessel_i1": "special_i1", "bessel_i1e": "special_i1e",
    "bessel_j0": "special_bessel_j0", "bessel_j1": "special_bessel_j1", "erf_inv": "erfinv", "erfcx": "special_erfcx",
    "ndtri": "special_ndtri", "zeta": "special_zeta", "spherical_bessel_j0": "special_spherical_bessel_j0",
    "shift_left": "bitwise_left_shift", "shift_right_arithmetic": "bitwise_right_shift", "transpose": "permute", "rev": "flip",
    "squeeze": "squeeze", "conj": "_conj", "resize": "resize",
}  # fmt: skip


def _quotient(x: Any, y: Any) -> Tensor:
    """Divide; integer quotients are truncated, as in C."""
    whole = not any(isinstance(each, float) or (isinstance(each, Tensor) and each.is_floating_point()) for each in (x, y))
    return aten.div(x, y, rounding_mode="trunc") if whole else aten.div(x, y)  # type: ignore[no-any-return]


def _split_dim(x: Tensor, dim: int, outer: Any) -> Tensor:
    return x.reshape(*x.shape[:dim], outer, x.shape[dim] // outer, *x.shape[dim + 1 :])


def _collapsed(x: Tensor, start: int, end: int) -> Tensor:
    return x.reshape(*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :])


def _broadcast(x: Tensor, shape: Sequence[Any], dimensions: Sequence[int]) -> Tensor:
    for dim in range(len(shape)):
        if dim not in dimensions:
            x = x.unsqueeze(dim)
    return x.expand(list(shape))


def _iota(length: Any, *, start: Any, step: Any, dtype: torch.dtype, **_: Any) -> Any:
    return torch.arange(length, dtype=dtype) * step + start


def _sum(x: Tensor, dims: Sequence[int], *, output_dtype: torch.dtype | None = None) -> Tensor:
    return aten.sum(x, dims, dtype=output_dtype or x.dtype)  # type: ignore[no-any-return]


def _prod(x: Tensor, dims: Sequence[int], *, output_dtype: torch.dtype | None = None) -> Tensor:
    for dim in sorted(dims, reverse=True):
        x = aten.prod(x, dim, dtype=output_dtype or x.dtype)
    return x


def _var(x: Tensor, dims: Sequence[int], correction: Any = 1, **_: Any) -> Tensor:
    return aten.var(x, dims, correction=correction)  # type: ignore[no-any-return]


@cache
def _bodies() -> dict[Any, Callable[..., Any]]:
    names = {**{name: name for name in _SAME.split()}, **_RENAMED}
    found = {getattr(prims, name): getattr(aten, other) for name, other in names.items() if hasattr(prims, name)}
    return {
        **found,
        prims.div: _quotient,
        prims.cbrt: lambda x: x.sign() * x.abs() ** (1 / 3),
        prims.convert_element_type: lambda x, dtype: aten._to_copy(x, dtype=dtype),
        prims.device_put: lambda x, *_, **__: aten.alias(x),
        prims.view_of: aten.alias,
        prims.view_of_dtype: lambda x, dtype: aten.view(x, dtype),
        prims.split_dim: _split_dim,
        prims.collapse: _collapsed,
        prims.collapse_view: _collapsed,
        prims.broadcast_in_dim: _broadcast,
        prims.iota: _iota,
        prims.sum: _sum,
        prims.prod: _prod,
        prims.var: _var,
    }


def without_prims(program: ExportedProgram) -> ExportedProgram:
    """Replace primitive ops by aten ops; return the same program if it has none."""
    if not any(_body(node) for node in program.graph.nodes):
        return program
    module, signature = copied(program)
    for node in list(module.graph.nodes):
        body = _body(node)
        if body is not None:
            made = _said(node, body)
            rename_outputs(signature, {node.name: made.name})
            node.replace_all_uses_with(made)
            module.graph.erase_node(node)
    module.recompile()
    return updated(program, module, signature)


def _body(node: fx.Node) -> Callable[..., Any] | None:
    if not isinstance(node.target, torch._ops.OpOverload) or not isinstance(node.meta.get("val"), Tensor):
        return None
    return _bodies().get(node.target.overloadpacket)


def _said(node: fx.Node, body: Callable[..., Any]) -> fx.Node:
    operands = node.all_input_nodes

    def compute(*values: Any) -> list[Tensor]:
        known = dict(zip(operands, values, strict=True))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda each: known[each])
        return [body(*args, **{name: value for name, value in kwargs.items() if name not in ("device", "requires_grad")})]

    (made,) = splice(node, compute, operands)
    assert isinstance(made, fx.Node)
    return made
