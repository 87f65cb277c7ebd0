"""Data movement and creation ops of complex numbers: the op on each part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from llmos.compiler.frontend.complex_numbers.pair import Pair, Rule, both, common, converted

aten = torch.ops.aten

# Only the first argument holds elements; the others are positions and sizes.
_MOVES = """
    view reshape _unsafe_view view_copy _reshape_alias expand expand_copy permute permute_copy transpose transpose_copy t t_copy
    unsqueeze unsqueeze_copy squeeze squeeze_copy slice slice_copy select select_copy split split_with_sizes split_copy
    split_with_sizes_copy unsafe_split unsafe_split_with_sizes unbind unbind_copy diagonal diagonal_copy unfold unfold_copy alias
    alias_copy detach detach_copy clone contiguous lift_fresh lift_fresh_copy flip roll repeat tile repeat_interleave index index_select
    gather _unsafe_index tril triu sum mean nansum cumsum movedim narrow narrow_copy pad reflection_pad1d
    reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d _unsafe_view rot90 fliplr flipud take
    diag_embed trace block_diag channel_shuffle pixel_shuffle pixel_unshuffle native_channel_shuffle view_as masked_select positive
    unfold_backward im2col col2im
"""

# Further arguments that hold elements, by position.
_JOINS: dict[str, Sequence[int]] = {
    "where": (1, 2), "masked_fill": (2,), "masked_scatter": (2,), "scatter": (3,), "scatter_add": (3,), "index_put": (2,),
    "_unsafe_index_put": (2,),
    "index_copy": (3,), "index_add": (3,), "index_fill": (3,), "slice_scatter": (1,), "select_scatter": (1,), "diagonal_scatter": (1,),
    "as_strided_scatter": (1,), "put": (2,), "copy": (1,), "fill": (1,),
}  # fmt: skip


def _moved(op: Any) -> Rule:
    def rule(x: Any, *args: Any, **kwargs: Any) -> Any:
        wanted, part = kwargs.pop("dtype", None), None
        if isinstance(x, Tensor) and not isinstance(x, Pair) and wanted is not None:
            x = Pair(*both(x))  # a real tensor, such as in a sum of real numbers with a complex dtype
        if wanted is not None:
            if not wanted.is_complex:
                return op(x.re, *args, **kwargs, dtype=wanted)
            part = converted(Pair(*both(x)), torch.empty(0, dtype=wanted).real.dtype)
        return _on_parts(op, part if part is not None else x, args, kwargs)

    return rule


def _on_parts(op: Any, x: Pair, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    re, spec = pytree.tree_flatten(op(x.re, *args, **kwargs))
    im = pytree.tree_leaves(op(x.im, *args, **kwargs))
    return pytree.tree_unflatten([Pair(a, b) for a, b in zip(re, im, strict=True)], spec)


def _joined(op: Any, positions: Sequence[int]) -> Rule:
    def rule(*args: Any, **kwargs: Any) -> Any:
        first = 1 if positions[0] == 1 and op is aten.where else 0
        places = sorted({first, *positions})
        held = dict(zip(places, common(*[args[place] for place in places]), strict=True))
        tensor = next(each for each in held.values() if isinstance(each, Tensor))
        like = tensor.re if isinstance(tensor, Pair) else tensor
        pairs = {place: _of_form(each, like, scalar=_takes_number(op, place)) for place, each in held.items()}
        parts = [op(*[pairs[i][k] if i in pairs else each for i, each in enumerate(args)], **kwargs) for k in (0, 1)]
        return Pair(*parts)

    return rule


def _takes_number(op: Any, place: int) -> bool:
    return op in (aten.fill, aten.index_fill, aten.masked_fill) and place > 0


def _of_form(x: Any, like: Tensor, scalar: bool) -> tuple[Any, Any]:
    if scalar and not isinstance(x, Tensor):
        return complex(x).real, complex(x).imag
    return both(x, like)


def _concatenated(op: Any) -> Rule:
    def rule(tensors: Sequence[Any], *args: Any, **kwargs: Any) -> Pair:
        held = [both(each) for each in common(*tensors)]
        return Pair(op([re for re, _ in held], *args, **kwargs), op([im for _, im in held], *args, **kwargs))

    return rule


def _strided(op: Any) -> Rule:
    """Make the rule of an op on storage (storage_views.py): each part has separate storage of the same order."""

    def rule(x: Pair, *args: Any) -> Pair:
        re, im = (part.clone(memory_format=torch.contiguous_format) for part in (x.re, x.im))
        return Pair(op(re, *args), op(im, *args))

    return rule


def _padded(x: Any, pad: Sequence[Any], value: Any = 0) -> Pair:
    (re, im), filled = both(x), complex(value or 0)
    return Pair(aten.constant_pad_nd(re, pad, filled.real), aten.constant_pad_nd(im, pad, filled.imag))


_PARTS = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}


def _made(op: Any) -> Rule:
    """Make the rule of zeros, ones, full and similar ops with a complex dtype; the imaginary part is 0 for a real fill value."""

    def rule(*args: Any, **kwargs: Any) -> Any:
        value = next((each for each in args if isinstance(each, complex)), None)
        dtype = kwargs.get("dtype") or (args[0].dtype if args and isinstance(args[0], Tensor) else torch.complex64)
        if not dtype.is_complex:
            return NotImplemented
        held = {**kwargs, "dtype": _PARTS[dtype]}
        bare = [each.re if isinstance(each, Pair) else each for each in args]
        re = op(*[each.real if isinstance(each, complex) else each for each in bare], **held)
        return Pair(re, torch.full_like(re, value.imag) if value is not None else torch.zeros_like(re))

    return rule


def _rule(name: str, make: Callable[..., Rule], *rest: Any) -> dict[Any, Rule]:
    op = getattr(aten, name, None)
    return {} if op is None else {op: make(op, *rest)}


def _rules() -> dict[Any, Rule]:
    rules: dict[Any, Rule] = {}
    for name in _MOVES.split():
        rules |= _rule(name, _moved)
    rules[aten.constant_pad_nd] = _padded
    for name in ("as_strided", "as_strided_copy"):
        rules |= _rule(name, _strided)
    for name, positions in _JOINS.items():
        rules |= _rule(name, _joined, positions)
    for name in ("cat", "concat", "concatenate", "stack", "hstack", "vstack"):
        rules |= _rule(name, _concatenated)
    for name in (
        "zeros",
        "ones",
        "full",
        "empty",
        "ones_like",
        "full_like",
        "new_ones",
        "new_full",
        "scalar_tensor",
        "zeros_like",
        "new_zeros",
    ):
        rules |= _rule(name, _made)
    for name in ("empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted", "eye", "linspace", "logspace"):
        rules |= _rule(name, _made)
    return rules


RULES = _rules()
