"""A correction of torch's own simplification of sizes, in place once this module is imported.

torch's FloorDiv joins (a // b) // c to a // (b * c), which is another number where c is negative: (1 // 60) // -2 is 0, and 1 // -120
is -1. Here it does so where c is known to be positive; else the two divisions stay as they are.
"""

from __future__ import annotations

from typing import Any

import sympy
from sympy.core.cache import clear_cache
from torch.utils._sympy.functions import FloorDiv

_torchs_eval = vars(FloorDiv)["eval"].__func__


def _eval(cls: Any, base: Any, divisor: Any) -> Any:
    if isinstance(base, FloorDiv) and sympy.sympify(divisor).is_positive is not True:
        return None
    return _torchs_eval(cls, base, divisor)


setattr(FloorDiv, "eval", classmethod(_eval))  # noqa: B010, not an assignment of the class's author
clear_cache()  # of what was joined before
