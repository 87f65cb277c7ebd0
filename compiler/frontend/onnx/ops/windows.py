"""Strides, dilations and pads of convolution and pooling windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from llmos.runtime.errors import UnsupportedError


@dataclass(frozen=True)
class Window:
    """A window over the spatial dims; `pads` holds (before, after) per dim and may be symbolic."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[Any, Any], ...]

    @property
    def is_symmetric(self) -> bool:
        """Whether the pads are numbers, at least 0, and equal before and after."""
        return all(isinstance(a, int) and isinstance(b, int) and a == b and a >= 0 for a, b in self.pads)

    @property
    def padding(self) -> tuple[int, ...]:
        """Return the pads before each dim, which are those after it if `is_symmetric`."""
        return tuple(before for before, _ in self.pads)

    @property
    def extents(self) -> tuple[int, ...]:
        """Return the number of elements from the first to the last tap, for each dim."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True))


def window(
    sizes: tuple[Any, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...] | None,
    dilations: tuple[int, ...] | None,
    pads: tuple[int, ...] | None,
    auto_pad: str,
) -> Window:
    """Return the window of a node; `sizes` are the spatial dims of its input. Raises UnsupportedError for an unknown `auto_pad`."""
    rank = len(kernel)
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    plain = Window(tuple(kernel), tuple(strides), tuple(dilations), ((0, 0),) * rank)
    if auto_pad == "NOTSET":
        pads = pads or (0,) * (2 * rank)
        return Window(plain.kernel, plain.strides, plain.dilations, tuple((pads[i], pads[i + rank]) for i in range(rank)))
    if auto_pad == "VALID":
        return plain
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        raise UnsupportedError(f"auto_pad={auto_pad} isn't a mode of ONNX.")
    pairs = tuple(
        _same(size, extent, stride, auto_pad == "SAME_UPPER")
        for size, extent, stride in zip(sizes, plain.extents, plain.strides, strict=True)
    )
    return Window(plain.kernel, plain.strides, plain.dilations, pairs)


def pad_spatial(x: torch.Tensor, pads: tuple[tuple[Any, Any], ...], value: float = 0.0) -> torch.Tensor:
    """Pad the last dims by (before, after) pairs; negative pads crop."""
    if all(isinstance(item, int) and item == 0 for pair in pads for item in pair):
        return x
    return F.pad(x, [item for pair in reversed(pads) for item in pair], value=value)


def _same(size: Any, extent: int, stride: int, at_end: bool) -> tuple[Any, Any]:
    """Return the pads that give ceil(size / stride) outputs; an odd one goes to the end for SAME_UPPER."""
    missing: Any = torch.sym_max(  # type: ignore[no-untyped-call]
        (-(-size // stride) - 1) * stride + extent - size, 0
    )
    return (missing // 2, missing - missing // 2) if at_end else (missing - missing // 2, missing // 2)
