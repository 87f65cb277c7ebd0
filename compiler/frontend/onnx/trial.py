"""A run of a module in eager torch to see whether it takes inputs of some sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class ZerosForMissingKernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Ops that eager torch lacks for a type, such as a maximum of uint32, give zeros of the right shape and type.

    So does a division of integers whose made-up divisors hold a zero. The compiler has kernels for both. Zeros are good enough where only
    sizes count, never for a reference's numbers.
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
