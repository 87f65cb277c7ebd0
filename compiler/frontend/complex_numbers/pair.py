"""A complex tensor as two real ones, and the dispatch mode of ops on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch._prims_common import ELEMENTWISE_TYPE_PROMOTION_KIND as KIND
from torch._prims_common import corresponding_complex_dtype, corresponding_real_dtype, elementwise_dtypes
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from llmos.compiler.frontend.spectra import RFFT
from llmos.runtime.errors import UnsupportedError

Rule: TypeAlias = Callable[..., Any]
Operand: TypeAlias = "Tensor | complex | torch.SymInt | torch.SymFloat"


class Pair(Tensor):
    """A complex tensor: `re` and `im` are real tensors of its shape. Exists only while a rule is traced, inside `Rules`."""

    re: Tensor
    im: Tensor

    @staticmethod
    def __new__(cls, re: Tensor, im: Tensor) -> Pair:
        made: Pair = Tensor._make_wrapper_subclass(
            cls, re.shape, strides=re.stride(), dtype=corresponding_complex_dtype(re.dtype), device=re.device, requires_grad=False
        )
        made.re, made.im = re, im
        return made

    def __init__(self, re: Tensor, im: Tensor) -> None:
        super().__init__()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise AssertionError(f"{func} of complex numbers outside of their rules")


class Rules(TorchDispatchMode):
    """Dispatches ops that take a Pair or return a complex tensor to their rules; other ops run unchanged."""

    def __init__(self, rules: dict[Any, Rule]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rules = rules

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        takes_pair = any(isinstance(each, Pair) for each in pytree.tree_leaves((args, given)))
        makes_pair = (
            func in MAKERS or _is_complex(given.get("dtype")) or any(isinstance(each, complex) for each in pytree.tree_leaves(args))
        )
        if not takes_pair and not makes_pair:
            return func(*args, **given)
        for rule in (self._rules.get(func), self._rules.get(func.overloadpacket), decomposition_table.get(func)):
            if rule is not None:
                with self:  # a rule may use other ops on pairs
                    answer = rule(*args, **given)
                if answer is not NotImplemented:
                    return answer
        raise UnsupportedError(f"{func}: not supported for complex numbers")


aten = torch.ops.aten

# Ops of real tensors whose result is complex.
MAKERS = frozenset(
    {RFFT, aten.complex.default, aten.polar.default, aten.view_as_complex.default, aten._fft_r2c.default, aten.linalg_eig.default,
     aten.linalg_eigvals.default, aten._linalg_eigvals.default}
)  # fmt: skip


def _is_complex(dtype: Any) -> bool:
    return isinstance(dtype, torch.dtype) and dtype.is_complex


def parts(x: Operand) -> tuple[Any, Any]:
    """Return real and imaginary part of a tensor or a number; the imaginary part of a real one is None."""
    if isinstance(x, Pair):
        return x.re, x.im
    if isinstance(x, complex):
        return x.real, x.imag
    return x, None


def both(x: Operand, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return both parts as tensors, of `like`'s dtype if given; a number needs a `like`."""
    re, im = parts(x)
    if not isinstance(re, Tensor):
        assert like is not None
        re = torch.full([], re, dtype=like.dtype)
    im = torch.zeros_like(re) if im is None else im if isinstance(im, Tensor) else torch.full([], im, dtype=re.dtype)
    return (re, im) if like is None else (re.to(like.dtype), im.to(like.dtype))


def common(*operands: Any) -> tuple[Any, ...]:
    """Convert tensor operands to their common dtype (real ones stay real); numbers are unchanged."""
    _, dtype = elementwise_dtypes(*[_sample(each) for each in operands], type_promotion_kind=KIND.DEFAULT)
    part = corresponding_real_dtype(dtype) if dtype.is_complex else dtype
    return tuple(converted(each, part) for each in operands)


def _sample(x: Any) -> Any:
    """Return a value that torch's promotion rules treat as they treat `x`."""
    if isinstance(x, Tensor):
        return torch.empty((1,) * x.dim(), dtype=x.dtype, device="meta")
    return 1 if isinstance(x, torch.SymInt) else 1.0 if isinstance(x, torch.SymFloat) else x


def converted(x: Any, part: torch.dtype) -> Any:
    """Convert the parts of a tensor to the real dtype `part`; numbers are unchanged."""
    if isinstance(x, Pair):
        return Pair(x.re.to(part), x.im.to(part))
    return x.to(part) if isinstance(x, Tensor) else x
