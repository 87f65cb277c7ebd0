"""Comparisons of sizes that stay symbolic during tracing: an expression of the sizes that is 1 if true, else 0.

Converting a symbolic bool to a Python bool would add a guard with the outcome at the traced sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

from llmos.runtime.errors import UnsupportedError

_min: Callable[[Any, Any], Any] = torch.sym_min
_max: Callable[[Any, Any], Any] = torch.sym_max


def less(a: Any, b: Any) -> Any:
    """Return a < b: a bool where the sizes decide it, else a symbolic 1 or 0."""
    if not _is_open(a, b):
        return a < b
    return _decided(a < b, a >= b, lambda: _is_positive(b - a))


def less_or_equal(a: Any, b: Any) -> Any:
    """Return a <= b, as `less`."""
    return logical_not(less(b, a))


def equal(a: Any, b: Any) -> Any:
    """Return a == b: a bool where the sizes decide it, else a symbolic 1 or 0."""
    if not _is_open(a, b):
        return a == b
    return _decided(a == b, a != b, lambda: 1 - _min(_max(a - b, b - a), 1))


def logical_not(a: Any) -> Any:
    """Return not a, symbolic for a symbolic truth value."""
    return 1 - a if isinstance(a, torch.SymInt) else not bool(a)


def logical_and(a: Any, b: Any) -> Any:
    """Return a and b, symbolic where a symbolic truth value decides."""
    if isinstance(a, torch.SymInt) and isinstance(b, torch.SymInt):
        return a * b
    if isinstance(a, torch.SymInt) or isinstance(b, torch.SymInt):
        plain, symbol = (b, a) if isinstance(a, torch.SymInt) else (a, b)
        return symbol if bool(plain) else False
    return bool(a) and bool(b)


def logical_or(a: Any, b: Any) -> Any:
    """Return a or b, by De Morgan's law."""
    return logical_not(logical_and(logical_not(a), logical_not(b)))


def logical_xor(a: Any, b: Any) -> Any:
    """Return whether one of a and b is true, not both."""
    return logical_and(logical_or(a, b), logical_not(logical_and(a, b)))


def choose(condition: Any, yes: Any, no: Any) -> Any:
    """Return `yes` where the condition holds, else `no` (Where).

    A condition that selects other values than integers becomes a guard on the sizes.
    """
    if isinstance(condition, torch.SymInt) and all(isinstance(each, (int, torch.SymInt)) for each in (yes, no)):
        return no + condition * (yes - no)
    return yes if bool(condition) else no


def divide(a: Any, b: Any) -> Any:
    """Return a / b (Div): integers truncate toward zero. Raises UnsupportedError for a divisor 0."""
    if isinstance(a, (float, torch.SymFloat)) or isinstance(b, (float, torch.SymFloat)):
        return a / b
    if isinstance(b, int) and b == 0:
        raise UnsupportedError("Div of a size by 0.")
    if b < 0:
        return divide(-a, -b)
    if statically_known_true(a >= 0):
        return a // b
    # Python rounds down, so negative numbers need a separate formula.
    return _max(a, 0) // b - _max(-a, 0) // b


def _is_open(a: Any, b: Any) -> bool:
    symbols = [each for each in (a, b) if not isinstance(each, (bool, int, float))]
    return bool(symbols) and all(isinstance(each, (int, torch.SymInt)) for each in (a, b))


def _decided(holds: Any, fails: Any, otherwise: Any) -> Any:
    if statically_known_true(holds):
        return True
    return False if statically_known_true(fails) else otherwise()


def _is_positive(number: Any) -> Any:
    return _min(_max(number, 0), 1)
