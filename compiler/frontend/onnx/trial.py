"""A trial run of a module in eager torch, which tests whether it accepts inputs of given sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class ZerosForMissingKernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Makes ops that eager torch lacks for a dtype, such as a maximum of uint32, return zeros of the right shape and dtype.

    So does an integer division whose random divisors contain a zero. The compiler supports both. Zeros suffice if only sizes matter, but
    not for reference outputs.
    """

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except NotImplementedError:
            return _zeros(func, args, kwargs or {})
        except RuntimeError as error:
            if str(error) != "ZeroDivisionError":
                raise
            return _zeros(func, args, kwargs or {})


def _zeros(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    with FakeTensorMode() as mode:
        fake_args, fake_kwargs = pytree.tree_map_only(torch.Tensor, mode.from_tensor, (tuple(args), dict(kwargs)))
        made = func(*fake_args, **fake_kwargs)
    return pytree.tree_map_only(torch.Tensor, lambda t: torch.zeros(t.shape, dtype=t.dtype), made)
