"""Views of a tensor's storage (`as_strided`), rewritten to read the storage of the base tensor instead of its elements.

`x[1:3].as_strided(size, stride, 0)` begins at the start of `x`. The chain of views is followed to the tensor that owns the storage. The op
then takes that storage as a rank-1 tensor: size, stride and offset count its elements.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from llmos.compiler.frontend.splicing import copied, rename_outputs, splice, updated
from llmos.runtime.errors import UnsupportedError

aten = torch.ops.aten

_Recast = Callable[[Tensor], Tensor]


def read_from_storage(program: ExportedProgram) -> ExportedProgram:
    """Make every op on storage take the storage as a rank-1 tensor; return the same program if all do.

    Raises UnsupportedError for a view of a non-contiguous input, of memory in front of a tensor, or of a tensor with gaps.
    """
    if not any(_follows_a_view(node) for node in program.graph.nodes):
        return program
    module, signature = copied(program)
    for node in list(module.graph.nodes):
        if _follows_a_view(node):
            made = _rewritten(node, set(signature.user_inputs))
            rename_outputs(signature, {node.name: made.name})
            node.replace_all_uses_with(made)
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return updated(program, module, signature)


def _follows_a_view(node: fx.Node) -> bool:
    """Whether an op still takes a view instead of storage; the table lowers as_strided of storage only."""
    return node.target in FOLLOWERS and not (node.target in _STRIDED and _is_memory(node.args[0]))


def _is_memory(node: Any) -> bool:
    """Whether a tensor is its whole storage, with rank 1."""
    root, recasts = _root(node)
    val, whole = node.meta["val"], root.meta["val"]
    from_start = _hint(val.storage_offset()) == _hint(whole.storage_offset()) == 0
    return val.dim() == 1 and _hint(val.stride(0)) == 1 and _hint(val.numel()) == _hint(whole.numel()) and from_start and not recasts


def _rewritten(node: fx.Node, inputs: set[Any]) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    root, recasts = _root(source)
    if root.name in inputs and not root.meta["val"].is_contiguous():
        raise UnsupportedError(f"a view follows the memory of the input {root.name!r}: export with an example that is contiguous")
    order = _order_in_memory(root)
    start = root.meta["val"].storage_offset()
    others = [each for each in node.all_input_nodes if each is not source]

    def read(base: Tensor, view: Tensor, *values: Any) -> list[Tensor]:
        memory = base.permute(order).reshape(-1)
        for recast in reversed(recasts):
            memory = recast(memory).reshape(-1)
        known = dict(zip(others, values, strict=True))
        args, kwargs = fx.node.map_arg((node.args[1:], node.kwargs), lambda each: known[each])
        first = start * base.dtype.itemsize // memory.dtype.itemsize
        return [FOLLOWERS[node.target](memory, view, first, *args, **kwargs)]

    (made,) = splice(node, read, [root, source, *others])
    assert isinstance(made, fx.Node)
    return made


def _as_strided(memory: Tensor, view: Tensor, start: Any, size: Any, stride: Any, storage_offset: Any = None) -> Tensor:
    offset = view.storage_offset() if storage_offset is None else storage_offset
    return memory.as_strided(size, stride, _from(offset, start))


def _as_strided_scatter(
    memory: Tensor, view: Tensor, start: Any, source: Tensor, size: Any, stride: Any, storage_offset: Any = None
) -> Tensor:
    """Return the view after the write; elements outside of the written positions are unchanged."""
    offset = view.storage_offset() if storage_offset is None else storage_offset
    places = _places(size, stride, _from(offset, start))
    written = memory.scatter(0, places.reshape(-1), source.to(memory.dtype).reshape(-1))
    return written.as_strided(view.shape, view.stride(), _from(view.storage_offset(), start))


def _places(size: Sequence[Any], stride: Sequence[Any], offset: Any) -> Tensor:
    """Return the storage index of each element of a strided view, int64 of its shape."""
    places = torch.full([1] * len(size), offset, dtype=torch.int64)
    for dim, (count, step) in enumerate(zip(size, stride, strict=True)):
        places = places + (torch.arange(count) * step).reshape(-1, *[1] * (len(size) - dim - 1))
    return places.expand(list(size))


def _resize(memory: Tensor, view: Tensor, start: Any, size: Any, **_: Any) -> Tensor:
    """Return the elements from the start of the view; zeros past the end of storage, where torch's values are undefined."""
    first, count = _from(view.storage_offset(), start), math.prod(size)
    missing = first + count - memory.shape[0]
    filled = torch.cat([memory, memory.new_zeros(missing)]) if missing > 0 else memory
    return filled[first : first + count].reshape(list(size))


def _from(offset: Any, start: Any) -> Any:
    """Return an offset relative to the start of the visible storage, since the caller of the program doesn't know an input's offset."""
    if _hint(offset) < _hint(start):
        raise UnsupportedError("this view reads memory in front of an input or a weight: pass the tensor that it is a part of")
    return offset - start


_STRIDED = (aten.as_strided.default, aten.as_strided_copy.default)
FOLLOWERS: dict[Any, Callable[..., Tensor]] = {
    aten.as_strided.default: _as_strided,
    aten.as_strided_copy.default: _as_strided,
    aten.as_strided_scatter.default: _as_strided_scatter,
    aten.resize.default: _resize,
}


def _root(node: fx.Node) -> tuple[fx.Node, list[_Recast]]:
    """Return the tensor that owns the storage of `node`, and the dtype views between them, last one first."""
    recasts: list[_Recast] = []
    while (parent := _parent(node)) is not None:
        recast = _recast(node)
        if recast is not None:
            recasts.append(recast)
        node = parent
    return node, recasts


def _recast(node: fx.Node) -> _Recast | None:
    """Return a dtype view as a function of the whole storage, else None."""
    target, rest = node.target, node.args[1:]
    if target == aten.view_as_complex.default:
        return lambda memory: aten.view_as_complex(memory.reshape(-1, 2))
    if target in (aten.view.dtype, aten.view_as_real.default, aten._conj.default, aten._neg_view.default):
        return lambda memory: target(memory, *rest)
    return None


def _parent(node: fx.Node) -> fx.Node | None:
    """Return the tensor that `node` is a view of, if any, by running the op in torch on tensors of the same layout."""
    if node.op != "call_function":
        return None
    if node.target is operator.getitem:
        op = node.args[0]
        return _viewed(op, node.args[1]) if isinstance(op, fx.Node) else None
    return _viewed(node, None)


def _viewed(node: fx.Node, item: Any) -> fx.Node | None:
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not isinstance(source.meta.get("val"), Tensor) or not callable(node.target):
        return None
    stand_ins = {each: _stand_in(each.meta.get("val")) for each in node.all_input_nodes}
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda each: stand_ins[each])
    try:
        made = node.target(*args, **{**kwargs, **({"device": "meta"} if "device" in kwargs else {})})
    except Exception:  # an op that torch can't run on shapes alone is no view
        return None
    made = made[item] if item is not None else made
    if not isinstance(made, Tensor):
        return None
    shared = made.untyped_storage()._cdata == stand_ins[source].untyped_storage()._cdata
    return source if shared else None


def _stand_in(val: Any) -> Any:
    if not isinstance(val, Tensor):
        return _hint(val) if isinstance(val, torch.SymInt) else val
    last = [_hint(size) for size in val.shape], [_hint(step) for step in val.stride()]
    return torch.empty_strided(*last, dtype=val.dtype, device="meta")


def _order_in_memory(root: fx.Node) -> list[int]:
    """Return the dimensions by descending stride. Raises UnsupportedError if the tensor's memory has gaps."""
    val = root.meta["val"]
    sizes, strides = [_hint(size) for size in val.shape], [_hint(step) for step in val.stride()]
    order = sorted(range(val.dim()), key=lambda dim: (-strides[dim], -sizes[dim]))
    expected = 1
    for dim in reversed(order):
        if sizes[dim] > 1 and strides[dim] != expected:
            raise UnsupportedError("this view follows the memory of a tensor that has gaps in memory: call .contiguous() first")
        expected *= sizes[dim]
    return order


def _hint(size: Any) -> int:
    """Return the value that a size had during tracing."""
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)
