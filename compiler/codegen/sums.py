"""Long floating-point sums: chains of a limited number of additions, whose results are added with compensation.

A chain of n additions loses up to n/2 units in the last place, and stops growing once the sum is 2^24 times a float32 term. So a chain ends
after some number of terms, and a total takes its sum together with what the total's last addition rounded off (W. Kahan, "Further remarks
on reducing truncation errors", CACM 8(1), 1965). Where chains end depends on sizes alone, neither on threads nor on the batch; a sum of
one block has the bits of a plain chain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmos.compiler.analysis.generic import Generic, combiner_of
from llmos.compiler.codegen.builder import Builder, Value, element_type, is_vector
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.sizes import Expr, SymbolTable

BLOCK = 4096  # terms of one chain of products, or of a row that 16 lanes share
CHAIN = 256  # terms of one chain of other sums
UNBOUNDED = 1 << 62

Run = Callable[[Value, Value, list[Value]], list[Value]]  # first iteration, the one after the last, carried values before -> after


def is_long(table: SymbolTable, terms: Expr) -> bool:
    """Whether a sum of so many terms may have more than one block."""
    return _most(table, terms) > BLOCK


def block_level(table: SymbolTable, extents: Sequence[Expr], block: int = CHAIN) -> tuple[int, int] | None:
    """The loop of a nest, outermost first, whose iterations end blocks, and how many make one; None where all of a nest is one block.

    block: terms of one.
    """
    terms = 1
    for level in reversed(range(len(extents))):
        longer = terms * _most(table, extents[level])
        if longer > block:
            return level, max(1, block // max(1, terms))
        terms = longer
    return None


def _most(table: SymbolTable, size: Expr) -> int:
    bound = table.bounds(size)[1]
    return int(bound) if bound.is_Integer else UNBOUNDED


def summed(generics: Sequence[Generic]) -> list[bool]:
    """For each output of some reductions, whether it is a floating-point sum."""
    return [_is_sum(generic, i) for generic in generics for i in range(len(generic.inits))]


def _is_sum(generic: Generic, result: int) -> bool:
    combiner = combiner_of(generic, result)
    return combiner is not None and combiner.name == "arith.addf" and isinstance(combiner.value.type, (ir.F32Type, ir.F64Type))


def add_blocks(b: Builder, totals: Sequence[Value], lost: Sequence[Value], sums: Sequence[Value]) -> tuple[list[Value], list[Value]]:
    """Emit totals with the sums of one more block, and what they then have too much. `lost`: what they have too much before, 0 at first."""
    pairs = [_add(b, *each) for each in zip(totals, lost, sums, strict=True)]
    return [total for total, _ in pairs], [rest for _, rest in pairs]


def _add(b: Builder, total: Value, lost: Value, block: Value) -> tuple[Value, Value]:
    term = b.binary("arith.subf", block, lost)
    made = b.binary("arith.addf", total, term)
    rest = b.binary("arith.subf", b.binary("arith.subf", made, total), term)
    kind = b.vec(b.i1, rest.type.shape[0]) if is_vector(rest) else b.i1
    ordered = b.op("arith.cmpf", [rest, rest], kind, predicate=ir.IntegerAttr.get(b.i64, 7))
    return made, b.select(ordered, rest, nothing(b, rest))  # an infinite total has no rest


def nothing(b: Builder, like: Value) -> Value:
    """Zeros of a value's type."""
    kind = element_type(like.type)
    return b.splat_constant(kind, 0.0, like.type.shape[0]) if is_vector(like) else b.const(kind, 0.0)


def with_rests(b: Builder, carried: Sequence[Value], sums: Sequence[bool]) -> list[Value]:
    """Carried values as `loop_over_blocks` takes them: behind them a rest for each that is a sum."""
    return [*carried, *(nothing(b, value) for value, is_sum in zip(carried, sums, strict=True) if is_sum)]


def loop_over_blocks(
    b: Builder, low: Value, high: Value, block: int, carried: Sequence[Value], sums: Sequence[bool], run: Run
) -> list[Value]:
    """`run` over [low, high), `block` iterations at a time, each with chains of their own for the values that are sums.

    `carried` and the result are `with_rests`, so that the loops around lose nothing either; `run` has the values alone.
    """
    step, count = b.index(block), len(sums)
    with b.loop(low, high, step, carried) as loop:
        totals, lost = loop.args[:count], loop.args[count:]
        start = [nothing(b, value) if is_sum else value for value, is_sum in zip(totals, sums, strict=True)]
        ended = run(loop.iv, b.minimum(b.add(loop.iv, step), high), start)
        added, lost = add_blocks(b, _those(totals, sums), lost, _those(ended, sums))
        queue = iter(added)
        loop.yield_([*(next(queue) if is_sum else value for value, is_sum in zip(ended, sums, strict=True)), *lost])
    return loop.results


def _those(values: Sequence[Value], chosen: Sequence[bool]) -> list[Value]:
    return [value for value, is_chosen in zip(values, chosen, strict=True) if is_chosen]


@dataclass(frozen=True)
class TileSums:
    """A tile of sums of products that lies in scratch while they are made. Of a long k: totals, then their rests, then a block's sums.

    num_sums: of the tile; lanes: of a vector; k: terms of each.
    """

    num_sums: int
    lanes: int
    k: int

    @property
    def num_floats(self) -> int:
        """Return the float32 elements of scratch that the sums take."""
        return 3 * self.num_sums if self.k > BLOCK else self.num_sums

    def sums_at(self, b: Builder, scratch: Value) -> Value:
        """Where chains are added up: in the place of the totals where each is one chain."""
        return b.address(scratch, b.index(2 * self.num_sums), b.f32) if self.k > BLOCK else scratch

    def over_blocks(self, b: Builder, scratch: Value, used: Value, chains: Callable[[Value, int], None]) -> None:
        """`chains(first k, how many)` for all of k, or for each block of a long one, and totals at `scratch`. `used`: sums of the tile."""
        if self.k <= BLOCK:
            chains(b.index(0), self.k)
            return
        places = [b.address(scratch, b.index(part * self.num_sums), b.f32) for part in range(3)]
        for place in places[:2]:
            self.clear(b, place, used)
        whole = (self.k - 1) // BLOCK * BLOCK
        with b.loop(b.index(0), b.index(whole), b.index(BLOCK)) as loop:
            chains(loop.iv, BLOCK)
            self._add(b, places, used)
        chains(b.index(whole), self.k - whole)
        self._add(b, places, used)

    def clear(self, b: Builder, place: Value, used: Value) -> None:
        """Emit zeros into the first `used` sums at `place`, rounded up to whole vectors."""
        with b.loop(b.index(0), used, b.index(self.lanes)) as loop:
            b.store(b.splat_constant(b.f32, 0.0, self.lanes), b.address(place, loop.iv, b.f32), self.lanes * 4)

    def _add(self, b: Builder, places: Sequence[Value], used: Value) -> None:
        with b.loop(b.index(0), used, b.index(self.lanes)) as loop:
            at = [b.address(place, loop.iv, b.f32) for place in places]
            total, lost, sums = (b.load(each, b.vec(b.f32, self.lanes), self.lanes * 4) for each in at)
            for (made,), each in zip(add_blocks(b, [total], [lost], [sums]), at, strict=False):
                b.store(made, each, self.lanes * 4)
