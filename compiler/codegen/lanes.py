"""Loops along the lanes, and loops one by one, that carry values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmos.compiler.codegen.builder import Value
from llmos.compiler.codegen.coordinates import Coord, Lane
from llmos.compiler.codegen.kernel import Frame

Step = Callable[[Coord, Sequence[Value]], list[Value]]


def lane_loop(frame: Frame, low: Value, high: Value, step: Step, carried: list[Value], static: int | None) -> list[Value]:
    """Run `step` over [low, high) a vector at a time, then once under a mask for what is left. Returns the carried values after it.

    `static`: the length, if known.
    """
    b, ev = frame.b, frame.emitter
    width = b.index(b.lanes)
    whole = b.add(low, b.mul(b.div(b.sub(high, low), width), width))
    if static is None or static >= b.lanes:
        with b.loop(low, whole, width, carried) as loop, ev.scope():
            loop.yield_(step(Lane(loop.iv), loop.args))
        carried = loop.results
    if static is not None and static % b.lanes == 0:
        return carried
    with b.loop(whole, high, width, carried) as loop, ev.scope():
        with ev.memory.masked(b.tail_mask(b.sub(high, loop.iv))):
            made = step(Lane(loop.iv), loop.args)
        loop.yield_(made)
    return loop.results


def scalar_loop(frame: Frame, low: Value, high: Value, step: Step, carried: list[Value]) -> list[Value]:
    """Run `step` over [low, high) one by one. Returns the carried values after it."""
    b = frame.b
    with b.loop(low, high, b.index(1), carried) as loop, frame.emitter.scope():
        loop.yield_(step(loop.iv, loop.args))
    return loop.results
