"""Check decompositions against torch's metadata of the op: each result's shape and dtype."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from llmos.runtime.errors import UnsupportedError

Body = Callable[..., Any]


def checked(op: Any, body: Body) -> Body:
    """Wrap a decomposition to raise UnsupportedError if a result differs from torch's metadata of `op`."""

    @functools.wraps(body)
    def run(*args: Any, **kwargs: Any) -> Any:
        found = body(*args, **kwargs)
        if found is not NotImplemented:
            _compare(op, found, _metadata(op, args, kwargs))
        return found

    return run


def _metadata(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return torch's result metadata for the operands; None if it has none or the sizes are data-dependent."""
    if torch.Tag.dynamic_output_shape in op.tags or torch.Tag.data_dependent_output in op.tags:
        return None
    args, kwargs = pytree.tree_map(_plain, (tuple(args), dict(kwargs)))
    if not any(isinstance(each, FakeTensor) for each in pytree.tree_leaves((args, kwargs))):
        return None
    try:
        with _disable_current_modes():
            return op(*args, **kwargs)
    except Exception:  # torch lacks metadata for some ops
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and torch._is_functional_tensor(value):
        return torch._from_functional_tensor(value)
    return value


def _compare(op: Any, found: Any, expected: Any) -> None:
    pairs = zip(_results(found), _results(expected), strict=False)
    for place, (have, want) in enumerate(pairs):
        if isinstance(have, torch.Tensor) and isinstance(want, torch.Tensor) and not _is_alike(have, want):
            what = "it" if not isinstance(expected, list | tuple) else f"result {place}"
            raise UnsupportedError(f"{op}: its decomposition gives {_described(have)} where torch gives {_described(want)} ({what})")


def _results(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _is_alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    same_rank = a.dtype == b.dtype and a.dim() == b.dim()
    return same_rank and not any(statically_known_true(x != y) for x, y in zip(a.shape, b.shape, strict=True))


def _described(x: torch.Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}"
