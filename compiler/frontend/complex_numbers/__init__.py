"""Complex numbers as pairs of real ones: a graph with complex tensors becomes one without (program.py), op by op, by the rules here.

A rule is a function of what the op takes, with a `Pair` for each complex tensor; it says the op in other torch ops. Formulas follow torch's
documentation and, for inverse functions, W. Kahan, "Branch Cuts for Complex Elementary Functions" (1987).
"""

from __future__ import annotations

from llmos.compiler.frontend.complex_numbers.program import COMPLEX, as_pairs, has_complex

__all__ = ["COMPLEX", "as_pairs", "has_complex"]
