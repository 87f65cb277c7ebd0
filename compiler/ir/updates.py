"""Inputs that an entry updates: each has its new value among the function's results, and in memory lies where the input does.

The IR stays functional. A result marked UPDATES is no output of the entry: passes/update_in_place.py says which dispatches write straight
into the input, and the host function copies what lies elsewhere once all else is done.
"""

from __future__ import annotations

_FIRST_ARGUMENT = -(1 << 31)  # as a place of plan-memory: the memory of argument 0; those of the others follow downward


def argument_place(position: int) -> int:
    """Return the number in BUFFERS of a result that lies in the memory of an argument of main."""
    return _FIRST_ARGUMENT - position


def argument_of(place: int) -> int | None:
    """Return the argument in whose memory a place of BUFFERS is; None for a slot or an output."""
    return _FIRST_ARGUMENT - place if place <= _FIRST_ARGUMENT else None
