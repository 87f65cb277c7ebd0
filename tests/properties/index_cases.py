"""Programs that read or write where data says: every op of torch that takes an index, over dtypes, ranks, axes and sizes.

A case is a function and what its inputs are: plain numbers, indices with the range that the op takes, or `loose` data (offsets, lengths,
boundaries, coordinates) of which any value must be taken without a fault.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

Dim = int | str  # a string: the name of a size
Sizes = Mapping[str, int]
Limit = Callable[[Sizes], int]

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
NUMBERS = (*FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
OUTSIDE = (-(2**63), -(10**11), -(2**32) - 1, -(2**31), 2**31 - 1, 2**32, 2**32 + 1, 10**11, 2**63 - 1)


@dataclass(frozen=True)
class Given:
    """One input. `low` and `high`: an index from low to high - 1; without them, plain numbers. loose: any. counts: none below 0."""

    shape: tuple[Dim, ...]
    dtype: torch.dtype = torch.float32
    low: Limit | None = None
    high: Limit | None = None
    loose: bool = False
    counts: bool = False

    @property
    def is_index(self) -> bool:
        return self.low is not None


@dataclass(frozen=True)
class Case:
    """`dynamic`: names of sizes that may change from call to call; `traced`: the sizes that the program is made at."""

    name: str
    function: Callable[..., Any]
    inputs: tuple[Given, ...]
    traced: Sizes
    dynamic: frozenset[str] = frozenset()
    kind: str = "torch"
    node: Mapping[str, Any] = field(default_factory=dict)  # of an ONNX node: its attributes

    def sizes(self, rng: random.Random) -> dict[str, int]:
        return {name: rng.choice((1, 2, 3, size, size + 3, 33)) if name in self.dynamic else size for name, size in self.traced.items()}


def zero(_: Sizes) -> int:
    return 0


def size_of(name: str) -> Limit:
    return lambda sizes: sizes[name]


def minus(limit: Limit) -> Limit:
    return lambda sizes: -limit(sizes)


def product(*names: str) -> Limit:
    return lambda sizes: int(np.prod([sizes[name] for name in names]))


@dataclass
class Draw:
    """The random choices of one case."""

    rng: random.Random

    def __post_init__(self) -> None:
        self.rank = self.rng.choice((1, 2, 2, 3, 3, 4))
        self.axis = self.rng.randrange(self.rank)
        self.dims = tuple(f"d{i}" for i in range(self.rank))
        sizes = (1, 2, 3, 4, 5, 17, 40) if self.rank < 3 else (1, 2, 3, 5, 18)
        self.traced = {name: self.rng.choice(sizes) for name in self.dims} | {
            "n": self.rng.choice((1, 2, 5, 9)),
            "m": self.rng.choice((1, 3, 4)),
        }
        if self.rng.random() < 0.15:
            self.traced[self.rng.choice(list(self.traced))] = 0

    @property
    def at(self) -> str:
        return self.dims[self.axis]

    @property
    def signed(self) -> int:
        """The axis, counted from either end."""
        return self.axis - self.rank * self.rng.randrange(2)

    def along(self, name: str) -> tuple[str, ...]:
        """The dims with another size along the axis."""
        return (*self.dims[: self.axis], name, *self.dims[self.axis + 1 :])

    def number(self) -> torch.dtype:
        return self.rng.choice(NUMBERS)

    def index(self, shape: tuple[Dim, ...], high: Limit, wraps: bool = False, dtypes: tuple[torch.dtype, ...] = (torch.int64,)) -> Given:
        return Given(shape, self.rng.choice(dtypes), minus(high) if wraps else zero, high)

    def case(self, name: str, function: Callable[..., Any], *inputs: Given, static: tuple[str, ...] = ()) -> Case:
        used = [dim for each in inputs for dim in each.shape if isinstance(dim, str)]
        moving = {name for name in used if name not in static and self.traced[name] and self.rng.random() < 0.5}
        traced = {name: max(self.traced[name], 2) if name in moving else self.traced[name] for name in used}
        return Case(name, function, inputs, traced, frozenset(moving))


def _index_select(d: Draw) -> Case:
    axis = d.signed
    both = (torch.int64, torch.int32)
    return d.case(
        "index_select", lambda x, i: x.index_select(axis, i), Given(d.dims, d.number()), d.index(("n",), size_of(d.at), dtypes=both)
    )


def _gather(d: Draw) -> Case:
    axis = d.signed
    return d.case("gather", lambda x, i: x.gather(axis, i), Given(d.dims, d.number()), d.index(d.along("n"), size_of(d.at)))


def _take_along(d: Draw) -> Case:
    axis = d.signed
    return d.case(
        "take_along_dim", lambda x, i: x.take_along_dim(i, axis), Given(d.dims, d.number()), d.index(d.along("n"), size_of(d.at), True)
    )


def _take(d: Draw) -> Case:
    return d.case("take", lambda x, i: x.take(i), Given(d.dims, d.number()), d.index(("n", "m"), product(*d.dims), True))


def _indices(d: Draw) -> tuple[list[int], list[Given]]:
    """One to three axes, each with an index tensor; their shapes broadcast."""
    axes = sorted(d.rng.sample(range(d.rank), d.rng.randint(1, min(3, d.rank))))
    shapes: list[tuple[Dim, ...]] = [("n", "m")] + [d.rng.choice((("n", "m"), ("m",), ("n", 1))) for _ in axes[1:]]
    return axes, [d.index(shape, size_of(d.dims[axis]), True) for axis, shape in zip(axes, shapes, strict=True)]


def _spread(axes: list[int], indices: tuple[torch.Tensor, ...]) -> list[torch.Tensor | None]:
    places = dict(zip(axes, indices, strict=True))
    return [places.get(axis) for axis in range(max(axes) + 1)]


def _index(d: Draw) -> Case:
    axes, indices = _indices(d)
    return d.case("index", lambda x, *i: torch.ops.aten.index(x, _spread(axes, i)), Given(d.dims, d.number()), *indices)


def _index_put(d: Draw) -> Case:
    axes, indices = _indices(d)
    accumulate = d.rng.random() < 0.6
    rest = [d.dims[axis] for axis in range(d.rank) if axis not in axes]
    place = axes[0] if axes[-1] - axes[0] + 1 == len(axes) else 0
    kind = d.number()
    values = d.rng.choice(((*rest[:place], "n", "m", *rest[place:]), ()))
    name = "index_put_accumulate" if accumulate else "index_put"

    def function(x: torch.Tensor, v: torch.Tensor, *i: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten.index_put(x, _spread(axes, i), v, accumulate)  # type: ignore[no-any-return]

    return d.case(name, function, Given(d.dims, kind), Given(values, kind), *indices)


def _scatter(d: Draw) -> Case:
    axis, kind = d.signed, d.number()
    form = d.rng.choice(("src", "value", "add", "reduce_add", "reduce_multiply", "value_reduce"))
    index, src = d.index(d.along("n"), size_of(d.at)), Given(d.along("n"), kind)
    functions: dict[str, Callable[..., torch.Tensor]] = {
        "src": lambda x, i, s: x.scatter(axis, i, s),
        "add": lambda x, i, s: x.scatter_add(axis, i, s),
        "reduce_add": lambda x, i, s: torch.scatter(x, axis, i, s, reduce="add"),
        "reduce_multiply": lambda x, i, s: torch.scatter(x, axis, i, s, reduce="multiply"),
        "value": lambda x, i: x.scatter(axis, i, 3),
        "value_reduce": lambda x, i: torch.scatter(x, axis, i, 2, reduce="add"),
    }
    return d.case(f"scatter_{form}", functions[form], Given(d.dims, kind), index, *([] if "value" in form else [src]))


def _scatter_rows(d: Draw) -> Case:
    """One index for each slice, as `scatter_add` is most often used."""
    axis, kind = d.axis, d.number()
    shape = [1] * d.rank
    shape[axis] = -1
    reduce = d.rng.choice(("sum", "prod", "amax", "amin", "mean"))
    include = d.rng.random() < 0.5

    def function(x: torch.Tensor, i: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return x.scatter_reduce(axis, i.reshape(shape).expand(s.shape), s, reduce, include_self=include)

    return d.case(f"scatter_rows_{reduce}", function, Given(d.dims, kind), d.index(("n",), size_of(d.at)), Given(d.along("n"), kind))


def _scatter_reduce(d: Draw) -> Case:
    axis, kind = d.signed, d.number()
    reduce, include = d.rng.choice(("sum", "prod", "amax", "amin", "mean")), d.rng.random() < 0.5
    index = d.index(d.along("n"), size_of(d.at))
    function = lambda x, i, s: x.scatter_reduce(axis, i, s, reduce, include_self=include)  # noqa: E731
    return d.case(f"scatter_reduce_{reduce}", function, Given(d.dims, kind), index, Given(d.along("n"), kind))


def _slices(d: Draw) -> Case:
    axis, kind = d.signed, d.number()
    form = d.rng.choice(("add", "copy", "fill", "reduce"))
    reduce, include = d.rng.choice(("prod", "amax", "amin", "mean")), d.rng.random() < 0.5
    functions: dict[str, Callable[..., torch.Tensor]] = {
        "add": lambda x, i, s: x.index_add(axis, i, s, alpha=2),
        "copy": lambda x, i, s: x.index_copy(axis, i, s),
        "reduce": lambda x, i, s: x.index_reduce(axis, i, s, reduce, include_self=include),
        "fill": lambda x, i: x.index_fill(axis, i, 3),
    }
    index, src = d.index(("n",), size_of(d.at), form == "fill"), Given(d.along("n"), kind)
    return d.case(f"index_{form}", functions[form], Given(d.dims, kind), index, *([] if form == "fill" else [src]))


def _put(d: Draw) -> Case:
    kind, accumulate = d.number(), d.rng.random() < 0.5
    function = lambda x, i, s: x.put(i, s, accumulate)  # noqa: E731
    return d.case("put", function, Given(d.dims, kind), d.index(("n", "m"), product(*d.dims), True), Given(("n", "m"), kind))


def _embedding(d: Draw) -> Case:
    kind = d.rng.choice(FLOATS)
    forms: tuple[Callable[..., torch.Tensor], ...] = (
        F.embedding,
        lambda i, w: F.layer_norm(F.embedding(i, w), (w.shape[1],)),
        lambda i, w: F.embedding(i, w) @ w.mT,
        lambda i, w: F.embedding(i, w).sum(-1),
    )
    ids = d.index(("n", "m"), size_of("d0"), dtypes=(torch.int64, torch.int32))
    return d.case("embedding", d.rng.choice(forms), ids, Given(("d0", "width"), kind), static=("width",))


def _unpool(d: Draw) -> Case:
    function = lambda x, i: F.max_unpool2d(x, i, 2, 2, output_size=(4, 6))  # noqa: E731
    return d.case("max_unpool2d", function, Given(("n", "m", 2, 3)), Given(("n", "m", 2, 3), torch.int64, zero, lambda _: 24))


def _losses(d: Draw) -> Case:
    target = d.index(("n",), lambda _: 5)
    form = d.rng.choice(("nll_loss", "cross_entropy", *(["multi_margin_loss"] if d.traced["n"] else [])))
    return d.case(form, lambda x, t: getattr(F, form)(x, t), Given(("n", 5)), target)


def _bag(d: Draw) -> Case:
    mode = d.rng.choice(("sum", "mean", "max"))

    def function(w: torch.Tensor, i: torch.Tensor, o: torch.Tensor) -> torch.Tensor:
        return F.embedding_bag(i, w, o, mode=mode)

    return d.case("embedding_bag", function, Given((7, 4)), d.index((9,), lambda _: 7), Given((3,), torch.int64, loose=True))


def _pivots(d: Draw) -> Case:
    function = lambda a, p: torch.lu_unpack(a, p)[0]  # noqa: E731
    return d.case("lu_unpack", function, Given((4, 4)), Given((4,), torch.int32, loose=True))


def _searches(d: Draw) -> Case:
    form = d.rng.choice(("bucketize", "searchsorted"))
    if form == "bucketize":
        return d.case(form, lambda x, edges: torch.bucketize(x, edges), Given(("n", "m")), Given(("d0",), loose=True))
    function = lambda edges, x, order: torch.searchsorted(edges, x, sorter=order)  # noqa: E731
    return d.case(form, function, Given((5,), loose=True), Given(("n",)), Given((5,), torch.int64, zero, lambda _: 5))


def _runs(d: Draw) -> Case:
    function = lambda x, lengths: torch.segment_reduce(x, "sum", lengths=lengths, unsafe=True, axis=0)  # noqa: E731
    return d.case("segment_reduce", function, Given((6, 3)), Given((3,), torch.int64, loose=True))


def _coordinates(d: Draw) -> Case:
    mode, padding = d.rng.choice(("bilinear", "nearest", "bicubic")), d.rng.choice(("zeros", "border", "reflection"))
    align = d.rng.random() < 0.5

    def function(x: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        return F.grid_sample(x, grid, mode, padding, align)

    return d.case("grid_sample", function, Given((2, 3, 4, 5)), Given((2, 3, 2, 2), loose=True))


def _masked(d: Draw) -> Case:
    form = d.rng.choice(("masked_scatter", "masked_put"))
    function: Callable[..., torch.Tensor] = {
        "masked_scatter": lambda x, mask, v: x.masked_scatter(mask, v),
        "masked_put": lambda x, mask, v: torch.ops.aten.index_put(x, [mask], v),
    }[form]
    return d.case(form, function, Given((4, 5)), Given((4, 5), torch.bool, loose=True), Given((3,)))


def _classes(d: Draw) -> Case:
    if d.rng.random() < 0.5:
        return d.case("one_hot", lambda i: F.one_hot(i, 6), Given(("n", "m"), torch.int64, loose=True))
    return d.case("multilabel_margin_loss", F.multilabel_margin_loss, Given((3, 4)), Given((3, 4), torch.int64, loose=True))


def _paged(d: Draw) -> Case:
    """Slots of a cache of 5 blocks; positions of a table of 3 blocks, whose numbers are inside, and rows of it."""
    import llmos.compiler.frontend.paged_attention  # noqa: F401  registers the ops
    from llmos.compiler.analysis.paged_attention import BlockLayout

    head_dim, kind = d.rng.choice((1, 8, 20)), d.rng.choice((torch.float32, torch.int8))
    heads = ("n", 2, head_dim)
    cache = Given((5, 2, BlockLayout(head_dim, kind == torch.int8).num_elements), kind, counts=True)  # as scales, bytes of -1 are NaN
    if d.rng.random() < 0.5:
        write, slots = torch.ops.llmos.write_kv_cache, d.index(("n",), lambda _: 80, dtypes=(torch.int32,))
        return d.case("write_kv_cache", write, cache, Given(heads), Given(heads), slots)

    def attend(q: torch.Tensor, cache: torch.Tensor, blocks: torch.Tensor, positions: torch.Tensor, requests: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = torch.ops.llmos.paged_attention(q, cache, blocks.abs() % 5, positions, requests, None, 1.0, 0, 0.0)
        return made

    blocks, positions = Given(("m", 3), torch.int32), d.index(("n",), lambda _: 48, dtypes=(torch.int32,))
    requests = d.index(("n",), size_of("m"), dtypes=(torch.int32,))
    return d.case("paged_attention", attend, Given(("n", 4, head_dim)), cache, blocks, positions, requests)


FAMILIES: tuple[Callable[[Draw], Case], ...] = (
    _index_select, _gather, _take_along, _take, _index, _index_put, _index_put, _scatter, _scatter, _scatter_rows, _scatter_reduce, _slices,
    _slices, _put, _embedding, _unpool, _losses, _bag, _pivots, _searches, _runs, _coordinates, _masked, _classes,
    _paged,
)  # fmt: skip


def torch_case(rng: random.Random) -> Case:
    return rng.choice(FAMILIES)(_with_width(Draw(rng)))


def _with_width(draw: Draw) -> Draw:
    draw.traced["width"] = draw.rng.choice((1, 3, 16, 33))
    return draw
